"""The search space: what each hyperparameter may be, and which points are configurations (no ray or torch import)."""
from __future__ import annotations

import difflib
import itertools
import json
import math
import random
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.config import PretrainConfig
from pipelines.resume import HARMLESS

Config = TypeVar("Config")
Point = dict[str, Any]
"""Hyperparameter (a dotted key of the configuration) -> value."""
KINDS = ("choice", "grid", "uniform", "loguniform")
FIXED = (*HARMLESS, "data.", "groups.path", "init", "train.data_version", "train.schedule_steps", "train.epochs")
"""Keys that change no result, or that trials must share to be comparable."""
TRIES = 2000
"""Random points that are looked at before a value counts as impossible."""


@dataclass(frozen=True)
class Domain:
    """The values of one hyperparameter: a list for `choice` and `grid`, else the two ends."""

    kind: Literal["choice", "grid", "uniform", "loguniform"]
    values: tuple[Any, ...]
    whole: bool = False
    """Whole numbers only, both ends included."""

    @property
    def listed(self) -> bool:
        """Whether the values are a list."""
        return self.kind in ("choice", "grid")

    def draw(self, rng: random.Random) -> Any:
        """A value at random."""
        if self.listed:
            return rng.choice(self.values)
        low, high = self.values
        if self.kind == "loguniform":
            drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
            return min(high, max(low, round(drawn) if self.whole else drawn))
        return rng.randint(low, high) if self.whole else rng.uniform(low, high)


@dataclass(frozen=True)
class Space:
    """The domains by hyperparameter, and the configuration that every point changes."""

    base: PretrainConfig
    domains: Mapping[str, Domain]

    def configure(self, point: Point) -> PretrainConfig:
        """The configuration of a point; ValueError where it is none, for example where G does not divide T."""
        return with_values(self.base, point)

    def refusal(self, point: Point) -> str:
        """Why a point is no configuration; empty where it is one."""
        try:
            self.configure(point)
        except ValueError as error:
            return str(error)
        return ""

    def draw(self, rng: random.Random) -> Point:
        """A point at random, which may be refused."""
        return {key: domain.draw(rng) for key, domain in self.domains.items()}

    def listed(self, *kinds: str) -> Iterator[Point]:
        """All combinations of the hyperparameters of these kinds."""
        chosen = {key: domain.values for key, domain in self.domains.items() if domain.kind in kinds}
        for values in itertools.product(*chosen.values()):
            yield dict(zip(chosen, values, strict=True))


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A dataclass with some fields replaced, by dotted key; sections are built anew, so that they check themselves."""
    inner: dict[str, dict[str, Any]] = {}
    changed: dict[str, Any] = {}
    for key, value in values.items():
        head, _, rest = key.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            changed[head] = value
    changed |= {head: with_values(getattr(config, head), below) for head, below in inner.items()}
    return replace(config, **changed)  # type: ignore[type-var]


def identity(point: Point) -> str:
    """A text that is the same for the same point."""
    return json.dumps(point, sort_keys=True)


def read_space(content: Mapping[str, Any], base: PretrainConfig, mistakes: list[str]) -> Space:
    """The space of `tune.space`; what is wrong goes to `mistakes`, a line each, and the hyperparameter is left out."""
    known = dict(leaves(type(base)))
    domains: dict[str, Domain] = {}
    if not content:
        mistakes.append("tune.space is empty: name a hyperparameter, such as {train.lr: {loguniform: [1e-4, 1e-2]}}")
    for key, given in content.items():
        name = f"tune.space.{key}"
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            mistakes.append(f"{name}: unknown hyperparameter; did you mean {near}? (--help lists all keys)")
        elif key.startswith(FIXED):
            mistakes.append(f"{name}: not a hyperparameter: it changes no result, or all trials must share it; set "
                            f"{key}=VALUE for all of them")
        else:
            domain = _domain(name, known[key], given, mistakes)
            domains |= {key: domain} if domain else {}
    space = Space(base, domains)
    if not mistakes:
        mistakes += impossible(space)
    return space


def leaves(root: type[Any], prefix: str = "") -> Iterator[tuple[str, tuple[type[Any], str]]]:
    """(dotted key, (its dataclass, its name there)) of every field that is no section."""
    hints = typing.get_type_hints(root)
    for known in fields(root):
        if is_dataclass(hints[known.name]):
            yield from leaves(typing.cast(type[Any], hints[known.name]), f"{prefix}{known.name}.")
        else:
            yield prefix + known.name, (root, known.name)


def _domain(name: str, place: tuple[type[Any], str], given: Any, mistakes: list[str]) -> Domain | None:
    shape = "write {choice: [...]}, {grid: [...]}, {uniform: [low, high]} or {loguniform: [low, high]}"
    if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in KINDS:
        mistakes.append(f"{name}={given!r} is not allowed: {shape}")
        return None
    kind, listed = next(iter(given.items()))
    if not isinstance(listed, list | tuple) or not listed:
        mistakes.append(f"{name}: {kind} needs a list of values: {shape}")
        return None
    values: list[Any] = []
    for value in listed:
        try:
            values.append(_converted(place, value))
        except OmegaConfBaseException:
            kind_of = typing.get_type_hints(place[0])[place[1]]
            mistakes.append(f"{name}: {value!r} is not allowed: a value of type {_in_words(kind_of)}")
            return None
        if not all(map(math.isfinite, _numbers(values[-1]))):
            mistakes.append(f"{name}: {value!r} is not allowed: a finite number")
            return None
    if kind in ("choice", "grid"):
        if len({identity({name: value}) for value in values}) < len(values):
            mistakes.append(f"{name}: a value stands twice in {listed}")
        return Domain(kind, tuple(values))
    return _range(name, kind, values, typing.get_type_hints(place[0])[place[1]], mistakes)


def _range(name: str, kind: Any, values: list[Any], of: Any, mistakes: list[str]) -> Domain | None:
    if of not in (int, float):
        mistakes.append(f"{name}: {kind} is for numbers; use choice")
    elif len(values) != 2 or values[0] >= values[1]:
        mistakes.append(f"{name}: {kind} needs [low, high] with low < high, not {values}")
    elif kind == "loguniform" and values[0] <= 0:
        mistakes.append(f"{name}: loguniform needs a low end above 0, not {values[0]}")
    else:
        return Domain(kind, tuple(values), whole=of is int)
    return None


def _converted(place: tuple[type[Any], str], value: Any) -> Any:
    """The value as its field's type, by OmegaConf's rules, as on the command line."""
    section = OmegaConf.merge(OmegaConf.structured(place[0]), {place[1]: value})
    plain: Any = OmegaConf.to_container(section, resolve=True, throw_on_missing=True)
    found = plain[place[1]]
    return tuple(found) if isinstance(found, list) else found


def _numbers(value: Any) -> list[float]:
    return [part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, float)]


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    return getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else str(kind)


def impossible(space: Space) -> list[str]:
    """Values that no legal point has, with the reason; values that only some points may have are fine."""
    rng, found = random.Random(0), []
    for key, domain in space.domains.items():
        for value in domain.values:
            if all(space.refusal({**space.draw(rng), key: value}) for _ in range(TRIES)):
                reason = space.refusal({key: value}) or space.refusal({**space.draw(rng), key: value})
                found.append(f"tune.space.{key}: no legal point has the value {value!r}: {reason}")
    return found
