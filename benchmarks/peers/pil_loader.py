"""The usual loader of this field: PIL, torchvision's transforms to normalised floats, torch's DataLoader.

Texts are tokenised and masked by the feed's functions, so that only the way of the images differs.
"""
from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.peers.measure import WORKERS, Batch, OnePass, consume, files, main
from pipelines.feed.masking import DRAWS, mask_tokens
from pipelines.feed.plan import FeedPlan


class Images(Dataset[Batch]):
    """The images of the first groups of the store, one by one."""

    def __init__(self, plan: FeedPlan, groups: int) -> None:
        rows = pq.read_table(files(plan, groups))
        self._plan = plan
        self._images = rows["images"].combine_chunks().flatten()
        self._captions = rows["captions"].combine_chunks().flatten()
        self._transform = transforms.Compose([
            transforms.RandomResizedCrop(plan.feed.image_size, scale=(plan.feed.crop_scale, 1.0)),
            transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Batch:
        """One image and its caption."""
        image = Image.open(io.BytesIO(self._images[index].as_py())).convert("RGB")
        tokenizer = self._plan.load_tokenizer()
        ids, attended = tokenizer(self._captions[index].as_py()[:1])
        draws = np.random.default_rng(index).random((1, DRAWS, self._plan.max_tokens))
        masked, labels = mask_tokens(ids, attended, tokenizer, self._plan.mask_rate, False, draws)
        return {"pixels": self._transform(image), "input_ids": torch.from_numpy(ids),
                "attention_mask": torch.from_numpy(attended), "mlm_input_ids": torch.from_numpy(masked[0]),
                "mlm_labels": torch.from_numpy(labels[0])}


def start(plan: FeedPlan) -> OnePass:
    """Passes over data in memory."""
    def one_pass(groups: int) -> dict[str, Any]:
        data = Images(plan, groups)
        began = time.monotonic()
        loader = DataLoader(data, batch_size=plan.groups_per_atom * plan.store().size, shuffle=True,
                            num_workers=WORKERS)
        return consume(loader, plan, groups, began)

    return one_pass


if __name__ == "__main__":
    main(start)
