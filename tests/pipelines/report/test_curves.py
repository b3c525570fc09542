"""Curves: thinning keeps the mean, the SVG fits into a page, words say what the lines show."""
from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.report.curves import VARIABLES, Plot, Series, draw, in_words, thin


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=300), st.integers(1, 50))
def test_thinning_keeps_order_ends_and_mean(values: list[float], most: int):
    steps = list(range(1, len(values) + 1))
    x, y = thin(steps, values, most)
    assert len(x) == len(y) == min(len(values), most)
    assert np.all(np.diff(x) > 0) and 1 <= x[0] and x[-1] <= len(values)
    sizes = np.diff([*np.linspace(0, len(values), most, endpoint=False).astype(int), len(values)])
    weights = np.ones(len(y)) if len(values) <= most else sizes
    assert np.average(y, weights=weights) == pytest.approx(np.mean(values), abs=1e-6)


def test_few_points_stay_as_they_are():
    x, y = thin([3, 7], [1.0, 5.0], 2)
    assert x.tolist() == [3, 7] and y.tolist() == [1, 5]


def plot(title: str = "Loss: <total> & more") -> Plot:
    return Plot(title, [Series("a<b", [1, 2, 3], [0.1, 0.5, 0.4], (4, 0.6)), Series("c", [1], [0.2])], percent=True,
                band=(0.1, 0.2), level=("chance", 0.05), restarts=[2])


def test_the_svg_takes_its_colours_and_fonts_from_the_page():
    svg = draw(plot()).svg
    ElementTree.fromstring(svg)
    assert "http" not in svg and "<metadata" not in svg and "font-family" not in svg and "DejaVu" not in svg
    for colour, variable in VARIABLES.items():
        assert colour not in svg
        assert (f"var({variable})" in svg) == (variable not in ("--card", "--series-3", "--series-4"))
    assert not re.search(r"#[0-9a-f]{6}", svg), "a fixed colour cannot follow dark and light"
    assert "a&lt;b" in svg and ">step<" in svg and re.search(r">\d+%<", svg)


def test_two_charts_share_no_id():
    ids = [set(re.findall(r'\bid="([^"]+)"', draw(plot(title)).svg)) for title in ("One", "Two")]
    assert ids[0] and not ids[0] & ids[1]
    svg = draw(plot("One")).svg
    assert set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg)) <= ids[0]


def test_words_tell_first_and_last_values():
    assert in_words(plot("T")) == ("T. a<b: 10.0% at step 1, 60.0% at step 4; c: 20.0% at step 1, 20.0% at step 1; "
                                   "chance: 5.0%; shaded: 10.0% to 20.0%.")


def test_a_long_run_stays_small():
    steps = list(range(100_000))
    assert len(draw(Plot("Long", [Series("x", steps, np.sin(steps).tolist())])).svg) < 40_000
