"""DeepSpeed's CPU communication op: `python -m cluster.comm_op` builds it once; a CPU worker calls `load()` first.

DeepSpeed would build it in `init_distributed`, which takes a C++ compiler and about 40 s, under a lock file of torch's
that outlives a killed process, so that every later one waits for ever. Loaded here, it is under a lock that the
kernel gives back, and the result lies in the environment that it was built for: environments that share torch's
default cache rebuild it in turns.
"""
from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

NAME = "deepspeed_shm_comm"
BUFFER = "deepspeed_allreduce_buffer"
SHARED_MEMORY = Path("/dev/shm")


def set_environment() -> None:
    """Let this process and its children find ninja (one version: another rebuilds everything) and the built op."""
    scripts = sysconfig.get_path("scripts")
    others = [path for path in os.environ.get("PATH", "").split(os.pathsep) if path != scripts]
    os.environ["PATH"] = os.pathsep.join([scripts, *others])
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))


def load() -> None:
    """Load the op into this process before `deepspeed.init_distributed`, building it where it is missing.

    Raises RuntimeError where the build fails.
    """
    set_environment()
    os.environ["DS_ACCELERATOR"] = "cpu"

    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
    from filelock import FileLock
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory(NAME, verbose=False))
    with FileLock(folder.with_name(folder.name + ".filelock")):
        (folder / "lock").unlink(missing_ok=True)  # held by nobody now: left by a killed process
        ShareMemCommBuilder().load(verbose=False)


def unlink_buffer(rank: int) -> None:
    """Take the name from this rank's shared-memory buffer, once every rank has mapped it (32 MiB a rank).

    DeepSpeed never does: the buffers of all runs would stay in memory until the machine restarts.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    (SHARED_MEMORY / f"{BUFFER}_{os.getuid()}_{address}_{port}_{rank}").unlink(missing_ok=True)


def built() -> bool:
    """Whether the op has been built, for this environment or in torch's default cache (without importing torch)."""
    set_environment()
    ours = os.environ.get("TORCH_EXTENSIONS_DIR")
    places = [Path(ours)] if ours else (Path.home() / ".cache" / "torch_extensions").glob("*")
    return any((place / NAME / f"{NAME}.so").is_file() for place in places)


if __name__ == "__main__":
    try:
        load()
    except RuntimeError as error:
        sys.exit(f"error: DeepSpeed's communication op was not built (is a C++ compiler such as g++ there?): {error}")
