"""Which curves a run's report shows, made from the lines of metrics.jsonl."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.config import PretrainConfig
from pipelines.report.curves import Plot, Series

TASKS = {"itc": "contrast (ITC)", "itm": "matching (ITM)", "mlm": "masked words (MLM)",
         "mvm": "masked spikes or patches (MVM)", "stua": "spikes to text (STUA)"}
USUAL_FIRING = (0.03, 0.20)
"""Firing rates below it are a silent layer, above it a layer that hardly saves anything."""
HELD_OUT = {
    "Held-out retrieval, R@5": {"retrieval/i2t_r5": "image to text", "retrieval/t2i_r5": "text to image"},
    "Unseen things, R@5": {"retrieval_unseen/i2t_r5": "image to text", "retrieval_unseen/t2i_r5": "text to image"},
    "Spiking feature alone, R@5": {"stua/a2t_r5": "image to text"},
    "Matched or not (ITM)": {"itm/accuracy_random": "random captions", "itm/accuracy_hard": "hardest captions"},
    "Masked words guessed (MLM)": {"mlm/accuracy_right_image": "right image",
                                   "mlm/accuracy_wrong_image": "wrong image"},
    "Masked spike code explained (MVM)": {"mvm/explained": "explained"},
}


def losses(lines: Sequence[dict[str, Any]], restarts: Sequence[int] = ()) -> list[Plot]:
    """The total and each task's loss, unweighted."""
    named = {"loss": "total, weighted", **{f"loss/{task}": title for task, title in TASKS.items()}}
    return [Plot(f"Loss: {title}", [series], restarts=restarts)
            for key, title in named.items() if (series := _series(lines, key, "loss"))]


def held_out(lines: Sequence[dict[str, Any]], summary: dict[str, Any]) -> list[Plot]:
    """What the tasks mean on held-out data: validations, and the final evaluation hollow."""
    plots = []
    for title, measures in HELD_OUT.items():
        chosen = [series for key, label in measures.items()
                  if (series := _series(lines, key, label, (summary["steps"], summary["metrics"].get(key))))]
        level = summary["chance"].get(next(iter(measures)))
        if chosen:
            plots.append(Plot(title, chosen, percent=True, dots=True,
                              level=None if level is None else ("chance", level)))
    return plots


def health(lines: Sequence[dict[str, Any]], config: PretrainConfig, restarts: Sequence[int] = ()) -> list[Plot]:
    """Learning rate, gradient norm, firing rates, speed and waiting."""
    layers = sorted({key for line in lines for key in line if key.startswith("firing_rate/")})
    firing = [series for key in layers if (series := _series(lines, key, key.removeprefix("firing_rate/")))]
    single = [
        Plot("Learning rate", _present(_series(lines, "lr", "learning rate")), restarts=restarts),
        Plot("Gradient norm", _present(_series(lines, "grad_norm", "norm")), restarts=restarts,
             level=("clipped above", config.train.clip)),
        *(Plot(f"Firing rates{_part(at, len(firing))}", firing[at:at + 4], percent=True, band=USUAL_FIRING,
               restarts=restarts) for at in range(0, len(firing), 4)),
        Plot("Images per second", _present(_series(lines, "samples_per_s", "images per second")), restarts=restarts),
        Plot("Time spent waiting for data", _present(_series(lines, "data_wait_share", "share of the time")),
             percent=True, restarts=restarts),
    ]
    return [plot for plot in single if plot.series]


def resumed_at(starts: Sequence[dict[str, Any]]) -> list[int]:
    """The steps at which a launch took up the run again, from the lines of starts.jsonl."""
    return [line["step"] for line in starts if line["step"] > 0]


def _part(at: int, layers: int) -> str:
    return f", layers {at + 1} to {min(at + 4, layers)}" if layers > 4 else ""


def _present(series: Series | None) -> list[Series]:
    return [series] if series else []


def _series(lines: Sequence[dict[str, Any]], key: str, label: str,
            final: tuple[int, float | None] | None = None) -> Series | None:
    points = [(line["step"], line[key]) for line in lines if key in line]
    last = (final[0], final[1]) if final and final[1] is not None else None
    if not points and last is None:
        return None
    return Series(label, [step for step, _ in points], [value for _, value in points], last)
