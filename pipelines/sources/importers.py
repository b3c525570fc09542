"""From settings to a source: what must be there before it starts, what decides its rows, which importer reads it."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import unquote

import ray

from pipelines.errors import UserError
from pipelines.location import is_local
from pipelines.sources import coco, flickr30k, folder, karpathy, nlvr2, snli_ve, visual_genome, vqa
from pipelines.sources.config import SourceConfig, file_name
from pipelines.sources.files import hash_file, hash_folder, is_folder, list_files, need_file, need_folder
from pipelines.sources.index import Dropped, Importer, build_index
from pipelines.sources.parquet_rows import ENDINGS, Columns, ParquetSource, count_failures, find_pieces
from pipelines.sources.record import Source
from pipelines.sources.tar_shards import ENDINGS as TARS
from pipelines.sources.tar_shards import TarSource

VERSION = 1
"""Part of every batch's id: another number, and every data set is ingested anew."""
IMPORTERS: dict[str, Importer] = {
    "folder": folder.entries, "coco": coco.entries, "karpathy": karpathy.entries, "flickr30k": flickr30k.entries,
    "vg": visual_genome.entries, "vqa2": vqa.entries, "vg_qa": vqa.visual_genome_entries, "nlvr2": nlvr2.entries,
    "snli_ve": snli_ve.entries,
}
"""Formats whose images lie apart from their captions."""
_PLACES = ("path", "images", "captions", "image_data", "coco_held_out", "annotations")


def check_places(config: SourceConfig) -> None:
    """Raise UserError unless every file and folder that the format needs is there and is what it should be."""
    if config.format in ("webdataset", "img2dataset", "folder"):
        need_folder("source.path", config.path)
    elif config.format != "parquet" or not is_folder(config.path):
        need_file("source.path", config.path)
    if config.format not in ("webdataset", "img2dataset", "folder", "parquet") or config.images:
        need_folder("source.images", config.images)
    for key in ("captions", "annotations"):
        if getattr(config, key):
            need_file(f"source.{key}", getattr(config, key))
    if config.format in ("vg", "vg_qa"):
        need_file("source.image_data", config.image_data)
    for place in config.coco_held_out:
        need_file("source.coco_held_out", place)


def settings_of(config: SourceConfig) -> dict[str, Any]:
    """Everything that decides a source's rows: its settings, and hashes in place of paths; Ray must be connected.

    Files are known by their content, folders by the names and sizes of their files: another place is the same data,
    and images that were missing the last time make it other data.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in _PLACES}
    return {"version": VERSION, **settings, "files": ray.get(_hashes.remote(config))}


@ray.remote
def _hashes(config: SourceConfig) -> dict[str, Any]:
    """One task, so that the names of a million images are nothing to the driver."""
    def one(place: str) -> str:
        return hash_folder(place) if is_folder(place) else hash_file(place)
    places = {name: getattr(config, name) for name in _PLACES if getattr(config, name)}
    return {name: one(place) if isinstance(place, str) else [one(each) for each in place]
            for name, place in places.items()}


def open_source(config: SourceConfig, settings: Mapping[str, Any]) -> tuple[Source, Dropped]:
    """The source of a format, and how many records are left out on purpose; raises UserError for unreadable files."""
    if config.format == "webdataset":
        shards = _names(config, TARS)
        return TarSource(config.source_name, settings, config.path, shards, _split(config), config.caption_column,
                         shard_in_id=True), Dropped()
    if config.format == "img2dataset":
        return _img2dataset(config, settings)
    if config.format == "parquet":
        place, files = (config.path, _names(config, ENDINGS)) if is_folder(config.path) else _apart(config.path)
        columns = Columns(config.image_column, config.caption_column, config.split_column, config.id_column)
        return _parquet(config, settings, place, files, columns), Dropped()
    images = config.images or config.path
    return build_index(IMPORTERS[config.format], replace(config, images=images), settings)


def _img2dataset(config: SourceConfig, settings: Mapping[str, Any]) -> tuple[Source, Dropped]:
    """Its tars, whose sidecar Parquet files list what failed, or its Parquet output."""
    tables = tuple(name for name, _ in list_files(config.path, (".parquet",)))
    failed = count_failures(config.path, tables)
    shards = tuple(name for name, _ in list_files(config.path, TARS))
    if shards:
        return TarSource(config.source_name, settings, config.path, shards, _split(config), config.caption_column,
                         shard_in_id=False), failed
    if not tables:
        raise UserError(f"source.path={config.path} holds neither .tar nor .parquet files: name img2dataset's "
                        "output folder")
    columns = Columns("jpg", "caption", id="key", status="status", url="url")
    return _parquet(config, settings, config.path, tables, columns), failed


def _parquet(config: SourceConfig, settings: Mapping[str, Any], place: str, files: tuple[str, ...],
             columns: Columns) -> ParquetSource:
    pieces = find_pieces(place, files, columns, names_images=bool(config.images))
    split = "" if columns.split else _split(config)
    splits = dict(pair.split("=", 1) for pair in config.splits)
    return ParquetSource(config.source_name, settings, place, pieces, columns, split, splits, config.images)


def _split(config: SourceConfig) -> str:
    return config.our_split(config.one_split)


def _names(config: SourceConfig, endings: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name for name, _ in list_files(config.path, endings))
    if not names:
        raise UserError(f"source.path={config.path} holds no {' or '.join(endings)} file: name the folder with them")
    return names


def _apart(file: str) -> tuple[str, tuple[str, ...]]:
    """Folder and name of a file."""
    name = file_name(file)
    place, _, options = file.rpartition(name)
    folder = f"{place.rstrip('/') or ('/' if place else '.')}{options}"
    return folder, (name if is_local(file) else unquote(name),)
