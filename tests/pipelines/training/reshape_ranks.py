"""Trains one run on a changing number of workers and ZeRO stages, in real processes, for test_reshape.py.

`python -m tests.pipelines.training.reshape_ranks FOLDER [CHAIN ...]`: each link of a chain restores what the one before
has checkpointed, trains a step, checkpoints and trains one more. Rank 0 writes FOLDER/<chain>-<link>.pt.
"""
from __future__ import annotations

import socket
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, distributed

from pipelines.training import engine as engines
from pipelines.training.lease import Lease
from pipelines.training.restore import restore
from pipelines.training.saver import Saver
from tests.pipelines.training.equivalence_ranks import (
    Case,
    Training,
    connect_rank,
    cut_small_weights_too,
    run_world,
    write_data,
)

CHAINS = {  # (workers, ZeRO stage) of each link
    "workers": ("dictionary", ((1, 2), (2, 2), (1, 2), (3, 1))),
    "stages": ("dictionary", ((2, 0), (2, 2), (2, 3), (1, 0))),
    "frozen": ("frozen", ((2, 2), (1, 3), (3, 2))),
}
FIRST = 3


def link(chain: str, number: int, rank: int, folder: Path) -> None:
    """One rank of one link: `loaded` after restoring, `saved` a step later at its checkpoint, `next` a step on.

    Each holds weights, moments and buffers; the last two what their step measured too.
    """
    task, links = CHAINS[chain]
    world, zero = links[number]
    start = 0 if number == 0 else FIRST + number - 1
    training = Training(Case(task, world, zero), rank, folder, start)
    config = training.job.config
    training.job = replace(training.job, run=folder / chain,
                           config=replace(config, scaling=replace(config.scaling, zero_stage=zero)))
    found = restore(training.engine, training.job, rank)
    assert (found.step if found else 0) == start
    results: dict[str, dict[str, Tensor]] = {"loaded": training.state()} if found else {}
    stop = FIRST + number
    results["saved"] = training.run(stop) | group_settings(training)
    saver = Saver(training.engine, training.job, rank, world)
    saver.save(stop, 1.0)
    results["next"] = training.run(stop + 1)
    saver.wait()
    distributed.barrier()
    if rank == 0:
        torch.save(results, folder / f"{chain}-{number}.pt")


def group_settings(training: Training) -> dict[str, Tensor]:
    """Learning rate, decay and the like of every group of the optimizer."""
    return {f"group/{number}/{key}": torch.tensor(value, dtype=torch.float64)
            for number, group in enumerate(training.engine._optimizer.param_groups)
            for key, value in group.items() if isinstance(value, float | tuple)}


def run_link(rank: int, world: int, port: int, folder: Path, chain: str, number: int) -> None:
    """One process of a link."""
    connect_rank(rank, world, port)
    link(chain, number, rank, folder)
    distributed.destroy_process_group()


def main(folder: Path, wanted: list[str]) -> None:
    """Write the data, run every chain."""
    engines.deepspeed_config = cut_small_weights_too
    run_world(write_data, [(folder,)])
    for chain in wanted or CHAINS:
        with Lease(folder / chain):
            for number, (world, _) in enumerate(CHAINS[chain][1]):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", 0))
                    port = probe.getsockname()[1]
                run_world(run_link, [(rank, world, port, folder, chain, number) for rank in range(world)])
                print(f"{chain}: link {number}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
