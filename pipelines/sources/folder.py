"""A folder of images: with a captions file (CSV, TSV, JSON lines), or with a .txt beside each image."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.errors import UserError
from pipelines.location import join
from pipelines.sources.config import SourceConfig, file_name, is_split
from pipelines.sources.files import Refused, list_files, open_file, safe_name
from pipelines.sources.gather import Fact, bad, gather, rejections
from pipelines.sources.index import Dropped, Entry
from pipelines.sources.json_files import field, json_lines
from pipelines.sources.record import Rejected
from pipelines.sources.text_tables import table_rows

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_TEXT = 16 * 2**20


def entries(config: SourceConfig, dropped: Dropped) -> Iterator[Entry | Rejected]:
    """The images with their captions, by name; captions keep the order of the file."""
    if not config.split_column:
        config.one_split  # noqa: B018 (it raises)
    for name, found in gather(_from_file(config) if config.captions else _from_texts(config.path)):
        reference = f"{config.source_name}/{name}"
        yield from rejections(reference, found)
        if "caption" not in found and "image" not in found:
            continue
        theirs = set(found.get("split", [config.split]))
        split = config.our_split(theirs.pop())
        if theirs:
            yield Rejected(reference, "several splits", f"its captions stand in {', '.join(found['split'])}")
        elif split and not is_split(split):
            yield Rejected(reference, "wrong fields", f"{split[:80]!r} cannot be a split's name")
        elif split:
            yield Entry(reference, split, (name,), tuple(found.get("caption", ())))
        else:
            dropped["a split is left out by source.splits"] += 1


def _from_file(config: SourceConfig) -> Iterator[Fact]:
    for number, row in _rows(config):
        try:
            if isinstance(row, Refused):
                raise row
            name = safe_name(field(row, config.image_column, str))
            captions = field(row, config.caption_column, (str, list))
            texts = [captions] if isinstance(captions, str) else captions
            facts = [(name, "caption", field({"caption": text}, "caption", str)) for text in texts]
            if config.split_column:
                facts.append((name, "split", field(row, config.split_column, str)))
        except Refused as error:
            yield bad(f"line {number}", error)
        else:
            yield from facts


def _rows(config: SourceConfig) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    columns = [name for name in (config.image_column, config.caption_column, config.split_column) if name]
    ending = file_name(config.captions).removesuffix(".gz").rpartition(".")[2].lower()
    if ending in ("csv", "tsv"):
        return table_rows(config.captions, "," if ending == "csv" else "\t", columns)
    if ending in ("jsonl", "json", "ndjson"):
        return json_lines(config.captions)
    raise UserError(f"source.captions={config.captions}: its ending tells no format; name a .csv, .tsv or .jsonl file")


def _from_texts(folder: str) -> Iterator[Fact]:
    """An image's captions are the lines of the .txt of the same name."""
    for stem, found in gather(map(_by_stem, (name for name, _ in list_files(folder, (*IMAGE_ENDINGS, ".txt"))))):
        if "odd" in found:
            yield bad(stem, Refused("wrong encoding", "the file's name is not UTF-8"))
            continue
        try:
            captions = [line for name in found.get("text", ()) for line in _lines(join(folder, name))]
        except Refused as error:
            yield bad(found["text"][0], error)
            continue
        for image in found.get("image", ()):
            yield image, "image", ""
            yield from ((image, "caption", caption) for caption in captions)
        if "image" not in found:
            yield bad(found["text"][0], Refused("missing file", "no image of this name"))


def _by_stem(name: str) -> Fact:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python holds the bytes of such names as halves of characters
        return name.encode(errors="backslashreplace").decode(), "odd", ""
    return name.rpartition(".")[0], "text" if name.lower().endswith(".txt") else "image", name


def _lines(place: str) -> list[str]:
    with open_file(place) as stream:
        content = stream.read(MAX_TEXT + 1)
    if len(content) > MAX_TEXT:
        raise Refused("too many bytes", f"over {MAX_TEXT:,}")
    try:
        return [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise Refused("wrong encoding", "not UTF-8") from error
