"""The settings of every stage, and `PretrainConfig`, which holds them together (no ray or torch import).

Every field carries one line of meaning as the string below it; `--help` and `docs/configuration.md` are made
from those lines.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ashnets.config import ModelConfig, TasksConfig, require


@dataclass(frozen=True)
class RunConfig:
    """The run: its name, where it lives, its seed."""

    name: str = "demo"
    """The run's folder below run.storage; the same name continues an interrupted run."""
    storage: str = ""
    """Folder of all runs; empty: <repository>/runs, or ~/ashnets/runs inside a submitted job."""
    seed: int = 0
    """Seed of everything: weights, order, augmentation, masks, grouping."""
    takeover: bool = False
    """Take the run over although another launch still holds its lease."""

    def __post_init__(self) -> None:
        import re
        require(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is not None, "run.name", self.name,
                "letters, digits, '.', '_' and '-', starting with a letter or digit")


@dataclass(frozen=True)
class DataConfig:
    """The image-text store, and the built-in source that fills it when it is missing."""

    store: str = ""
    """Folder or address of the Delta store; empty: <repository>/data/demo (built when missing)."""
    source: Literal["demo", "emoji", "scenes"] = "demo"
    """Built-in source for a missing default store: `demo` is emoji + scenes."""
    scenes: int = 4096
    """Generated training scenes."""
    scenes_val: int = 512
    """Generated held-out scenes."""
    scene_size: int = 64
    """Side of a generated scene in pixels."""
    seed: int = 0
    """Seed of the generated scenes and of the emoji split."""
    max_pixels: int = 64_000_000
    """Images of more pixels are quarantined before they are decoded."""
    max_caption: int = 10_000
    """Samples with a caption of more characters are quarantined."""
    max_bad_share: float = 0.01
    """An ingest with a larger share of bad rows stops, and appends nothing."""
    encode: Literal["keep", "jpeg"] = "keep"
    """Images in the store: `keep` the bytes as they came, or encode all anew as JPEG."""
    quality: int = 90
    """Quality of images that are encoded anew."""
    short_side: int = 0
    """Shrink images whose shorter side is longer to so many pixels, as JPEG; 0: keep their size."""
    duplicates: Literal["keep", "drop_exact", "drop_near"] = "keep"
    """Copies of a picture among the ingest's training rows: keep them, drop equal ones, or similar ones (pHash) too."""

    def __post_init__(self) -> None:
        for name in ("scenes", "scenes_val"):
            require(getattr(self, name) >= 0, f"data.{name}", getattr(self, name), "0 or more")
        require(self.scene_size >= 32, "data.scene_size", self.scene_size, "at least 32 pixels")
        for name in ("max_pixels", "max_caption"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        require(1 <= self.quality <= 95, "data.quality", self.quality, "from 1 to 95")
        require(self.short_side == 0 or self.short_side >= 16, "data.short_side", self.short_side,
                "0, or at least 16 pixels")
        require(0 <= self.max_bad_share <= 1, "data.max_bad_share", self.max_bad_share, "from 0 to 1")


@dataclass(frozen=True)
class GroupsConfig:
    """Disjoint groups of similar samples."""

    size: int = 4
    """G: samples of a group."""
    path: str = ""
    """Folder of the grouped store; empty: beside the store, named by data version, G and seed."""
    method: Literal["similar", "random"] = "similar"
    """`similar`: neighbours by embedding; `random`: the baseline arm."""
    neighbours: int = 16
    """k of the nearest-neighbour search."""
    row_group: int = 16
    """Groups in a Parquet row group (the unit of the global shuffle)."""
    regroup_every: int = 0
    """Epochs after which the samples are grouped anew by the model's own image embeddings (ITC); 0: never."""
    regroup_lead: float = 0.5
    """Epochs between the model that is taken for that and the first step on its groups."""
    duplicate_cosine: float = 1.0
    """Samples of at least this cosine count as one picture, so that no loss takes them for negatives; 1: off."""
    cell: int = 250_000
    """Samples that one task groups at once; larger stores are cut into cells of similar samples."""

    def __post_init__(self) -> None:
        for name in ("size", "neighbours", "row_group"):
            require(getattr(self, name) >= 1, f"groups.{name}", getattr(self, name), "at least 1")
        require(self.regroup_every >= 0, "groups.regroup_every", self.regroup_every, "0 or more")
        require(0 <= self.regroup_lead < max(1, self.regroup_every), "groups.regroup_lead", self.regroup_lead,
                "from 0 to below groups.regroup_every")
        require(0 < self.duplicate_cosine <= 1, "groups.duplicate_cosine", self.duplicate_cosine, "above 0, at most 1")
        require(self.cell >= 8 * self.size, "groups.cell", self.cell, f"at least 8 groups.size={self.size} samples")


@dataclass(frozen=True)
class FeedConfig:
    """From the grouped store to micro-batches."""

    window: int = 128
    """Row groups that are shuffled together."""
    image_size: int = 224
    """Side in pixels of the images that the feed delivers."""
    captions: int = 1
    """K: captions an image brings to one micro-batch (drawn anew each epoch)."""
    crop_scale: float = 0.2
    """Smallest area share of a random resized crop; 1: no crop."""
    flip: bool = True
    """Mirror images at random, except where a caption says left or right."""
    rand_augment: int = 0
    """RandAugment: operations drawn for an image, as ALBEF's list has them (ALBEF: 2); 0: off."""
    rand_augment_magnitude: int = 7
    """Strength of RandAugment's operations, from 0 to 10 (ALBEF: 7)."""
    record_samples: bool = False
    """Write samples/rank-<r>.jsonl: which groups each step trained on."""
    max_bad_share: float = 0.01
    """A launch that finds a larger share of samples bad at feed time stops (judged from 1,000 samples on)."""

    def __post_init__(self) -> None:
        for name in ("window", "image_size", "captions"):
            require(getattr(self, name) >= 1, f"feed.{name}", getattr(self, name), "at least 1")
        require(0 < self.crop_scale <= 1, "feed.crop_scale", self.crop_scale, "above 0, at most 1")
        require(self.rand_augment >= 0, "feed.rand_augment", self.rand_augment, "0 or more")
        require(0 <= self.rand_augment_magnitude <= 10, "feed.rand_augment_magnitude", self.rand_augment_magnitude,
                "from 0 to 10")
        require(0 <= self.max_bad_share <= 1, "feed.max_bad_share", self.max_bad_share, "from 0 to 1")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation."""

    groups_per_atom: int = 16
    """Groups of a micro-batch (the atom: unit of tdBN statistics, contrast set, masks and randomness)."""
    atoms_per_step: int = 2
    """Micro-batches of one optimizer step, whatever the number of workers."""
    max_steps: int = 0
    """Stop this launch at this step (status `stopped`; may always change); 0: run to schedule_steps."""
    schedule_steps: int = 0
    """Optimizer steps of the whole learning-rate schedule; 0: epochs times the steps of an epoch."""
    epochs: int = 40
    """Length of training where schedule_steps is 0."""
    schedule: Literal["cosine", "step"] = "cosine"
    """Warm-up, then a half cosine to min_lr_share; or division by 10 at each of `milestones`."""
    milestones: tuple[float, ...] = (0.625, 0.875)
    """Shares of the schedule at which `step` divides by 10 (SOHO: epochs 25 and 35 of 40)."""
    lr: float = 1e-4
    """Peak learning rate."""
    min_lr_share: float = 0.01
    """Last learning rate of the cosine, as a share of the peak."""
    warmup_share: float = 0.05
    """Share of the schedule with a linear warm-up."""
    backbone_lr_factor: float = 1.0
    """Learning-rate factor of the backbone (SOHO gives the CNN its own optimizer; ZeRO takes one)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decay rates."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """AdamW's decay; never on norms, biases, tdBN weights, the summary ratio and the temperature."""
    clip: float = 10.0
    """Largest gradient norm."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` computes in bfloat16 through torch_autocast; weights and optimizer stay fp32. `auto`: bf16 on GPUs (older
    than A100: say fp32) and on CPUs with instructions for it, else fp32; the run keeps what it began with."""
    log_every: int = 1
    """Steps between lines of metrics.jsonl."""
    validate_every: int = 100
    """Steps between validations on held-out data; 0: only at the end."""
    max_nonfinite: int = 3
    """Steps in a row without a finite loss and gradient that end the launch; none of them is applied."""
    data_version: int = 0
    """Version of the store to train and evaluate on; 0: the newest when the run begins."""

    def __post_init__(self) -> None:
        for name in ("groups_per_atom", "atoms_per_step", "epochs", "log_every", "max_nonfinite"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in ("max_steps", "schedule_steps", "validate_every", "data_version"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        for name in ("lr", "eps", "clip"):
            require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "more than 0")
        for name in ("backbone_lr_factor", "weight_decay"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        require(0 <= self.min_lr_share <= 1, "train.min_lr_share", self.min_lr_share, "from 0 to 1")
        require(all(0 <= beta < 1 for beta in self.betas), "train.betas", self.betas, "two numbers from 0 to below 1")
        require(all(0 < share < 1 for share in self.milestones), "train.milestones", self.milestones,
                "numbers between 0 and 1")
        require(0 <= self.warmup_share < 1, "train.warmup_share", self.warmup_share, "from 0 to below 1")


@dataclass(frozen=True)
class ScalingConfig:
    """Workers and DeepSpeed."""

    workers: Any = 2
    """World size: Ray Train workers. [fewest, most] follows the nodes: fewer where one dies, more where one comes."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto`: GPUs with NCCL where the cluster has one a worker, else CPUs with gloo."""
    cpus_per_worker: float = 0.5
    """CPUs that a worker reserves; what remains is for Ray Data."""
    zero_stage: int = 2
    """DeepSpeed ZeRO stage 0-3: cluster/deepspeed/zero<stage>.json."""
    stall_timeout_s: float = 60.0
    """Seconds without a step after which a worker counts as hung (ten times that for start-up and validation)."""

    def __post_init__(self) -> None:
        if isinstance(self.workers, list):
            object.__setattr__(self, "workers", tuple(self.workers))
        counts = self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)
        whole = all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
        require(whole and len(counts) == 2 and 1 <= counts[0] <= counts[1], "scaling.workers", self.workers,
                "a whole number of at least 1, or [fewest, most]")
        require(self.cpus_per_worker > 0, "scaling.cpus_per_worker", self.cpus_per_worker, "more than 0")
        require(self.zero_stage in (0, 1, 2, 3), "scaling.zero_stage", self.zero_stage, "0, 1, 2 or 3")
        require(self.stall_timeout_s > 0, "scaling.stall_timeout_s", self.stall_timeout_s, "more than 0")

    @property
    def fewest(self) -> int:
        """Workers that training needs at least."""
        return int(self.workers[0] if isinstance(self.workers, tuple) else self.workers)

    @property
    def most(self) -> int:
        """Workers that training uses at most."""
        return int(self.workers[1] if isinstance(self.workers, tuple) else self.workers)


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of the run."""

    every_steps: int = 100
    """Steps between checkpoints; one more is made where a launch stops."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_best: int = 1
    """Checkpoints kept besides: those behind the best validations, by the mean of i2t and t2i R@5."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, "checkpoint.every_steps", self.every_steps, "at least 1")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1")
        require(self.keep_best >= 0, "checkpoint.keep_best", self.keep_best, "0 or more")


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation, always from rest."""

    retrieval_split: str = "val"
    """Split of the store for retrieval, ITM, MLM, MVM and STUA."""
    unseen_split: str = ""
    """Split of things that training never shows (keys retrieval_unseen/...), such as the demo's; empty: none."""
    validate_samples: int = 256
    """Samples of each split used by validations during training; 0: all."""
    final_samples: int = 0
    """Samples of each split used by the evaluation that ends a run; 0: all."""
    rerank: int = 32
    """ITC candidates that ITM re-ranks; 0: no re-ranking."""
    batch: int = 64
    """Images of an evaluation batch (the results do not depend on it)."""
    targets: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    """Held-out R@5 whose first step the summary and the report name."""

    def __post_init__(self) -> None:
        for name in ("validate_samples", "final_samples", "rerank"):
            require(getattr(self, name) >= 0, f"evaluation.{name}", getattr(self, name), "0 or more")
        require(self.batch >= 1, "evaluation.batch", self.batch, "at least 1")
        require(all(0 < target <= 1 for target in self.targets), "evaluation.targets", self.targets,
                "numbers above 0, at most 1")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything `jobs/pretrain.py` takes."""

    init: str = ""
    """Run or export to start the weights from; empty: as the model configuration says."""
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    feed: FeedConfig = field(default_factory=FeedConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.tasks.itc.gather and self.scaling.fewest != self.scaling.most:
            raise ValueError("scaling.workers: tasks.itc.gather=true contrasts over all workers, so their number must "
                             "not change; give one number")
        if not self.model.summary_ratio.off:
            self.model.abstract.steps_per_sample(self.groups.size)
        require(not self.groups.regroup_every or self.tasks.itc.weight > 0, "groups.regroup_every",
                self.groups.regroup_every, "0 where tasks.itc.weight is 0, since ITC's embeddings make the new groups")
        require(not self.groups.regroup_every or self.groups.method == "similar", "groups.regroup_every",
                self.groups.regroup_every, "0 where groups.method is random")
