"""Find files that a configuration names: a path, or `package:NAME/path/in/it` inside an installed package."""
from __future__ import annotations

import importlib.util
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
