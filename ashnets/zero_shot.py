"""Zero-shot classification: images against class names put into prompt templates, as CLIP and open_clip do it.

    model, processor = ashnets.load("runs/demo/export")
    classes = class_embeddings(text_encoder(model, processor), ["cat", "red house"], ["{}", "a picture of a {}"])
    with torch.inference_mode():
        scores = classify(model.encode_image(**processor(images=["a.jpg", "b.jpg"])), classes)   # [2 images, 2 classes]

`classes.T` is what open_clip's `build_zero_shot_classifier` returns, and its templates work here.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64
from torch import Tensor

if TYPE_CHECKING:
    from ashnets.pretrained import ASHNetsModel, ASHNetsProcessor

EncodeText = Callable[[Sequence[str]], Float[Tensor, "M E"]]
Template = str | Callable[[str], str]
TEMPLATES: tuple[Template, ...] = ("{}", "a {}", "a picture of {}", "a photo of a {}")


def text_encoder(model: ASHNetsModel, processor: ASHNetsProcessor, batch: int = 256) -> EncodeText:
    """Texts to unit-norm embeddings by a trained model, on its device, without gradients."""
    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Float[Tensor, "M E"]:
        parts = [processor(text=texts[at:at + batch]).to(model.device) for at in range(0, len(texts), batch)]
        return torch.cat([model.encode_text(**part) for part in parts])
    return encode


def class_embeddings(encode_text: EncodeText, class_names: Sequence[str],
                     templates: Sequence[Template] = TEMPLATES) -> Float[Tensor, "C E"]:
    """A unit-norm embedding a class: the mean of its name's embeddings in all templates (CLIP, section 3.1.4).

    A template is a text with `{}` for the name, or a function of the name. Raises ValueError for a text without it,
    and where there are no classes or no templates.
    """
    if not class_names or not templates:
        raise ValueError("zero-shot classification needs at least one class name and one template")
    texts = [_fill(template, name) for name in class_names for template in templates]
    embeddings = torch.nn.functional.normalize(encode_text(texts).float(), dim=-1)
    return torch.nn.functional.normalize(embeddings.view(len(class_names), len(templates), -1).mean(1), dim=-1)


def classify(images: Float[Tensor, "B E"], classes: Float[Tensor, "C E"]) -> Float[Tensor, "B C"]:
    """Cosine of every image with every class; the largest names the class."""
    return torch.nn.functional.normalize(images.float(), dim=-1) @ classes.T


def accuracy(scores: Float[Tensor, "B C"], truth: Int64[Tensor, "B"], ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """`top<k>`: share of images whose class is among the k best; a tie, or NaN, counts against us."""
    own = scores.gather(1, truth[:, None])
    ahead = (~(scores < own)).sum(1) - 1  # all that do not score below it, itself not counted
    ahead = torch.where(own[:, 0].isnan(), scores.shape[1], ahead)
    return {f"top{k}": float((ahead < k).double().mean()) for k in ks}


def _fill(template: Template, name: str) -> str:
    if callable(template):
        return template(name)
    if "{}" not in template:
        raise ValueError(f"template {template!r} has no {{}} for the class name")
    return template.replace("{}", name)
