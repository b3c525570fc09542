"""The feed against other loaders on the same data: `python -m benchmarks.feed short|full [--no-peers]`, `make bench`.

Every arm is a process of its own on the same CORES cores, at the same niceness (Ray's workers included, which Ray would
run at 15), with one thread a library; arms take turns, round by round. Data and transform are the same, starts are
excluded; peers have two loader processes, Ray's arms as many tasks as their CPUs allow. Ratios are taken inside a
round, and the median over the rounds is what counts. Arms with the feed's transform must deliver the same pixels and
tokens, by their sums; an arm that fails or delivers others is broken, and that exits 1. A bar that is missed is said,
and exits 0. A killed benchmark continues with the same command, at the same commit.
"""
from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers import data
from pipelines.files import write_atomically

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "feed.json"
CORES = 2
TIMEOUT_S = 600
OURS_ENVIRONMENT, PEERS_ENVIRONMENT = ".venv", ".venv-bench"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Arm:
    """A loader: its module in benchmarks/peers, the groups of its micro-batches, whether it transforms as we do."""

    module: str
    groups_per_batch: int = 64
    environment: str = OURS_ENVIRONMENT
    our_transform: bool = True


ARMS = {
    "ours": Arm("ours"),
    "ours, micro-batches of 4": Arm("ours", 4),
    "torch DataLoader": Arm("torch_loader"),
    "Ray Data's default path": Arm("ray_default"),
    "webdataset": Arm("webdataset_loader", environment=PEERS_ENVIRONMENT),
    "mosaicml-streaming": Arm("mosaic", environment=PEERS_ENVIRONMENT),
    "PIL + torchvision DataLoader": Arm("pil_loader", our_transform=False),
}
SIZES = {"short": (1024, 1), "full": (6144, 5)}
"""Groups and rounds: 4 files (each of two processes needs one in the short pass), and three windows of the feed."""
# What the feed must reach: its rate as a multiple of the arm's.
BARS = {"torch DataLoader": 0.9, "Ray Data's default path": 1.1, "webdataset": 1.1, "PIL + torchvision DataLoader": 3.0}
SMALL_BATCHES_WITHIN = 0.9
FIRST_BATCH_S = 3.0

Line = dict[str, Any]


def run_arm(name: str, arm: Arm, folder: Path, number: int) -> Line:
    """One round of one arm. Raises RuntimeError, with the end of what it said, where it fails."""
    busy = psutil.cpu_percent(interval=0.5)
    command = [str(REPOSITORY / arm.environment / "bin" / "python"), "-m", f"benchmarks.peers.{arm.module}",
               str(folder), str(arm.groups_per_batch)]
    environment = os.environ | ONE_THREAD | {"TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True,
                              timeout=TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip()[-2000:] or f"exit code {done.returncode}")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(str(error)) from error
    results = [text for text in done.stdout.splitlines() if text.startswith("{")]  # libraries print too, at the end
    if not results:
        raise RuntimeError(f"no result: {done.stdout.strip()[-2000:]}")
    return {"arm": name, "round": number, "others_busy_percent": busy, **json.loads(results[-1])}


def run_rounds(arms: dict[str, Arm], folder: Path, rounds: int, progress: Path) -> tuple[list[Line], dict[str, str]]:
    """The lines of all rounds, those that `progress` holds already included, and what went wrong, by arm."""
    lines, broken = read_lines(progress), {}
    done = {(line["arm"], line["round"]) for line in lines}
    names = list(arms)
    for number in range(rounds):
        for name in names[number % len(names):] + names[:number % len(names)]:
            if (name, number) in done or name in broken:
                continue
            try:
                line = run_arm(name, arms[name], folder, number)
            except RuntimeError as error:
                broken[name] = str(error)
                continue
            lines.append(line)
            progress.parent.mkdir(parents=True, exist_ok=True)
            with progress.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"round {number + 1} of {rounds}  {name:30} {line['images_per_s']:8.0f} images/s", flush=True)
    return lines, broken | wrong_bytes(lines)


def read_lines(progress: Path) -> list[Line]:
    """The lines of an interrupted benchmark; a half-written last one is dropped from the file too."""
    if not progress.exists():
        return []
    whole = progress.read_text().rpartition("\n")[0]
    write_atomically(progress, f"{whole}\n".encode() if whole else b"")
    return [json.loads(line) for line in whole.splitlines()]


def wrong_bytes(lines: Iterable[Line]) -> dict[str, str]:
    """Arms with the feed's transform that deliver something else than the feed."""
    expected = {line["checksum"] for line in lines if line["arm"] == "ours"}
    return {line["arm"]: f"checksum {line['checksum']}, the feed's is {sorted(expected)}" for line in lines
            if ARMS[line["arm"]].our_transform and expected and {line["checksum"]} != expected}


def ratio(lines: list[Line], arm: str, other: str) -> float | None:
    """The rate of one arm as a multiple of another's, median over the rounds; None where there is no such round."""
    rates = {(line["arm"], line["round"]): line["images_per_s"] for line in lines}
    ratios = [rate / rates[other, number] for (name, number), rate in rates.items()
              if name == arm and (other, number) in rates]
    return statistics.median(ratios) if ratios else None


def verdicts(lines: list[Line]) -> list[dict[str, Any]]:
    """Every bar, what was measured, and whether it is met; `met` is None where nothing was measured."""
    rows = []
    for other, bar in BARS.items():
        value = ratio(lines, "ours", other)
        rows.append({"bar": f"at least {bar} times {other}", "measured": value,
                     "met": None if value is None else value >= bar})
    value = ratio(lines, "ours, micro-batches of 4", "ours")
    rows.append({"bar": "micro-batches of 4 and of 64 groups within 10 %", "measured": value,
                 "met": None if value is None else min(value, 1 / value) >= SMALL_BATCHES_WITHIN})
    firsts = [line["first_batch_s"] for line in lines if line["arm"] == "ours"]
    first = statistics.median(firsts) if firsts else None
    rows.append({"bar": f"first batch within {FIRST_BATCH_S:.0f} s, in seconds", "measured": first,
                 "met": None if first is None else first <= FIRST_BATCH_S})
    return rows


def report(lines: list[Line], broken: dict[str, str]) -> str:
    """Two plain tables: the arms, the bars."""
    out = [f"{'arm':30} {'images/s, median (least - most)':>34} {'to DataLoader':>14} {'first batch':>12}"]
    for name in ARMS:
        rates = [line["images_per_s"] for line in lines if line["arm"] == name]
        if rates:
            relative = ratio(lines, name, "torch DataLoader")
            first = statistics.median(line["first_batch_s"] for line in lines if line["arm"] == name)
            spread = f"{statistics.median(rates):.0f} ({min(rates):.0f} - {max(rates):.0f})"
            out.append(f"{name:30} {spread:>34} {f'{relative:.2f}' if relative else '-':>14} {first:>10.2f} s")
    out.append("")
    for row in verdicts(lines):
        word = {True: "met", False: "NOT MET", None: "not measured"}[row["met"]]
        out.append(f"{row['bar']:55} {'-' if row['measured'] is None else format(row['measured'], '.2f'):>6}  {word}")
    out += [f"BROKEN {name}: {reason}" for name, reason in broken.items()]
    return "\n".join(out)


def main(size: str, peers: bool) -> int:
    """Run, print the tables, keep the results of a full run; exit 1 where an arm is broken."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    groups, rounds = SIZES[size]
    arms = {name: arm for name, arm in ARMS.items() if peers or arm.environment == OURS_ENVIRONMENT}
    folder = REPOSITORY / "data" / f"bench-{groups}"
    folder.parent.mkdir(exist_ok=True)
    data.make(folder, groups)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True,
                            check=False).stdout.strip() or "unknown"
    progress = REPOSITORY / "runs" / f"bench-feed-{size}-{commit[:12]}.jsonl"
    lines, broken = run_rounds(arms, folder, rounds, progress)
    print("\n" + report(lines, broken))
    if broken:
        return 1
    if size == "full" and peers:
        machine = {"processor": processor(), "cores": CORES, "python": platform.python_version()}
        result = {"commit": commit, "groups": groups, "rounds": rounds, "machine": machine, "bars": verdicts(lines),
                  "lines": lines}
        write_atomically(RESULTS, (json.dumps(result, indent=1) + "\n").encode())
    else:
        print("one short round says whether all arms work; `make bench-full` judges")
    progress.unlink(missing_ok=True)
    return 0


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] not in (["short"], ["full"]) or arguments[1:] not in ([], ["--no-peers"]):
        print("usage: python -m benchmarks.feed short|full [--no-peers]", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(arguments[0], arguments[1:] == []))
