"""groups.html: best, median and worst groups as they are in the files, histograms that count, nothing to load."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.grouping.materialise import GroupedStore, materialise
from pipelines.grouping.samples import Samples
from pipelines.report import grouping_page
from pipelines.report.grouping_page import PAGE, galleries, histogram, write_page
from tests.pipelines.report.html_checks import check_page
from tests.pipelines.small_run import make_store, scene_rows

FACTS = {"embedding": "captions <b>by</b> a BERT", "store": "/data/store", "data_version": 1, "split": "train",
         "seed": 0, "samples": 47, "padding": 1, "without_embedding": 2,
         "quality": {"in_group": 0.5, "random": 0.1, "bound": 0.625, "clashes": 0},
         "duplicates": {"classes": 3, "samples": 7, "largest": 4, "by_cosine": 0}}


@pytest.fixture
def built(tmp_path: Path) -> GroupedStore:
    """12 groups of 4, the last place a copy, in row groups of 5; the image of sample 5 is broken."""
    rows = scene_rows(47, 0)
    rows[5]["image"] = b"no image"
    rows[1]["captions"] = ["<script>alert(1)</script>"]
    samples = Samples.read(make_store(tmp_path / "store", rows), 1, "train")
    groups = np.arange(48).reshape(12, 4)
    real = groups < 47
    return materialise(samples, groups % 47, real, tmp_path / "groups", 5, {"size": 4}, FACTS)


def cosines() -> dict[str, np.ndarray]:
    members = np.repeat(np.linspace(0.9, 0.1, 12), 4).reshape(12, 4).astype(np.float32)
    members[11, 3] = np.nan
    return {"members": members, "random": np.full(44, 0.1, np.float32), "bound": np.full(47, 0.625, np.float32)}


def test_the_page_shows_the_groups_and_loads_nothing(built: GroupedStore, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping_page, "EACH", 2)
    write_page(built, cosines(), tmp_path / "final")
    page = check_page((built.path / PAGE).read_text())
    for told in ("80.0%", "0.625", "captions <b>by</b> a BERT", "<script>alert(1)</script>", "(damaged picture)",
                 "(copy, to fill up)", "3 pictures are shown by several samples", "2 samples",
                 str(tmp_path / "final")):
        assert told in page.text, told
    assert sum(tag == "img" for tag, _ in page.tags) == 6 * 4 - ("(damaged picture)" in page.text)


def test_best_median_and_worst_are_those_of_the_files(built: GroupedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping_page, "EACH", 2)
    shown = galleries(built, cosines()["members"])
    assert {title: [group.group_id for group in some] for title, some in shown.items()} == {
        "most alike": [0, 1], "middling": [5, 6], "least alike": [10, 11]}
    rows = scene_rows(47, 0)
    assert shown["middling"][0].captions == tuple(rows[i]["captions"][0] for i in range(20, 24))
    assert shown["least alike"][1].copies == (False, False, False, True)
    assert shown["least alike"][1].similarity == pytest.approx(0.1)


def test_the_histogram_is_told_in_words_and_bears_anything() -> None:
    assert "in random groups: mean 0.100" in histogram(cosines() | {"members": np.full(9, 0.5)}).alt
    for odd in (np.zeros(0), np.full(3, -1.0), np.full(3, 1.0)):
        assert "<svg" in histogram({"members": odd, "random": odd, "bound": odd}).svg
