"""Rules of the house that a scan of the source proves: import direction, light imports, guarded loading."""
from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("ashnets", "pipelines", "jobs", "cluster")
# What each package must never import; arrows run jobs -> pipelines -> ashnets, and cluster stands below pipelines.
FORBIDDEN = {
    "ashnets": {"ray", "pipelines", "jobs", "cluster", "deepspeed"},
    "cluster": {"ashnets", "pipelines", "jobs"},
    "pipelines": {"jobs"},
    "jobs": set[str](),
}
# These run before, or in processes without, torch.
WITHOUT_TORCH = ("ashnets/config.py", "ashnets/processing.py", "ashnets/resources.py", "pipelines/config.py",
                 "pipelines/feed/order.py", "pipelines/feed/transform.py", "jobs/cli.py", "jobs/fields.py")
JOBS = sorted(path for path in (REPOSITORY / "jobs").glob("*.py") if path.stem not in ("__init__", "cli", "fields"))


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Every imported module with its line, function-local and dynamic imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "" if node.level == 0 else package
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(source: str, package: str) -> list[str]:
    return [f"line {line}: {module}" for line, module in imported(ast.parse(source), package)
            if module.split(".")[0] in FORBIDDEN[package]]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    found = {str(path.relative_to(REPOSITORY)): violations(path.read_text(encoding="utf-8"), package) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize("source", [
    "import ray", "def f():\n    from ray.data import Dataset", "import torch, pipelines.config",
    "import importlib\ndef f():\n    return importlib.import_module('jobs.cli')",
    "class A:\n    import deepspeed as d"])
def test_the_scan_sees_every_form_of_import(source: str) -> None:
    assert len(violations(source, "ashnets")) == 1
    assert violations("import torch\nfrom ashnets import config\nfrom . import ray", "ashnets") == []


def test_packages_have_empty_init_files() -> None:
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("__init__.py"):
            if path == REPOSITORY / "ashnets" / "__init__.py":
                continue  # it is lazy: tests/ashnets/test_pretrained.py
            assert path.read_text(encoding="utf-8").strip() == "", f"{path} makes every import of the package heavy"


def test_torch_load_never_unpickles_freely() -> None:
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("weights_only")
                    assert safe == "True", f"{path}:{node.lineno}: torch.load without weights_only=True"


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh Python has loaded after `code`."""
    code = f"import sys\nsys.path[0] = {str(REPOSITORY)!r}\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return {name.split(".")[0] for name in done.stdout.splitlines()}


@pytest.mark.parametrize("path", WITHOUT_TORCH)
def test_light_modules_load_neither_torch_nor_ray(path: str) -> None:
    if (REPOSITORY / path).exists():
        module = path.removesuffix(".py").replace("/", ".")
        assert not {"torch", "ray", "deepspeed", "transformers"} & loaded_after(f"import {module}")


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_job_parses_before_it_loads_torch_or_ray(job: Path) -> None:
    code = (f"sys.argv = [{str(job)!r}, '--help']\nimport runpy\n"
            f"try:\n    runpy.run_path({str(job)!r}, run_name='__main__')\n"
            "except SystemExit as end:\n    assert not end.code")
    assert not {"torch", "ray", "deepspeed", "transformers"} & loaded_after(code)
