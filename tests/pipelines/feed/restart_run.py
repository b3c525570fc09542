"""A feed whose consumers and data workers are killed: `python -m tests.pipelines.feed.restart_run FOLDER GROUPS SEED`.

Data tasks run on a node of their own, the consumers (an actor a rank) on another one without CPUs. World after world
starts where the last one was committed, runs a little further, and is killed. Every rank writes a line an atom:
`[world, rank, position, digest]`; the last line on stdout is `{"kills": data workers killed}`.
"""
from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from pipelines.config import FeedConfig
from pipelines.feed.blocks import atoms
from pipelines.feed.plan import FeedPlan
from pipelines.feed.source import cut, read_window, window_slices
from pipelines.feed.stream import build_stream, whole_blocks
from pipelines.feed.transform import ARRAYS, array_column, transform_block
from tests.pipelines.feed.small_stores import make_groups, write_groups, write_tokenizer

WORLDS = (4, 3, 7, 2, 5)
STEP_GROUPS = 12


def make_plan(folder: Path, groups: int) -> FeedPlan:
    """A store of `groups` groups of 3 below `folder`, read twice over."""
    if not (folder / "store").exists():
        write_groups(folder / "store", make_groups(groups, 3, 24))
        write_tokenizer(folder / "tokenizer.json")
    feed = FeedConfig(window=3, image_size=16, captions=2, crop_scale=0.5)
    return FeedPlan(str(folder / "store"), 7, feed, str(folder / "tokenizer.json"), 8, 0.3, False, groups_per_atom=2,
                    atoms_per_step=STEP_GROUPS // 2, end=2 * groups)


def steps_of(plan: FeedPlan) -> int:
    """Steps of the two epochs."""
    assert plan.end is not None
    return -(-plan.end // plan.step_groups)


def digest(atom: pa.Table) -> str:
    """CRC-32 of everything in an atom: pixels, tokens, masks, labels, classes, weights, ids."""
    value = zlib.crc32(json.dumps([atom[name].to_pylist() for name in ("epoch", "group_id", "sample_ids")]).encode())
    for name in ARRAYS:
        value = zlib.crc32(array_column(atom, name).tobytes(), value)
    return f"{value:08x}"


def one_workers(plan: FeedPlan) -> Iterator[tuple[int, str]]:
    """(position, digest) of every atom that one worker sees, made in this process without Ray."""
    windows = (read_window(plan, part, 1) for part in window_slices(plan, 0, steps_of(plan)))
    for atom in cut(chain.from_iterable(windows), plan.groups_per_atom):
        if atom["position"][0].as_py() >= 0:
            yield atom["position"][0].as_py(), digest(transform_block(atom, plan))


@ray.remote(num_cpus=0, resources={"trainer": 0.01}, max_restarts=0)
class Consumer:
    """One rank."""

    def pid(self) -> int:
        """The process to kill."""
        return os.getpid()

    def run(self, shard: Any, plan: FeedPlan, start: int, rank: int, world: int, file: str) -> None:
        """Consume to the end."""
        with open(file, "a") as out:
            for atom in atoms(whole_blocks(shard), plan, start, steps_of(plan), rank, world):
                out.write(json.dumps([world, rank, atom["position"][0].as_py(), digest(atom)]) + "\n")
                out.flush()
                time.sleep(0.01)


def lines(file: Path) -> int:
    """Whole lines so far."""
    return file.read_text().count("\n") if file.exists() else 0


def run_world(plan: FeedPlan, folder: Path, number: int, start: int, commit: int, chance: random.Random) -> None:
    """Consume from step `start`; kill all ranks some time after every one of them has finished step `commit`."""
    world = WORLDS[number]
    ranks = [Consumer.remote() for _ in range(world)]
    pids = ray.get([rank.pid.remote() for rank in ranks])
    stream = build_stream(plan, start, steps_of(plan), world)
    shards = stream.streaming_split(world, equal=False)
    files = [folder / "seen" / f"{number}-{rank}.jsonl" for rank in range(world)]
    runs = [ranks[i].run.remote(shards[i], plan, start, i, world, str(files[i])) for i in range(world)]
    if commit == steps_of(plan):
        ray.get(runs)
        return
    wanted = (commit - start) * -(-plan.atoms_per_step // world)
    while min(map(lines, files)) < wanted:
        done, _ = ray.wait(runs, num_returns=1, timeout=0.05)
        ray.get(done)
    chance.shuffle(pids)
    for pid in pids:
        time.sleep(chance.random() * 0.1)
        os.kill(pid, signal.SIGKILL)


def kill_data_workers(raylet: int, seen: Path, chance: random.Random, stop: threading.Event,
                      killed: list[str]) -> None:
    """SIGKILL a process of the data node that is at work, again and again, once an atom has come since the last kill.

    A new process imports for seconds on a slow machine: killed by the clock alone, none would ever get to work.
    """
    atoms_then = -1
    while not stop.wait(chance.uniform(0.3, 1.0)):
        atoms_now = sum(map(lines, seen.iterdir()))
        busy = [p for p in psutil.Process(raylet).children() if p.name().startswith(("ray::MapBatches", "ray::Read"))]
        if busy and atoms_now > atoms_then:
            victim = chance.choice(busy)
            killed.append(victim.name())
            victim.kill()
            atoms_then = atoms_now


def main(folder: Path, groups: int, seed: int) -> None:
    """Run all worlds."""
    plan, chance = make_plan(folder, groups), random.Random(seed)
    (folder / "seen").mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"trainer": 1}})
    data_node = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    raylet = data_node.all_processes["raylet"][0].process.pid
    cuts = sorted(chance.sample(range(1, steps_of(plan)), len(WORLDS) - 1))
    stop, killed = threading.Event(), []
    killer = threading.Thread(target=kill_data_workers, args=(raylet, folder / "seen", chance, stop, killed))
    killer.start()
    try:
        for number, (start, commit) in enumerate(zip([0, *cuts], [*cuts, steps_of(plan)], strict=True)):
            run_world(plan, folder, number, start, commit, chance)
    finally:
        stop.set()
        killer.join()
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps({"kills": len(killed), "cuts": cuts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
