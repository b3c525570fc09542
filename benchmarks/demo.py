"""The demo over several seeds, with its ablation and the run from scratch: `python benchmarks/demo.py [arm ...]`.

Each arm and seed is an ordinary run of jobs/pretrain.py, so an interrupted benchmark continues with the same command.
Every result is written to benchmarks/results/demo.json as soon as it is there; the table is printed from that file.
Seeds, arms and bars stand here before the runs that they judge. About 5 minutes a run on 2 quiet cores.
"""
from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "demo.json"
CONFIGS = REPOSITORY / "jobs" / "configs"
SEEDS = (0, 1, 2)
ARMS = {
    "full": [],
    "ann": ["model.summary_ratio.mode=fixed", "model.summary_ratio.value=0"],
    "scratch": ["--config", str(CONFIGS / "demo_scratch.yaml")],
}
MEASURES = ("retrieval/i2t_r1", "retrieval/t2i_r1", "retrieval/i2t_r5", "retrieval/t2i_r5", "retrieval_unseen/i2t_r5",
            "retrieval_unseen/t2i_r5", "retrieval_reranked/i2t_r1", "retrieval_reranked/t2i_r1", "stua/a2t_r5",
            "itm/accuracy_random", "itm/accuracy_hard", "mlm/gain", "mvm/explained")
# What every run of an arm must reach.
BARS = {
    "full": {"retrieval/i2t_r5": 0.90, "retrieval/t2i_r5": 0.90, "retrieval_unseen/i2t_r5": 0.25,
             "retrieval_unseen/t2i_r5": 0.25, "itm/accuracy_random": 0.58, "mlm/gain": 0.05, "mvm/explained": 0.0},
    "scratch": {"retrieval/i2t_r5": 0.40, "retrieval/t2i_r5": 0.40},
}
FIRING = (0.03, 0.20)
MOST_IMAGES = {"scratch": 15_000}


def run(arm: str, seed: int) -> dict[str, Any]:
    """The summary of one run, trained now where it is not finished yet."""
    name = f"bench-{arm}-s{seed}"
    storage = REPOSITORY / "runs"
    subprocess.run([sys.executable, str(REPOSITORY / "jobs" / "pretrain.py"), *ARMS[arm], f"run.name={name}",
                    f"run.seed={seed}", f"run.storage={storage}"], check=True)
    summary: dict[str, Any] = json.loads((storage / name / "summary.json").read_text())
    metrics = summary["metrics"]
    metrics["mlm/gain"] = metrics["mlm/accuracy_right_image"] - metrics["mlm/accuracy_wrong_image"]
    return {"metrics": {key: metrics[key] for key in MEASURES if key in metrics}, "samples": summary["samples"],
            "firing_rates": summary["firing_rates"], "seconds": summary["seconds"], "versions": summary["versions"]}


def missed(arm: str, result: dict[str, Any]) -> list[str]:
    """Bars that a result does not reach."""
    failures = [f"{key} {result['metrics'][key]:.3f} < {bar}" for key, bar in BARS.get(arm, {}).items()
                if result["metrics"][key] < bar]
    failures += [f"{layer} fires {rate:.1%}" for layer, rate in result["firing_rates"].items()
                 if arm == "full" and not FIRING[0] <= rate <= FIRING[1]]
    if result["samples"] > MOST_IMAGES.get(arm, result["samples"]):
        failures.append(f"{result['samples']} images")
    return failures


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: mean (smallest - largest) over the seeds of every arm."""
    arms = [arm for arm in ARMS if any(key.startswith(f"{arm}/") for key in results)]
    columns = {arm: [results[f"{arm}/{seed}"] for seed in SEEDS if f"{arm}/{seed}" in results] for arm in arms}
    lines = ["| measure | " + " | ".join(f"{arm} ({len(columns[arm])} seeds)" for arm in arms) + " |",
             "|---|" + "---|" * len(arms)]
    for key in (*MEASURES, "seconds"):
        cells = []
        for arm in arms:
            values = [r["seconds"] if key == "seconds" else r["metrics"].get(key) for r in columns[arm]]
            cells.append("-" if None in values else
                         f"{statistics.mean(values):.3f} ({min(values):.3f} - {max(values):.3f})")
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the arms that the command line names (all by default); exit 1 where a bar is missed."""
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for arm in sys.argv[1:] or list(ARMS):
        for seed in SEEDS:
            results[f"{arm}/{seed}"] = run(arm, seed)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    failures = [f"{key}: {failure}" for key, result in results.items() for failure in missed(key.split("/")[0], result)]
    print("\n".join(failures) or "every bar is reached")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
