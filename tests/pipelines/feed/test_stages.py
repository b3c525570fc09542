"""Stages take over at fixed positions; one that failed, or has another size, is a loud error."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import FinalError, UserError
from pipelines.feed.batches import local_batches
from pipelines.feed.plan import FeedPlan
from pipelines.feed.stages import Stages

from .conftest import MakePlan
from .small_stores import SmallStore, write_groups


@pytest.fixture
def staged(make_plan: MakePlan, tmp_path: Path) -> FeedPlan:
    """37 groups an epoch, a new stage every 2 epochs, taken 10 groups earlier; 6 groups a step."""
    return replace(make_plan(), stages=Stages(str(tmp_path / "stages"), every=2, lead=10))


def test_positions_of_stages_and_their_models() -> None:
    stages = Stages("/run/stages", every=2, lead=10)
    assert [stages.number(epoch) for epoch in range(5)] == [0, 0, 1, 1, 2]
    assert stages.begins(2, 37) == 148
    assert stages.model_step(1, 37, 6) == 10  # position 60 of 74 - 10 = 64
    assert Stages("", 1, 400).model_step(1, 37, 6) == 1


def test_a_stage_takes_over_inside_a_step(staged: FeedPlan, small_store: SmallStore) -> None:
    """The second stage's groups carry other ids: position 73 is the first stage's last, in the middle of a step."""
    assert staged.stages
    rows = [row | {"group_id": row["group_id"] + 5000} for row in reversed(small_store.rows)]
    write_groups(staged.stages.groups(1), rows)
    batches = list(local_batches(staged, 0, 20))
    ids = [i for batch in batches for i in batch.group_ids]
    assert sorted(ids[:37]) == sorted(ids[37:74]) == list(range(1000, 1037))
    assert sorted(ids[74:111]) == list(range(6000, 6037)) and min(ids[111:]) >= 6000
    assert [batch.epoch for batch in batches if batch.position in (72, 74)] == [1, 2]


def test_no_stream_needs_a_stage_before_its_model_is_made(staged: FeedPlan) -> None:
    assert staged.streams(0, 20) == {"stage 0": (0, 12), "stage 1": (12, 20)}
    assert staged.streams(12, 20) == {"stage 1": (12, 20)}
    assert staged.streams(13, 40) == {"stage 1": (13, 24), "stage 2": (24, 37), "stage 3": (37, 40)}
    assert staged.streams(20, 20) == {}
    assert replace(staged, stages=None).streams(3, 20) == {"stage 0": (3, 20)}
    assert staged.stages
    for lead in range(37):
        plan = replace(staged, stages=replace(staged.stages, lead=lead))
        assert plan.stages
        for stage in (1, 2, 3):
            first, _ = plan.streams(0, 60)[f"stage {stage}"]
            assert plan.stages.model_step(stage, 37, 6) <= first
            assert first * 6 <= plan.stages.begins(stage, 37) < first * 6 + 6


@pytest.mark.parametrize("groups_per_atom", [2, 3])
def test_a_stage_that_would_begin_at_the_end_is_not_needed(staged: FeedPlan, groups_per_atom: int) -> None:
    """The last step is filled up behind position 74, where the second stage, which is never built, would begin; with 3
    groups a micro-batch the last real one has a row from there.
    """
    plan = replace(staged, end=74, groups_per_atom=groups_per_atom, atoms_per_step=6 // groups_per_atom)
    assert plan.streams(0, 13) == {"stage 0": (0, 13)}
    batches = [batch for batch in local_batches(plan, 0, 13) if batch.position >= 0]
    positions = [position for batch in batches for position in range(batch.position, batch.position + groups_per_atom)]
    assert positions[:74] == list(range(74)) and len(positions) - 74 == -74 % groups_per_atom
    trained = [group.any().item() for batch in batches for group in batch.weight.reshape(groups_per_atom, -1)]
    assert trained == [position < 74 for position in positions]


def test_a_stage_that_failed_is_a_loud_error(staged: FeedPlan) -> None:
    assert staged.stages and not staged.stages.ready(1)
    with pytest.raises(FileNotFoundError, match="stage-0001"):
        list(local_batches(staged, 12, 13))
    staged.stages.path(1).mkdir(parents=True)
    staged.stages.fail(1, RuntimeError("no model"))
    with pytest.raises(FinalError, match="stage 1 of the groups could not be built: RuntimeError: no model"):
        staged.stages.ready(1)
    staged.stages.fail(1, UserError("the disk is full"))
    with pytest.raises(UserError, match="stage 1 of the groups could not be built: the disk is full"):
        staged.stages.ready(1)


def test_a_stage_of_another_size_is_refused(staged: FeedPlan, small_store: SmallStore) -> None:
    assert staged.stages
    write_groups(staged.stages.groups(1), small_store.rows[:30])
    with pytest.raises(ValueError, match="other row groups"):
        list(local_batches(staged, 12, 13))
