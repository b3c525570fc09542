"""A trained ASH-Net in Hugging Face form; importing this module registers AutoConfig, AutoModel and AutoProcessor.

    import ashnets.pretrained
    model = AutoModel.from_pretrained("runs/demo/export")
    processor = AutoProcessor.from_pretrained("runs/demo/export")
"""
from __future__ import annotations

import json
import shutil
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    BatchFeature,
    BertConfig,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.bert.modeling_bert import BertEmbeddings
from transformers.utils import logging
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import cached_file

from ashnets.config import ModelConfig, TasksConfig
from ashnets.encoders.text import bert_shape, checkpoint_config
from ashnets.model import ASHNet
from ashnets.processing import Tokenizer, image_to_pixels, rgb, square_pixels
from ashnets.tasks.pretraining import PretrainingModel

T = TypeVar("T")
Picture = bytes | str | Path | Image.Image | np.ndarray
PROCESSOR_FILE = "processor_config.json"


def from_plain(cls: type[T], values: Mapping[str, Any]) -> T:
    """The configuration dataclass `cls` from nested plain values, as JSON holds them; absent fields get their default.

    Raises ValueError for a field that this version does not know.
    """
    hints, arguments = typing.get_type_hints(cls), {}
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"config.json has the field {name!r}, which this version of ashnets does not know in "
                             f"{cls.__name__}: use the version that wrote it")
        if is_dataclass(hints[name]):
            value = from_plain(typing.cast(type[Any], hints[name]), value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)


class ASHNetsConfig(PreTrainedConfig):
    """Everything that shapes the model, as plain values: `model`, `tasks`, the text encoder's BERT, the image side.

    Where weights started from is not part of it: a model is built bare, and then loaded.
    """

    model_type = "ashnets"

    model: dict[str, Any] | None = None
    tasks: dict[str, Any] | None = None
    bert: dict[str, Any] | None = None
    image_size: int = 224
    tie_word_embeddings: bool = True

    @classmethod
    def of(cls, model: ModelConfig, tasks: TasksConfig, image_size: int) -> Self:
        """The configuration of a model trained as `model` and `tasks` say on images of `image_size` pixels a side.

        Raises FileNotFoundError where `model.text.init` cannot be reached, whose BERT may have a shape of its own.
        """
        text = model.text
        shape = (bert_shape(text.vocab_size, text.width, text.layers, text.heads, dropout=0.1) if text.init == "none"
                 else checkpoint_config(text))
        bert = {name: getattr(shape, name) for name in BertConfig.__annotations__} | {"num_hidden_layers": text.layers}
        bare = replace(model, backbone=replace(model.backbone, weights="none"),
                       text=replace(text, init="none", tokenizer=""), fusion=replace(model.fusion, from_text=False))
        return cls(model=_plain(bare), tasks=_plain(tasks), bert=bert, image_size=image_size, dtype="float32",
                   architectures=["ASHNetsModel"])

    def build(self) -> PretrainingModel:
        """The model with random weights."""
        config = from_plain(ModelConfig, self.model or {})
        network = ASHNet(config)
        if self.bert:
            shape = BertConfig(**self.bert)
            shape._attn_implementation = "sdpa"
            network.text.bert = BertModel(shape, add_pooling_layer=False).requires_grad_(not config.text.frozen)
        return PretrainingModel(network, from_plain(TasksConfig, self.tasks or {}))


@dataclass
class ASHNetsOutput(ModelOutput):
    """Unit-norm embeddings, and their cosines over the learned temperature."""

    image_embeds: Float[Tensor, "B E"] | None = None
    text_embeds: Float[Tensor, "M E"] | None = None
    logits_per_image: Float[Tensor, "B M"] | None = None
    logits_per_text: Float[Tensor, "M B"] | None = None


class ASHNetsModel(PreTrainedModel):
    """An ASH-Net under its pre-training heads; every image runs from rest, whatever stands beside it in the batch.

    Its parts are those of `ashnets.tasks.pretraining.PretrainingModel` under the same names, so that a run's
    `export/model.safetensors` is its weights file.
    """

    config_class = ASHNetsConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _tied_weights_keys = {"mlm.decoder.weight": "model.fusion.embeddings.word_embeddings.weight"}

    def __init__(self, config: ASHNetsConfig) -> None:
        super().__init__(config)
        network = config.build()
        self.model = network.model
        self.itc, self.stua, self.itm, self.mlm, self.mvm = (
            network.itc, network.stua, network.itm, network.mlm, network.mvm)
        if self.mlm is None:
            self._tied_weights_keys = {}
        self._frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self.post_init()

    @classmethod
    def from_pretrained(  # type: ignore[override]
            cls, pretrained_model_name_or_path: str | Path, *args: Any, output_loading_info: bool = False,
            **settings: Any) -> Any:
        """The model of an export, in evaluation mode; reads safetensors only, never a pickle.

        `settings` are those of Hugging Face. Raises ValueError where the weights are those of another architecture.
        """
        settings |= {"use_safetensors": True, "ignore_mismatched_sizes": True}  # what differs is refused below
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # what does not fit is said below, in one line
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True,
                                                  **settings)
        finally:
            logging.set_verbosity(verbosity)
        model, info = loaded
        info["reshaped"] = [name for name, *_ in info["mismatched_keys"]]
        problems = [f"{what}: {', '.join(sorted(info[key])[:5])}" for what, key in (
            ("missing", "missing_keys"), ("not in this model", "unexpected_keys"), ("of another shape", "reshaped"))
            if info[key]]
        if problems:
            raise ValueError(f"{pretrained_model_name_or_path} holds the weights of another architecture than its "
                             f"config.json ({'; '.join(problems)}): export the run anew with jobs/export.py")
        # The loader leaves tensors where they lie in the file: at odd addresses, where kernels round otherwise than in
        # training, and at the mercy of whoever replaces the file.
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
        for name in model._frozen:  # Hugging Face's loader makes every parameter a trained one
            model.get_parameter(name).requires_grad_(False)
        return (model, info) if output_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        """Fill what no weights file holds: Hugging Face's loader builds modules without their buffers' values."""
        if isinstance(module, BertEmbeddings):
            module.position_ids.copy_(torch.arange(module.position_ids.shape[-1]).expand(1, -1))
            module.token_type_ids.zero_()

    def encode_image(self, pixel_values: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        """Unit-norm ITC embeddings of images (pixels from 0 to 255). ValueError for a model without ITC."""
        return self._head("itc").embed_image(self.model.encode_image(pixel_values).tokens)

    def encode_text(self, input_ids: Int64[Tensor, "M L"],
                    attention_mask: Int64[Tensor, "M L"] | None = None) -> Float[Tensor, "M E"]:
        """Unit-norm ITC embeddings of texts. ValueError for a model without ITC."""
        return self._head("itc").embed_text(self.model.encode_text(input_ids, _mask(input_ids, attention_mask)).pooled)

    def match(self, pixel_values: UInt8[Tensor, "M 3 H W"], input_ids: Int64[Tensor, "M L"],
              attention_mask: Int64[Tensor, "M L"] | None = None, *, logits: bool = False) -> Float[Tensor, "M"]:
        """Probability that text i belongs to image i, from the fusion (ITM); `logits` gives the log-odds instead.

        ValueError for a model without ITM.
        """
        head, mask = self._head("itm"), _mask(input_ids, attention_mask)
        fused = self.model.fuse(input_ids, mask, self.model.encode_image(pixel_values).tokens)
        odds = head.match(fused.cls, fused.text, fused.visual, mask)
        return odds if logits else odds.sigmoid()

    def forward(self, pixel_values: UInt8[Tensor, "B 3 H W"], input_ids: Int64[Tensor, "M L"],
                attention_mask: Int64[Tensor, "M L"] | None = None) -> ASHNetsOutput:
        """Embeddings of B images and M texts, and every image against every text, as CLIP gives them."""
        images, texts = self.encode_image(pixel_values), self.encode_text(input_ids, attention_mask)
        logits = images @ texts.T / self._head("itc").temperature
        return ASHNetsOutput(image_embeds=images, text_embeds=texts, logits_per_image=logits, logits_per_text=logits.T)

    def _head(self, task: str) -> Any:
        head = getattr(self, task)
        if head is None:
            raise ValueError(f"this model was trained without {task.upper()} (tasks.{task}.weight was 0)")
        return head


class ASHNetsProcessor:
    """Pictures and texts to model inputs, exactly as in the evaluation of training."""

    def __init__(self, tokenizer: str | Path, max_tokens: int, image_size: int) -> None:
        """`tokenizer` is a tokenizer.json, or a folder that has one."""
        self.tokenizer = Tokenizer(str(tokenizer), max_tokens)
        self.image_size = image_size

    def __call__(self, images: Picture | Sequence[Picture] | None = None, text: str | Sequence[str] | None = None,
                 return_tensors: str = "pt") -> BatchFeature:
        """`pixel_values` (uint8 [B 3 S S]) of `images`; `input_ids` and `attention_mask` (int64 [M L]) of `text`.

        An image is encoded bytes or the path of a file (both decoded as in training), a PIL image, or an RGB array
        (uint8 [H W 3]). Raises BadSample, a ValueError, for bytes that are no image.
        """
        data: dict[str, np.ndarray] = {}
        if images is not None:
            several = [images] if isinstance(images, Picture) else images
            data["pixel_values"] = np.stack([self._pixels(image) for image in several])
        if text is not None:
            data["input_ids"], data["attention_mask"] = self.tokenizer([text] if isinstance(text, str) else text)
        return BatchFeature(data, tensor_type=return_tensors)

    def _pixels(self, image: Picture) -> UInt8[np.ndarray, "3 S S"]:
        if isinstance(image, str | Path):
            image = Path(image).expanduser().read_bytes()
        if isinstance(image, bytes):
            return image_to_pixels(image, self.image_size)
        return square_pixels(rgb(ImageOps.exif_transpose(image)) if isinstance(image, Image.Image) else image,
                             self.image_size)

    def save_pretrained(self, save_directory: str | Path) -> list[str]:
        """Write processor_config.json, tokenizer_config.json (for AutoTokenizer) and tokenizer.json; their paths."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if self.tokenizer.path.absolute() != (folder / "tokenizer.json").absolute():
            shutil.copyfile(self.tokenizer.path, folder / "tokenizer.json")
        settings = {"processor_class": type(self).__name__, "image_size": self.image_size,
                    "max_tokens": self.tokenizer.max_tokens}
        words = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "sep", "pad", "cls", "mask")}
        (folder / PROCESSOR_FILE).write_text(json.dumps(settings, indent=1))
        (folder / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": self.tokenizer.max_tokens} | words,
            indent=1))
        return [str(folder / name) for name in (PROCESSOR_FILE, "tokenizer_config.json", "tokenizer.json")]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **settings: Any) -> Self:
        """The processor of an export. Raises OSError where a file is missing."""
        hub = {name: settings[name] for name in ("cache_dir", "token", "revision", "local_files_only", "subfolder")
               if name in settings}
        settings_file, words = (str(cached_file(pretrained_model_name_or_path, name, **hub))
                                for name in (PROCESSOR_FILE, "tokenizer.json"))
        saved = json.loads(Path(settings_file).read_text())
        return cls(words, saved["max_tokens"], saved["image_size"])


def load(path: str | Path) -> tuple[ASHNetsModel, ASHNetsProcessor]:
    """Model (in evaluation mode) and processor of an export."""
    return ASHNetsModel.from_pretrained(path), ASHNetsProcessor.from_pretrained(path)


def _plain(config: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _mask(input_ids: Int64[Tensor, "M L"], attention_mask: Int64[Tensor, "M L"] | None) -> Int64[Tensor, "M L"]:
    return torch.ones_like(input_ids) if attention_mask is None else attention_mask


AutoConfig.register("ashnets", ASHNetsConfig)
AutoModel.register(ASHNetsConfig, ASHNetsModel)
AutoProcessor.register(ASHNetsConfig, ASHNetsProcessor)
