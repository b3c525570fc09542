"""Freed memory stays with a process: what is written a second time costs no page faults."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
FAULTS = """
import resource, sys
import numpy as np
from pipelines.feed.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(100 * 2**20, np.uint8)[::4096] = 1
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_second_block_of_memory_is_the_first_one() -> None:
    def second(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, mode], cwd=REPOSITORY, capture_output=True, text=True,
                              check=True)
        return int(done.stdout)

    assert second("keep") < 50 < second("give back")
