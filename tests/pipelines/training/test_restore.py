"""Where training goes on where a checkpoint must be converted and cannot be."""
import errno
from types import SimpleNamespace

import pytest
import torch

from pipelines.errors import UserError
from pipelines.training import checkpoint, restore
from pipelines.training.lease import Lease
from tests.pipelines.training.small_checkpoints import make_checkpoint


@pytest.mark.parametrize(("raised", "told"), [(OSError(errno.ENOSPC, "full"), UserError), (KeyError("x"), KeyError)])
def test_a_conversion_that_fails_leaves_the_checkpoint_alone(tmp_path, monkeypatch, raised, told):
    def convert(state, to, names):
        to.mkdir(parents=True)
        (to / "half").write_text("written")
        if told is UserError:
            raise RuntimeError("torch has its own") from raised
        raise raised

    monkeypatch.setattr(restore, "convert", convert)
    engine = SimpleNamespace(device=torch.device("cpu"), reads=lambda world, stage: False, trainable_names=lambda: [])
    with Lease(tmp_path) as lease:
        make_checkpoint(tmp_path, lease.attempt, 10)
        with pytest.raises(told):
            restore.restore(engine, SimpleNamespace(run=tmp_path, attempt=lease.attempt), rank=0)
    assert checkpoint.newest(tmp_path)[1].step == 10 and not list((tmp_path / "checkpoints").glob(".*"))
