"""A trial in Ray Tune: an actor that starts `jobs/pretrain.py` on the trial's run, and reports what the run measures.

The launch is a process of its own and a Ray job of its own, the same that a user would start: when it dies, Ray gives
back all that it held, and the same command goes on from the newest checkpoint.
"""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from cluster.paths import REPOSITORY
from pipelines.tuning.objective import Report, reports

LOOK_S = 0.5
STOP_S = 120.0
"""How long a trial that is stopped may take for its checkpoint."""
AS_THE_SWEEP = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "RAY_JOB_CONFIG_JSON_ENV_VAR")
"""Variables that Ray gives an actor a value of its own for, or none: a launch gets those of the sweep's own process."""


@dataclass(frozen=True)
class Launch:
    """What the actor needs to know of a trial."""

    configuration: str
    """The file for `jobs/pretrain.py --config`."""
    run: str
    log: str
    measures: tuple[str, ...]
    variables: tuple[tuple[str, str | None], ...]
    """The sweep's values of AS_THE_SWEEP."""


class TrialRun(tune.Trainable):
    """Each `step` waits for the next validation, the last one for the end of the run."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start the launch, unless the run was finished when the sweep was killed."""
        self._launch: Launch = config["launch"]
        self._reported = 0
        finished = any(report.final for report in self._new_reports())
        self._process = None if finished else self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        for name, value in self._launch.variables:
            environment.pop(name, None)
            environment |= {name: value} if value is not None else {}
        command = [sys.executable, "-m", "jobs.pretrain", "--config", self._launch.configuration, "run.takeover=true"]
        with open(self._launch.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "pipelines.tuning.tied", str(os.getpid()), *command], cwd=REPOSITORY,
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def _new_reports(self) -> list[Report]:
        return [report for report in reports(Path(self._launch.run), self._launch.measures)
                if report.step > self._reported]

    def step(self) -> dict[str, Any]:
        """The next report, the last one `final`; where there is none, `why`, and whether the trial has `failed`."""
        while True:
            code = self._process.poll() if self._process else 0
            new = self._new_reports()
            if new and not (new[0].final and code is None):
                self._reported = new[0].step
                return {"step": new[0].step, **new[0].values, "final": new[0].final, "done": new[0].final}
            if code is not None:
                return self._without_result(code)
            time.sleep(LOOK_S)

    def _without_result(self, code: int) -> dict[str, Any]:
        """The launch has ended without a final report.

        What comes again after every restart is the trial's result. What a person can mend, such as a full disk, leaves
        it open for the next launch of the sweep. Everything else Tune tries again, which an exception asks for.
        """
        mistakes = [line.removeprefix("error: ") for line in _tail(self._launch.log) if line.startswith("error: ")]
        if code in (1, 2) and mistakes:
            return {"step": self._reported, "why": "; ".join(mistakes), "failed": code == 1, "done": True}
        raise RuntimeError(f"the launch ended with code {code} before its run was finished: see {self._launch.log}")

    def cleanup(self) -> None:
        """Let the launch write a checkpoint and end."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _tail(path: str, most: int = 20_000) -> list[str]:
    """The last lines of a log, those of the newest launch."""
    content = Path(path).read_bytes()[-most:].decode(errors="replace")
    return content[content.rfind("configuration: "):].splitlines()
