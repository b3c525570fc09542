"""A store of a few scenes and a run as training leaves it, made without training."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from ashnets.weights_file import save_weights
from jobs import cli
from pipelines.config import DataConfig, PretrainConfig
from pipelines.resume import save_config
from pipelines.sources.scenes import ScenesSource
from pipelines.store.schema import STORE_SCHEMA
from pipelines.store.table import ImageTextStore
from pipelines.store.validate import to_row
from pipelines.training.model import build_model

TINY = Path(__file__).resolve().parents[1] / "e2e" / "tiny.yaml"


def tiny_config(**changes: Any) -> PretrainConfig:
    """tests/e2e/tiny.yaml, with some fields replaced."""
    return replace(cli.parse(PretrainConfig, ["--config", str(TINY)], description="").config, **changes)


def scene_rows(train: int, val: int) -> list[dict[str, Any]]:
    """Rows of the store: generated scenes."""
    source = ScenesSource(train=train, val=val, side=32, seed=0)
    return [to_row(sample, "scenes", "b", DataConfig()) for part in range(source.parts) for sample in source.read(part)]


def make_store(path: str | Path, rows: list[dict[str, Any]]) -> ImageTextStore:
    """A store of these rows."""
    store = ImageTextStore(path)
    store.append([pa.Table.from_pylist(rows, schema=STORE_SCHEMA)], "b")
    return store


def make_run(run: Path, store: ImageTextStore | None, config: PretrainConfig | None = None,
             step: int | None = 12) -> PretrainConfig:
    """The folder `run` with config.yaml, data.json, summary.json of step 12 and an export's weights of `step`."""
    config = config or tiny_config()
    run.mkdir(parents=True)
    save_config(config, run)
    torch.manual_seed(7)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    save_weights(model, run / "export" / "model.safetensors", step)
    if store is not None:
        (run / "data.json").write_text(json.dumps({"store": str(store.path), "version": store.version(), "groups": ""}))
    (run / "summary.json").write_text(json.dumps({
        "name": "tiny", "status": "finished", "steps": 12, "schedule_steps": 12, "samples": 1, "seconds": 1.0,
        "metrics": {"retrieval/i2t_r5": 0.4321, "mvm/explained": 0.5}, "chance": {"retrieval/i2t_r5": 0.1234},
        "firing_rates": {"abstract.blocks.0.neurons1": 0.125}, "versions": {"torch": "2.11.0"}}))
    return config
