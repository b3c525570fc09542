"""The comparison of regrouping on with off: intervals by hand, and nobody wins where they hold 0."""
from __future__ import annotations

import pytest

from benchmarks.regrouping import MEASURES, SEEDS, compare, table


def results(differences: list[float]) -> dict[str, dict]:
    """Runs whose measures are all .5 plus a seed's own level, and so much more with regrouping on."""
    levels = dict(zip(SEEDS, (0.0, 0.2, 0.4), strict=True))
    made = {f"off/{seed}": {"metrics": dict.fromkeys(MEASURES, 0.5 + levels[seed])} for seed in SEEDS}
    return made | {f"on/{seed}": {"metrics": dict.fromkeys(MEASURES, 0.5 + levels[seed] + more)}
                   for seed, more in zip(SEEDS, differences, strict=True)}


@pytest.mark.parametrize(("differences", "mean", "half", "winner"), [
    ([0.1, 0.2, 0.3], 0.2, 0.2484, "no difference"),  # 4.303 * .1 / sqrt(3), from Student's table
    ([0.1, 0.11, 0.12], 0.11, 0.0248, "on"),
    ([-0.1, -0.11, -0.12], -0.11, 0.0248, "off"),
    ([0.0, 0.0, 0.0], 0.0, 0.0, "no difference")])
def test_the_seeds_are_paired(differences: list[float], mean: float, half: float, winner: str) -> None:
    found = compare(results(differences), MEASURES[0])
    assert found[:2] == pytest.approx((mean, half), abs=1e-4)
    assert found[2] == winner
    assert f"| {mean:+.3f} ± {half:.3f} | {winner} |" in table(results(differences))
