"""Tasks that write files and return some numbers: several are Ray Data's, on all nodes; a single one runs here."""
from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from jaxtyping import Int64

from pipelines.disk import FULL, is_full
from pipelines.errors import UserError, is_users_mistake
from pipelines.grouping.materialise import Progress

STOPPED = ".stopped"
"""A file that tells tasks to do nothing any more."""

Task = Callable[[pa.Table], Int64[np.ndarray, " k"]]
"""Works on a block, whose column `number` tells which one it is, and returns some numbers."""


def run(task: Task, blocks: Sequence[pa.Table], folder: Path, what: str, progress: Progress | None,
        ) -> list[Int64[np.ndarray, " k"]]:
    """What `task`, which writes into `folder`, returns for each block, in their order: through Ray Data where there are
    several and Ray is connected.

    Raises UserError for a user's mistake in a task, and OSError where it met a full disk.
    """
    apart = len(blocks) > 1 and ray.is_initialized()
    found: dict[int, np.ndarray] = {}
    for number, numbers in _through_ray(task, blocks, folder) if apart else enumerate(map(task, blocks)):
        found[number] = numbers
        if progress is not None:
            progress(what, len(found), len(blocks))
    return [found[number] for number in range(len(blocks))]


def _through_ray(task: Task, blocks: Sequence[pa.Table], folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Number and result of every block, as they come; Ray runs a task whose worker dies again.

    Behind a mistake the tasks that are left do nothing, and it is raised when none runs any more: what they write into
    can be removed then.
    """
    import ray.data  # late: it takes a second to import
    dataset = ray.data.from_arrow(list(blocks)).map_batches(
        partial(_told, task=task, folder=folder), batch_size=None, batch_format="pyarrow", num_cpus=1)
    dataset.context.enable_progress_bars = False
    mistakes: list[str] = []
    for results in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for number, mistake, found in zip(results["number"].to_pylist(), results["mistake"].to_pylist(),
                                          results["found"], strict=True):
            if mistake:
                mistakes.append(mistake)
                with suppress(OSError):  # a disk that has no room for it makes the others fail anyway
                    (folder / STOPPED).touch()
            yield number, found.values.to_numpy()
    if mistakes:
        raise OSError(errno.ENOSPC, FULL) if mistakes[0] == FULL else UserError(mistakes[0])


def _told(block: pa.Table, task: Task, folder: Path) -> pa.Table:
    """What can be mended comes back as text: Ray would bury the exception under its own."""
    found, mistake = np.zeros(0, np.int64), ""
    try:
        if not folder.exists():
            raise UserError(f"{socket.gethostname()} does not see {folder.parent}: name a groups.path that every node "
                            "of the cluster sees")
        if not (folder / STOPPED).exists():
            found = task(block)
    except Exception as error:
        if not (is_full(error) or is_users_mistake(error)):
            raise
        mistake = FULL if is_full(error) else str(error)
    return pa.table({"number": block["number"][:1].cast(pa.int64()), "mistake": pa.array([mistake]),
                     "found": pa.array([found], pa.list_(pa.int64()))})
