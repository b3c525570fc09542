"""Cuts a run at random steps and resumes it, in real processes, for test_resume_anywhere.py.

`python -m tests.pipelines.training.cut_ranks FOLDER`: each case trains STEPS steps with a checkpoint behind every one,
then resumes from ten of them in new engines. Rank 0 writes FOLDER/<case>.json: cut -> what differs in any bit.
"""
from __future__ import annotations

import json
import random
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from pipelines.config import CheckpointConfig
from pipelines.training.lease import Lease
from pipelines.training.restore import restore
from pipelines.training.saver import Saver
from tests.pipelines.training.equivalence_ranks import Case, Training, connect_rank, run_world, write_data

CASES = (Case("dictionary", 1, 2), Case("dictionary", 2, 2))
STEPS, AFTER, CUTS = 14, 2, 10


def start(case: Case, rank: int, folder: Path, run: Path, step: int) -> Training:
    """A training of `case` that resumes in the folder `run`, which stands at `step`."""
    training = Training(case, rank, folder, step)
    config = training.job.config
    config = replace(config, scaling=replace(config.scaling, zero_stage=case.zero),
                     checkpoint=CheckpointConfig(keep=STEPS, keep_best=0))
    training.job = replace(training.job, run=run, config=config)
    found = restore(training.engine, training.job, rank)
    assert (found.step if found else 0) == step
    return training


def run_case(case: Case, rank: int, port: int, folder: Path) -> None:
    """One rank of a case."""
    connect_rank(rank, case.world, port)
    run = folder / case.name
    training = start(case, rank, folder, run, 0)
    saver, expected = Saver(training.engine, training.job, rank, case.world), {}
    for step in range(1, STEPS + 1):
        expected[step] = training.run(step)
        saver.save(step, 1.0)
    saver.wait()
    training.engine._engine.destroy()
    distributed.barrier()
    different = {}
    for cut in sorted(random.Random(0).sample(range(1, STEPS - AFTER), CUTS)):
        if rank == 0:
            copy_run(run, folder / f"{case.name}-cut", cut)
        distributed.barrier()
        training = start(case, rank, folder, folder / f"{case.name}-cut", cut)
        found = training.run(cut + AFTER)
        training.engine._engine.destroy()
        assert found.keys() == expected[cut + AFTER].keys()
        different[cut] = [name for name, value in found.items() if not torch.equal(value, expected[cut + AFTER][name])]
    if rank == 0:
        (folder / f"{case.name}.json").write_text(json.dumps(different))
    distributed.destroy_process_group()


def copy_run(run: Path, to: Path, cut: int) -> None:
    """The run as it stood at step `cut`."""
    shutil.rmtree(to, ignore_errors=True)
    later = [f"step-{step:08d}" for step in range(cut + 1, STEPS + 1)]
    shutil.copytree(run, to, ignore=shutil.ignore_patterns(*later))


def main(folder: Path) -> None:
    """Write the data, run every case."""
    run_world(write_data, [(folder,)])
    for case in CASES:
        with Lease(folder / case.name), socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            run_world(run_case, [(case, rank, port, folder) for rank in range(case.world)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
