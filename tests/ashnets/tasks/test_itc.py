"""ITC's temperature, cross-batch memory and gathering over ranks."""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from ashnets.config import ITCConfig
from ashnets.tasks.contrast import Embedded, images_of, info_nce, texts_of
from ashnets.tasks.itc import ITC


def unit(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def head(**config) -> ITC:
    torch.manual_seed(0)
    return ITC(16, 12, 8, ITCConfig(**config))


def test_embeddings_have_unit_norm_in_fp32():
    with torch.autocast("cpu", torch.bfloat16):
        image, text = head().embed_image(torch.randn(3, 4, 16)), head().embed_text(torch.randn(5, 12))
    for embeddings in (image, text):
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(len(embeddings)))


@pytest.mark.parametrize(("stored", "used"), [(0.07, 0.07), (0.5, 0.5), (3.0, 0.5), (1e-5, 0.001)])
def test_the_temperature_is_clamped_and_can_come_back(stored, used):
    itc = head()
    itc.log_temperature.data.fill_(math.log(stored))
    assert itc.temperature.shape == (1,)
    torch.testing.assert_close(itc.temperature.item(), used, rtol=1e-5, atol=1e-7)
    itc.temperature.sum().backward()
    assert itc.log_temperature.grad.item() > 0


def test_the_temperature_learns(make_batch):
    itc, batch = head(), make_batch()
    itc(images_of(batch, unit(8, 0)), texts_of(batch, unit(8, 1))).backward()
    assert itc.log_temperature.grad.abs().item() > 0


def test_the_memory_keeps_the_newest_pairs_that_count():
    itc = head(memory=4)
    for start in (0, 3):
        ids = torch.arange(start, start + 3)
        weight = torch.tensor([1.0, 0.0, 1.0])
        itc.append(ids[:, None].float().expand(3, 8), -ids[:, None].float().expand(3, 8), ids + 100, ids + 200, weight)
    assert itc.memory_image[:, 0].tolist() == [0, 2, 3, 5] and itc.memory_text[:, 0].tolist() == [0, -2, -3, -5]
    assert itc.memory_image_class.tolist() == [100, 102, 103, 105]
    assert itc.memory_caption_class.tolist() == [200, 202, 203, 205]
    assert itc.memory_weight.tolist() == [1, 1, 1, 1]
    many = torch.arange(9)
    itc.append(many[:, None].float().expand(9, 8), many[:, None].float().expand(9, 8), many, many, torch.ones(9))
    assert itc.memory_image_class.tolist() == [5, 6, 7, 8]


def test_an_empty_memory_changes_nothing(make_batch):
    batch = make_batch(captions=2)
    sides = images_of(batch, unit(8, 0)), texts_of(batch, unit(16, 1))
    assert head(memory=6)(*sides).item() == pytest.approx(head()(*sides).item(), abs=1e-6)


def test_remembered_pairs_are_further_negatives_but_duplicates_are_not(make_batch):
    """The loss with memory is the loss against the union of both sets."""
    batch, old = make_batch(captions=2), make_batch(groups=2)
    pictures, words = old.image_class + 500, old.caption_class + 500
    pictures[0], words[1, 0] = batch.image_class[3], batch.caption_class[2, 1]
    old = replace(old, image_class=pictures, caption_class=words)
    itc = head(memory=6)
    images, texts = images_of(batch, unit(8, 0)), texts_of(batch, unit(16, 1))
    old_images, old_texts = images_of(old, unit(4, 2)), texts_of(old, unit(4, 3))
    itc.append(old_images.embeddings, old_texts.embeddings, old.image_class, old.caption_class[:, 0], old.weight)

    def join(a, b, captions):
        return Embedded(torch.cat([a.embeddings, b.embeddings]), torch.cat([a.image_class, b.image_class]),
                        torch.cat([a.caption_class, b.caption_class.expand(-1, captions)]),
                        torch.cat([a.weight, b.weight]))

    expected = info_nce(images, texts, 0.07, join(images, old_images, 2), join(texts, old_texts, 1))
    torch.testing.assert_close(itc(images, texts), expected)
    others = replace(old, image_class=pictures + 5000, caption_class=words + 5000)
    without_masks = info_nce(images, texts, 0.07, join(images, images_of(others, unit(4, 2)), 2),
                             join(texts, texts_of(others, unit(4, 3)), 1))
    assert itc(images, texts) < without_masks
    assert itc(images, texts) > head()(images, texts)


def test_appending_before_the_backward_pass_spoils_no_gradient(make_batch):
    itc, batch = head(memory=8), make_batch()
    image = unit(8, 0).requires_grad_()
    loss = itc(images_of(batch, image), texts_of(batch, unit(8, 1)))
    itc.append(unit(8, 2), unit(8, 3), batch.image_class, batch.caption_class[:, 0], batch.weight)
    loss.backward()
    torch.testing.assert_close(
        image.grad, torch.autograd.grad(head()(images_of(batch, image), texts_of(batch, unit(8, 1))), image)[0])


def sides(rows: slice) -> tuple[torch.Tensor, Embedded, Embedded]:
    """Part of eight pairs of which 0 and 5 share their caption; the image embeddings take gradients."""
    image, words, weight = unit(8, 0)[rows].clone().requires_grad_(), torch.arange(8), torch.ones(8)
    words[5], weight[6] = 0, 0.0
    classes = torch.arange(8)[rows], words[rows, None], weight[rows]
    return image, Embedded(image, *classes), Embedded(unit(8, 1)[rows], *classes)


def one_rank_of_two(rank: int, folder: Path) -> None:
    """Writes this rank's loss and gradient."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
                            timeout=timedelta(seconds=90))
    image, images, texts = sides(slice(4 * rank, 4 * rank + 4))
    loss = head(gather=True)(images, texts)
    loss.backward()
    (folder / f"{rank}.json").write_text(json.dumps([loss.item(), image.grad.tolist(), texts.weight.sum().item()]))
    dist.destroy_process_group()


def test_gathering_over_two_ranks_contrasts_over_the_whole_batch(tmp_path):
    image, images, texts = sides(slice(0, 8))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    other = subprocess.Popen([sys.executable, __file__, "1", str(tmp_path)], env=environment)
    one_rank_of_two(0, tmp_path)
    assert other.wait(90) == 0
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    whole = head()(images, texts)
    assert sum(loss * weight for loss, _, weight in results) / 7 == pytest.approx(whole.item(), abs=1e-6)
    # Each rank takes the mean over its own pairs (4 and 3 that count): weigh the whole batch's pairs alike.
    shares = torch.tensor([1 / 4] * 4 + [1 / 3] * 4) * texts.weight
    weighed = replace(texts, weight=shares)
    (info_nce(images, weighed, head().temperature.detach()) * shares.sum()).backward()
    torch.testing.assert_close(torch.tensor(results[0][1] + results[1][1]), image.grad)


if __name__ == "__main__":
    one_rank_of_two(int(sys.argv[1]), Path(sys.argv[2]))
