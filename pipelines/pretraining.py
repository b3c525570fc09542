"""The whole way of one pre-training launch: store -> groups -> training -> held-out evaluation -> summary, report."""
from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from cluster.connection import connect
from pipelines.config import PretrainConfig, ScalingConfig
from pipelines.doctor import certain, estimates, uses_cpu
from pipelines.errors import UserError
from pipelines.finding import demand
from pipelines.location import Place
from pipelines.places import groups_folder, run_folder, store_folder
from pipelines.precision import recorded, settled
from pipelines.resume import save_config
from pipelines.store.table import ImageTextStore
from pipelines.training import checkpoint, preflight
from pipelines.training.job import TrainingJob
from pipelines.training.lease import Lease, check_free
from pipelines.training.needs import ModelSize
from pipelines.training.preemption import Preemption


def pretrain(config: PretrainConfig, root: Path) -> None:
    """Train the run that `config` names from wherever it stands, below `root` unless the keys name other places.

    Raises UserError for whatever the user can mend, before anything heavy starts.
    """
    run = run_folder(config, root)
    store = store_folder(config.data, root)
    demand(preflight.resumable(config, run))
    config = recorded(config, run)
    from pipelines.report.summary import finished_summary, print_summary
    done = finished_summary(run)
    if done and done["steps"] >= stop_step(config, done["schedule_steps"]):
        print(f"run {config.run.name} is finished already: {done['steps']} steps; another run.name trains anew")
        print_summary(run, done)
        return
    check_free(run, config.run.takeover)
    demand(preflight.store(config, store), *preflight.here(config))
    model, size = preflight.model(config)
    demand(model, preflight.writable(run))
    from pipelines.training.initial import check_initial, pin_initial
    check_initial(config, run, root)
    with Lease(run, takeover=config.run.takeover) as lease, Preemption(lease) as preemption:
        with damages_shown(run):
            checkpoint.resume_point(run, lease.attempt)
        _keep(config, run)
        pin_initial(config, run, root)
        if ImageTextStore(store).exists():
            demand(preflight.data(config, run, store))
        connect()
        preemption.listen()
        _launch(config, run, store, size, lease.attempt, preemption)


def _keep(config: PretrainConfig, run: Path) -> None:
    """Write config.yaml: what the run is, but not that this launch took it over."""
    save_config(replace(config, run=replace(config.run, takeover=False)), run)


def in_words(scaling: ScalingConfig) -> str:
    """The number of workers."""
    return f"{scaling.fewest} to {scaling.most} workers" if scaling.fewest < scaling.most else f"{scaling.most} workers"


def stop_step(config: PretrainConfig, schedule_steps: int) -> int:
    """The step at which this launch stops."""
    return min(config.train.max_steps or schedule_steps, schedule_steps)


@contextmanager
def damages_shown(run: Path) -> Iterator[None]:
    """At the end of the `with` block, print a warning for each checkpoint that was set aside in it."""
    before = len(checkpoint.damages(run))
    try:
        yield
    finally:
        for warning in checkpoint.damages(run)[before:]:
            print(f"warning: {warning}", flush=True)


def _launch(config: PretrainConfig, run: Path, store_path: Place, size: ModelSize, attempt: int,
            preemption: Preemption) -> None:
    from pipelines.evaluation.final import evaluate_export
    from pipelines.export import complete
    from pipelines.grouping.build import build_groups
    from pipelines.grouping.stage_builder import StageBuilder
    from pipelines.report.page import write_report
    from pipelines.report.stages import StageProgress
    from pipelines.report.summary import print_summary, write_summary
    from pipelines.store.ingest import ingest_demo
    from pipelines.training.data_pin import first_version, pinned
    from pipelines.training.progress import TrainingProgress
    from pipelines.training.trainer import fit
    needs = certain(config, run, store_path)
    demand(*needs)
    device: Literal["cpu", "cuda"] = "cpu" if uses_cpu(needs) else "cuda"
    config = settled(config, device)
    _keep(config, run)
    for found in estimates(config, size, run, store_path):
        if found.mend:
            print(f"warning: {found.finding}: {found.mend}", flush=True)
    store = ImageTextStore(store_path)
    if not store.exists():
        print(f"store: building {store_path}", flush=True)
        report = ingest_demo(config.data, store_path, StageProgress())
        print(f"store: {report.rows_by_split} rows, quarantined {report.quarantined or 'none'}", flush=True)
        demand(preflight.store(config, store_path))
    version = first_version(config, store)
    pin = pinned(run, store_path, version, groups_folder(config, store_path, version))
    groups = build_groups(config.groups, config.model.text, store, config.run.seed, Path(pin.groups), StageProgress(),
                          pin.version)
    job = make_job(config, run, attempt, store_path, pin.version, Path(pin.groups), groups.groups, device)
    print(f"training: steps to {job.stop_step} of {job.schedule_steps}, {in_words(config.scaling)} on {device}, "
          f"{config.train.precision}, ZeRO-{config.scaling.zero_stage}, {job.samples(1)} images a step", flush=True)
    with preemption.training(run), damages_shown(run), TrainingProgress(run, job.stop_step), StageBuilder(job):
        fit(job)
    print("evaluation: held-out data, from rest", flush=True)
    final = evaluate_export(job)
    summary = write_summary(job, final)
    complete(run)
    try:
        write_report(job, summary, final)
    finally:
        print_summary(run, summary)


def make_job(config: PretrainConfig, run: Path, attempt: int, store: Place, version: int, groups_path: Path,
             groups: int, device: str) -> TrainingJob:
    """What the workers train: the steps of an epoch follow from the groups where the configuration counts epochs."""
    from pipelines.feed.plan import feed_plan
    from pipelines.feed.stages import Stages
    train = config.train
    end = None if train.schedule_steps else train.epochs * groups
    every = config.groups.regroup_every
    stages = Stages(str(run / "stages"), every, round(config.groups.regroup_lead * groups)) if every else None
    plan = feed_plan(config, str(groups_path), end, stages)
    if stages and stages.begins(1, groups) < plan.step_groups:
        raise UserError(f"groups.regroup_every={every}: {every * groups} groups are less than one step of "
                        f"{plan.step_groups}: regroup less often, or make the steps smaller")
    schedule = train.schedule_steps or math.ceil(train.epochs * groups / plan.step_groups)
    return TrainingJob(config=config, run=run, attempt=attempt, plan=plan, store=store, store_version=version,
                       groups=groups, schedule_steps=schedule, stop_step=stop_step(config, schedule), device=device)
