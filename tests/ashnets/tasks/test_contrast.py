"""InfoNCE against torch's cross-entropy and a brute-force sum that leaves duplicates out."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ashnets.tasks.contrast import Embedded, images_of, info_nce, texts_of, weighted_mean


def unit(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_without_duplicates_it_is_the_cross_entropy_of_clip(make_batch):
    batch = make_batch()
    images, texts = unit(8, 0).float().requires_grad_(), unit(8, 1).float().requires_grad_()
    loss = info_nce(images_of(batch, images), texts_of(batch, texts), 0.07)
    logits, target = images @ texts.T / 0.07, torch.arange(8)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(loss, expected)
    ours, theirs = torch.autograd.grad(loss, [images, texts]), torch.autograd.grad(expected, [images, texts])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def brute_force(image, text, picture, words, weight, captions, temperature):
    """One sum of exponentials at a time."""
    total, weights = 0.0, 0.0
    for t in range(len(text)):
        i = t // captions
        def clash(a, b):
            """Image a and text b are no true negatives."""
            return picture[a] == picture[b // captions] or words[b] in words[a * captions:(a + 1) * captions]
        def score(a, b):
            return float(torch.exp(image[a] @ text[b] / temperature))
        true = score(i, t)
        to_text = sum(score(i, b) for b in range(len(text)) if weight[b // captions] > 0 and not clash(i, b))
        to_image = sum(score(a, t) for a in range(len(image)) if weight[a] > 0 and not clash(a, t))
        loss = -torch.log(torch.tensor(true / (true + to_text))) - torch.log(torch.tensor(true / (true + to_image)))
        total, weights = total + weight[i] * float(loss) / 2, weights + weight[i]
    return total / weights if weights else 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.data())
def test_it_equals_brute_force_with_duplicates_and_weights(samples, captions, data):
    def draw(values, count):
        return data.draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))
    picture, words = draw(range(4), samples), draw(range(6), samples * captions)
    weight = draw([0.0, 0.5, 1.0], samples)
    image, text = unit(samples, 3), unit(samples * captions, 4)
    images = Embedded(image, torch.tensor(picture), torch.tensor(words).view(samples, captions), torch.tensor(weight))
    texts = Embedded(text, torch.tensor(picture).repeat_interleave(captions), torch.tensor(words)[:, None],
                     torch.tensor(weight).repeat_interleave(captions))
    expected = brute_force(image, text, picture, words, weight, captions, 0.2)
    torch.testing.assert_close(float(info_nce(images, texts, 0.2)), expected, rtol=1e-4, atol=1e-5)


def test_identical_captions_and_pictures_are_no_negatives(make_batch):
    """A duplicate may score as high as it likes."""
    plain = make_batch(groups=2)
    words, pictures = plain.caption_class.clone(), plain.image_class.clone()
    words[1], pictures[3] = words[0], pictures[2]
    batch = make_batch(groups=2, caption_class=words, image_class=pictures)

    def loss_with(of, row, column, score):
        logits = torch.full((4, 4), 0.0)
        logits[row, column] = score
        return info_nce(images_of(of, torch.eye(4)), texts_of(of, logits.T), 1.0).item()

    for row, column in ((0, 1), (1, 0), (2, 3), (3, 2)):
        assert loss_with(batch, row, column, 9.0) == loss_with(batch, row, column, 0.0)
        assert loss_with(plain, row, column, 9.0) > loss_with(plain, row, column, 0.0) + 0.5
    assert loss_with(batch, 0, 2, 9.0) > loss_with(batch, 0, 2, 0.0) + 0.5


def test_weighted_mean_by_hand():
    assert weighted_mean(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 0.0, 0.5])).item() == pytest.approx(4 / 1.5)
    zero = weighted_mean(torch.ones(2, requires_grad=True), torch.zeros(2))
    assert zero.item() == 0 and zero.requires_grad
    assert weighted_mean(torch.empty(0), torch.empty(0)).item() == 0
