"""ASH-Net: pixels and tokens in, named features out; losses live in ashnets.tasks."""
from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from ashnets.config import ModelConfig
from ashnets.encoders.abstract import AbstractEncoder
from ashnets.encoders.backbone import Backbone
from ashnets.encoders.concrete import ConcreteEncoder
from ashnets.encoders.summary_ratio import SummaryRatio
from ashnets.encoders.text import TextEncoder, TextFeatures
from ashnets.firing import firing_rates
from ashnets.fusion import FusedFeatures, Fusion


@dataclass(frozen=True)
class VisualFeatures:
    """What the visual side knows of B images, N tokens each, in row-major order of the `grid` (rows, columns).

    `rate` is the raw firing rate from 0 to 1 and `abstract` its LayerNorm; both are None where the summary ratio
    is off. `tokens` are the visual tokens V.
    """

    concrete: Float[Tensor, "B N D"]
    abstract: Float[Tensor, "B N D"] | None
    rate: Float[Tensor, "B N D"] | None
    tokens: Float[Tensor, "B N D"]
    grid: tuple[int, int]


class ASHNet(nn.Module):
    """Backbone, concrete and abstract encoders, summary ratio, text encoder, fusion Transformer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        channels = self.backbone.channels
        self.pool = nn.MaxPool2d(2) if config.concrete.max_pool else nn.Identity()
        self.concrete = ConcreteEncoder(channels, config.width)
        self.abstract: AbstractEncoder | None = None
        if not config.summary_ratio.off:
            self.abstract = AbstractEncoder(channels, config.width, config.abstract, config.activation_checkpointing)
            self.abstract_norm = nn.LayerNorm(config.width)
            self.summary_ratio = SummaryRatio(config.summary_ratio, config.width)
        self.text = TextEncoder(config.text)
        self.fusion = Fusion(config)

    def encode_image(self, pixels: UInt8[Tensor, "B 3 H W"], group_size: int = 1,
                     restart: Bool[Tensor, " B"] | None = None) -> VisualFeatures:
        """Visual features of B images, each from rest, or in groups of `group_size` that carry membrane potential.

        Sample i of group g stands at row g * group_size + i; `restart` marks samples that start from rest anyway.
        """
        features = self.pool(self.backbone(pixels))
        concrete = self.concrete(features)
        grid = (features.shape[2], features.shape[3])
        if self.abstract is None:
            return VisualFeatures(concrete, None, None, concrete, grid)
        rate = self.abstract(features, group_size, restart)
        abstract = self.abstract_norm(rate)
        return VisualFeatures(concrete, abstract, rate, self.summary_ratio(concrete, abstract), grid)

    def encode_text(self, input_ids: Int64[Tensor, "M L"], attention_mask: Int64[Tensor, "M L"]) -> TextFeatures:
        """Token states and pooled features of M texts."""
        return self.text(input_ids, attention_mask)

    def fuse(self, input_ids: Int64[Tensor, "M L"], attention_mask: Int64[Tensor, "M L"],
             visual: Float[Tensor, "M N D"], visual_mask: Bool[Tensor, "M N"] | None = None) -> FusedFeatures:
        """M texts beside M images' visual tokens; tokens where `visual_mask` is True are hidden."""
        return self.fusion(input_ids, attention_mask, visual, visual_mask)

    def firing_rates(self) -> dict[str, Tensor]:
        """Mean firing rate of every spiking layer in the last forward, by the layer's name; empty without an SNN."""
        return firing_rates(self)
