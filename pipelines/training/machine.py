"""Does this machine or cluster carry the run? Pure checks: figures in, a finding out (no torch or ray import)."""
from __future__ import annotations

import platform
import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pipelines.config import PretrainConfig
from pipelines.disk import show
from pipelines.finding import Finding
from pipelines.training.needs import ModelSize, checkpoint_bytes, feed_bytes, worker_bytes

SHARED_MEMORY_A_WORKER = 70 * 2**20
"""DeepSpeed's CPU op maps this much of /dev/shm in each worker, and dies with a bus error where there is less."""


def installed(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def python(pyproject: Path, found: str = platform.python_version()) -> Finding:
    """The interpreter against `requires-python`."""
    wanted = tomllib.loads(pyproject.read_text())["project"]["requires-python"]
    return Finding("python", SpecifierSet(wanted).contains(found), f"Python {found}, asked for {wanted}",
                   "" if SpecifierSet(wanted).contains(found) else "make setup with another Python")


def packages(pyproject: Path, extras: Iterable[str] = (), found: Callable[[str], str | None] = installed) -> Finding:
    """Every package that pyproject asks for, with these extras, in a version that it allows."""
    project = tomllib.loads(pyproject.read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    wrong = []
    for requirement in map(Requirement, dict.fromkeys(texts)):
        have = found(requirement.name)
        if have is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{requirement.name} is {have}, not {requirement.specifier}")
    return Finding("packages", not wrong, ", ".join(wrong) or f"all {len(set(texts))} as pyproject.toml asks",
                   "make setup installs the locked versions" if wrong else "")


def communication_op(built: bool, compiler: str | None, cpu: bool) -> Finding:
    """DeepSpeed's CPU communication op, or a compiler that builds it."""
    if not cpu:
        return Finding("DeepSpeed's CPU op", True, "not needed on GPUs")
    if built:
        return Finding("DeepSpeed's CPU op", True, "built")
    if compiler:
        return Finding("DeepSpeed's CPU op", True, f"not built yet; {compiler} will build it",
                       "python -m cluster.comm_op builds it now (a minute)")
    return Finding("DeepSpeed's CPU op", False, "DeepSpeed's CPU op is not built, and there is no C++ compiler",
                   "install one (on Debian: apt install g++)")


def cpus(config: PretrainConfig, total: float, where: str = "the cluster's") -> Finding:
    """CPUs left for Ray Data beside the workers: a starved feed hangs without a word."""
    scaling = config.scaling
    workers = max(scaling.fewest, min(scaling.most, int(total / scaling.cpus_per_worker)))
    held = workers * scaling.cpus_per_worker
    if held + 1 <= total:
        return Finding("CPUs", True, f"workers hold {held:g} of {total:g}, {total - held:g} are left for Ray Data")
    return Finding("CPUs", False, f"scaling.workers={workers} x scaling.cpus_per_worker="
                   f"{scaling.cpus_per_worker:g} hold {held:g} of {where} {total:g} CPUs and leave Ray Data less "
                   "than one", "lower one of them")


def device(config: PretrainConfig, gpus: int) -> Finding:
    """Whether the cluster's GPUs allow `scaling.device`; the finding begins with `cuda` or `cpu`, what will be used."""
    wanted, workers = config.scaling.device, config.scaling.fewest
    if wanted == "gpu" and gpus < workers:
        return Finding("device", False, f"scaling.device=gpu with scaling.workers={workers} needs as many GPUs; the "
                       f"cluster has {gpus}", "lower scaling.workers, or use scaling.device=cpu")
    if wanted == "gpu" or (wanted == "auto" and gpus >= workers):
        return Finding("device", True, f"cuda: {min(config.scaling.most, gpus)} of {gpus} GPUs")
    advice = f"scaling.workers={gpus} would use them" if gpus and wanted == "auto" else ""
    return Finding("device", True, f"cpu; the cluster has {gpus or 'no'} GPUs", advice)


def precision(config: PretrainConfig, cpu: bool, native: bool) -> Finding:
    """Whether the devices compute fast in `train.precision`; `native`: this CPU has instructions for bfloat16."""
    asked = config.train.precision
    if asked == "bf16" and cpu and not native:
        return Finding("precision", True, "train.precision=bf16 on CPUs without instructions for bfloat16, where a "
                       "step takes many times as long as in fp32", "train.precision=auto takes what is fast here")
    chosen = asked if asked != "auto" else "bf16" if native or not cpu else "fp32"
    return Finding("precision", True, f"{chosen}, {'as asked' if asked == chosen else 'which is fast here'}")


def memory(config: PretrainConfig, size: ModelSize, total: float, cpu: bool) -> Finding:
    """Memory of the nodes against what the workers hold at least (activations come on top)."""
    need = config.scaling.most * worker_bytes(config, size, cpu)
    finding = f"workers take at least {show(need)} of the {show(total)} that Ray may use"
    return Finding("memory", need <= total, finding, "" if need <= total else
                   "lower scaling.workers, raise scaling.zero_stage, or use machines with more memory")


def disk(config: PretrainConfig, size: ModelSize, run: Path, free: float) -> Finding:
    """Space for the run's checkpoints and export: one checkpoint more than is kept exists for a moment."""
    kept = config.checkpoint.keep + config.checkpoint.keep_best
    need = (kept + 1) * checkpoint_bytes(size) + 4 * size.parameters
    finding = f"run.storage: {run.parent} has {show(free)} free, checkpoints take up to {show(need)}"
    return Finding("disk of the run", need <= free, finding, "" if need <= free else
                   "free space, lower checkpoint.keep, or name another run.storage")


def store_disk(store: Path, stored: float, grouped: bool, free: float) -> Finding:
    """Space beside the store: while groups are built they hold its images twice; the demo's store is small."""
    need = 0.0 if grouped else 2.2 * stored if stored else 256 * 2**20
    finding = f"data.store: {store.parent} has {show(free)} free, " + (
        f"building takes about {show(need)}" if need else "everything is built")
    return Finding("disk of the store", need <= free, finding, "" if need <= free else
                   "free space, or name another folder for the groups: groups.path=PATH")


def shared_memory(config: PretrainConfig, cpu: bool, free: float, folder: str = "/dev/shm") -> Finding:
    """Shared memory for the workers' gradients (on CPUs)."""
    need = config.scaling.most * SHARED_MEMORY_A_WORKER if cpu else 0
    return Finding("shared memory", need <= free, f"{folder} has {show(free)} free, the workers map {show(need)}", ""
                   if need <= free else "give the container more (docker run --shm-size=8g)")


def object_store(config: PretrainConfig, image_bytes: float, total: float) -> Finding:
    """Ray's object store against what the feed holds at once; with less Ray spills to the disk and the feed starves."""
    need = feed_bytes(config, image_bytes)
    return Finding("object store", need <= total, f"Ray's object store has {show(total)}, the feed holds {show(need)}",
                   "" if need <= total else "lower feed.window or groups.row_group, or give Ray more "
                   "(ray start --object-store-memory)")


def ray_address(environment: Mapping[str, str], home: Path) -> Finding:
    """RAY_ADDRESS, and whether a token protects it: whoever reaches a Ray without one runs code on it."""
    address, mode = environment.get("RAY_ADDRESS", ""), environment.get("RAY_AUTH_MODE", "")
    if not address:
        return Finding("Ray", True, "RAY_ADDRESS is not set: a private Ray of this machine, on 127.0.0.1 only")
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH", "") or home / ".ray" / "auth_token")
    token = bool(environment.get("RAY_AUTH_TOKEN")) or file.is_file()
    if mode == "token" and not token:
        return Finding("Ray", False, f"RAY_ADDRESS={address} with RAY_AUTH_MODE=token, but there is no token in "
                       f"RAY_AUTH_TOKEN or {file}", "copy the cluster's (on its head: ray get-auth-token)")
    if mode != "token":
        return Finding("Ray", True, f"RAY_ADDRESS={address}, RAY_AUTH_MODE={mode or '(not set)'}",
                       "without tokens everybody who reaches it runs code on it: RAY_AUTH_MODE=token on all nodes")
    return Finding("Ray", True, f"RAY_ADDRESS={address}, protected by a token")


def visible(missing: Mapping[str, Iterable[str]], nodes: int) -> Finding:
    """Storage that every node sees; `missing` says which host lacks which folders."""
    if not missing:
        return Finding("shared storage", True, f"seen by {'the one node' if nodes == 1 else f'all {nodes} nodes'}")
    lacks = "; ".join(f"{host} does not see {', '.join(folders)}" for host, folders in sorted(missing.items()))
    return Finding("shared storage", False, f"every one of {nodes} nodes must see run.storage and data.store: {lacks}",
                   "name folders of a file system that all nodes mount")
