"""Run one step of a run again and see where it stops being finite: `python jobs/replay.py run=RUN step=N`."""
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a script, in a submitted job too: the packages lie in the repository, not beside us
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.paths import default_root
from jobs import cli
from pipelines.replay_config import ReplayConfig

if TYPE_CHECKING:
    from pipelines.replay import Atom, Replayed

SHOWN = 8
"""Names of a list that are printed."""


def main(argv: list[str]) -> int:
    """Replay what `argv` says; 1 where something is not finite."""
    command = cli.parse(ReplayConfig, argv,
                        description="Run one step of a run again, in one process on the CPU, from the newest "
                                    "checkpoint before it, and print for each micro-batch what it is made of, its "
                                    "losses and gradient norm, and where the first number is that is not finite. "
                                    "Changes nothing in the run. Exits 0 where all is finite, else 1.")
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # before DeepSpeed and torch look for a GPU
    from pipelines.replay import replay  # late: torch takes seconds to import

    found = replay(command.config, default_root())
    print("\n".join(lines(command.config, found)), flush=True)
    return 0 if found.finite else 1


def lines(config: ReplayConfig, found: Replayed) -> list[str]:
    """What the step did, in words."""
    again = f", {found.again} steps between run again" if found.again else ""
    return [f"step {config.step}, from {found.start or 'the initial weights'}{again}",
            f"not finite before the step: {some(found.spoilt)}" if found.spoilt else "weights and buffers are finite",
            *(line for atom in found.atoms for line in atom_lines(atom)),
            "all is finite" if found.finite else "not all is finite"]


def atom_lines(atom: Atom) -> list[str]:
    """What a micro-batch did, in words."""
    losses = ", ".join(f"{name} {value:.6g}" for name, value in atom.losses.items())
    told = [f"position {atom.batch.position}: samples {' '.join(atom.batch.sample_ids)}",
            f"  {losses}; gradient norm {atom.gradient_norm:.6g}"]
    if atom.first_output:
        told.append(f"  first output that is not finite: {atom.first_output}")
    if atom.gradients:
        told.append(f"  gradients that are not finite, the first reached first: {some(atom.gradients)}")
    return told


def some(names: tuple[str, ...]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


if __name__ == "__main__":
    cli.run(main)
