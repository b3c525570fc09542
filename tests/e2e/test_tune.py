"""A sweep from the command line: what it leaves, that it continues, and that its best YAML repeats the best trial."""
from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from pipelines.store.table import ImageTextStore
from tests.e2e import sweeps
from tests.e2e.conftest import REPOSITORY, Jobs, lines
from tests.pipelines.report.html_checks import check_page

pytestmark = pytest.mark.full
ASHA = ("tune.trials=3", "tune.scheduler=asha", "tune.reduction=2")


@dataclass(frozen=True)
class Swept:
    """A sweep of three trials under ASHA, on a store of its own."""

    folder: Path
    output: str
    store: Path

    def again(self, jobs: Jobs, *keys: str) -> subprocess.CompletedProcess[str]:
        """The same command once more, with these keys behind it."""
        return sweeps.run(jobs, "swept", *ASHA, f"data.store={self.store}", *keys, timeout=60)


@pytest.fixture(scope="module")
def swept(jobs: Jobs) -> Swept:
    store = shutil.copytree(jobs.store, jobs.home / "swept-store")
    done = sweeps.run(jobs, "swept", *ASHA, f"data.store={store}")
    assert done.returncode == 0, done.stdout + done.stderr
    return Swept(jobs.storage / "swept", done.stdout, store)


def grow(folder: Path) -> None:
    """Give the store a version more, with other training and held-out samples."""
    store = ImageTextStore(folder)
    more = pa.concat_tables([pa.Table.from_batches(list(store.iter_batches(split=split)))[:9]
                             for split in ("train", "val")])
    store.append([more.set_column(0, "sample_id", pa.array([f"new/{i}" for i in range(18)]))], "later")


def test_every_trial_ends_once_and_progress_is_told(swept: Swept) -> None:
    ends = sweeps.assert_each_trial_once(swept.folder, 3)
    assert {end["status"] for end in ends.values()} <= {"finished", "stopped"}
    assert "finished" in {end["status"] for end in ends.values()}
    for name, end in ends.items():
        assert f"{name} starts: train.lr=" in swept.output and f"{name} {end['status']} at step" in swept.output
        if end["status"] == "finished":
            assert end["values"] == {"itm/accuracy_random": sweeps.metrics(
                swept.folder / "trials" / name)["itm/accuracy_random"]}
            sweeps.assert_each_step_of_a_trial_once(swept.folder / "trials" / name, 12)
    assert "best: trial-" in swept.output and "best.yaml" in swept.output
    assert not list(swept.folder.glob("ray-tune-*"))


def test_the_best_yaml_repeats_the_trial_to_the_digit_on_a_store_that_has_grown(swept: Swept, jobs: Jobs) -> None:
    grow(swept.store)
    file = swept.folder / "best.yaml"
    best = next(line for line in swept.output.splitlines() if line.startswith("best: ")).split()[1].strip(",")
    done = subprocess.run([sys.executable, str(REPOSITORY / "jobs" / "pretrain.py"), "--config", str(file)],
                          cwd=jobs.home, env=jobs.environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert sweeps.metrics(jobs.storage / "swept-best") == sweeps.metrics(swept.folder / "trials" / best)

    def values(run: Path) -> list[dict]:
        timed = ("samples_per_s", "data_wait_share", "attempt")
        return [{key: value for key, value in line.items() if key not in timed}
                for line in lines(run / "metrics.jsonl")]
    assert values(jobs.storage / "swept-best") == values(swept.folder / "trials" / best)


def test_tables_and_report_say_the_same(swept: Swept) -> None:
    import pyarrow.parquet as pq
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ends = sweeps.assert_each_trial_once(swept.folder, 3)
    table = list(csv.DictReader((swept.folder / "trials.csv").read_text().splitlines()))
    assert [(row["trial"], row["status"], int(row["step"])) for row in table] == [
        (name, end["status"], end["step"]) for name, end in sorted(ends.items())]
    assert [str(row["train.lr"]) for row in pq.read_table(swept.folder / "trials.parquet").to_pylist()] == [
        row["train.lr"] for row in table]
    page = check_page((swept.folder / "report.html").read_text())
    for name in ends:
        assert name in page.text
        board = EventAccumulator(str(swept.folder / "tensorboard" / name)).Reload()
        assert "_hparams_/session_start_info" in board.Tags()["tensors"] or board.summary_metadata
        assert board.Scalars("trial/itm/accuracy_random")[0].value == pytest.approx(
            ends[name]["values"]["itm/accuracy_random"])
    best = yaml.safe_load((swept.folder / "best.yaml").read_text())
    assert best["run"]["name"] == "swept-best" and best["train"]["precision"] in ("fp32", "bf16")


def test_the_same_command_says_that_the_sweep_is_finished(swept: Swept, jobs: Jobs) -> None:
    before = (swept.folder / "trials.jsonl").read_bytes()
    done = swept.again(jobs)
    assert done.returncode == 0 and "sweep swept is finished already: 3 trials" in done.stdout, done.stderr
    assert (swept.folder / "trials.jsonl").read_bytes() == before


@pytest.mark.parametrize(("keys", "said"), [
    (["train.lr=0.5"], "train.lr: 0.001 -> 0.5): use the old values, or another run.name"),
    (["tune.scheduler=none"], "tune.scheduler: 'asha' -> 'none')"),
    (["tune.metric=speed"], "tune.metric=speed: no such measure"),
    (["tune.concurrent=99", "tune.trials=4"], "tune.concurrent=99 trials x scaling.workers=1"),
])
def test_another_search_under_the_same_name_and_mistakes_exit_2(swept: Swept, jobs: Jobs, keys: list[str],
                                                                said: str) -> None:
    done = swept.again(jobs, *keys)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_trial_that_can_never_finish_is_a_result_and_not_an_end(jobs: Jobs) -> None:
    done = sweeps.run(jobs, "hot", "tune.trials=0", "tune.search=grid",
                      space={"train.lr": {"grid": [1e30, 1e-3]}})
    assert done.returncode == 0, done.stdout + done.stderr
    ends = sweeps.assert_each_trial_once(jobs.storage / "hot", 2)
    assert ends["trial-0000"]["status"] == "failed" and "not finite" in ends["trial-0000"]["why"]
    assert ends["trial-0001"]["status"] == "finished"
    assert json.loads(json.dumps(ends)) == ends
