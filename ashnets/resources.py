"""Find files that a configuration names: a path, `package:NAME/path/in/it`, or a name on the Hugging Face hub."""
from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def resolve(location: str) -> Path:
    """The file or folder that `location` names.

    Raises FileNotFoundError, naming the mend, where the package is not installed or the path does not exist.
    """
    if location.startswith("package:"):
        package, _, inner = location.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                f"{location}: the package {package} is not installed; install the `demo` extra (pip install '.[demo]')")
        path = Path(next(iter(spec.submodule_search_locations))) / inner
    else:
        path = Path(location).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{location}: {path} does not exist")
    return path


def is_hub_name(location: str) -> bool:
    """Whether `location` is `OWNER/NAME` (or an old `NAME`) of the Hugging Face hub: nothing of that name is here."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", location) is not None and location[0] not in ".~" \
        and not Path(location).exists()


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub's client from telling of every attempt: what fails in the end is said once."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def hub_file(name: str, file: str, key: str) -> Path:
    """One file of the hub's repository `name`, downloaded into the hub's cache where it is not there yet.

    Raises FileNotFoundError, naming the configuration key `key` and the mend, where it cannot be had.
    """
    import huggingface_hub

    try:
        with quiet_hub():
            return Path(huggingface_hub.hf_hub_download(name, file))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{key}={name}: neither a folder here nor a {file} that the Hugging Face hub gives "
            f"({' '.join(str(error).split())[:200]}). Without access to the hub, download it elsewhere and give its "
            "folder") from error
