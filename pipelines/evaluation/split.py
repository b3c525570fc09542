"""One held-out split of the store: its texts in memory, its images streamed in the store's order."""
from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ashnets.processing import Tokenizer, caption_class, image_to_pixels
from pipelines.location import Place
from pipelines.store.table import ImageTextStore


def share(total: int, rank: int, world: int) -> list[int]:
    """Which of `total` things are the rank's. All ranks get equally many, since under ZeRO-3 every forward is a joint
    one: the last ranks may get one of the first again, which is theirs only where `thing % world == rank`.
    """
    return [index % total for index in range(rank, -(-total // world) * world, world)]


class HeldOutSplit:
    """The first `limit` samples of a split (0: all), by sample id. Raises ValueError where the split is empty."""

    def __init__(self, store: Place, version: int, split: str, tokenizer: Tokenizer, image_size: int,
                 limit: int = 0) -> None:
        self._store, self._version, self._split = ImageTextStore(store), version, split
        self._image_size = image_size
        rows = [row for batch in self._store.iter_batches(["sample_id", "image_class", "captions"], split, version)
                for row in batch.to_pylist()]
        rows = sorted(rows, key=lambda row: str(row["sample_id"]))[:limit or None]
        if not rows:
            raise ValueError(f"{store}: version {version} has no samples of split {split!r}; name another "
                             "evaluation split, or ingest some")
        self.sample_ids = [row["sample_id"] for row in rows]
        self.image_class = torch.tensor([row["image_class"] for row in rows])
        self.captions = [caption for row in rows for caption in row["captions"]]
        counts = torch.tensor([len(row["captions"]) for row in rows])
        self.image_of_caption = torch.arange(len(rows)).repeat_interleave(counts)
        self.first_caption = torch.cumsum(counts, 0) - counts
        self.caption_class = torch.tensor([caption_class(caption) for caption in self.captions])
        ids, mask = tokenizer(self.captions)
        self.input_ids: Int64[Tensor, "C L"] = torch.from_numpy(np.asarray(ids, dtype=np.int64))
        self.attention_mask: Int64[Tensor, "C L"] = torch.from_numpy(np.asarray(mask, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.sample_ids)

    def encoded(self, indices: Collection[int]) -> dict[int, bytes]:
        """The images of these samples as they are stored."""
        wanted = {self.sample_ids[index]: index for index in indices}
        return {wanted[sample_id]: image for sample_id, image in self._images() if sample_id in wanted}

    def images(self, batch: int, rank: int = 0, world: int = 1
               ) -> Iterator[tuple[Int64[Tensor, "B"], UInt8[Tensor, "B 3 H W"]]]:
        """Batches of sample indices and their pixels; of several ranks each gets its `share`."""
        wanted = {self.sample_ids[index]: index for index in share(len(self), rank, world)}
        indices: list[int] = []
        pixels: list[Tensor] = []
        for sample_id, image in self._images():
            if sample_id not in wanted:
                continue
            indices.append(wanted[sample_id])
            pixels.append(torch.from_numpy(image_to_pixels(image, self._image_size)))
            if len(indices) == batch:
                yield torch.tensor(indices), torch.stack(pixels)
                indices, pixels = [], []
        if indices:
            yield torch.tensor(indices), torch.stack(pixels)

    def _images(self) -> Iterator[tuple[str, bytes]]:
        for rows in self._store.iter_batches(["sample_id", "image"], self._split, self._version):
            yield from zip(rows["sample_id"].to_pylist(), rows["image"].to_pylist(), strict=True)
