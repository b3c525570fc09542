"""The generated pages are current, and the documents name files that exist."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import measured
from docs.generate import PAGE, page

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])


def test_the_configuration_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_the_benchmarks_page_holds_the_figures_of_the_results() -> None:
    assert measured.PAGE.read_text(encoding="utf-8") == measured.page(), "run `make docs`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
