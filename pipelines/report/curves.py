"""Curves as inline SVG that follow the page's colours, light or dark."""
from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

POINTS = 240
SIZE = (4.2, 2.5)
# Matplotlib draws in colours that nobody uses; the page's CSS gives them their meaning.
INK, FAINT, BAND, CARD = "#0000f1", "#0000f2", "#0000f3", "#0000f4"
SERIES = ("#0000a1", "#0000a2", "#0000a3", "#0000a4")
VARIABLES = {INK: "--ink", FAINT: "--faint", BAND: "--band", CARD: "--card",
             **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)}}
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 10, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
    "grid.color": FAINT, "grid.alpha": 0.35, "axes.grid": True, "axes.axisbelow": True, "legend.frameon": False,
    "legend.fontsize": 9, "legend.handlelength": 1.4, "axes.facecolor": "none", "figure.facecolor": "none"}


@dataclass(frozen=True)
class Series:
    """One line of a chart: a label and its points."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    final: tuple[int, float] | None = None
    """A last point of another kind, drawn hollow."""


@dataclass(frozen=True)
class Plot:
    """What a chart shows."""

    title: str
    series: Sequence[Series]
    percent: bool = False
    band: tuple[float, float] | None = None
    """A range of values that is shaded."""
    level: tuple[str, float] | None = None
    """A dashed horizontal line and its label."""
    dots: bool = False
    """Mark every point: there are few."""
    restarts: Sequence[int] = ()
    """Steps at which a launch took up the run again: dotted vertical lines."""


@dataclass(frozen=True)
class Chart:
    """A drawn plot."""

    title: str
    svg: str
    alt: str


def thin(steps: Sequence[int], values: Sequence[float], most: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points: the means of neighbouring ones, at their mean step; few points stay as they are."""
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if len(x) <= most:
        return x, y
    starts = np.linspace(0, len(x), most, endpoint=False).astype(int)
    counts = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def draw(plot: Plot) -> Chart:
    """Draw a plot as SVG for an HTML page whose CSS sets VARIABLES; its ids are the plot's own."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        _lines(axes, plot)
        if plot.percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}%"))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        if len(plot.series) > 1 or plot.level:
            letters = sum(len(series.label) for series in plot.series)
            figure.legend(loc="outside upper left", ncols=3 if letters < 40 else 1, columnspacing=1.2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Chart(plot.title, inline_svg(buffer.getvalue(), plot.title), in_words(plot))


def _lines(axes: Axes, plot: Plot) -> None:
    if plot.band:
        axes.axhspan(*plot.band, color=BAND, lw=0)
    for step in plot.restarts:
        axes.axvline(step, color=FAINT, ls=":", lw=1.2)
    if plot.level:
        axes.axhline(plot.level[1], color=INK, ls="--", lw=1, alpha=0.7, label=plot.level[0])
    for series, colour in zip(plot.series, (SERIES * len(plot.series))[:len(plot.series)], strict=True):
        axes.plot(*thin(series.steps, series.values), color=colour, lw=1.6, label=series.label,
                  marker="o" if plot.dots or len(series.steps) == 1 else None, ms=3.5)
        if series.final:
            axes.plot(*series.final, color=colour, marker="D", ms=5.5, mfc="none", ls="none")


def inline_svg(document: str, name: str) -> str:
    """The <svg> element of a matplotlib document: unique ids, the page's colours and fonts, no foreign addresses."""
    svg = document[document.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", svg[:svg.index(">")]) + svg[svg.index(">"):]
    prefix = re.sub(r"\W+", "-", name).lower()
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"font-family: [^;\"]*(; )?", "", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()


def in_words(plot: Plot) -> str:
    """What the chart shows, for whoever cannot see it."""
    told = []
    for series in plot.series:
        points = [*zip(series.steps, series.values, strict=True), *([series.final] if series.final else [])]
        (first, start), (last, end) = points[0], points[-1]
        told.append(f"{series.label}: {_number(start, plot)} at step {first}, {_number(end, plot)} at step {last}")
    if plot.level:
        told.append(f"{plot.level[0]}: {_number(plot.level[1], plot)}")
    if plot.band:
        told.append(f"shaded: {_number(plot.band[0], plot)} to {_number(plot.band[1], plot)}")
    return f"{plot.title}. {'; '.join(told)}."


def _number(value: float, plot: Plot) -> str:
    return f"{value:.1%}" if plot.percent else f"{value:.3g}"
