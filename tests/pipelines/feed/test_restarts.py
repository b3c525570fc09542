"""Any sequence of worlds, killed in the middle, with data workers killed all the while, sees what one worker sees."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.pipelines.feed.restart_run import WORLDS, make_plan, one_workers, steps_of

FULL = os.environ.get("CHAOS") == "full"
GROUPS = 4000 if FULL else 200
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.chaos
def test_worlds_and_data_workers_are_killed_and_nothing_changes(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, GROUPS)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_worker_niceness": "0"}
    done = subprocess.run([sys.executable, "-m", "tests.pipelines.feed.restart_run", str(tmp_path), str(GROUPS), "5"],
                          cwd=REPOSITORY, env=environment, text=True, capture_output=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] >= 6, "too few data workers were killed to prove anything"
    expected = dict(one_workers(plan))
    assert sorted(expected) == list(range(0, 2 * GROUPS, 2))
    seen: dict[int, set[str]] = defaultdict(set)
    overrun = 0
    starts = [0, *told["cuts"]]
    commits = [*told["cuts"], steps_of(plan)]
    committed: list[int] = []
    for number, world in enumerate(WORLDS):
        for rank in range(world):
            for line in (tmp_path / "seen" / f"{number}-{rank}.jsonl").read_text().splitlines():
                _, _, position, value = json.loads(line)
                if position < 0:
                    continue
                seen[position].add(value)
                assert position >= starts[number] * plan.step_groups
                if position < commits[number] * plan.step_groups:
                    committed.append(position)
                else:
                    overrun += 1
    assert sorted(committed) == sorted(expected), "every atom once"
    assert seen == {position: {value} for position, value in expected.items()}, "byte for byte, replays included"
    assert overrun > 0, "no world was killed beyond its last commit"
