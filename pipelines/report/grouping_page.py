"""groups.html: one page about a grouped store, in its own folder, with nothing to load and no script."""
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float32
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from pipelines.files import write_atomically
from pipelines.grouping.materialise import GroupedStore
from pipelines.report.curves import INK, SERIES, STYLE, Chart, inline_svg
from pipelines.report.groups import ShownGroup, best_middle_worst, shown_group
from pipelines.store.schema import read_row_groups

PAGE = "groups.html"
TEMPLATE = "grouping.html.jinja"
EACH = 6
BINS = 48
SIZE = (7.6, 3.2)
NAMES = {"members": "in these groups", "random": "in random groups", "bound": "nearest samples: more is not possible"}
COLUMNS = ["group_id", "images", "captions", "real"]


def write_page(store: GroupedStore, cosines: dict[str, np.ndarray], path: Path) -> None:
    """Write groups.html into the store's folder, which will lie at `path`.

    Args:
        cosines: each sample's mean cosine to its mates, without duplicates: `members` [n, G] in the order of the
            groups (NaN for copies), `random` and `bound` [N].
    """
    values = {name: found[np.isfinite(found)] for name, found in cosines.items()}
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
                            autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    templates.filters["percent"] = lambda value: f"{value:.1%}"
    write_atomically(store.path / PAGE, templates.get_template(TEMPLATE).render({
        "manifest": store.manifest, "path": str(path), "chart": histogram(values),
        "facts": facts(store.manifest),
        "galleries": galleries(store, cosines["members"]), "configuration": store.manifest["configuration"],
    }).encode())


def galleries(store: GroupedStore, members: Float32[np.ndarray, "n G"]) -> dict[str, list[ShownGroup]]:
    """EACH groups of the highest, the median and the lowest mean cosine."""
    means = np.nan_to_num(np.nanmean(np.where(np.isfinite(members).any(axis=1, keepdims=True), members, 0), axis=1))
    ends = np.cumsum([rows for _, _, rows in store.row_groups])
    shown = {}
    for title, indices in best_middle_worst(means.tolist(), EACH).items():
        shown[title] = [_shown(store, ends, index, float(means[index])) for index in indices]
    return shown


def _shown(store: GroupedStore, ends: np.ndarray, index: int, cosine: float) -> ShownGroup:
    place = int(np.searchsorted(ends, index, side="right"))
    file, row_group, rows = store.row_groups[place]
    row = read_row_groups(file, [row_group], COLUMNS).slice(index - (int(ends[place]) - rows), 1).to_pylist()[0]
    return shown_group(row, cosine)


def histogram(values: dict[str, np.ndarray]) -> Chart:
    """How often which cosine occurs, as outlines over each other; dashed lines at the means."""
    low = min((float(found.min()) for found in values.values() if len(found)), default=0.0)
    edges = np.linspace(min(0.0, low), 1, BINS + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for (name, found), colour in zip(values.items(), SERIES, strict=False):
            share = np.histogram(np.clip(found, edges[0], 1), edges)[0] / max(1, len(found))
            axes.stairs(share, edges, color=colour, lw=1.6, label=NAMES[name])
            axes.stairs(share, edges, color=colour, alpha=0.12, fill=True)
            if len(found):
                axes.axvline(float(found.mean()), color=colour, ls="--", lw=1)
        axes.set_xlabel("mean cosine of a sample to the others of its group", color=INK)
        axes.set_ylabel("share of the samples", color=INK)
        axes.margins(x=0.01)
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    title = "Cosine inside the groups"
    told = "; ".join(f"{NAMES[name]}: mean {found.mean():.3f}" for name, found in values.items() if len(found))
    return Chart(title, inline_svg(buffer.getvalue(), title), f"{title}. {told}.")


def facts(manifest: dict[str, Any]) -> dict[str, str]:
    """What the page tells of the groups besides their quality."""
    told = {"groups": f"{manifest['groups']:,} of {manifest['size']}", "samples": f"{manifest['samples']:,}",
            "copies that fill the last groups up": f"{manifest['padding']:,}", "compared by": manifest["embedding"]}
    if manifest.get("model"):
        told["model"] = manifest["model"]
    if manifest.get("without_embedding"):
        told["nothing to compare by"] = f"{manifest['without_embedding']:,} samples"
    return told | {"store": f"{manifest['store']}, version {manifest['data_version']}, split {manifest['split']}",
                   "seed": str(manifest["seed"])}
