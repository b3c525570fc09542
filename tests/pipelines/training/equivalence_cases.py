"""The trainings that test_equivalence.py holds against each other; equivalence_ranks.py runs them."""
from __future__ import annotations

from dataclasses import dataclass

STEPS, SAVED, RESUMED = 20, 3, 5


@dataclass(frozen=True)
class Case:
    """One training: `world` ranks, ZeRO stage `zero`, to step `steps`.

    `task` is `spikes`, `dictionary` (with a cross-batch memory), `frozen` (as the demo freezes) or `gather` (ITC alone,
    over all ranks). `resume`: leave a checkpoint at SAVED and go on from it in a second engine to RESUMED. `export`:
    write the weights at the end. `evaluate`: score held-out data before. `fixed`: train on one step's atoms for
    ever. `fast`: at 1e-5, where twenty steps of `spikes` take the rate that jobs/configs/paper.yaml's warm-up has
    reached by then (1e-4 after 2,800 steps).
    """

    task: str
    world: int
    zero: int
    steps: int = STEPS
    resume: bool = False
    export: bool = False
    evaluate: bool = False
    checkpointing: bool = False
    precision: str = "fp32"
    fixed: bool = False
    fast: bool = False

    @property
    def lr(self) -> float:
        """The learning rate: small where float32 spikes move the backbone, since flipped spikes amplify rounding."""
        if self.precision != "fp32":
            return 1e-3
        return 7e-7 if self.task == "spikes" and not self.fast else 1e-5

    @property
    def name(self) -> str:
        """The name of its file."""
        marks = [*["checkpointing"] * self.checkpointing, *["fast"] * self.fast,
                 *[self.precision] * (self.precision != "fp32")]
        return "-".join([self.task, *marks, f"world{self.world}", f"zero{self.zero}"])


CASES = (
    Case("spikes", 1, 0, evaluate=True),
    Case("spikes", 2, 0, RESUMED, resume=True),
    Case("spikes", 2, 1, 1),
    Case("spikes", 2, 2),
    Case("spikes", 2, 3, 1, evaluate=True),
    Case("spikes", 3, 2, 1, evaluate=True),
    Case("dictionary", 1, 2, RESUMED, resume=True, export=True),
    Case("dictionary", 2, 2, RESUMED, resume=True),
    Case("dictionary", 2, 3, RESUMED, resume=True, export=True),
    Case("dictionary", 3, 2, RESUMED, export=True),
    Case("dictionary", 3, 3, 1),
    Case("frozen", 1, 0),
    Case("frozen", 2, 2, resume=True),
    Case("frozen", 2, 3, RESUMED, resume=True),
    *(Case("dictionary", world, zero, precision="fp64")
      for world, zero in ((1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (3, 2))),
    Case("spikes", 1, 0, 3, checkpointing=True),
    Case("spikes", 2, 3, 3, checkpointing=True),
    Case("spikes", 1, 0, fast=True),
    Case("spikes", 2, 2, fast=True),
    Case("gather", 2, 2, 1),
    Case("spikes", 1, 2, 10, precision="bf16", fixed=True),
    Case("spikes", 2, 3, 10, precision="bf16", fixed=True),
)
