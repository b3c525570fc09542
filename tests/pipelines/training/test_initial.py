"""Starting from another model's weights: what fits is loaded, all else is named, the run keeps its own copy."""
from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ashnets.config import ITCConfig, ModelConfig, TasksConfig
from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.training.initial import check_initial, initial_copy, initial_model, load_initial, pin_initial
from pipelines.training.model import build_model
from tests.pipelines.small_run import make_run, tiny_config


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose export the others start from."""
    run = tmp_path_factory.mktemp("runs") / "first"
    make_run(run, None)
    return run


def changed(model: ModelConfig | None = None, tasks: TasksConfig | None = None) -> PretrainConfig:
    config = tiny_config()
    return replace(config, model=model or config.model, tasks=tasks or config.tasks)


def test_the_same_model_is_loaded_whole(source: Path) -> None:
    model, path = build_model(tiny_config()), source / "export" / "model.safetensors"
    report = load_initial(model, path)
    found = load_file(path)
    assert set(report.loaded) == found.keys() and not (report.missing or report.reshaped or report.left_out)
    assert report.lines() == [f"{len(found)} of {len(found)} tensors loaded"]
    for name, value in found.items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.mlm.decoder.weight is model.model.fusion.embeddings.word_embeddings.weight


def test_what_does_not_fit_keeps_its_own_start_and_is_named(source: Path) -> None:
    config = tiny_config()
    other = changed(replace(config.model, embedding=16, text=replace(config.model.text, layers=2)),
                    replace(config.tasks, stua=replace(config.tasks.stua, weight=0.0)))
    fresh, model = build_model(other), build_model(other)
    report = load_initial(model, source / "export" / "model.safetensors")
    assert report.reshaped == ("itc.image.bias", "itc.image.weight", "itc.text.bias", "itc.text.weight")
    assert report.left_out == ("stua.project.bias", "stua.project.weight")
    assert report.missing and all(name.startswith("model.text.bert.encoder.layer.1.") for name in report.missing)
    found = load_file(source / "export" / "model.safetensors")
    for name, value in model.state_dict().items():
        if name in report.missing + report.reshaped:
            assert torch.equal(value, fresh.state_dict()[name]), name
        elif name != "mlm.decoder.weight":
            assert torch.equal(value, found[name]), name
    text = "\n".join(report.lines())
    assert f"{len(report.loaded)} of {len(report.loaded) + len(report.missing) + 4} tensors loaded" in text
    assert "4 of another shape, started as configured: itc.image.bias" in text
    assert "2 not taken over: stua.project.bias, stua.project.weight" in text and ", ..." in text


def test_another_runs_memory_is_not_taken_over(tmp_path: Path) -> None:
    config = changed(tasks=replace(tiny_config().tasks, itc=ITCConfig(memory=4)))
    make_run(tmp_path / "run", None, config)
    path = tmp_path / "run" / "export" / "model.safetensors"
    filled = {name: torch.ones_like(value) if name.startswith("itc.memory_") else value
              for name, value in load_file(path).items()}
    save_file(filled, path)
    model = build_model(config)
    report = load_initial(model, path)
    assert not model.itc.memory_image.any() and not model.itc.memory_weight.any()
    assert set(report.left_out) == {name for name in filled if name.startswith("itc.memory_")}
    assert not report.missing


def test_a_file_that_will_not_do_is_refused(tmp_path: Path) -> None:
    model, path = build_model(tiny_config()), tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="no safetensors file"):
        load_initial(model, path)
    save_file({"other": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="no tensor of .* fits this model"):
        load_initial(model, path)


def test_the_run_keeps_its_own_copy(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = tmp_path / "second", tmp_path / "first"
    run.mkdir()
    make_run(other, None)
    config = replace(tiny_config(), init=str(other))
    check_initial(config, run, tmp_path)
    assert "tensors loaded" in capsys.readouterr().out and not initial_copy(run).exists()
    pin_initial(config, run, tmp_path)
    expected = load_file(other / "export" / "model.safetensors")
    save_file({name: value * 0 for name, value in expected.items()}, other / "export" / "model.safetensors")
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    check_initial(config, run, tmp_path)
    pin_initial(config, run, tmp_path)
    state = initial_model(config, run).state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert capsys.readouterr().out == ""
    initial_copy(run).unlink()
    with pytest.raises(UserError, match="is gone, which this run started from"):
        check_initial(config, run, tmp_path)


def test_without_a_checkpoint_the_newest_choice_counts(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "second"
    run.mkdir()
    make_run(tmp_path / "other", None)
    save_file({"itm.head.0.bias": torch.ones(64)}, tmp_path / "other" / "export" / "model.safetensors")
    for init in (str(source), str(tmp_path / "other")):
        pin_initial(replace(tiny_config(), init=init), run, tmp_path)
    assert load_file(initial_copy(run)).keys() == {"itm.head.0.bias"}
    assert sorted(path.name for path in initial_copy(run).parent.iterdir()) == ["model.safetensors"]


def test_without_init_nothing_happens(tmp_path: Path) -> None:
    config = tiny_config()
    check_initial(config, tmp_path, tmp_path)
    pin_initial(config, tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []
    mine, plain = initial_model(config, tmp_path).state_dict(), build_model(config).state_dict()
    assert all(torch.equal(mine[name], value) for name, value in plain.items())


def test_an_init_of_another_architecture_is_a_users_mistake(tmp_path: Path) -> None:
    make_run(tmp_path / "other", None)
    save_file({"elsewhere": torch.ones(64)}, tmp_path / "other" / "export" / "model.safetensors")
    with pytest.raises(UserError, match="init: no tensor of"):
        check_initial(replace(tiny_config(), init=str(tmp_path / "other")), tmp_path / "run", tmp_path)
