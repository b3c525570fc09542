"""Zero-shot classification against a loop over images, classes and templates."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ashnets.zero_shot import TEMPLATES, accuracy, class_embeddings, classify


def encode(texts: Sequence[str]) -> torch.Tensor:
    """An embedding a text that depends on nothing but the text; not of unit norm."""
    return torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(sum(map(ord, text)))) * len(text)
                        for text in texts])


def test_classes_are_means_over_templates_as_a_loop_computes_them() -> None:
    names, templates = ["cat", "red house", "1{}2"], ["{}", "a picture of {} and {}", lambda name: f"<{name}>"]
    filled = {"cat": ["cat", "a picture of cat and cat", "<cat>"],
              "red house": ["red house", "a picture of red house and red house", "<red house>"],
              "1{}2": ["1{}2", "a picture of 1{}2 and 1{}2", "<1{}2>"]}
    images = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)) * 7
    classes = class_embeddings(encode, names, templates)
    scores = classify(images, classes)
    for c, name in enumerate(names):
        units = [vector / np.linalg.norm(vector) for vector in encode(filled[name]).numpy()]
        mean = np.mean(units, axis=0)
        mean /= np.linalg.norm(mean)
        np.testing.assert_allclose(classes[c].numpy(), mean, atol=1e-6)
        for i, image in enumerate(images.numpy()):
            assert scores[i, c].item() == pytest.approx(float(image @ mean / np.linalg.norm(image)), abs=1e-5)


@settings(deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=st.integers(-2, 2)), st.data())
def test_accuracy_counts_ties_against_us(scores: np.ndarray, data: st.DataObject) -> None:
    truth = data.draw(st.lists(st.integers(0, scores.shape[1] - 1), min_size=len(scores), max_size=len(scores)))
    found = accuracy(torch.from_numpy(scores), torch.tensor(truth), ks=(1, 3))
    for k in (1, 3):
        hits = [sum(other >= row[own] for j, other in enumerate(row) if j != own) < k
                for row, own in zip(scores.tolist(), truth, strict=True)]
        assert found[f"top{k}"] == pytest.approx(sum(hits) / len(hits))


def test_nan_never_helps() -> None:
    scores = torch.tensor([[float("nan"), 0.0], [1.0, float("nan")]])
    assert accuracy(scores, torch.tensor([0, 0]), ks=(1, 2)) == {"top1": 0.0, "top2": 0.5}


@pytest.mark.parametrize(("names", "templates", "message"), [
    ([], TEMPLATES, "at least one class"), (["cat"], [], "at least one class"),
    (["cat"], ["a picture"], "'a picture' has no {}")])
def test_mistakes_are_named(names: list[str], templates: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_embeddings(encode, names, templates)
