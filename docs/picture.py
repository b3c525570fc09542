"""Draw docs/images/retrieval.png from a finished demo run: `python -m docs.picture runs/demo`."""
from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ashnets.metrics.retrieval import matches
from ashnets.processing import decode_image
from ashnets.weights_file import load_weights
from pipelines.evaluation.features import extract
from pipelines.evaluation.held_out import HeldOut
from pipelines.report.gallery import SHOWN, examples
from pipelines.resume import load_config
from pipelines.training.model import build_model

PICTURE = Path(__file__).parent / "images" / "retrieval.png"
HITS = {"retrieval": 2, "retrieval_unseen": 1}
MISSES = {"retrieval": 0, "retrieval_unseen": 1}
WORDS = {"retrieval": "", "retrieval_unseen": ", never seen in training"}
COLOURS = 160
SEED = 8
RIGHT, WRONG = "#14803c", "#c4c9d0"


def draw(run: Path) -> Figure:
    """A row a held-out caption: the pictures that the run's model finds, best first, the right one framed."""
    config, pin = load_config(run), json.loads((run / "data.json").read_text())
    model = build_model(config).eval()
    load_weights(model, run / "export" / "model.safetensors")
    held_out = HeldOut(config, Path(pin["store"]), pin["version"], torch.device("cpu"), limit=0)
    figure = Figure(figsize=(6.2, 6.0), dpi=110, facecolor="white")
    places = {"left": 0.01, "right": 0.99, "top": 0.95, "bottom": 0.01, "wspace": 0.06, "hspace": 0.2}
    rows = iter(figure.subplots(sum(HITS.values()) + sum(MISSES.values()), SHOWN, gridspec_kw=places))
    for key, split in held_out.splits.items():
        similarity = extract(model, split, config.evaluation.batch, torch.device("cpu")).similarity()
        assert similarity is not None, "the picture needs a model with ITC"
        match = matches(split.image_of_caption, split.caption_class, split.image_class)
        hits, misses, _ = examples(similarity.T, match.T, max(*HITS.values(), *MISSES.values()), SEED)
        for example in (*hits[:HITS[key]], *misses[:MISSES[key]]):
            row = next(rows)
            images = split.encoded([candidate.index for candidate in example.candidates])
            row[0].set_title(f"“{split.captions[example.query]}”{WORDS[key]}", loc="left", fontsize=10)
            for axes, candidate in zip(row, example.candidates, strict=True):
                _show(axes, images[candidate.index], candidate.right)
    return figure


def _show(axes: Axes, image: bytes, right: bool) -> None:
    axes.imshow(decode_image(image), interpolation="antialiased")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=RIGHT if right else WRONG, linewidth=3 if right else 1)


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    drawn = io.BytesIO()
    draw(Path(sys.argv[1])).savefig(drawn)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True)
    print(f"wrote {PICTURE}")
