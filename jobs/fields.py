"""List the fields of a configuration dataclass: dotted key, type, default and the line of meaning below it."""
from __future__ import annotations

import ast
import dataclasses
import sys
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Field:
    """One key that a user can set, or one section of them."""

    key: str
    owner: type[Any]
    type: Any
    default: Any
    meaning: str

    @property
    def is_section(self) -> bool:
        """Whether the field holds further fields."""
        return dataclasses.is_dataclass(self.type)

    @property
    def legal(self) -> str:
        """The legal values in words, as far as the type tells them."""
        return legal_values(self.type)


def walk(root: type[Any], prefix: str = "") -> Iterator[Field]:
    """Every field of `root` in the order of the source, each section before its own fields."""
    hints, meanings = typing.get_type_hints(root), _meanings(root)
    for field in dataclasses.fields(root):
        kind = hints[field.name]
        default = field.default_factory() if callable(field.default_factory) else field.default
        section = dataclasses.is_dataclass(kind)
        meaning = (kind.__doc__ or "").split("\n")[0] if section else meanings.get(field.name, "")
        yield Field(prefix + field.name, root, kind, default, meaning)
        if section:
            yield from walk(typing.cast(type[Any], kind), f"{prefix}{field.name}.")


def legal_values(kind: Any) -> str:
    """A type in words: `a whole number`, `one of a, b`, `a list of 2 numbers such as [1.0, 2.0]`."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text",
             Any: "a whole number or two such as [1, 2]"}
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if typing.get_origin(kind) is tuple:
        plural = {int: "whole numbers", float: "numbers", bool: "true or false values", str: "texts"}[arguments[0]]
        example = {int: "[1, 2]", float: "[0.1, 0.2]", bool: "[true, false]", str: "[a, b]"}[arguments[0]]
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {count}{plural} such as {example}"
    if typing.get_origin(kind) is dict:
        return "keys with a value each, such as {train.lr: {uniform: [0.1, 0.2]}}"
    return "a section of keys" if dataclasses.is_dataclass(kind) else words[kind]


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    source = Path(typing.cast(str, sys.modules[module].__file__)).read_text(encoding="utf-8")
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _meanings(root: type[Any]) -> dict[str, str]:
    """The string literal below each annotated field of the class, whitespace normalised."""
    bodies = [_classes(cls.__module__)[cls.__name__].body for cls in root.__mro__ if dataclasses.is_dataclass(cls)]
    return {
        field.target.id: " ".join(below.value.value.split())
        for body in bodies for field, below in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }
