"""`jobs/doctor.py` as a user runs it: one row a check, every fault at once, nothing left behind."""
from __future__ import annotations

import subprocess

from tests.e2e.conftest import REPOSITORY, Jobs


def doctor(jobs: Jobs, *keys: str) -> subprocess.CompletedProcess[str]:
    words = jobs.arguments(*keys)
    words[1] = str(REPOSITORY / "jobs" / "doctor.py")
    return subprocess.run(words, cwd=jobs.home, env=jobs.environment(), text=True, capture_output=True, timeout=280)


def test_where_nothing_stands_in_the_way(jobs: Jobs) -> None:
    done = doctor(jobs, "run.name=examined")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("python", "packages", "Ray", "run", "store", "groups", "model", "checkpoint", "storage", "CPUs",
                 "device", "DeepSpeed's CPU op", "shared memory", "shared storage", "memory", "precision",
                 "object store", "disk of the run", "disk of the store"):
        assert f"ok    {name} " in done.stdout or f"note  {name} " in done.stdout, name
    assert not (jobs.storage / "examined").exists()
    assert done.stdout.endswith("nothing stands in the way of this run\n")


def test_every_fault_is_shown_with_its_mend(jobs: Jobs) -> None:
    done = doctor(jobs, "run.name=examined", "scaling.workers=800", "model.backbone.name=resnet19",
                  "evaluation.unseen_split=new", "checkpoint.keep=1000000000")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    faults = [line.split("  ")[0] for line in done.stdout.splitlines() if line.startswith("FAULT")]
    assert {"FAULT CPUs", "FAULT model", "FAULT store", "FAULT shared memory", "FAULT memory"} <= set(faults)
    assert "mend: lower one of them" in done.stdout and f"{len(faults)} of these would make the run fail" in done.stdout
