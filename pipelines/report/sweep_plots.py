"""The charts of a sweep's report: parallel coordinates, importances, learning curves, Pareto front."""
from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.report.curves import CARD, FAINT, INK, SERIES, STYLE, Chart, inline_svg
from pipelines.tuning.space import Domain, Space
from pipelines.tuning.trials import Trial

OTHERS, CHOSEN = SERIES[0], SERIES[1]
SIZE = (6.6, 3.2)
AXIS = 1.15
"""Inches between two parallel axes, so that their names do not meet."""
WIDE = (11.0, 4.6)
"""Of parallel coordinates, at least."""
NAME = (0.13, 0.05)
"""Room that a trial's name takes, as shares of a chart."""
MARGIN = 0.03
"""Room above the highest and below the lowest value of an axis, as a share of it."""


def chart(title: str, told: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> Chart:
    """What `paint` draws, as SVG for a page whose CSS sets the colours; `told` is for whoever cannot see it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Chart(title, inline_svg(buffer.getvalue(), title), f"{title}. {told}")


def height(domain: Domain, value: object) -> float:
    """Where a value stands on its axis, from 0 to 1."""
    if domain.listed:
        return domain.values.index(value) / max(1, len(domain.values) - 1)
    low, high = map(float, domain.values)
    if domain.kind == "loguniform":
        low, high, value = math.log(low), math.log(high), math.log(float(value))  # type: ignore[arg-type]
    return (float(value) - low) / (high - low)  # type: ignore[arg-type]


def marks(domain: Domain) -> list[tuple[float, str]]:
    """(where, what) is written along an axis: all values of a list, else both ends."""
    return [(height(domain, value), f"{value:.3g}" if isinstance(value, float) else str(value))
            for value in domain.values]


def parallel_coordinates(space: Space, trials: Sequence[Trial], best: Trial, metric: str) -> Chart:
    """A line a trial through its hyperparameters to its last value of `metric`; the best one stands out."""
    ended = [trial for trial in trials if metric in trial.values]
    found = [trial.values[metric] for trial in ended]
    low, high = min(found), max(found)
    scale = Domain("uniform", (low, high if high > low else low + 1))
    axes_of = {**space.domains, metric: scale}

    def paint(axes: Axes) -> None:
        for place, domain in enumerate(axes_of.values()):
            axes.axvline(place, color=FAINT, lw=0.8)
            for where, what in marks(domain):
                axes.text(place + 0.06, where, what, color=INK, fontsize=9, va="center", zorder=5,
                          bbox={"facecolor": CARD, "edgecolor": "none", "alpha": 0.8, "pad": 1})
        for trial in sorted(ended, key=lambda trial: trial.name == best.name):
            line = [*(height(domain, trial.point[key]) for key, domain in space.domains.items()),
                    height(scale, trial.values[metric])]
            mine = trial.name == best.name
            axes.plot(range(len(line)), line, color=CHOSEN if mine else OTHERS, lw=2.4 if mine else 1.2,
                      alpha=1 if mine else 0.25 + 0.5 * line[-1], ls="-" if trial.status == "finished" else ":")
        axes.set_xticks(range(len(axes_of)), [re.sub("([._/])", r"\1\n", key) for key in axes_of], fontsize=9)
        axes.set_yticks([])
        axes.set_ylim(-MARGIN, 1 + MARGIN)
        axes.set_xlim(-0.3, len(axes_of) - 0.4)
        axes.grid(False)
        axes.spines[["left", "bottom"]].set_visible(False)
    told = ", ".join(f"{key} {value}" for key, value in best.point.items())
    return chart("Parallel coordinates", f"{len(ended)} trials; the best, {best.name}, {metric} "
                 f"{best.values[metric]:.4f}: {told}.", (max(WIDE[0], AXIS * len(axes_of)), WIDE[1]), paint)


def importances(shares: Mapping[str, float]) -> Chart:
    """A bar a hyperparameter, the most important one at the top."""
    ordered = sorted(shares.items(), key=lambda item: item[1])

    def paint(axes: Axes) -> None:
        axes.barh([key for key, _ in ordered], [share for _, share in ordered], color=OTHERS, height=0.6)
        axes.set_xlabel("importance")
        axes.set_xlim(0, max(1e-9, *shares.values()) * 1.05)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", labelsize=9)
    told = ", ".join(f"{key} {share:.1%}" for key, share in reversed(ordered))
    return chart("Importance of each hyperparameter", f"{told}.", (SIZE[0], 1.0 + 0.26 * len(ordered)), paint)


def learning_curves(trials: Sequence[Trial], best: Trial, metric: str) -> Chart:
    """`metric` at the validations of every trial."""
    def paint(axes: Axes) -> None:
        for trial in sorted(trials, key=lambda trial: trial.name == best.name):
            points = [(report.step, report.values[metric]) for report in trial.reports if metric in report.values]
            mine = trial.name == best.name
            if points:
                axes.plot(*zip(*points, strict=True), color=CHOSEN if mine else OTHERS, marker="o", ms=3,
                          lw=2.2 if mine else 1.2, alpha=1 if mine else 0.6,
                          ls="-" if trial.status == "finished" else ":")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel(metric)
    told = "; ".join(f"{trial.name} {trial.status} at step {trial.step}" + (
        f" with {trial.values[metric]:.4f}" if metric in trial.values else "") for trial in trials)
    return chart(f"{metric}, held out", f"{told}.", SIZE, paint)


def pareto(trials: Sequence[Trial], chosen: Sequence[Trial], metric: str, against: str) -> Chart:
    """The finished trials by both measures, and the front of those that no other one beats in both."""
    finished = [trial for trial in trials if trial.status == "finished" and {metric, against} <= trial.values.keys()]

    def paint(axes: Axes) -> None:
        axes.plot([t.values[against] for t in finished], [t.values[metric] for t in finished], "o", color=OTHERS, ms=5,
                  alpha=0.6)
        axes.plot([t.values[against] for t in chosen], [t.values[metric] for t in chosen], "D-", color=CHOSEN, ms=6,
                  lw=1.2)
        for trial in _apart(axes, chosen, against, metric):
            axes.annotate(trial.name, (trial.values[against], trial.values[metric]), xytext=(5, 4),
                          textcoords="offset points", fontsize=8, color=INK)
        axes.set_xlabel(against)
        axes.set_ylabel(metric)
    told = "; ".join(f"{t.name}: {metric} {t.values[metric]:.4g}, {against} {t.values[against]:.4g}" for t in chosen)
    return chart(f"{metric} against {against}", f"{told}.", SIZE, paint)


def _apart(axes: Axes, trials: Sequence[Trial], across: str, up: str) -> list[Trial]:
    """Those whose names can be read: one behind another that is written already is told by the table alone."""
    width, height = (end - start for start, end in (axes.get_xlim(), axes.get_ylim()))
    named: list[Trial] = []
    for trial in trials:
        if all(abs(trial.values[across] - other.values[across]) > NAME[0] * width
               or abs(trial.values[up] - other.values[up]) > NAME[1] * height for other in named):
            named.append(trial)
    return named
