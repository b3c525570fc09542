"""What a source is: numbered parts, each read on its own, anywhere, that yield samples (or say why one is no good)."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Sample:
    """One image with its captions, as the source gives it; nobody has checked it yet."""

    sample_id: str
    """Unique among everything, for ever: SOURCE/name, such as `emoji/1f600`."""
    split: str
    """`train`, `val` (held out) or `unseen` (held out, of things that training never shows)."""
    image: bytes
    """The encoded image (JPEG, PNG, WebP, GIF or BMP)."""
    captions: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else is known, as JSON can hold it: category, layout, licence."""


@dataclass(frozen=True)
class Rejected:
    """A record that a source could not make a sample of, such as one whose image file is missing."""

    reference: str
    """Where the record stands: a file, a line, an id."""
    reason: str
    """A few words, the same for every record of this kind: `missing file`."""
    detail: str = ""
    """What is particular to this record."""


class Source(Protocol):
    """What an importer offers to the ingest: a small, picklable object that opens its files when a part is read.

    Parts bound memory and give the parallelism: some hundred to some thousand samples each.
    """

    @property
    def name(self) -> str:
        """The `source` of its rows; sample ids begin with it."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides the content, as JSON can hold it: equal settings give equal samples."""

    @property
    def parts(self) -> int:
        """Number of parts."""

    def read(self, part: int) -> Iterator[Sample | Rejected]:
        """The samples of one part, in the same order always."""
