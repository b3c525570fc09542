"""Steps to a target: the first validation that passes counts, whatever comes after it."""
from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.report.targets import steps_to_target

I2T = "retrieval/i2t_r5"


def test_the_first_passing_validation_counts():
    lines = [{"step": 5, "loss": 1.0}, {"step": 10, I2T: 0.4}, {"step": 20, I2T: 0.9}, {"step": 30, I2T: 0.5},
             {"step": 30, "retrieval_unseen/t2i_r5": 0.1, "retrieval/i2t_r1": 1.0}]
    assert steps_to_target(lines, (0.4, 0.5, 0.9, 0.95)) == {
        I2T: {"0.4": 10, "0.5": 20, "0.9": 20, "0.95": None},
        "retrieval_unseen/t2i_r5": {"0.4": None, "0.5": None, "0.9": None, "0.95": None}}


def test_without_validations_or_targets_nothing_is_said():
    assert steps_to_target([{"step": 1, "loss": 2.0}], (0.5,)) == {}
    assert steps_to_target([{"step": 1, I2T: 0.9}], ()) == {}


@settings(deadline=None)
@given(st.dictionaries(st.integers(1, 1000), st.floats(0, 1), min_size=1),
       st.sets(st.floats(0.01, 1).map(lambda target: round(target, 3))), st.randoms())
def test_agrees_with_brute_force(values: dict[int, float], targets: set[float], random):
    lines = [{"step": step, I2T: value} for step, value in values.items()]
    random.shuffle(lines)
    expected = {f"{t:g}": min((step for step, value in values.items() if value >= t), default=None) for t in targets}
    assert steps_to_target(lines, tuple(targets)) == ({I2T: expected} if targets else {})
