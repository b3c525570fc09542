"""A store to look at: store.html, one page with nothing to load and no script, and contact_sheet.png."""
from __future__ import annotations

import io
from itertools import groupby
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from ashnets.processing import BadSample, decode_image
from pipelines.files import write_atomically
from pipelines.report.curves import INK, SERIES, STYLE, Chart, inline_svg
from pipelines.report.pictures import thumbnail
from pipelines.store.inspection import LONGEST, Inspection, Shown

PAGE, SHEET = "store.html", "contact_sheet.png"
TEMPLATE = "store.html.jinja"
SIZE = (4.2, 2.5)
TILE, GAP = 128, 4


def write_inspection(found: Inspection, folder: Path) -> None:
    """Write PAGE and SHEET into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SHEET, contact_sheet(found.shown))
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
                            autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    write_atomically(folder / PAGE, templates.get_template(TEMPLATE).render({
        "found": found, "charts": charts(found), "facts": facts(found), "sheet": SHEET,
        "galleries": {f"{source}, {split}": [(_picture(one), one) for one in some] for (source, split), some
                      in groupby(found.shown, lambda one: (one.source, one.split))},
    }).encode())


def facts(found: Inspection) -> dict[str, str]:
    """The figures beside the charts."""
    lengths = np.repeat(np.arange(LONGEST + 1), found.words)
    shorter = np.minimum(found.widths, found.heights)
    each = int(found.captions @ np.arange(LONGEST + 1)) / max(1, int(found.captions.sum()))
    return {"captions": f"{int(found.words.sum()):,}, {each:.2f} an image",
            "words of a caption": _spread(lengths), "pixels of the shorter side": _spread(shorter),
            "largest image": f"{int((found.widths.astype(np.int64) * found.heights).max()):,} pixels"}


def charts(found: Inspection) -> list[Chart]:
    """How long captions are, how many an image has, how large images are."""
    shorter = np.minimum(found.widths, found.heights)
    edges = np.linspace(0, max(1, int(shorter.max())), 41)
    return [_bars("Words of a caption", np.arange(LONGEST + 2), found.words),
            _bars("Captions of an image", np.arange(LONGEST + 2), found.captions),
            _bars("Shorter side of an image, pixels", edges, np.histogram(shorter, edges)[0])]


def contact_sheet(shown: list[Shown]) -> bytes:
    """The samples' pictures in rows, as PNG: TILE pixels each, whole, on white; grey where one does not decode."""
    across = max(1, round(len(shown) ** 0.5 * 1.3))
    down = -(-len(shown) // across)
    sheet = np.full((down * (TILE + GAP) + GAP, across * (TILE + GAP) + GAP, 3), 255, np.uint8)
    for place, one in enumerate(shown):
        tile = _tile(one.image)
        top = GAP + place // across * (TILE + GAP) + (TILE - tile.shape[0]) // 2
        left = GAP + place % across * (TILE + GAP) + (TILE - tile.shape[1]) // 2
        sheet[top:top + tile.shape[0], left:left + tile.shape[1]] = tile
    return bytes(cv2.imencode(".png", sheet[:, :, ::-1])[1])


def _tile(image: bytes) -> UInt8[np.ndarray, "h w 3"]:
    try:
        pixels = decode_image(image, TILE, TILE)
    except BadSample:
        return np.full((TILE, TILE, 3), 128, np.uint8)
    scale = TILE / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))


def _picture(one: Shown) -> str:
    try:
        return thumbnail(one.image)
    except BadSample:
        return ""


def _spread(values: np.ndarray) -> str:
    low, middle, high = (int(value) for value in np.quantile(values, [0, .5, 1], method="nearest")) \
        if len(values) else (0, 0, 0)
    return f"{low:,} to {high:,}, median {middle:,}"


def _bars(title: str, edges: np.ndarray, counts: np.ndarray) -> Chart:
    last = int(np.flatnonzero(counts).max(initial=0)) + 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.stairs(counts[:last], edges[:last + 1], color=SERIES[0], fill=True, alpha=0.55)
        axes.set_xlabel(title.lower(), color=INK)
        axes.set_ylabel("how many", color=INK)
        axes.margins(x=0.01)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    peak = edges[int(np.argmax(counts))]
    return Chart(title, inline_svg(buffer.getvalue(), title), f"{title}: {int(counts.sum()):,}, most at {peak:.0f}.")
