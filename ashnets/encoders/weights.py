"""Read ImageNet weights for a backbone: by name from the internet, or from a file."""
from __future__ import annotations

from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from ashnets.resources import resolve

State = dict[str, Tensor]
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of pixels from 0 to 1
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TENSORFLOW: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLASSIFIERS = ("fc.", "classifier.", "heads.", "head.")  # modules that a backbone leaves out


def is_file(weights: str) -> bool:
    """Whether `weights` names a file rather than a torchvision weight."""
    return weights.startswith("package:") or "/" in weights or "." in weights


def read_file(weights: str) -> State:
    """The state dict in a .safetensors file or a torch file (read without unpickling objects)."""
    path = resolve(weights)
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def download(name: str, weights: str) -> State:
    """torchvision's `weights` (IMAGENET1K_V1, DEFAULT, ...) of network `name`.

    Raises ValueError for a weight that it does not have, FileNotFoundError where it cannot be downloaded.
    """
    known = get_model_weights(name)
    if weights not in known.__members__:
        raise ValueError(f"model.backbone.weights={weights}: {name} has {', '.join(known.__members__)}; or give a file")
    entry = known[weights]
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise FileNotFoundError(
            f"model.backbone.weights={weights}: {entry.url} could not be downloaded ({error}). Download it elsewhere "
            f"and set model.backbone.weights to the file, or set model.backbone.weights=none") from error


def load_by_name(network: nn.Module, state: State, weights: str) -> None:
    """Load `state` into `network` by names, classifiers apart; ValueError where names or shapes do not fit."""
    check_names(network.state_dict(), state, weights)
    try:
        network.load_state_dict({k: v for k, v in state.items() if not k.startswith(CLASSIFIERS)}, strict=False)
    except RuntimeError as error:
        raise ValueError(f"model.backbone.weights={weights} does not fit the network: {error}") from error


def check_names(expected: State, found: State, weights: str) -> None:
    """ValueError where `found` lacks tensors of `expected` or has others, classifiers apart."""
    missing = sorted(k for k in set(expected) - set(found) if not k.startswith(CLASSIFIERS))
    unexpected = sorted(k for k in set(found) - set(expected) if not k.startswith(CLASSIFIERS))
    if missing or unexpected:
        raise ValueError(f"model.backbone.weights={weights} does not fit the network: "
                         f"missing {missing[:3]}, unexpected {unexpected[:3]}")


def is_efficientnet_pytorch(state: State) -> bool:
    """Whether `state` is in the layout of the package EfficientNet-PyTorch: converted from TensorFlow."""
    return "_conv_stem.weight" in state


def rename_by_order(expected: State, state: State, weights: str) -> State:
    """`state` under the names of `expected`, which lists the same tensors in the same order; else ValueError."""
    if [t.shape for t in expected.values()] != [t.shape for t in state.values()]:
        raise ValueError(f"model.backbone.weights={weights}: its tensors are not those of the network")
    return dict(zip(expected, state.values(), strict=True))
