"""FeedPlan: everything the feed needs to know, frozen and picklable (no torch or ray import)."""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ashnets.processing import Tokenizer
from pipelines.config import FeedConfig, PretrainConfig
from pipelines.feed.order import Order, rounds
from pipelines.feed.stages import Stages
from pipelines.grouping.materialise import GroupedStore

BLOCK_GROUPS = 128
"""Groups of a block at most, but for a larger micro-batch: the first batch waits for a whole block."""
BLOCK_BYTES = 96 * 2**20
"""Bytes of a block at most, but for a larger micro-batch: several are on their way at the same time."""
TASK_BLOCKS = 4
"""Blocks that one task makes: every task, like every block, costs Ray some milliseconds. With more, the last tasks of
short trainings leave CPUs idle."""


def sample_bytes(feed: FeedConfig, max_tokens: int) -> int:
    """Bytes of a sample as arrays: uint8 pixels, and of every caption four rows of int64."""
    return 3 * feed.image_size**2 + 4 * 8 * feed.captions * max_tokens


def block_groups(group_bytes: int, window_groups: int, world: int) -> int:
    """Groups that a block of one of `world` ranks holds at most: the blocks of all ranks together are no more than a
    window, since they are put in order in one piece.
    """
    return max(1, min(BLOCK_GROUPS, BLOCK_BYTES // group_bytes, window_groups // world))


@dataclass(frozen=True)
class FeedPlan:
    """What is read, in which order, and what becomes of it; a pure function of it gives every micro-batch."""

    groups_path: str
    """Folder of the grouped store."""
    seed: int
    """Seed of order, augmentation and masks."""
    feed: FeedConfig
    """Window, image size, captions, augmentation."""
    tokenizer: str
    """Folder or file of the tokenizer."""
    max_tokens: int
    """L: tokens of a caption."""
    mask_rate: float
    """Share of tokens that MLM predicts."""
    whole_word: bool
    """Mask all pieces of a word together."""
    groups_per_atom: int
    """Groups of a micro-batch."""
    atoms_per_step: int
    """Micro-batches of an optimizer step, whatever the number of workers."""
    max_pixels: int = 64_000_000
    """Images of more pixels count as bad."""
    end: int | None = None
    """Position where training ends, so that an epoch is never begun again just to fill the last step; None: never."""
    stages: Stages | None = None
    """Where later stages of the groups lie; None: the same groups throughout."""

    @property
    def step_groups(self) -> int:
        """Groups of one optimizer step."""
        return self.groups_per_atom * self.atoms_per_step

    def real_atoms(self, step: int) -> int:
        """Micro-batches of step `step` (the first is 0) that hold a position before the end."""
        if self.end is None:
            return self.atoms_per_step
        left = self.end - step * self.step_groups
        return max(0, min(self.atoms_per_step, -(-left // self.groups_per_atom)))

    def counts(self, position: int) -> bool:
        """Whether the group at `position` is trained on: padding is not, nor what lies behind the end."""
        return 0 <= position and (self.end is None or position < self.end)

    def atoms_per_block(self, world: int) -> int:
        """Micro-batches of one of `world` ranks that travel in one block; of several steps, where these are small."""
        return max(1, block_groups(self.group_bytes(), self.window_groups(), world) // self.groups_per_atom)

    def block_rows(self, world: int) -> int:
        """Groups of a block."""
        return self.atoms_per_block(world) * self.groups_per_atom

    def task_blocks(self, world: int) -> int:
        """Blocks that one task makes: fewer where those put in order together would pass a window."""
        return next((blocks for blocks in range(TASK_BLOCKS, 1, -1)
                     if math.lcm(blocks, world) * self.block_rows(world) <= self.window_groups()), 1)

    def group_bytes(self) -> int:
        """Bytes of a group as arrays."""
        return self.store().size * sample_bytes(self.feed, self.max_tokens)

    def window_groups(self) -> int:
        """Groups of a window of full row groups."""
        return self.feed.window * max(self.order().sizes)

    def streams(self, start_step: int, stop_step: int) -> dict[str, tuple[int, int]]:
        """Steps [start_step, stop_step), cut before each step that is the first to need a later stage of the groups.

        Each piece is read by a pipeline of its own, which starts when it is asked for: one that read ahead into a
        stage that is still being built would hold the CPUs that the building needs. The names stay the same from
        wherever training starts.
        """
        cuts = [0]
        while self.stages is not None and cuts[-1] < stop_step:
            begins = self.stages.begins(len(cuts), self.store().groups)
            if self.end is not None and begins >= self.end:
                break
            cuts.append(begins // self.step_groups)
        pieces = zip(cuts, [*cuts[1:], stop_step], strict=True)
        cut = {f"stage {stage}": (max(first, start_step), min(last, stop_step))
               for stage, (first, last) in enumerate(pieces)}
        return {name: (first, last) for name, (first, last) in cut.items() if first < last}

    def padding_groups(self, world: int) -> int:
        """Rows of weight 0 behind every step, so that each of `world` ranks runs equally many micro-batches."""
        return (rounds(self.atoms_per_step, world) * world - self.atoms_per_step) * self.groups_per_atom

    def step_rows(self, world: int) -> int:
        """Rows of the padded stream in one step."""
        return self.step_groups + self.padding_groups(world)

    def store(self) -> GroupedStore:
        """The grouped store that training starts with, opened once a process."""
        return _open_store(self.groups_path)

    def stage(self, epoch: int) -> int:
        """The stage that the groups of `epoch` come from. What fills up the last micro-batch, behind the end of
        training, comes from the last stage that is trained on: a later one is never built.
        """
        if self.stages is None:
            return 0
        if self.end is not None:
            epoch = min(epoch, (self.end - 1) // self.store().groups)
        return self.stages.number(epoch)

    def store_of(self, epoch: int) -> GroupedStore:
        """The grouped store of an epoch's stage.

        Raises FileNotFoundError where it has not been built, and ValueError where its groups are not as many, in as
        large row groups, as those of the first.
        """
        stage = self.stage(epoch)
        if self.stages is None or stage == 0:
            return self.store()
        later = _open_store(str(self.stages.groups(stage)))
        if [rows for _, _, rows in later.row_groups] != [rows for _, _, rows in self.store().row_groups]:
            raise ValueError(f"{later.path} has other row groups than {self.groups_path}: remove it, it is built again")
        return later

    def order(self) -> Order:
        """The global order of its groups."""
        return _order(self.groups_path, self.feed.window, self.seed)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded once a process."""
        return _load_tokenizer(self.tokenizer, self.max_tokens)


def feed_plan(config: PretrainConfig, groups_path: str, end: int | None = None,
              stages: Stages | None = None) -> FeedPlan:
    """The plan of a pre-training configuration over the grouped store at `groups_path`."""
    text = config.model.text
    return FeedPlan(groups_path=str(groups_path), seed=config.run.seed, feed=config.feed,
                    tokenizer=text.tokenizer or ("" if text.init == "none" else text.init),
                    max_tokens=text.max_tokens, mask_rate=config.tasks.mlm.mask_rate,
                    whole_word=config.tasks.mlm.whole_word, groups_per_atom=config.train.groups_per_atom,
                    atoms_per_step=config.train.atoms_per_step, max_pixels=config.data.max_pixels, end=end,
                    stages=stages)


@lru_cache(maxsize=4)
def _open_store(path: str) -> GroupedStore:
    return GroupedStore.open(path)


@lru_cache(maxsize=2)
def _order(path: str, window: int, seed: int) -> Order:
    return Order(tuple(rows for _, _, rows in _open_store(path).row_groups), window, seed)


@lru_cache(maxsize=2)
def _load_tokenizer(location: str, max_tokens: int) -> Tokenizer:
    return Tokenizer(location, max_tokens)
