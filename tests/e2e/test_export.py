"""A trained run's export as a user takes it: in a clean process, by jobs/export.py and jobs/embed.py, as `init=`."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ashnets.processing import Tokenizer, image_to_pixels
from ashnets.weights_file import load_weights, trained_steps
from pipelines.resume import load_config
from pipelines.store.schema import iter_batches
from pipelines.store.table import ImageTextStore
from pipelines.training.model import build_model
from tests.e2e.conftest import REPOSITORY, Finished, Jobs

CLEAN = """
import sys
sys.path[0] = sys.argv[3]
import torch
import ashnets.pretrained
from transformers import AutoModel, AutoProcessor
model, processor = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModel, AutoProcessor))
data = processor(images=sys.argv[2] + "/image.jpg", text="two things")
with torch.inference_mode():
    torch.save([model.encode_image(data["pixel_values"]),
                model.encode_text(data["input_ids"], data["attention_mask"]),
                model.match(**data, logits=True)], sys.argv[2] + "/outputs.pt")
assert not {"ray", "deepspeed"} & {name.split(".")[0] for name in sys.modules}
"""


def job(jobs: Jobs, verb: str, *keys: str) -> subprocess.CompletedProcess[str]:
    """Run `jobs/VERB.py` from a foreign folder."""
    return subprocess.run([sys.executable, str(REPOSITORY / "jobs" / f"{verb}.py"), *keys], cwd=jobs.home,
                          env=jobs.environment(), capture_output=True, text=True, timeout=280)


def test_a_clean_process_gives_the_training_models_bits(tiny: Finished, jobs: Jobs, tmp_path: Path) -> None:
    export = tiny.folder / "export"
    assert trained_steps(export / "model.safetensors") == 12
    image = next(iter(ImageTextStore(jobs.store).iter_batches(["image"])))["image"][0].as_py()
    (tmp_path / "image.jpg").write_bytes(image)
    subprocess.run([sys.executable, "-c", CLEAN, str(export), str(tmp_path), str(REPOSITORY)], cwd=tmp_path,
                   env=jobs.environment(), check=True, timeout=120)
    outputs = torch.load(tmp_path / "outputs.pt", weights_only=True)
    config = load_config(tiny.folder)
    model = build_model(config).eval()
    load_weights(model, export / "model.safetensors")
    tokenizer = Tokenizer(config.model.text.tokenizer, config.model.text.max_tokens)
    ids, mask = map(torch.from_numpy, tokenizer(["two things"]))
    with torch.inference_mode():
        visual = model.model.encode_image(torch.from_numpy(image_to_pixels(image, config.feed.image_size))[None])
        assert torch.equal(outputs[0], model.embed_image(visual.tokens))
        assert torch.equal(outputs[1], model.embed_text(model.model.encode_text(ids, mask).pooled))
        assert torch.equal(outputs[2], model.match(model.model.fuse(ids, mask, visual.tokens), mask))
    card, summary = (export / "README.md").read_text(), json.loads((tiny.folder / "summary.json").read_text())
    assert f"| `retrieval/i2t_r5` | {summary['metrics']['retrieval/i2t_r5']:.4f} |" in card
    assert "12 optimizer steps" in card and "94 train, 24 val" in card and "CC-BY 4.0" in card


def test_export_and_embed_as_jobs(tiny: Finished, jobs: Jobs, tmp_path: Path) -> None:
    done = job(jobs, "export", f"model={tiny.folder}", f"to={tmp_path / 'model'}")
    assert done.returncode == 0 and "loads whole" in done.stdout, done.stderr
    done = job(jobs, "embed", f"model={tmp_path / 'model'}", f"data.store={jobs.store}", f"to={tmp_path / 'vectors'}")
    assert done.returncode == 0 and "embedded 118 images and 472 captions" in done.stdout, done.stderr
    rows = [row for file in (tmp_path / "vectors").glob("*.parquet") for batch in iter_batches(file)
            for row in batch.to_pylist()]
    assert len({row["sample_id"] for row in rows}) == 118 == len(rows)
    assert all(len(row["caption_embeddings"]) == 4 for row in rows)
    norms = torch.tensor([row["image_embedding"] for row in rows]).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(118), atol=1e-4, rtol=0)


@pytest.mark.full
def test_training_starts_from_another_run(tiny: Finished, jobs: Jobs) -> None:
    done = jobs.run("run.name=second", f"init={tiny.folder}", "train.max_steps=1", "tasks.stua.weight=0")
    assert done.returncode == 0, done.stderr
    assert "tensors loaded" in done.stdout and "2 not taken over: stua.project.bias, stua.project.weight" in done.stdout
    folder = jobs.storage / "second"
    started = (folder / "init" / "model.safetensors").read_bytes()
    assert started == (tiny.folder / "export" / "model.safetensors").read_bytes()
    ours, scratch = (build_model(load_config(folder)) for _ in range(2))
    load_weights(ours, folder / "export" / "model.safetensors")
    theirs = build_model(load_config(tiny.folder))
    load_weights(theirs, tiny.folder / "export" / "model.safetensors")
    name = "fusion.layers.0.intermediate.dense.weight"
    mine, its, fresh = (model.model.get_parameter(name) for model in (ours, theirs, scratch))
    one_step = 1.1 * load_config(folder).train.lr  # AdamW's first step moves no weight by more than the learning rate
    assert (mine - its).abs().max() < one_step < (mine - fresh).abs().max()


@pytest.mark.parametrize(("verb", "keys", "said"), [
    ("export", ["model=/nowhere"], "model=/nowhere: /nowhere does not exist"),
    ("export", ["mode=x"], "did you mean model?"),
    ("embed", ["model=RUN"], "to is empty"),
    ("embed", ["model=RUN", "to=NEW", "data.store=/nowhere"], "data.store=/nowhere"),
    ("embed", ["model=RUN", "to=NEW", "data.store=STORE", "data.split=test"], "it has train, val"),
])
def test_a_mistake_is_one_line_and_exit_2(tiny: Finished, jobs: Jobs, tmp_path: Path, verb: str, keys: list[str],
                                          said: str) -> None:
    places = {"RUN": str(tiny.folder), "NEW": str(tmp_path / "new"), "STORE": str(jobs.store)}
    words = [key.partition("=")[0] + "=" + places.get(key.partition("=")[2], key.partition("=")[2]) for key in keys]
    done = job(jobs, verb, *words)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("init", "said"), [
    ("/nowhere", "init=/nowhere: /nowhere does not exist"),
    ("STORE", "is neither a run (no config.yaml) nor an export")])
def test_an_init_that_will_not_do_ends_before_anything_starts(tiny: Finished, jobs: Jobs, init: str,
                                                              said: str) -> None:
    done = jobs.run("run.name=third", f"init={jobs.store if init == 'STORE' else init}")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
