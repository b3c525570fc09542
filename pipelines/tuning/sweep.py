"""The whole way of one launch of a sweep: check, take the lease, plan trials, let Ray Tune run them, write results."""
from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cluster import nodes
from cluster.connection import connect
from pipelines.errors import FinalError, Preempted
from pipelines.finding import demand
from pipelines.places import groups_folder, run_folder, store_folder
from pipelines.report.summary import REPORT
from pipelines.store.table import ImageTextStore
from pipelines.training import machine, preflight
from pipelines.training.data_pin import DataPin, first_version, pinned, read_pin
from pipelines.training.lease import Lease, check_free
from pipelines.training.preemption import AGAIN
from pipelines.tuning import groups
from pipelines.tuning.checks import checked_space, incomparable, room
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.planner import Planner
from pipelines.tuning.results import complete, print_results, write_results
from pipelines.tuning.resume import check_resumable, save_sweep
from pipelines.tuning.trials import Trial

PREEMPTED = f"preempted: trials go on from their newest checkpoints; {AGAIN}"


def tune(config: TuneConfig, root: Path) -> None:
    """Run the sweep that `config` describes from wherever it stands.

    Raises UserError for whatever the user can mend, before anything heavy starts; FinalError where a trial did not
    end, or none has finished.
    """
    folder = run_folder(config, root)
    space = checked_space(config)
    check_resumable(config, folder)
    planner = Planner(config, space, folder)
    done = planner.done()
    if done and complete(folder):
        print(f"sweep {config.run.name} is finished already: {len(planner.trials())} trials; raise tune.trials for "
              "more, or another run.name searches anew")
        print_results(config, folder, planner.trials())
        return
    check_free(folder, config.run.takeover)
    if not done:
        _demand_here(config, planner, folder, root)
        if warning := incomparable(config):
            print(f"warning: {warning}", flush=True)
    with Lease(folder, takeover=config.run.takeover), preempted():
        save_sweep(config, folder)
        if not done:
            _pin_initial(config, planner, folder, root)
            _train(config, planner, folder, root)
        write_results(config, space, folder, planner.trials(), read_pin(folder))
        print_results(config, folder, planner.trials())
    if planner.done() and (rest := planner.rest()):
        print(rest)
    _say_what_is_missing(folder, planner.trials())


def _train(config: TuneConfig, planner: Planner, folder: Path, root: Path) -> None:
    connect()
    listen()
    _demand_cluster(config)
    (folder / REPORT).unlink(missing_ok=True)
    planner.data = _data(config, planner, folder, root)
    from pipelines.tuning.tuner import run_trials  # late: Ray Tune takes seconds to import
    run_trials(config, planner, folder)


def _demand_here(config: TuneConfig, planner: Planner, folder: Path, root: Path) -> None:
    shared, path = config.shared(), store_folder(config.data, root)
    local = [] if os.environ.get("RAY_ADDRESS") else [
        room(config, os.cpu_count() or 1, _gpus(config), "this machine's")]
    groups_folder(shared, path, 0)  # that there is a place for them
    demand(preflight.store(shared, path), *preflight.here(shared), *local)
    if ImageTextStore(path).exists():
        demand(groups.possible(config, planner.space, folder, path))
    model, _ = preflight.model(shared)
    demand(model, preflight.writable(folder))
    if not planner.trials():
        from pipelines.training.initial import check_initial  # late: torch takes seconds to import
        check_initial(shared, folder, root)
    demand(*planner.models.impossible())


def _pin_initial(config: TuneConfig, planner: Planner, folder: Path, root: Path) -> None:
    """Copy the weights that `init` names into the sweep, before its first trial: all start from the same."""
    from pipelines.training.initial import pin_initial
    if not planner.trials():
        pin_initial(config, folder, root)


def _gpus(config: TuneConfig) -> int:
    if config.scaling.device != "gpu":
        return 0
    import torch
    return torch.cuda.device_count()


def _demand_cluster(config: TuneConfig) -> None:
    have = nodes.resources()
    demand(room(config, have.cpus, have.gpus, "the cluster's"), machine.device(config, have.gpus))


def _data(config: TuneConfig, planner: Planner, folder: Path, root: Path) -> DataPin:
    """The store, built where it is the missing default one, and the version that all trials train on."""
    path = store_folder(config.data, root)
    store = ImageTextStore(path)
    if not store.exists():
        from pipelines.report.stages import StageProgress
        from pipelines.store.ingest import ingest_demo
        print(f"store: building {path}", flush=True)
        ingest_demo(config.data, path, StageProgress())
        demand(preflight.store(config.shared(), path), groups.possible(config, planner.space, folder, path))
    return pinned(folder, path, first_version(config, store), folder)  # each trial pins the groups of its own need


def _say_what_is_missing(folder: Path, trials: Sequence[Trial]) -> None:
    undone = [trial.name for trial in trials if trial.status == "open"]
    if undone:
        raise FinalError(f"{len(undone)} of {len(trials)} trials did not end ({', '.join(undone)}): see their logs in "
                         f"{folder / 'trials'}; {AGAIN} to go on with them")
    if not any(trial.status == "finished" for trial in trials):
        raise FinalError(f"no trial has finished: {next((t.why for t in trials if t.why), 'all were stopped early')}; "
                         f"see {folder / 'trials'}")


def listen() -> None:
    """Take SIGTERM, again where Ray has put its own handler in place; only the main thread can."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)


def _terminated(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Preempted(PREEMPTED)


@contextmanager
def preempted() -> Iterator[None]:
    """Inside the block SIGTERM ends the sweep with exit code 75."""
    before = signal.getsignal(signal.SIGTERM)
    listen()
    try:
        yield
    except BaseException as end:
        heard = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # Ray's compiled calls make a SystemError of ours
        in_rays_start = isinstance(end, SystemExit) and end.code == signal.SIGTERM
        if (heard or in_rays_start) and not isinstance(end, Preempted):
            raise Preempted(PREEMPTED) from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
