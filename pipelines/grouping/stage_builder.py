"""Build the later stages of the groups beside training: a thread of the driver that works when a model appears.

What training writes and waits for stands in pipelines/training/stage_models.py. A stage that is there stays; one whose
building was interrupted is built by the next launch from the same model, so every launch sees the same stages.
"""
from __future__ import annotations

import shutil
import threading
import time
import traceback
from pathlib import Path
from typing import Self

import ray

from pipelines.disk import full_disk_told
from pipelines.errors import UserError, is_users_mistake
from pipelines.export import write_loading_files
from pipelines.feed.stages import Stages
from pipelines.grouping.build import SPLIT, build_groups
from pipelines.grouping.materialise import check_room
from pipelines.grouping.samples import Samples
from pipelines.model_source import WEIGHTS
from pipelines.store.table import ImageTextStore
from pipelines.training import checkpoint
from pipelines.training.job import TrainingJob

POLL_SECONDS = 0.5
BATCH = 64
"""Images that are embedded at once."""


class StageBuilder:
    """Works while the `with` block lasts; without `groups.regroup_every` it does nothing."""

    def __init__(self, job: TrainingJob) -> None:
        self._job = job
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stage-builder", daemon=True)

    def __enter__(self) -> Self:
        if self._job.plan.stages is not None:
            for left in Path(self._job.plan.stages.folder).glob("stage-*/failed.json"):
                left.unlink()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()  # a stage that is being built now is needed no more in this launch

    def _run(self) -> None:
        stages = self._job.plan.stages
        assert stages is not None
        while not self._over.wait(POLL_SECONDS):
            for stage in wanted(self._job, stages):
                try:
                    build(self._job, stages, stage)
                except Exception as error:  # training waits for this stage: whatever went wrong must reach it
                    stages.fail(stage, error)
                    if is_users_mistake(error):
                        print(f"warning: stage {stage} of the groups could not be built, and training ends where it "
                              f"needs it: {error}", flush=True)
                    elif not self._over.is_set():
                        traceback.print_exc()
                    return
            remove_old(self._job, stages)


def wanted(job: TrainingJob, stages: Stages) -> list[int]:
    """The stages whose model is there and whose groups are not."""
    found = sorted(int(path.parent.parent.name[6:]) for path in Path(stages.folder).glob(f"stage-*/model/{WEIGHTS}"))
    return [stage for stage in found if not stages.groups(stage).exists()]


def build(job: TrainingJob, stages: Stages, stage: int) -> None:
    """Embed the store with the stage's model and write its groups, whole or not at all; UserError: the disk is full."""
    began, model, config = time.monotonic(), stages.model(stage), job.config
    with full_disk_told(model, "a model that groups are built from", None):
        write_loading_files(config, model)
    store = ImageTextStore(job.store)
    samples = Samples.read(store, job.store_version, SPLIT)
    check_room(stages.groups(stage), samples)
    home = stages.path(stage) / "embeddings"
    _embed(samples, model, home)
    groups = build_groups(config.groups, config.model.text, store, config.run.seed, stages.groups(stage), None,
                          job.store_version, model=model, home=home)
    shutil.rmtree(home)  # of use to nobody else: the model is one of many on the way
    quality = groups.manifest["quality"]
    print(f"groups, stage {stage}: built anew in {time.monotonic() - began:.0f} s for the epochs from "
          f"{stage * stages.every} on; cosine in a group {quality['in_group']:.3f}, at random {quality['random']:.3f}",
          flush=True)


def _embed(samples: Samples, model: Path, home: Path) -> None:
    """Make the embeddings of `samples` by one actor that reserves nothing: training holds the CPUs."""
    from pipelines.grouping.image_embedding import recipe
    from pipelines.grouping.kept import Embedder, missing, pieces_of

    images = recipe(model, BATCH)
    pieces = missing(pieces_of(images, samples, home), images)
    actor = ray.remote(num_cpus=0)(Embedder).remote(pieces, images, samples.split)
    for number in range(len(pieces)):
        mistake = ray.get(actor.embed.remote(number))
        if mistake:
            raise UserError(mistake)
    ray.kill(actor)


def remove_old(job: TrainingJob, stages: Stages) -> None:
    """Remove the groups and models of stages that no checkpoint could be resumed in any more."""
    try:
        oldest = min((checkpoint.read_manifest(folder).position for folder in checkpoint.folders(job.run)), default=0)
    except checkpoint.NO_MANIFEST:  # a worker is removing it just now, or it is damaged: another time
        return
    for path in sorted(Path(stages.folder).glob("stage-*")):
        if stages.begins(int(path.name[6:]) + 1, job.groups) <= oldest:
            shutil.rmtree(path)
