"""The network below both visual encoders: uint8 pixels in, one feature map out."""
from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from ashnets.config import BackboneConfig
from ashnets.encoders.networks import Network, StagedNetwork, timm_network, torchvision_network


class Backbone(nn.Module):
    """A torchvision or timm network behind normalised pixels; several strides are pooled to the smallest map.

    `channels` is C. The normalisation is part of the state dict, since it belongs to the weights.
    """

    mean: Float[Tensor, "1 3 1 1"]
    std: Float[Tensor, "1 3 1 1"]

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.frozen = config.frozen
        self.image_size = config.image_size
        self.network: Network
        build = timm_network if config.name.startswith("timm/") else torchvision_network
        self.network, (mean, std) = build(config)
        self.channels = self.network.channels
        self.standardise = nn.BatchNorm2d(self.channels, affine=False) if config.standardise else nn.Identity()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))
        self._freeze(config)

    def forward(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Feature map of square images from 0 to 255, resized to `image_size` where they have another side."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen != "all"):
            maps = self.network(self._normalise(pixels))
        size = maps[-1].shape[-2:]
        maps = [m if m.shape[-2:] == size else F.adaptive_max_pool2d(m, size) for m in maps]
        return self.standardise(maps[0] if len(maps) == 1 else torch.cat(maps, dim=1))

    def train(self, mode: bool = True) -> Backbone:
        """Train mode; what is frozen stays in evaluation mode: the whole network, or every BatchNorm (`stage1`)."""
        super().train(mode)
        if self.frozen == "all":
            self.network.eval()
        elif self.frozen == "stage1":
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def _normalise(self, pixels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 S S"]:
        # channels last: convolutions run up to twice as fast (bfloat16 on CPUs, tensor cores on GPUs)
        images = (pixels.contiguous(memory_format=torch.channels_last).float() - self.mean) / self.std
        if images.shape[-1] == self.image_size == images.shape[-2]:
            return images
        return F.interpolate(images, size=(self.image_size, self.image_size), mode="bilinear", align_corners=False)

    def _freeze(self, config: BackboneConfig) -> None:
        if config.frozen == "all":
            self.network.requires_grad_(False)
        elif config.frozen == "stage1":
            if not isinstance(self.network, StagedNetwork):
                raise ValueError(f"model.backbone.frozen=stage1 is for torchvision's convolutional networks, not for "
                                 f"{config.name}: use none or all")
            for name in self.network.stage1:
                self.network.stages[name].requires_grad_(False)
