"""Write docs/configuration.md from the configuration classes, and docs/benchmarks.md from results: `make docs`."""
from __future__ import annotations

from operator import attrgetter
from pathlib import Path

from docs import measured
from jobs.cli import CONFIGS, parse, show_value
from jobs.fields import Field, walk
from pipelines.config import PretrainConfig

PAGE = Path(__file__).with_name("configuration.md")
INTRODUCTION = """# Configuration of `jobs/pretrain.py`

Made from the configuration classes by `make docs`; a test keeps it current. Set a key on the command line
(`train.lr=1e-4`) or in a YAML file (`--config FILE`, which takes the place of `jobs/configs/demo.yaml`). The column
*demo* shows where `jobs/configs/demo.yaml` differs from the default.
"""
TABLE_HEAD = ["", "| key | default | demo | meaning |", "|---|---|---|---|"]


def page() -> str:
    """The whole page as Markdown."""
    demo = parse(PretrainConfig, [], description="", defaults_file=CONFIGS / "demo.yaml").config
    lines, in_table = [INTRODUCTION.rstrip()], False
    for field in walk(PretrainConfig):
        if field.is_section:
            lines += ["", f"## {field.key}", "", field.meaning]
        else:
            lines += [] if in_table else TABLE_HEAD
            lines.append(_row(field, attrgetter(field.key)(demo)))
        in_table = not field.is_section
    return "\n".join(lines) + "\n"


def _row(field: Field, demo: object) -> str:
    default = f"`{show_value(field.default)}`" if show_value(field.default) else "(empty)"
    changed = f"`{show_value(demo)}`" if demo != field.default else ""
    meaning = field.meaning + (f" ({field.legal})" if field.legal.startswith("one of") else "")
    for plain, escaped in (("|", "\\|"), ("<", "&lt;")):
        meaning = meaning.replace(plain, escaped)
    return f"| `{field.key}` | {default} | {changed} | {meaning} |"


if __name__ == "__main__":
    for file, text in ((PAGE, page()), (measured.PAGE, measured.page())):
        file.write_text(text, encoding="utf-8")
        print(f"wrote {file}")
