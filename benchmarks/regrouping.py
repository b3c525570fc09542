"""Does regrouping by the model's own embeddings help? The demo, shorter, with it off and on: `python -m
benchmarks.regrouping`.

Each arm and seed is an ordinary run of jobs/pretrain.py, so an interrupted benchmark continues with the same command;
every result is written to benchmarks/results/regrouping.json as soon as it is there. Seeds, arms, measures and the rule
that names a winner stand here before the runs that they judge. A run takes 5 to 10 minutes on 2 cores; its figures do
not depend on what else the machine does.
"""
from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray

from cluster.connection import connect
from pipelines.config import DataConfig
from pipelines.files import write_atomically
from pipelines.store.ingest import ingest_demo

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "regrouping.json"
STORE = REPOSITORY / "data" / "bench-regrouping"
SCENES = 1024
SEEDS = (0, 1, 2)
ARMS = {"off": ["groups.regroup_every=0"], "on": ["groups.regroup_every=1"]}
STEPS = 57
"""Three epochs of some 19 steps: all but the first have groups of their own where regrouping is on."""
SHARED = [f"data.store={STORE}", f"train.schedule_steps={STEPS}", "train.validate_every=0", "checkpoint.every_steps=19",
          "scaling.workers=1", "evaluation.rerank=0"]
MEASURES = ("retrieval/i2t_r1", "retrieval/t2i_r1", "retrieval/i2t_r5", "retrieval/t2i_r5", "retrieval_unseen/i2t_r5",
            "retrieval_unseen/t2i_r5", "itm/accuracy_random", "itm/accuracy_hard", "mlm/gain", "mvm/explained")
T_95 = 4.303
"""Student's t of three seeds' paired differences (two degrees of freedom), 95 %, two-sided."""


def run(arm: str, seed: int) -> dict[str, Any]:
    """The measures of one run, trained now where it is not finished yet."""
    name, storage = f"bench-regrouping-{arm}-s{seed}", REPOSITORY / "runs"
    subprocess.run([sys.executable, str(REPOSITORY / "jobs" / "pretrain.py"), *SHARED, *ARMS[arm], f"run.name={name}",
                    f"run.seed={seed}", f"run.storage={storage}"], check=True)
    summary: dict[str, Any] = json.loads((storage / name / "summary.json").read_text())
    metrics = summary["metrics"]
    metrics["mlm/gain"] = metrics["mlm/accuracy_right_image"] - metrics["mlm/accuracy_wrong_image"]
    stages = sorted(path.parent.name for path in (storage / name / "stages").glob("stage-*/groups"))
    return {"metrics": {key: metrics[key] for key in MEASURES}, "samples": summary["samples"], "stages": stages,
            "seconds": summary["seconds"]}


def compare(results: dict[str, dict[str, Any]], key: str) -> tuple[float, float, str]:
    """Mean of `on` less `off` over the seeds, half of its 95 % interval, and who wins: nobody where that holds 0."""
    differences = [results[f"on/{seed}"]["metrics"][key] - results[f"off/{seed}"]["metrics"][key] for seed in SEEDS]
    mean = statistics.mean(differences)
    half = T_95 * statistics.stdev(differences) / len(SEEDS) ** 0.5
    return mean, half, "no difference" if abs(mean) <= half else "on" if mean > 0 else "off"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: mean (smallest - largest) of both arms, their difference, the winner."""
    lines = ["| measure | off | on | on less off, 95 % | wins |", "|---|---|---|---|---|"]
    for key in MEASURES:
        cells = []
        for arm in ARMS:
            values = [results[f"{arm}/{seed}"]["metrics"][key] for seed in SEEDS]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} - {max(values):.3f})")
        mean, half, winner = compare(results, key)
        lines.append(f"| {key} | {' | '.join(cells)} | {mean:+.3f} ± {half:.3f} | {winner} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not there yet, one seed of both arms after the other; print the table."""
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not STORE.exists():
        connect(cpus=2)
        ingest_demo(DataConfig(scenes=SCENES), str(STORE))
        ray.shutdown()
    for seed in SEEDS:
        for arm in ARMS:
            if f"{arm}/{seed}" not in results:
                results[f"{arm}/{seed}"] = run(arm, seed)
                write_atomically(RESULTS, (json.dumps(results, indent=1) + "\n").encode())
    print(table(results))


if __name__ == "__main__":
    main()
