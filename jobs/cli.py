"""The command line of every job, and the only parser: `[--config FILE] key.sub=value ...` (no torch or ray import).

Layers, the later over the earlier: the dataclasses' defaults, the job's defaults file (or `--config FILE` in its
place), the assignments. Mistakes are collected and reported together.
"""
from __future__ import annotations

import difflib
import math
import os
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jobs.fields import Field, legal_values, walk
from pipelines.errors import FinalError, Preempted, UserError, is_users_mistake

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "jobs" / "configs"
BASE = "base"
"""Key of a YAML file that names another one, beside it, whose values it changes."""


@dataclass(frozen=True)
class Command(Generic[T]):
    """What a command line asks for."""

    config: T
    difference: tuple[str, ...]
    """The configuration's difference from the defaults, a line a key, to print at start."""


def parse(root: type[T], argv: list[str], *, description: str, defaults_file: Path | None = None) -> Command[T]:
    """Read `argv` into a `root`; `--help` and `--print-config` print and raise SystemExit(0).

    Raises UserError with one mistake a line: unknown keys, wrong types, illegal values, unreadable files.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(root, description, defaults_file), flush=True)
        raise SystemExit(0)
    mistakes: list[str] = []
    schema = {field.key: field for field in walk(root)}
    file, print_config, assignments = _split(argv, mistakes)
    path = file or defaults_file
    below = _from_file(path, schema, mistakes) if path else {}
    above = _from_assignments(assignments, schema, mistakes)
    values = _convert({**below, **above}, schema, mistakes)
    config = _build(root, "", values, mistakes)
    if mistakes:
        raise UserError("\n".join(" ".join(mistake.split()) for mistake in mistakes))
    if print_config:
        print(OmegaConf.to_yaml(OmegaConf.structured(config)), end="", flush=True)
        raise SystemExit(0)
    base = _build(root, "", {} if file else _convert(below, schema, []), [])
    return Command(config, (_title(file, defaults_file), *_difference(config, base, schema)))


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call `main` with the arguments and exit with its code; a user's mistake exits 2 without a trace."""
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader, such as `head`, has enough; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Preempted as told:
        print(told, file=sys.stderr)
        code = 75
    except FinalError as error:  # it says what happened in the worker; the driver's own trace says nothing
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except Exception as error:
        if not is_users_mistake(error):
            raise
        for line in str(error).split("\n"):
            print(f"error: {line}", file=sys.stderr)
        code = 2
    sys.exit(code)


def help_text(root: type[Any], description: str, defaults_file: Path | None) -> str:
    """The text of `--help`: every key with its default and its meaning."""
    schema = {field.key: field for field in walk(root)}
    below = _from_file(defaults_file, schema, []) if defaults_file else {}
    defaults = _build(root, "", _convert(below, schema, []), [])
    where = f"from {_short(defaults_file)}, which --config replaces" if defaults_file else "of the code"
    lines = [f"usage: python jobs/{Path(sys.argv[0]).name} [--config FILE] [key.sub=value ...]", "", description, "",
             "  --config FILE    read a YAML file in place of the defaults file; assignments lie above it",
             "  --print-config   print the configuration that would run, as YAML, and exit",
             "  --help           print this text and exit", "",
             "exit codes: 0 success, 2 a mistake of yours (one line says which), 75 preempted (run it again), 1 else",
             "",
             f"keys, with their defaults ({where}):"]
    for field in schema.values():
        if field.is_section:
            lines += ["", f"{field.key}: {field.meaning}"]
            continue
        literal = f" ({field.legal})" if field.legal.startswith("one of") else ""
        lines.append(f"  {field.key}={show_value(attrgetter(field.key)(defaults))}")
        lines += textwrap.wrap(field.meaning + literal, 112, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _split(argv: list[str], mistakes: list[str]) -> tuple[Path | None, bool, list[str]]:
    """The --config file, whether --print-config stands there, and the assignments."""
    file, print_config, assignments = None, False, []
    rest = iter(argv)
    for word in rest:
        option, equals, value = word.partition("=")
        if option == "--config":
            name = value if equals else next(rest, "")
            file = Path(name).expanduser()
            if not name:
                mistakes.append("--config: the file is missing: --config FILE")
        elif word == "--print-config":
            print_config = True
        elif word.startswith("-"):
            mistakes.append(f"{word}: unknown option; there are --config FILE, --print-config and --help, and settings "
                            "are written key.sub=value")
        elif not equals or not option:
            mistakes.append(f"{word}: write key.sub=value (--help lists the keys)")
        else:
            assignments.append(word)
    return file, print_config, assignments


def _from_file(path: Path, schema: Mapping[str, Field], mistakes: list[str], above: tuple[Path, ...] = ()
               ) -> dict[str, Any]:
    """The values of a YAML file by dotted key; `above` are the files that it is the base of."""
    if path.resolve() in above:
        mistakes.append(f"--config {path}: the file is its own base: remove a `{BASE}:` line")
        return {}
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
        base = content.pop(BASE, None) if isinstance(content, dict) else None
    except FileNotFoundError:
        others = ", ".join(sorted(_short(other) for other in CONFIGS.glob("*.yaml")))
        mistakes.append(f"--config {path}: the file does not exist (the project brings {others})")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        mistakes.append(f"--config {path}: not readable as YAML: {' '.join(str(error).split())}")
    else:
        if isinstance(content, dict):
            below = _from_file(path.parent / str(base), schema, mistakes, (*above, path.resolve())) if base else {}
            return below | _flatten(content, "", schema, mistakes)
        mistakes.append(f"--config {path}: expected sections of keys, not a list")
    return {}


def _from_assignments(words: list[str], schema: Mapping[str, Field], mistakes: list[str]) -> dict[str, Any]:
    """The values of `key.sub=value` words by dotted key; lists and sections are read as YAML."""
    values: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        value: Any = text
        if key in schema and (schema[key].is_section or typing.get_origin(schema[key].type) in (tuple, dict)
                              or schema[key].type is Any):
            try:
                value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore
            except (yaml.YAMLError, OmegaConfBaseException):
                mistakes.append(_not_allowed(schema[key], text))
                continue
        values |= _flatten({key: value}, "", schema, mistakes)
    return values


def _flatten(content: Mapping[Any, Any], prefix: str, schema: Mapping[str, Field],
             mistakes: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in content.items():
        field = schema.get(f"{prefix}{name}")
        if field is None:
            mistakes.append(_unknown(f"{prefix}{name}", schema))
        elif not field.is_section:
            values[field.key] = value
        elif isinstance(value, Mapping):
            values |= _flatten(value, field.key + ".", schema, mistakes)
        elif value is not None:  # an empty section in a file changes nothing
            mistakes.append(_not_allowed(field, value))
    return values


def _unknown(key: str, schema: Mapping[str, Field]) -> str:
    """Name the known key nearest to `key`: with the same last word, or in its section spelt alike, or there with that
    word in its meaning (`train.learning_rate`); else the most similar of all.
    """
    section, _, last = key.rpartition(".")
    near = [known for known in schema if known.rpartition(".")[2] == last]
    if not near:
        beside = {known.rpartition(".")[2]: known for known in schema if known.rpartition(".")[0] == section}
        near = [beside[word] for word in difflib.get_close_matches(last, beside, n=1)]
    if not near:
        word = re.compile(rf"\b{re.escape(last.replace('_', ' '))}\b", re.IGNORECASE)
        meant = [field for field in schema.values() if not field.is_section and word.search(field.meaning)
                 and section in ("", field.key.rpartition(".")[0])]
        near = [min(meant, key=lambda field: len(field.meaning)).key] if meant else list(schema)
    nearest = difflib.get_close_matches(key, near, n=1, cutoff=0.0)[0]
    return f"{key}: unknown key; did you mean {nearest}? (--help lists all)"


def _convert(values: Mapping[str, Any], schema: Mapping[str, Field], mistakes: list[str]) -> dict[str, Any]:
    """Each value as its field's type, by OmegaConf's rules (1e-4 is a number, 1.5 no whole number)."""
    converted: dict[str, Any] = {}
    for key, value in values.items():
        field, name = schema[key], key.rpartition(".")[2]
        try:
            section = OmegaConf.merge(OmegaConf.structured(field.owner), {name: value})
            plain = OmegaConf.to_container(section, resolve=True, throw_on_missing=True)[name]  # type: ignore
        except OmegaConfBaseException:
            mistakes.append(_not_allowed(field, value))
            continue
        if any(isinstance(part, float) and not math.isfinite(part) for part in (plain if _is_list(plain) else [plain])):
            mistakes.append(_not_allowed(field, value))
        else:
            converted[key] = tuple(plain) if _is_list(plain) else plain
    return converted


def _build(cls: type[T], prefix: str, values: Mapping[str, Any], mistakes: list[str]) -> T:
    """Build the dataclass, its sections first. What `__post_init__` refuses goes to `mistakes`; the refused field
    falls back to its default, so that the next mistake is found too."""
    hints, arguments = typing.get_type_hints(cls), {}
    for field in fields(cls):  # type: ignore[arg-type]
        if is_dataclass(hints[field.name]):
            arguments[field.name] = _build(hints[field.name], f"{prefix}{field.name}.", values, mistakes)
        elif prefix + field.name in values:
            arguments[field.name] = values[prefix + field.name]
    refused: list[str] = []
    while True:
        try:
            built = cls(**arguments)
            break
        except ValueError as error:
            key = re.match(rf"{re.escape(prefix)}(\w+)", str(error))
            known = key is not None and key[1] in arguments
            if known or not refused:
                refused.append(str(error))
            arguments = {name: value for name, value in arguments.items() if known and name != key[1]}  # type: ignore
    mistakes += refused
    return built


def _difference(config: object, base: object, schema: Mapping[str, Field]) -> list[str]:
    lines = []
    for field in schema.values():
        value, default = attrgetter(field.key)(config), attrgetter(field.key)(base)
        if not field.is_section and value != default:
            lines.append(f"  {field.key}={show_value(value)} (default {show_value(default)})")
    return lines or ["  nothing differs from the defaults"]


def _title(file: Path | None, defaults_file: Path | None) -> str:
    source = _short(file or defaults_file) if file or defaults_file else "the defaults"
    return f"configuration: {source}; {'changed by it and by' if file else 'changed by'} the command line:"


def _short(path: Path | None) -> str:
    return str(path).removeprefix(str(REPOSITORY) + os.sep)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def show_value(value: object) -> str:
    """A value as it would be typed on the command line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {show_value(below)}" for key, below in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(show_value, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _not_allowed(field: Field, value: object) -> str:
    return f"{field.key}={value!r} is not allowed: {legal_values(field.type)}"
