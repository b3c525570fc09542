"""Exports: what makes a run's weights a folder that other tools load, at the end of a run and on demand.

An export holds model.safetensors, config.json, processor_config.json, tokenizer.json, tokenizer_config.json and
README.md, the model card. Nothing outside the folder is needed to use it.
"""
from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.files import sync
from pipelines.location import folder_of
from pipelines.model_source import CONFIG, WEIGHTS, ModelSource, complete_export, find_model


@dataclass(frozen=True)
class ExportConfig:
    """Everything `jobs/export.py` takes."""

    model: str = ""
    """Run or export; empty: the demo run."""
    to: str = ""
    """Folder to write, which must not exist yet; empty: complete the run's own export/ in place."""


def export(config: ExportConfig, root: Path) -> Path:
    """Write the export that `config` asks for, load it once as a user would, and return its folder.

    Raises UserError where the model, or the place to write to, will not do.
    """
    source = find_model("model", config.model, root)
    if not config.to:
        if source.run is None:
            raise UserError(f"to is empty, and {source.export} belongs to no run: name the folder to write, to=FOLDER")
        folder = complete(source.run)
        parameters = _parameters(folder, folder)
    else:
        folder = folder_of("to", config.to, "exports")
        parameters = _copy(source, folder, root)
    print(f"export: {parameters:,} parameters, loads whole: {folder}")
    print(f"to use it: python -c 'import ashnets; model, processor = ashnets.load(\"{folder}\")'")
    return folder


def complete(run: Path) -> Path:
    """Put beside the run's export/model.safetensors all that it takes to use it; returns export/."""
    folder = run / "export"
    with _building(folder) as building:
        write_companions(run, building)
        files = sorted(building.iterdir(), key=lambda file: file.name == CONFIG)
        for file in files:  # config.json comes last: with it the export is complete
            os.replace(file, folder / file.name)
    sync(folder)
    return folder


def write_companions(run: Path, folder: Path) -> None:
    """Write into `folder` what the run's weights need beside them: configuration, processor, model card."""
    from ashnets.weights_file import trained_steps
    from pipelines.report.card import model_card
    from pipelines.report.summary import read_summary
    from pipelines.resume import load_config
    config = load_config(run)
    write_loading_files(config, folder)
    steps = trained_steps(run / "export" / WEIGHTS)
    (folder / "README.md").write_text(model_card(config, run, steps, read_summary(run)), encoding="utf-8")
    for file in folder.iterdir():
        sync(file)


def write_loading_files(config: PretrainConfig, folder: Path) -> None:
    """Write into `folder` what weights need beside them to be loaded: configuration, processor, tokenizer."""
    from ashnets.pretrained import ASHNetsConfig, ASHNetsProcessor
    from pipelines.feed.plan import feed_plan
    ASHNetsConfig.of(config.model, config.tasks, config.feed.image_size).save_pretrained(folder)
    plan = feed_plan(config, "")
    ASHNetsProcessor(plan.tokenizer, plan.max_tokens, config.feed.image_size).save_pretrained(folder)


def _parameters(folder: Path, source: Path) -> int:
    """Load `folder`, made of `source`, as a user would; its number of parameters. UserError where that fails."""
    from transformers.utils import logging

    from ashnets.pretrained import load
    logging.disable_progress_bar()
    try:
        model, _ = load(folder)
    except ValueError as error:
        raise UserError(str(error).replace(str(folder), f"model={source}")) from error
    return sum(parameter.numel() for parameter in model.parameters())


def _copy(source: ModelSource, to: Path, root: Path) -> int:
    """Write the export of `source` at `to`, which appears whole or not at all; its number of parameters."""
    if to.exists():
        raise UserError(f"to={to} exists already: name a folder that does not, or remove it first")
    if source.run is None:
        complete_export("model", str(source.export), root)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with _building(to) as building:
            if source.run is not None:
                write_companions(source.run, building)
                files = [source.weights]
            else:
                files = [file for file in source.export.iterdir() if file.suffix in (".json", ".md", ".safetensors")]
            for file in files:
                shutil.copyfile(file, building / file.name)
                sync(building / file.name)
            parameters = _parameters(building, source.export)
            building.rename(to)
    except PermissionError as error:
        raise UserError(f"to={to} cannot be written ({error.strerror}): name a writable folder") from error
    sync(to.parent)
    return parameters


@contextmanager
def _building(final: Path) -> Iterator[Path]:
    """A temporary folder beside `final`, removed at the end where it is still there."""
    building = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    building.mkdir()
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)
