"""The feed's benchmark: its arithmetic by hand, broken arms, kills, and that arms deliver our bytes."""
from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import feed
from benchmarks.feed import Arm, ratio, read_lines, report, run_rounds, verdicts, wrong_bytes
from benchmarks.peers import data, measure
from pipelines.feed.batches import local_batches

REPOSITORY = Path(__file__).resolve().parents[2]
TORCH, PIL = "torch DataLoader", "PIL + torchvision DataLoader"


def line(arm: str, number: int, rate: float, first: float = 1.0, checksum: int = 5) -> dict:
    return {"arm": arm, "round": number, "images_per_s": rate, "first_batch_s": first, "checksum": checksum}


LINES = [line("ours", 0, 100), line(TORCH, 0, 100), line("ours", 1, 60, 5.0), line(TORCH, 1, 50),
         line("ours", 2, 30, 2.0), line(TORCH, 2, 60), line("ours, micro-batches of 4", 2, 33), line(PIL, 0, 20)]


def test_ratios_are_taken_inside_a_round() -> None:
    """1, 1.2 and .5: their median is 1, while the ratio of the medians would be 60 / 60 with other arms' rounds."""
    assert ratio(LINES, "ours", TORCH) == 1.0
    assert ratio(LINES, "ours, micro-batches of 4", "ours") == pytest.approx(1.1)
    assert ratio(LINES, PIL, TORCH) == pytest.approx(0.2)
    assert ratio(LINES, "ours", "webdataset") is None
    assert ratio([line("ours", 0, 10), line(TORCH, 1, 10)], "ours", TORCH) is None


def test_bars_are_judged() -> None:
    met = {row["bar"]: row["met"] for row in verdicts(LINES)}
    assert met == {f"at least 0.9 times {TORCH}": True, "at least 1.1 times Ray Data's default path": None,
                   "at least 1.1 times webdataset": None, f"at least 3.0 times {PIL}": True,
                   "micro-batches of 4 and of 64 groups within 10 %": True,
                   "first batch within 3 s, in seconds": True}
    slow = [line("ours", 0, 80, 3.2), line(TORCH, 0, 100), line("ours, micro-batches of 4", 0, 71)]
    assert [row["met"] for row in verdicts(slow)] == [False, None, None, None, False, False]
    fast = verdicts([line("ours", 0, 80), line("ours, micro-batches of 4", 0, 90)])
    assert fast[4]["met"] is False, "10 % is the most in both directions"


def test_the_report_says_so_plainly() -> None:
    text = report([*LINES, line("webdataset", 0, 99)], {"mosaicml-streaming": "no such thing"})
    assert re.search(r"webdataset +99 \(99 - 99\) +0\.99", text)
    assert re.search(r"at least 1\.1 times webdataset +1\.01 +NOT MET", text)
    assert re.search(r"at least 0\.9 times torch DataLoader +1\.00 +met", text)
    assert "BROKEN mosaicml-streaming: no such thing" in text


def test_an_arm_with_other_bytes_is_broken() -> None:
    lines = [line("ours", 0, 1), line(TORCH, 0, 1, checksum=6), line("webdataset", 0, 1), line(PIL, 0, 1, checksum=7)]
    assert list(wrong_bytes(lines)) == [TORCH]


def test_a_killed_benchmark_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third arm-round dies; half a line is left behind; the next call runs what is missing, once each."""
    arms, calls = {"ours": Arm("ours"), TORCH: Arm("torch_loader")}, []

    def run_arm(name: str, arm: Arm, folder: Path, number: int) -> dict:
        calls.append((name, number))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return line(name, number, 10)

    monkeypatch.setattr(feed, "run_arm", run_arm)
    progress = tmp_path / "runs" / "progress.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_rounds(arms, tmp_path, 2, progress)
    with progress.open("a") as file:
        file.write('{"arm": "ou')
    lines, broken = run_rounds(arms, tmp_path, 2, progress)
    assert calls == [("ours", 0), (TORCH, 0), (TORCH, 1), (TORCH, 1), ("ours", 1)] and broken == {}
    assert sorted((row["arm"], row["round"]) for row in lines) == [("ours", 0), ("ours", 1), (TORCH, 0), (TORCH, 1)]
    assert read_lines(progress) == lines


def test_a_broken_arm_is_named_and_exits_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(feed, "REPOSITORY", tmp_path)
    monkeypatch.setattr(feed, "ARMS", {"ours": Arm("ours"), TORCH: Arm("torch_loader")})
    monkeypatch.setattr(data, "make", lambda folder, groups: None)
    monkeypatch.setattr(feed.os, "sched_setaffinity", lambda pid, cores: None)

    def run_arm(name: str, arm: Arm, folder: Path, number: int) -> dict:
        if name == TORCH:
            raise RuntimeError("out of luck")
        return line(name, number, 10)

    monkeypatch.setattr(feed, "run_arm", run_arm)
    assert feed.main("short", peers=True) == 1
    assert f"BROKEN {TORCH}: out of luck" in capsys.readouterr().out
    monkeypatch.setattr(feed, "run_arm", lambda name, arm, folder, number: line(name, number, 10 - len(name) / 10))
    assert feed.main("short", peers=True) == 0, "a bar that is missed is said and exits 0"
    assert list((tmp_path / "runs").glob("*.jsonl")) == []


def test_a_missing_environment_breaks_its_arm_alone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no-such-environment"):
        feed.run_arm("webdataset", Arm("webdataset_loader", environment="no-such-environment"), tmp_path, 0)


def test_what_a_library_says_behind_the_result_is_no_result(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("""#!/bin/sh\necho '{"images_per_s": 7.5}'\necho shutting down\n""")
    python.chmod(0o755)
    arm = Arm("ray_default", environment=str(tmp_path))
    assert feed.run_arm("Ray", arm, tmp_path, 1)["images_per_s"] == 7.5
    python.write_text("#!/bin/sh\necho shutting down\n")
    with pytest.raises(RuntimeError, match="no result: shutting down"):
        feed.run_arm("Ray", arm, tmp_path, 1)


def test_another_loader_delivers_our_bytes(tmp_path: Path) -> None:
    """The checksum of torch's DataLoader, in its own order and processes, against the feed's own batches."""
    folder = tmp_path / "data"
    data.make(folder, 16)
    code = ("import json, pathlib, sys\nfrom benchmarks.peers import data, torch_loader\n"
            "print(json.dumps(torch_loader.start(data.plan(pathlib.Path(sys.argv[1]), 4))(16)))")
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, capture_output=True, text=True,
                          timeout=120, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    batches = list(local_batches(data.plan(folder, 4), 0, 4))
    expected = sum(sum(np.frombuffer(batch.pixels.numpy().tobytes(), "<u8").tolist()) for batch in batches)
    expected += sum(int(batch.mlm_input_ids.sum()) + int(batch.mlm_labels.sum()) for batch in batches)
    assert result["checksum"] == expected % 2**64 and 0 < result["first_batch_s"] <= result["seconds"]


def test_the_rate_leaves_starts_and_what_is_loaded_ahead_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    """A loader that starts for 7 s and then takes 10 ms an image, whenever it delivers them: 100 images/s."""
    passes = []

    def one_pass(groups: int) -> dict:
        passes.append(groups)
        cold = 20.0 if len(passes) == 1 else 7.0
        return {"seconds": cold + groups * data.SIZE * 0.01, "first_batch_s": float(len(passes)), "checksum": groups}

    data.make(tmp_path / "data", 16)
    monkeypatch.setattr(sys, "argv", ["arm", str(tmp_path / "data"), "4"])
    measure.main(lambda plan: one_pass)
    result = json.loads(capsys.readouterr().out)
    assert passes == [16, 8, 16, 8, 16]
    assert (result["images_per_s"], result["first_batch_s"], result["checksum"]) == (100.0, 4.0, 16)


def test_a_pass_that_loses_images_is_broken(tmp_path: Path) -> None:
    data.make(tmp_path / "data", 8)
    plan = data.plan(tmp_path / "data", 4)
    batches = [vars(batch) for batch in local_batches(plan, 0, 2)]
    assert measure.consume(batches, plan, 8, 0.0)["seconds"] > 0
    with pytest.raises(RuntimeError, match="16 images came, 32 were expected"):
        measure.consume(batches[:1], plan, 8, 0.0)


def test_the_lock_of_the_peers() -> None:
    """Everything hashed, no host named, and the packages that the transform runs on at our own versions."""
    def versions(file: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9.-]+)==([^ \\]+)", (REPOSITORY / file).read_text(), flags=re.MULTILINE))

    text = (REPOSITORY / "requirements-bench.lock").read_text()
    for entry in re.split(r"\n(?=\S)", text.strip()):
        assert re.match(r"^[a-z0-9.-]+==\S+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\\n)?)+$", entry), entry[:80]
    ours, theirs = versions("requirements.lock"), versions("requirements-bench.lock")
    for name in ("torch", "opencv-python-headless", "simplejpeg", "pillow", "pyarrow"):
        assert theirs[name] == ours[name]
    assert {"mosaicml-streaming", "webdataset"} <= theirs.keys()
