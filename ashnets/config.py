"""The model's and its tasks' configuration: frozen dataclasses that check themselves (no torch import).

Every field carries one line of meaning as the string below it; `--help` and `docs/configuration.md` are made
from those lines. Values that the ASH-Nets paper leaves open are marked (assumption).
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Carry = Literal["reset", "detach", "bptt"]
Window = Literal["per_sample", "shared"]


def require(condition: bool, name: str, value: object, legal: str) -> None:
    """Raise ValueError naming the field, its value and the legal values, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}={value!r} is not allowed: {legal}")


@dataclass(frozen=True)
class BackboneConfig:
    """The convolutional or Vision-Transformer network below both visual encoders."""

    name: str = "resnet18"
    """torchvision network by name (resnet18, resnet101, resnet152, vit_b_16, ...) or `timm/NAME` (needs timm)."""
    weights: str = "none"
    """`none`, a torchvision weight name such as IMAGENET1K_V1 (downloaded), a file, or `package:NAME/path/in/it`."""
    frozen: Literal["none", "stage1", "all"] = "none"
    """What never trains: `stage1` also freezes every BatchNorm statistic (as SOHO does), `all` the whole network."""
    stem: Literal["standard", "small"] = "standard"
    """`small`: a 3x3 stride-2 first convolution without max-pool, for images of 64 pixels (ResNets only)."""
    image_size: int = 224
    """Side in pixels to which the network resizes its input (square images)."""
    strides: tuple[int, ...] = (32,)
    """Strides of the feature maps that are used; several are pooled to the smallest map and concatenated."""
    standardise: bool = False
    """Put a non-affine BatchNorm behind the feature map (for frozen features whose scale differs by channel)."""

    def __post_init__(self) -> None:
        require(self.image_size >= 32, "model.backbone.image_size", self.image_size, "at least 32 pixels")
        require(len(self.strides) > 0 and set(self.strides) <= {4, 8, 16, 32}, "model.backbone.strides",
                self.strides, "one or more of 4, 8, 16, 32")


@dataclass(frozen=True)
class ConcreteConfig:
    """The visual concrete encoder: continuous latents (SOHO's neck)."""

    max_pool: bool = False
    """Halve the feature map by a 2x2 max-pool first (SOHO does; leave it off for maps of 7x7 or smaller)."""


@dataclass(frozen=True)
class AbstractConfig:
    """The semantic abstract encoder: a spiking network over the backbone's feature map."""

    time_steps: int = 10
    """T: simulated time steps of one sample (of one whole group under `window: shared`)."""
    channels: tuple[int, ...] = (256,)
    """Channels between the two convolutions of each spiking residual block; the last block ends at model.width."""
    neuron: Literal["lif", "plif", "if"] = "lif"
    """Neuron model: leaky, parametric leaky (learned tau) or non-leaky integrate-and-fire."""
    tau: float = 2.0
    """Membrane time constant in time steps."""
    v_threshold: float = 1.0
    """Membrane potential at which a neuron fires."""
    surrogate: Literal["atan", "sigmoid", "triangle"] = "atan"
    """Shape of the surrogate gradient of the firing step."""
    surrogate_alpha: float = 2.0
    """Steepness of the surrogate gradient."""
    tdbn_alpha: float = 1.0
    """tdBN scales normalised inputs by this times v_threshold (and by 1/sqrt(2) more where two branches meet)."""
    carry: Carry = "detach"
    """Membrane potential between the samples of a group: `reset`, carried with `detach`, or carried with `bptt`."""
    window: Window = "per_sample"
    """`per_sample`: T steps for each sample; `shared`: T/G steps each (G must divide T)."""
    restart_rate: float = 0.25
    """Share of samples that start from rest although their group carries (inference starts from rest)."""
    kernel: Literal["auto", "torch", "triton", "cupy"] = "auto"
    """SpikingJelly backend of the neuron; `auto`: triton on a GPU that has it, else torch."""

    def __post_init__(self) -> None:
        name = "model.abstract."
        require(self.time_steps >= 1, name + "time_steps", self.time_steps, "at least 1")
        require(len(self.channels) > 0 and min(self.channels) > 0, name + "channels", self.channels,
                "one positive number a block")
        require(self.tau > 1.0, name + "tau", self.tau, "more than 1")
        require(self.v_threshold > 0, name + "v_threshold", self.v_threshold, "more than 0")
        require(self.surrogate_alpha > 0, name + "surrogate_alpha", self.surrogate_alpha, "more than 0")
        require(self.tdbn_alpha > 0, name + "tdbn_alpha", self.tdbn_alpha, "more than 0")
        require(0 <= self.restart_rate <= 1, name + "restart_rate", self.restart_rate, "from 0 to 1")

    def steps_per_sample(self, group_size: int) -> int:
        """Time steps that one sample gets in a group of `group_size`; ValueError where G does not divide T."""
        if self.window == "per_sample":
            return self.time_steps
        if self.time_steps % group_size:
            raise ValueError(
                f"model.abstract.window=shared needs groups.size={group_size} to divide "
                f"model.abstract.time_steps={self.time_steps}: change one of them, or use window=per_sample")
        return self.time_steps // group_size


@dataclass(frozen=True)
class SummaryRatioConfig:
    """How the abstract semantics are redistributed over the visual tokens: V = concrete + SR * LN(abstract)."""

    mode: Literal["learned", "fixed", "per_channel", "gate"] = "learned"
    """One learned number, a fixed number, one learned number a channel, or SOHO's per-token two-way softmax gate."""
    value: float = 1.0
    """Initial (or fixed) ratio; `mode: fixed, value: 0` is the ANN-only ablation: no SNN, no STUA."""

    @property
    def off(self) -> bool:
        """Whether the abstract encoder does not exist at all."""
        return self.mode == "fixed" and self.value == 0.0


@dataclass(frozen=True)
class TextConfig:
    """The BERT text encoder (feature for ITC and STUA) and the vocabulary."""

    init: str = "none"
    """BERT checkpoint to start from: `none`, a folder, a Hugging Face name, or `package:NAME/path/in/it`."""
    tokenizer: str = ""
    """Folder or file of the WordPiece tokenizer (tokenizer.json); empty: the one beside `init`."""
    layers: int = 6
    """Layers of the text encoder; 0: word embeddings go straight to the fusion (SOHO's single stream)."""
    width: int = 768
    """Hidden size of the text encoder."""
    heads: int = 12
    """Attention heads."""
    vocab_size: int = 30522
    """WordPieces."""
    max_tokens: int = 25
    """L: text tokens of a caption, [CLS] and [SEP] included; longer captions are cut."""
    pooling: Literal["cls", "mean"] = "cls"
    """The text feature: state of [CLS], or mean over the real tokens."""
    frozen: bool = False
    """Keep the text encoder as it was initialised."""

    def __post_init__(self) -> None:
        require(self.layers >= 0, "model.text.layers", self.layers, "0 or more")
        for name in ("heads", "vocab_size"):
            require(getattr(self, name) >= 1, f"model.text.{name}", getattr(self, name), "at least 1")
        require(self.width > 0 and self.width % self.heads == 0, "model.text.width", self.width,
                f"a multiple of model.text.heads={self.heads}, above 0")
        require(self.max_tokens >= 4, "model.text.max_tokens", self.max_tokens, "at least 4")


@dataclass(frozen=True)
class FusionConfig:
    """The multi-layer Transformer over [CLS] text [SEP] and the visual tokens."""

    layers: int = 6
    """BERT layers."""
    heads: int = 12
    """Attention heads."""
    from_text: bool = True
    """Start the layers from the first layers of model.text.init (where there is one)."""
    freeze_words: bool = False
    """Keep the fusion's word embeddings as they were initialised."""
    dropout: float = 0.1
    """Dropout of attention and hidden states."""

    def __post_init__(self) -> None:
        for name in ("layers", "heads"):
            require(getattr(self, name) >= 1, f"model.fusion.{name}", getattr(self, name), "at least 1")
        require(0 <= self.dropout < 1, "model.fusion.dropout", self.dropout, "from 0 to below 1")


@dataclass(frozen=True)
class ModelConfig:
    """ASH-Net: backbone, concrete and abstract encoders, summary ratio, text encoder, fusion."""

    width: int = 768
    """D: width of visual tokens and of the fusion Transformer."""
    embedding: int = 256
    """Size of the contrastive embeddings of ITC."""
    activation_checkpointing: bool = False
    """Recompute the abstract encoder's and the fusion's activations in the backward pass (less memory)."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    concrete: ConcreteConfig = field(default_factory=ConcreteConfig)
    abstract: AbstractConfig = field(default_factory=AbstractConfig)
    summary_ratio: SummaryRatioConfig = field(default_factory=SummaryRatioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)

    def __post_init__(self) -> None:
        require(self.width > 0 and self.width % self.fusion.heads == 0 and self.width % 4 == 0, "model.width",
                self.width, f"a multiple of 4 and of model.fusion.heads={self.fusion.heads}, above 0")
        require(self.embedding >= 1, "model.embedding", self.embedding, "at least 1")


@dataclass(frozen=True)
class ITCConfig:
    """Image-text contrast."""

    weight: float = 1.0
    """Weight in the total loss."""
    temperature: float = 0.07
    """Initial temperature; learned, clamped to [0.001, 0.5]."""
    gather: bool = False
    """Contrast over all ranks' micro-batches: larger contrast set, but the mathematics then depends on world size."""
    memory: int = 0
    """Past embeddings kept as further negatives (cross-batch memory); 0: off."""

    def __post_init__(self) -> None:
        require(0.001 <= self.temperature <= 0.5, "tasks.itc.temperature", self.temperature, "from 0.001 to 0.5")
        require(self.memory >= 0, "tasks.itc.memory", self.memory, "0 or more")


@dataclass(frozen=True)
class ITMConfig:
    """Image-text matching."""

    weight: float = 1.0
    """Weight in the total loss."""
    negatives: Literal["hard", "random"] = "hard"
    """`hard`: random negatives that turn into in-group hard ones over `hard_ramp`; `random`: always random."""
    hard_ramp: float = 0.6
    """Share of training over which random negatives turn to hard ones."""

    def __post_init__(self) -> None:
        require(0 <= self.hard_ramp <= 1, "tasks.itm.hard_ramp", self.hard_ramp, "from 0 to 1")


@dataclass(frozen=True)
class MLMConfig:
    """Masked language modelling on matched pairs."""

    weight: float = 1.0
    """Weight in the total loss."""
    mask_rate: float = 0.15
    """Share of tokens that are predicted (80 % [MASK], 10 % random, 10 % kept)."""
    whole_word: bool = False
    """Mask all pieces of a word together."""


@dataclass(frozen=True)
class MVMConfig:
    """Masked vision modelling."""

    weight: float = 1.0
    """Weight in the total loss."""
    target: Literal["spikes", "dictionary"] = "spikes"
    """The abstract encoder's spike code, or SOHO's dictionary index (always so when the summary ratio is off)."""
    mask_rate: float = 0.15
    """Share of visual tokens that are masked, in 2x2 blocks; at least one block."""
    max_rate: float = 0.5
    """Cap on the share of masked tokens (a dictionary index can cover an image)."""
    dictionary_size: int = 2048
    """Entries of the visual dictionary."""
    dictionary_decay: float = 0.4
    """Decay of the dictionary's moving average (SOHO's value)."""

    def __post_init__(self) -> None:
        require(0 < self.max_rate <= 1, "tasks.mvm.max_rate", self.max_rate, "above 0, at most 1")
        require(self.dictionary_size >= 1, "tasks.mvm.dictionary_size", self.dictionary_size, "at least 1")
        require(0 <= self.dictionary_decay < 1, "tasks.mvm.dictionary_decay", self.dictionary_decay,
                "from 0 to below 1")


@dataclass(frozen=True)
class STUAConfig:
    """Semantic text-unilateral alignment: spiking features to text embeddings, one way."""

    weight: float = 1.0
    """Weight in the total loss."""
    temperature: float = 0.07
    """Temperature of its contrastive part."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "tasks.stua.temperature", self.temperature, "more than 0")


@dataclass(frozen=True)
class TasksConfig:
    """The five pre-training tasks."""

    fusion_share: float = 1.0
    """Share of a micro-batch's groups that pass through the fusion (ITM, MLM, MVM)."""
    itc: ITCConfig = field(default_factory=ITCConfig)
    itm: ITMConfig = field(default_factory=ITMConfig)
    mlm: MLMConfig = field(default_factory=MLMConfig)
    mvm: MVMConfig = field(default_factory=MVMConfig)
    stua: STUAConfig = field(default_factory=STUAConfig)

    def __post_init__(self) -> None:
        require(0 < self.fusion_share <= 1, "tasks.fusion_share", self.fusion_share, "above 0, at most 1")
        for name in ("itc", "itm", "mlm", "mvm", "stua"):
            require(getattr(self, name).weight >= 0, f"tasks.{name}.weight", getattr(self, name).weight, "0 or more")
        for name in ("mlm", "mvm"):
            rate = getattr(self, name).mask_rate
            require(0 < rate < 1, f"tasks.{name}.mask_rate", rate, "between 0 and 1")
        if not any(getattr(self, name).weight for name in ("itc", "itm", "mlm", "mvm", "stua")):
            raise ValueError("tasks: no task is left to train on; give at least one a weight above 0")
