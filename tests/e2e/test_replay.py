"""`jobs/replay.py`: what it runs again is what was trained, and it names where numbers stop being finite."""
from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, Finished, Jobs, lines

pytestmark = pytest.mark.full


def replay(jobs: Jobs, run: Path | str, step: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(REPOSITORY / "jobs" / "replay.py"), f"run={run}", f"step={step}"],
                          cwd=jobs.home, env=jobs.environment(), capture_output=True, text=True, timeout=200)


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_replayed_step_is_the_one_that_was_trained(tiny: Finished, jobs: Jobs) -> None:
    """Held against what the two workers wrote while they trained: samples, mean losses, norm of the mean gradient."""
    before = contents(tiny.folder)
    done = replay(jobs, tiny.folder, 5)
    assert done.returncode == 0, done.stderr
    assert "from step-00000003, 1 steps between run again" in done.stdout and "all is finite" in done.stdout
    trained = next(line for line in lines(tiny.folder / "metrics.jsonl") if line["step"] == 5)
    losses = [float(value) for value in re.findall(r"^  loss ([\d.]+),", done.stdout, re.MULTILINE)]
    assert sum(losses) / 2 == pytest.approx(trained["loss"], rel=1e-4)
    norms = [float(value) for value in re.findall(r"gradient norm ([\d.]+)$", done.stdout, re.MULTILINE)]
    assert abs(norms[0] - norms[1]) / 2 <= trained["grad_norm"] <= sum(norms) / 2
    records = [line for path in (tiny.folder / "samples").glob("rank-*.jsonl") for line in lines(path)]
    for position in (32, 36):
        ids = [i for at in range(position, position + 4) for r in records if r["position"] == at
               for i in r["sample_ids"]]
        assert f"position {position}: samples {' '.join(ids)}\n" in done.stdout
    assert contents(tiny.folder) == before


def test_it_names_the_first_output_and_the_gradients_that_are_not_finite(tiny: Finished, jobs: Jobs,
                                                                         tmp_path: Path) -> None:
    """A run whose first update throws the weights away: without a checkpoint, step 1 is run again on the way."""
    run = tmp_path / "diverged"
    shutil.copytree(tiny.folder, run, ignore=shutil.ignore_patterns("checkpoints"))
    config = (run / "config.yaml").read_text()
    assert "  lr: 0.001\n" in config
    (run / "config.yaml").write_text(config.replace("  lr: 0.001\n", "  lr: 1.0e+30\n"))
    done = replay(jobs, run, 2)
    assert done.returncode == 1, done.stderr
    assert "from the initial weights, 1 steps between run again" in done.stdout
    assert "weights and buffers are finite" in done.stdout and "not all is finite" in done.stdout
    assert re.search(r"first output that is not finite: model\.\S+$", done.stdout, re.MULTILINE)
    assert "gradients that are not finite, the first reached first: " in done.stdout


@pytest.mark.parametrize(("run", "step", "told"), [
    ("nowhere", 3, "run=nowhere: no run"), ("", 3, "run is missing"), ("TINY", 0, "step=0: run tiny has the steps"),
    ("TINY", 13, "the steps 1 to 12")])
def test_mistakes_exit_2_with_one_line(tiny: Finished, jobs: Jobs, run: str, step: int, told: str) -> None:
    done = replay(jobs, run.replace("TINY", str(tiny.folder)), step)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
