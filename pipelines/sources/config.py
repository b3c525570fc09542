"""The settings of an ingest: which files are read, in which format, into which store (no ray or torch import)."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ashnets.config import require
from pipelines.config import DataConfig
from pipelines.errors import UserError

Format = Literal["folder", "coco", "karpathy", "flickr30k", "vg", "img2dataset", "webdataset", "parquet", "vqa2",
                 "vg_qa", "nlvr2", "snli_ve", "emoji", "scenes"]
BUILT_IN = ("emoji", "scenes")
"""Formats without files."""
TASK_FORMATS = ("vqa2", "vg_qa", "nlvr2", "snli_ve")
"""Formats that become task tables; the others fill the image-text store."""


@dataclass(frozen=True)
class SourceConfig:
    """The files that are read: paths, or addresses (s3://bucket/..., gs://bucket/...)."""

    format: Format = "folder"
    """Layout of the files; docs/data.md describes each."""
    path: str = ""
    """The file (annotations) or folder (shards, or images with captions beside them) that is read."""
    images: str = ""
    """Folder of the images, where the format keeps them apart from `path`."""
    captions: str = ""
    """`folder`: a captions file (.csv, .tsv, .jsonl); empty: a .txt beside each image, a line a caption."""
    name: str = ""
    """Source of the rows and beginning of their sample ids; empty: the format's own name."""
    split: str = ""
    """Split of all rows, where the files do not say it themselves."""
    splits: tuple[str, ...] = ()
    """What the files' splits become, as theirs=ours, such as [restval=train]; `theirs=` leaves them out."""
    image_column: str = "image"
    """Column of image file names or bytes (`folder`, `parquet`)."""
    caption_column: str = "caption"
    """Column or JSON field of the captions: text, or a list of texts (`folder`, `parquet`, `webdataset`)."""
    split_column: str = ""
    """Column of the split (`folder`, `parquet`); empty: source.split holds for all."""
    id_column: str = ""
    """`parquet`: column of unique ids; empty: file name and row number."""
    first_captions: int = 5
    """`karpathy`: captions kept of an image, the first ones, as VSE++ evaluates; 0: all."""
    image_data: str = ""
    """`vg`, `vg_qa`: Visual Genome's image_data.json."""
    coco_held_out: tuple[str, ...] = ()
    """`vg`, `vg_qa`: dataset_coco.json, or COCO's files of val and test: their images are dropped."""
    annotations: str = ""
    """`vqa2`: the annotations file; empty for test questions, which have none."""

    def __post_init__(self) -> None:
        require(self.first_captions >= 0, "source.first_captions", self.first_captions, "0 or more")
        require(not self.name or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is not None, "source.name",
                self.name, "letters, digits, '.', '_' and '-', starting with a letter or digit")
        require(not self.split or is_split(self.split), "source.split", self.split,
                "at most 64 letters, digits, '_' and '-'")
        for pair in self.splits:
            theirs, equals, ours = pair.partition("=")
            require(bool(theirs and equals) and (not ours or is_split(ours)), "source.splits", pair,
                    "theirs=ours, such as [restval=train,test=]")

    @property
    def source_name(self) -> str:
        """`name`, or the format's own."""
        own = {"vqa2": "coco", "snli_ve": "flickr30k", "vg_qa": "vg",
               "karpathy": "flickr30k" if "flickr" in file_name(self.path) else "coco"}
        return self.name or own.get(self.format, self.format)

    @property
    def one_split(self) -> str:
        """`split`; raises UserError where it is empty."""
        if not self.split:
            raise UserError(f"source.split is missing: {self.path} does not say which split its rows belong to; write "
                            "source.split=train, or val for rows that are held out")
        return self.split

    def our_split(self, theirs: str, standard: Mapping[str, str] | None = None) -> str:
        """What the files' split `theirs` is called in the store, by `splits`, else `standard`; empty: left out."""
        pairs = dict(pair.split("=", 1) for pair in self.splits)
        return {**(standard or {}), **pairs}.get(theirs, theirs)


@dataclass(frozen=True)
class IngestConfig:
    """What an ingest reads, and where to."""

    source: SourceConfig = field(default_factory=SourceConfig)
    data: DataConfig = field(default_factory=DataConfig)


def file_name(place: str) -> str:
    """The last part of a path or address, without what stands behind an address's '?'."""
    return (place.partition("?")[0] if "://" in place else place).rpartition("/")[2]


def is_split(name: str) -> bool:
    """Whether `name` can name a split."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name) is not None
