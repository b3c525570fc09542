"""Image networks by name, from torchvision and timm: an image in, the feature maps of some strides out."""
from __future__ import annotations

import difflib
from typing import Any

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import VisionTransformer, get_model, list_models
from torchvision.models.resnet import ResNet
from torchvision.models.vision_transformer import interpolate_embeddings

from ashnets.config import BackboneConfig
from ashnets.encoders import weights as files
from ashnets.encoders.weights import Normalisation, State


class StagedNetwork(nn.Module):
    """A convolutional network as a chain of stages; gives the last map of each wanted stride.

    `plan` says of each stage the stride and the channels of its map.
    """

    def __init__(self, stages: dict[str, nn.Module], plan: dict[str, tuple[int, int]], config: BackboneConfig) -> None:
        super().__init__()
        last = {stride: name for name, (stride, _) in plan.items()}
        check_strides(config, list(last))
        names = list(stages)
        self.wanted = [last[stride] for stride in sorted(config.strides)]
        used = names[:names.index(self.wanted[-1]) + 1]
        self.stages = nn.ModuleDict({name: stages[name] for name in used})
        self.channels = sum(plan[name][1] for name in self.wanted)
        self.stage1 = [name for name in used if plan[name][0] <= 4]  # the stem with it

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B c h w"]]:
        """Feature maps of the wanted strides, the largest first."""
        maps = []
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self.wanted:
                maps.append(x)
        return maps


class PatchNetwork(nn.Module):
    """torchvision's Vision Transformer; its patch tokens behind the last layer, as a map."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.patches = network.conv_proj
        self.class_token = network.class_token
        self.encoder = network.encoder
        self.channels = network.hidden_dim

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B c h w"]]:
        """One feature map."""
        patches = self.patches(x)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.to(tokens.dtype).expand(len(x), -1, -1), tokens], dim=1)
        return [self.encoder(tokens)[:, 1:].transpose(1, 2).reshape(patches.shape)]


class TimmNetwork(nn.Module):
    """A timm network that was made with `features_only`."""

    def __init__(self, features: Any) -> None:
        super().__init__()
        self.features = features
        self.channels = sum(features.feature_info.channels())

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B c h w"]]:
        """Feature maps of the wanted strides, the largest first."""
        return list(self.features(x))


Network = StagedNetwork | PatchNetwork | TimmNetwork


def torchvision_network(config: BackboneConfig) -> tuple[StagedNetwork | PatchNetwork, Normalisation]:
    """The torchvision network `config.name` with its weights, and how its pixels are normalised.

    Raises ValueError for a name, stride, stem or weight that it does not have, FileNotFoundError for weights that
    cannot be reached.
    """
    known = list_models(module=torchvision.models)
    if config.name not in known:
        raise ValueError(f"model.backbone.name={config.name} is no torchvision network{_near(config.name, known)}")
    network = _torchvision_model(config)
    if config.weights != "none":
        from_file = files.is_file(config.weights)
        state = files.read_file(config.weights) if from_file else files.download(config.name, config.weights)
        if isinstance(network, VisionTransformer):
            state = interpolate_embeddings(config.image_size, network.patch_size, state)
        files.load_by_name(network, state, config.weights)
    if isinstance(network, VisionTransformer):
        check_strides(config, [network.patch_size])
        return PatchNetwork(network), files.IMAGENET
    return StagedNetwork(_stages(network, config.name), _plan(config), config), files.IMAGENET


def timm_network(config: BackboneConfig) -> tuple[TimmNetwork, Normalisation]:
    """The timm network `timm/NAME` with its weights, and how its pixels are normalised; errors as above."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"model.backbone.name={config.name} needs timm: pip install '.[demo]'") from error
    name = config.name.removeprefix("timm/")
    if not timm.is_model(name):
        raise ValueError(f"model.backbone.name={config.name} is no timm network{_near(name, timm.list_models())}")
    if config.stem == "small":
        raise ValueError(f"model.backbone.stem=small is for torchvision's ResNets, not for {config.name}")
    with torch.device("meta"):
        info: Any = timm.create_model(name, features_only=True).feature_info
    reductions: list[int] = info.reduction()
    check_strides(config, reductions)
    chosen: dict[str, Any] = {
        "out_indices": [len(reductions) - 1 - reductions[::-1].index(stride) for stride in sorted(config.strides)]}
    cfg: Any = timm.get_pretrained_cfg(name)
    normalisation: Normalisation = (tuple(cfg.mean), tuple(cfg.std))
    if files.is_file(config.weights):
        with torch.device("meta"):
            full = timm.create_model(name)
        state, normalisation = _timm_state(full, config.weights, normalisation)
        chosen["pretrained_cfg_overlay"] = {"state_dict": state, "source": "timm"}
    try:
        network = timm.create_model(name, features_only=True, pretrained=config.weights != "none", **chosen)
    except OSError as error:
        raise FileNotFoundError(f"model.backbone.weights={config.weights}: the weights of {config.name} could not be "
                                f"downloaded ({error}). Download them elsewhere and give the file") from error
    return TimmNetwork(network), normalisation


def check_strides(config: BackboneConfig, known: list[int]) -> None:
    """ValueError where the network has no map of a wanted stride; `known` are those that it has."""
    for stride in config.strides:
        if stride not in known:
            raise ValueError(f"model.backbone.strides={list(config.strides)}: {config.name} has no map of stride "
                             f"{stride}, only {sorted(set(known))}")


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"; near it: {', '.join(near)}" if near else ""


def _torchvision_model(config: BackboneConfig) -> nn.Module:
    """The network without weights: the small stem put in, a Vision Transformer built for `image_size`."""
    size = {"image_size": config.image_size} if config.name.startswith("vit_") else {}
    network = get_model(config.name, weights=None, **size)
    if config.stem == "small":
        if not isinstance(network, ResNet):
            raise ValueError(f"model.backbone.stem=small is for torchvision's ResNets, not for {config.name}")
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, kernel_size=3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network


def _stages(network: nn.Module, name: str) -> dict[str, nn.Module]:
    """The chain of modules from the image to the last feature map."""
    if isinstance(network, ResNet):
        stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        return {"stem": stem} | {f"layer{i}": getattr(network, f"layer{i}") for i in (1, 2, 3, 4)}
    features = getattr(network, "features", None)
    if isinstance(features, nn.Sequential) and not name.startswith("swin"):
        return {f"features{child}": module for child, module in features.named_children()}
    raise ValueError(f"model.backbone.name={name}: use a ResNet, ResNeXt, EfficientNet, MobileNet, ConvNeXt, DenseNet, "
                     f"VGG or vit_* of torchvision, or timm/NAME")


def _plan(config: BackboneConfig) -> dict[str, tuple[int, int]]:
    """Stride and channels of each stage's map, found by a dry run on the meta device."""
    plan, side = {}, 256
    with torch.device("meta"):
        x = torch.empty(1, 3, side, side)
        for name, stage in _stages(_torchvision_model(config).eval(), config.name).items():
            x = stage(x)
            plan[name] = (side // x.shape[-1], x.shape[1])
    return plan


def _timm_state(full: nn.Module, location: str, normalisation: Normalisation) -> tuple[State, Normalisation]:
    """Weights under timm's names; those converted from TensorFlow come in order, with TensorFlow's normalisation."""
    state = files.read_file(location)
    if not files.is_efficientnet_pytorch(state):
        files.check_names(full.state_dict(), state, location)
        return state, normalisation
    state = files.rename_by_order(full.state_dict(), state, location)
    # TensorFlow's EfficientNets add 1e-3 to the variance; a network of timm that adds less gets the difference here.
    for norm_name, norm in full.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            key = f"{norm_name}.running_var"
            state[key] = state[key] + (1e-3 - norm.eps)
    head = ("conv_head.", "bn2.", "classifier.")
    return {k: v for k, v in state.items() if not k.startswith(head)}, files.TENSORFLOW
