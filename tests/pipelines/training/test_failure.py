"""Which failures end a launch at once; that none of them is restarted is tested on real processes in tests/e2e."""
from __future__ import annotations

import errno
import pickle

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from ashnets.processing import BadSample
from ashnets.resources import resolve
from pipelines.errors import FinalError, UserError
from pipelines.training.failure import EndAtOnce, final_errors, restart_may_mend
from pipelines.training.lease import Fenced
from pipelines.training.nonfinite import NonFinite


def raised_in_a_worker(error: Exception) -> Exception:
    """What leaves `final_errors`, after the way to the driver."""
    with pytest.raises(Exception) as caught, final_errors(3):  # noqa: B017 (the type is what is tested)
        raise error
    return pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (our own bytes)


@pytest.mark.parametrize("error", [Fenced("late"), NonFinite("nan"), FinalError("feed: order")])
def test_our_final_errors_keep_their_message(error: Exception) -> None:
    found = raised_in_a_worker(error)
    assert type(found) is FinalError and str(found) == f"rank 3: {error}"


@pytest.mark.parametrize("error", [
    TypeError("a bug"), KeyError("a bug"), AssertionError(), OSError(errno.ENOSPC, "full"),
    ValueError("from elsewhere")])
def test_what_comes_again_is_final_and_brings_its_trace(error: Exception) -> None:
    found = raised_in_a_worker(error)
    assert type(found) is FinalError and "test_failure.py" in str(found)


@pytest.mark.parametrize("error", [
    RuntimeError("Connection closed by peer"), ConnectionResetError(), OSError(errno.EIO, "disk"), ActorDiedError()])
def test_what_a_death_brings_about_is_left_to_restarts(error: Exception) -> None:
    assert restart_may_mend(error)
    with pytest.raises(type(error)), final_errors(0):
        raise error


def test_a_users_mistake_in_a_worker_stays_one() -> None:
    with pytest.raises(UserError, match="/nowhere/at/all does not exist"), final_errors(0):
        resolve("/nowhere/at/all")
    assert type(raised_in_a_worker(BadSample("undecodable", "two arguments do not survive pickling"))) is FinalError


def test_an_error_of_the_feeds_tasks_is_judged_by_its_cause() -> None:
    task = RayTaskError("read", "trace", UserError("part-0 is damaged: restore it"))
    assert str(raised_in_a_worker(task.as_instanceof_cause())) == "part-0 is damaged: restore it"


def test_the_controller_ends_at_once_only_for_final_errors() -> None:
    EndAtOnce().after_exception(None, {0: RuntimeError("peer"), 1: ActorDiedError()})
    with pytest.raises(FinalError, match="one"):
        EndAtOnce().after_exception(None, {0: RuntimeError("peer"), 1: FinalError("one"), 2: FinalError("two")})
