"""report.html: one page about a run that opens anywhere, with nothing to load and no script."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pipelines.evaluation.final import Final
from pipelines.files import write_atomically
from pipelines.report.curves import draw
from pipelines.report.gallery import SHOWN, Gallery, galleries
from pipelines.report.groups import shown_groups
from pipelines.report.plots import USUAL_FIRING, health, held_out, losses, resumed_at
from pipelines.report.settings import settings
from pipelines.report.summary import REPORT, headline, measured_on
from pipelines.report.targets import MEASURES
from pipelines.training.job import TrainingJob
from pipelines.training.run_directory import read_lines

EXAMPLES = 4
GROUPS = 4
TITLES = {"retrieval": "Held-out samples", "retrieval_unseen": "Things never seen in training"}


def write_report(job: TrainingJob, summary: dict[str, Any], final: Final) -> Path:
    """Write <run>/report.html for a launch that has ended, and return its path."""
    path = job.run / REPORT
    write_atomically(path, render(content(job, summary, final)).encode())
    return path


def content(job: TrainingJob, summary: dict[str, Any], final: Final) -> dict[str, Any]:
    """Everything that the template shows."""
    lines, starts = list(read_lines(job.run / "metrics.jsonl")), list(read_lines(job.run / "starts.jsonl"))
    marks = resumed_at(starts)
    chosen = settings(job.config)
    main = final.held_out.splits["retrieval"] if "retrieval" in final.evaluation.similarity else None
    return {
        "summary": summary,
        "results": headline(summary),
        "captions": len(main.captions) if main else 0,
        "losses": [draw(plot) for plot in losses(lines, marks)],
        "held_out": [draw(plot) for plot in held_out(lines, summary)],
        "health": [draw(plot) for plot in health(lines, job.config, marks)],
        "validation_samples": job.config.evaluation.validate_samples,
        "measured_on": measured_on(summary),
        "usual_firing": USUAL_FIRING,
        "targets": summary["steps_to_target"],
        "measures": MEASURES,
        "galleries": retrieval_galleries(final),
        "shown": SHOWN,
        "groups": shown_groups(final.model, job.plan, GROUPS),
        "manifest": job.plan.store().manifest,
        "settings": chosen,
        "changed": [setting for setting in chosen if setting.changed],
        "starts": starts,
        "images_a_step": job.samples(1),
        "run": str(job.run),
    }


def retrieval_galleries(final: Final) -> list[Gallery]:
    """Both directions of every split that retrieval was measured on: none without ITC."""
    return [gallery for key, similarity in final.evaluation.similarity.items()
            for gallery in galleries(TITLES[key], final.held_out.splits[key], similarity, EXAMPLES)]


def render(values: dict[str, Any]) -> str:
    """The page; every value is escaped except the charts' SVG, and a value that is missing is an error."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
                            autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    templates.filters["percent"] = lambda value: f"{value:.1%}"
    return templates.get_template("page.html.jinja").render(values)
