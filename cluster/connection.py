"""Connect to Ray: to the cluster that RAY_ADDRESS names (every submitted job), else to a private one of our own."""
from __future__ import annotations

import logging
import os
from functools import partial
from typing import Any

from cluster import comm_op
from cluster.paths import REPOSITORY, is_unpacked_upload

# Read by Ray at start-up; a value that the user has set stays.
TUNING = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # at the default 2 s every third report waits for a poll
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # V2 starts 32 actors an execution, and drops a garbage page without a word
    "RAY_worker_niceness": "0",  # at Ray's 15 anything else that is busy starves the workers
    # Ray ends idle processes beyond one a CPU after a second; the feed has more, for tasks that take less than a CPU,
    # and a slow consumer would have them started anew, imports included, all the time.
    "RAY_num_workers_soft_limit": str(max(8, 2 * (os.cpu_count() or 1))),
    # It warns of every few processes beyond two a CPU; the feed's tasks, and the launches of a sweep, are that many.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started on node",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# For the private cluster, whatever the user has set: a bare `ray.init()` would write ~/.ray/auth_token, which the next
# `ray start --head` enforces and `ray job submit` then lacks; and it would listen on every network interface.
PRIVATE = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def connect(cpus: int | None = None, gpus: int | None = None) -> None:
    """Connect this process to Ray, once; a second call changes nothing.

    What the workers print stays in Ray's own logs (/tmp/ray/session_latest/logs); RAY_LOG_TO_DRIVER=1 shows it here.

    Args:
        cpus: CPUs of the private cluster; None: all that this machine gives us.
        gpus: GPUs of the private cluster; None: all of them.
    """
    for name, value in TUNING.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.update(PRIVATE)
        _let_children_import_us()
        comm_op.set_environment()

    import ray  # late: Ray reads part of the environment when it is imported

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {
        "logging_level": logging.WARNING, "log_to_driver": os.environ.get("RAY_LOG_TO_DRIVER", "0") == "1",
    }
    if os.environ.get("RAY_ADDRESS"):
        here = {} if is_unpacked_upload() else {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
        ray.init(runtime_env=here, **quiet)
    else:
        # Ray replaces 127.0.0.1 by an outward address unless this says that no cluster is wanted; set here as well
        # as in the environment for a caller that has imported ray already.
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
        # `timeout`, systemd and Slurm send SIGTERM to the whole process group: Ray's processes must outlive it, for the
        # workers to write a checkpoint. They get groups of their own; the kernel ends them with this process.
        ray._private.services.ConsolePopen = partial(ray._private.services.ConsolePopen, process_group=0)
        ray.init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False,
                 _node_ip_address="127.0.0.1", **quiet)
    _quiet_ray_data()


def _let_children_import_us() -> None:
    """Put the repository on the workers' path: Ray hands them only the script's folder and the current one."""
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    ours = [str(REPOSITORY), *(path for path in others if path and path != str(REPOSITORY))]
    os.environ["PYTHONPATH"] = os.pathsep.join(ours)


def _quiet_ray_data() -> None:
    """Keep Ray Data to warnings and without bars: progress is ours to report."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.use_datasource_v2 = os.environ["RAY_DATA_USE_DATASOURCE_V2"] == "1"
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns of the missing bars
