"""The text of docs/benchmarks.md, made from benchmarks/results, so that no figure on it can be another: `make docs`."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import demo, grouping, ingest, regrouping

PAGE = Path(__file__).with_name("benchmarks.md")
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
Row = tuple[str, str, str, bool | None]
"""What, its aim, what was measured, whether that meets it (None: not run yet)."""

INTRODUCTION = """# Benchmarks

What was measured against the aims that stood there before. Made from `benchmarks/results` by `make docs`; a test keeps
it current. The machine has two cores and no GPU, and others use it: ratios inside a run say more than seconds. Nothing
was measured on GPUs, on several nodes or on photographs yet. How a figure came about stands behind its section's link.
"""
INGEST = """
The stage behind `jobs/ingest.py` on JPEG files of 320 x 240 pixels (25 KB), beside a plain loop in one process that
checks, hashes and writes the same rows, without looking for duplicates. Ray's start is excluded. Memory: the driver's
largest resident set, and the largest sum of what Ray's workers held for themselves. Until the commit the driver keeps
of each row three numbers and a flag.
"""
REGROUPING = """
## Regrouping

[Groups of similar samples](grouping.md#what-regrouping-brings), `python -m benchmarks.regrouping`: the demo on 1,024
scenes and the emoji, 57 steps, three epochs and 21 groups; off: groups by captions throughout; on: new groups by the
model's own image embeddings for each epoch but the first. Mean (smallest - largest) over three seeds; the interval is
that of the seeds' paired differences, and where it holds 0 nobody wins.
"""


def page() -> str:
    """The whole page as Markdown."""
    found = {title: rows() for title, (_, _, rows) in SECTIONS.items()}
    every = [(title, row) for title, rows in found.items() for row in rows]
    missed = [f"- {title}: {what}, {aim}: {measured}" for title, (what, aim, measured, met) in every if met is False]
    lines = [INTRODUCTION, f"Of {len(every)} aims {sum(met is True for _, (*_, met) in every)} are met and "
             f"{sum(met is None for _, (*_, met) in every)} not measured yet. **Not met:**", "", *missed]
    for title, (link, command, _) in SECTIONS.items():
        lines += ["", f"## {title}", "", f"{link}`{command}`", "", "| what | aim | measured | |", "|---|---|---|---|"]
        lines += [f"| {what} | {aim} | {measured} | {_word(met)} |" for what, aim, measured, met in found[title]]
    return "\n".join([*lines, *_ingest_in_full(), *_regrouping_in_full()]) + "\n"


def _word(met: bool | None) -> str:
    return {True: "met", False: "**not met**", None: "not run yet"}[met]


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text()) if (RESULTS / name).exists() else None


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def _demo() -> list[Row]:
    results, rows = _read("demo.json"), list[Row]()
    for arm, bars in demo.BARS.items():
        runs = [result["metrics"] for key, result in results.items() if key.startswith(f"{arm}/")]
        for measure, bar in bars.items():
            worst = min((run[measure] for run in runs), default=None)
            rows.append((f"`{measure}`, {arm}, worst of {len(demo.SEEDS)} seeds", f"at least {bar:g}",
                         "" if worst is None else f"{worst:.3f}", None if worst is None else worst >= bar))
    return rows


def _feed() -> list[Row]:
    return [("images/s, median ratio inside a round" if "times" in bar["bar"] else "the feed alone", bar["bar"],
             f"{bar['measured']:.2f}", bar["met"]) for bar in _read("feed.json")["bars"]]


def _survival() -> list[Row]:
    found, more = _read("recovery.json"), _read("checkpoints.json")["more_than_none"]["background"]
    lives = _lines("chaos.jsonl")
    same = sum(life["result"] == "weights equal, every position once" for life in lives)
    return [("runs that were killed and end with the weights of one that was not", "all", f"{same} of {len(lives)}",
             same == len(lives)),
            ("seconds from a SIGKILL to the next step, ours / bare Ray Train", f"at most {found['aim']}",
             f"{found['ratio']:.2f}", found["ratio"] <= found["aim"]),
            ("a step's time with checkpoints in the background, more than without", "within 5 %",
             f"{100 * more:+.1f} %", abs(more) <= .05)]


def _grouping() -> list[Row]:
    lines, rows = _lines("grouping.jsonl"), list[Row]()
    for name, better in grouping.BETTER.items():
        found = {line["method"]: line for line in lines if line["data"] == name}
        samples = f"{grouping.SAMPLES[name]:,} samples"
        if not {"ours", "grit", "ivf", "cells" if name in grouping.OF_BOUND else "ours"} <= found.keys():
            rows.append((f"{samples}: useful quality, ours / GRIT, and others", f"at least {better:g}", "", None))
            continue
        rows += [(f"{samples}: {what}", f"{'at least' if sign == '>=' else 'at most'} {bar:g}", f"{figure:.3f}",
                  figure >= bar if sign == ">=" else figure <= bar)
                 for what, figure, sign, bar in grouping.bars(found, name)]
    return rows


def _ingest() -> list[Row]:
    results = _read("ingest.json")
    aim = f"at most {ingest.FLAT} times"
    return [("peak memory, 100,000 rows over 10,000", aim, "", None)] if results is None else [
        (what, aim, f"{factor:.2f}", factor <= ingest.FLAT) for what, factor in ingest.growth(results["lines"])]


def _ingest_in_full() -> list[str]:
    results = _read("ingest.json")
    if results is None:
        return []
    rows = [f"| {line['arm']} | {line['rows']:,} | {line['rows_per_s']:.0f} | {line['driver_mib']:.0f} | "
            f"{format(line['workers_mib'], '.0f') if line['workers_mib'] else '-'} | "
            f"{line['others_busy_percent']:.0f} % |" for line in results["lines"]]
    return [INGEST, "| arm | rows | rows/s | driver, MiB | workers, MiB | the machine just before was busy |",
            "|---|---|---|---|---|---|", *rows]


def _regrouping_in_full() -> list[str]:
    results = _read("regrouping.json") or {}
    whole = len(results) == len(regrouping.ARMS) * len(regrouping.SEEDS)
    return [REGROUPING, regrouping.table(results)] if whole else []


SECTIONS: dict[str, tuple[str, str, Callable[[], list[Row]]]] = {
    "Demo": ("[What the demo learns](../README.md#what-the-demo-learns), ", "python benchmarks/demo.py", _demo),
    "Feed": ("[How fast it is](feed.md#how-fast-it-is), ", "make bench-full", _feed),
    "Survival": ("[What a run survives](survival.md), `CHAOS=full make chaos`, `python -m benchmarks.checkpoints`, ",
                 "python -m benchmarks.recovery", _survival),
    "Grouping": ("[How good it is](grouping.md#how-good-it-is), ", "python -m benchmarks.grouping 10k 100k 1m",
                 _grouping),
    "Ingest": ("[Data](data.md), ", "python -m benchmarks.ingest full", _ingest),
}
