"""Ingest with Ray Data on 1 and 2 cores beside a plain loop: `python -m benchmarks.ingest short|full`.

Every arm is a process of its own on so many cores, reads the same JPEG files, checks, hashes and writes the same rows.
Ray's start is excluded (a small ingest comes first). Memory: the driver's peak resident set, and the highest sum of
what Ray's workers held for themselves (USS, sampled). The full run ingests 10,000 and 100,000 rows: between them memory
must not grow with the rows. Results of a full run go to benchmarks/results/ingest.json.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow as pa

from cluster.connection import connect
from pipelines.code_version import code_version
from pipelines.config import DataConfig
from pipelines.files import write_atomically
from pipelines.sources.record import Sample
from pipelines.store.ingest import FILE_ROWS, batch_id_of, ingest
from pipelines.store.schema import STORE_SCHEMA
from pipelines.store.table import ImageTextStore
from pipelines.store.validate import to_row

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "ingest.json"
ARMS = {"plain loop": 1, "Ray Data, 1 core": 1, "Ray Data, 2 cores": 2}
SIZES = {"short": (2_000,), "full": (10_000, 100_000)}
FLAT = 1.1
"""What must be reached: the peak memory of Ray Data's arms at the most rows over that at the fewest, at most."""
PICTURES, HEIGHT, WIDTH, PART = 256, 240, 320, 500
MIB = 2**20


@dataclass(frozen=True)
class Files:
    """So many rows from the pictures of a folder, over and over, a caption each."""

    folder: str
    rows: int

    name = "files"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the rows."""
        return {"rows": self.rows}

    @property
    def parts(self) -> int:
        """PART rows each."""
        return -(-self.rows // PART)

    def read(self, part: int) -> Iterator[Sample]:
        """The rows of one part, each read from its file."""
        for i in range(part * PART, min(self.rows, (part + 1) * PART)):
            image = Path(self.folder, f"{i % PICTURES}.jpg").read_bytes()
            yield Sample(f"files/{i:07d}", "train", image, (f"picture number {i} of the benchmark",))


def write_pictures(folder: Path) -> None:
    """PICTURES smooth pictures with some noise, about 25 kB each."""
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        small = generator.integers(0, 256, (12, 16, 3), np.uint8)
        noise = generator.normal(0, 6, (HEIGHT, WIDTH, 3))
        picture = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) + noise
        cv2.imwrite(str(folder / f"{number}.jpg"), np.clip(picture, 0, 255).astype(np.uint8))


def plain_loop(source: Files, data: DataConfig, store_path: Path) -> None:
    """What the ingest does to the rows, in one process, without Ray, duplicates and quarantine."""
    store, batch_id = ImageTextStore(store_path), batch_id_of([source], data)
    files: list[Path] = []
    rows: list[dict[str, Any]] = []
    for part in range(source.parts):
        for sample in source.read(part):
            row = to_row(sample, source.name, batch_id, data)
            assert isinstance(row, dict)
            rows.append(row)
        if len(rows) >= FILE_ROWS or part == source.parts - 1:
            files.append(store.write(pa.Table.from_pylist(rows, STORE_SCHEMA), batch_id))
            rows = []
    store.append(files, batch_id)


class Watch:
    """Samples what the processes below this one hold for themselves."""

    def __init__(self) -> None:
        self.workers = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            held = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        held += process.memory_full_info().uss
                except psutil.Error:  # it has ended
                    continue
            self.workers = max(self.workers, held)


def run_arm(name: str, rows: int, folder: Path) -> dict[str, Any]:
    """Time one arm in this process: rows a second and peak memory."""
    data = DataConfig()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:ARMS[name]])
    cv2.setNumThreads(1)
    if name == "plain loop":
        start = time.monotonic()
        plain_loop(Files(str(folder), rows), data, folder / "store")
        seconds, workers = time.monotonic() - start, 0
    else:
        connect(cpus=ARMS[name])
        ingest([Files(str(folder), 20)], data, folder / "warm")
        with Watch() as watch:
            seconds = ingest([Files(str(folder), rows)], data, folder / "store").seconds
        workers = watch.workers
    assert ImageTextStore(folder / "store").count() == rows
    return {"arm": name, "rows": rows, "rows_per_s": rows / seconds, "seconds": seconds,
            "driver_mib": peak_rss() / MIB, "workers_mib": workers / MIB}


def peak_rss() -> int:
    """The highest resident set of this process in bytes; ru_maxrss would begin with what its parent held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def growth(lines: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """Whose peak memory, and by which factor it grew from the fewest rows to the most; at most FLAT is the bar."""
    found: list[tuple[str, float]] = []
    for arm in (name for name in ARMS if name.startswith("Ray")):
        few, most = sorted((line for line in lines if line["arm"] == arm), key=lambda line: int(line["rows"]))
        found += [(f"{arm}: peak memory of the {who}, {most['rows']:,} rows over {few['rows']:,}",
                   most[f"{who}_mib"] / few[f"{who}_mib"]) for who in ("driver", "workers")]
    return found


def main(size: str) -> None:
    """Run every arm at every size, print the table, keep the results of a full run."""
    lines: list[dict[str, Any]] = []
    print(f"{'arm':<20}{'rows':>9}{'rows/s':>9}{'driver MiB':>12}{'workers MiB':>13}", flush=True)
    for rows in SIZES[size]:
        for name in ARMS:
            with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as folder:
                write_pictures(Path(folder))
                busy = psutil.cpu_percent(interval=2)  # what else runs on this machine
                command = [sys.executable, "-m", "benchmarks.ingest", "arm", name, str(rows), folder]
                answer = subprocess.run(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, check=True)
            line = json.loads(answer.stdout.splitlines()[-1]) | {"others_busy_percent": busy}
            lines.append(line)
            print(f"{name:<20}{rows:>9,}{line['rows_per_s']:>9.0f}{line['driver_mib']:>12.0f}"
                  f"{line['workers_mib']:>13.0f}", flush=True)
    if size == "full":
        facts = {"cores": os.cpu_count(), "image": f"{WIDTH} x {HEIGHT} JPEG", "code": code_version(), "lines": lines}
        write_atomically(RESULTS, json.dumps(facts, indent=1).encode())
        for what, factor in growth(lines):
            print(f"{'met' if factor <= FLAT else 'NOT MET'}: {what}: {factor:.2f} <= {FLAT}")
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["arm"]:
        print(json.dumps(run_arm(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))), flush=True)
    elif sys.argv[1:] in ([], ["short"], ["full"]):
        main(sys.argv[1] if len(sys.argv) > 1 else "short")
    else:
        sys.exit("usage: python -m benchmarks.ingest [short|full]")
