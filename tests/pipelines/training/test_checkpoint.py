"""A checkpoint is complete or absent, and a damaged one is named, set aside and replaced by the one before."""
import builtins
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from pipelines import files
from pipelines.errors import UserError
from pipelines.training import checkpoint, preflight, retention
from pipelines.training.lease import Fenced, Lease
from tests.pipelines.training.small_checkpoints import fill, make_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the whole checkpoints 10 and 20."""
    with Lease(tmp_path / "run") as lease:
        make_checkpoint(tmp_path / "run", lease.attempt, 10)
        make_checkpoint(tmp_path / "run", lease.attempt, 20)
    return tmp_path / "run"


def newest_step(run: Path) -> int:
    return checkpoint.newest(run)[1].step


def assert_passed_over(run: Path, named: str) -> None:
    """Step 20 is refused for a reason that names the thing, and 10 is used."""
    told: list[str] = []
    folder, manifest = checkpoint.newest(run, lambda folder, why: told.append(f"{folder.name}: {why}"))
    assert manifest.step == 10 and folder.name == "step-00000010"
    assert len(told) == 1 and told[0].startswith("step-00000020: ") and named in told[0], told


def test_the_newest_whole_checkpoint_wins(run):
    folder, manifest = checkpoint.newest(run)
    assert (folder.name, manifest.step, manifest.position) == ("step-00000020", 20, 640)


def test_every_file_can_be_checked_with_sha256sum(run):
    folder, manifest = checkpoint.newest(run)
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest.files) == names == {"state/a.pt", "state/b.pt"}
    for name, (size, sha256) in manifest.files.items():
        told = os.popen(f"sha256sum {folder / name}").read().split()[0]
        assert (size, sha256) == ((folder / name).stat().st_size, told)


def test_what_was_not_committed_does_not_exist(run):
    with Lease(run) as lease:
        fill(run, lease.attempt, 30)
        assert newest_step(run) == 20
        checkpoint.resume_point(run, lease.attempt)
    assert not list((run / "checkpoints").glob(".tmp*")), "a crash's remains"


# A death at every point of a commit: each write, fsync, rename and copy in turn is the last thing that happens.


class Death(BaseException):
    """Nothing in the code may catch it."""


class Countdown:
    """Lets `left` operations of the file layer pass and dies in the next one; a write gets half way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left, self.seen = left, []
        for name in ("fsync", "rename", "replace", "unlink"):
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))
        for name in ("copy", "rmtree"):
            monkeypatch.setattr(shutil, name, self.wrap(name, getattr(shutil, name)))
        for module in (files, checkpoint):
            monkeypatch.setattr(module, "open", self.open, raising=False)

    def tick(self, name: str) -> None:
        self.seen.append(name)
        self.left -= 1
        if self.left < 0:
            raise Death(name)

    def wrap(self, name, operation):
        def counted(*args, **kwargs):
            self.tick(name)
            return operation(*args, **kwargs)
        return counted

    def open(self, path, mode="r", **kwargs):
        file = builtins.open(path, mode, **kwargs)
        if "w" in mode:
            write = file.write

            def torn(content):
                write(content[:len(content) // 2])
                self.tick("write")
                return write(content[len(content) // 2:])
            return Torn(file, torn)
        return file


class Torn:
    """A file whose `write` may stop half way."""

    def __init__(self, file, write) -> None:
        self._file, self.write = file, write

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def operations_of_a_commit(folder: Path) -> int:
    """How many operations there are to die in."""
    with pytest.MonkeyPatch.context() as patch, Lease(folder) as lease:
        (folder / "config.yaml").write_text("run: {}")
        manifest = fill(folder, lease.attempt, 10)
        countdown = Countdown(patch, 10_000)
        checkpoint.commit(folder, manifest)
        assert {"write", "fsync", "rename", "replace", "copy"} <= set(countdown.seen)
    return len(countdown.seen)


@pytest.mark.parametrize("present", [(), (10,), (20, 10)], ids=["first", "second", "again"])
def test_a_death_anywhere_in_a_commit_leaves_the_old_or_the_new_one(tmp_path, present):
    """The new one is step 20; in the last case a folder of that step is there already, and is damaged."""
    count, results = operations_of_a_commit(tmp_path / "count") + 3 * (present == (20, 10)), []
    for left in range(count + 1):
        run = tmp_path / f"run-{left}"
        run.mkdir()
        (run / "config.yaml").write_text("run: {}")
        with Lease(run) as lease:
            for step in present:
                make_checkpoint(run, lease.attempt, step)
            if 20 in present:
                (run / "checkpoints" / "step-00000020" / "state" / "a.pt").write_bytes(b"damaged")
            manifest = fill(run, lease.attempt, 20)
            with pytest.MonkeyPatch.context() as patch:
                Countdown(patch, left)
                try:
                    checkpoint.commit(run, manifest)
                    died = False
                except Death:
                    died = True
            found = checkpoint.resume_point(run, lease.attempt)
        step = found[1].step if found else None
        assert step == 20 or (died and step == (10 if 10 in present else None)), (left, step)
        if found:
            assert (found[0] / "state" / "a.pt").read_bytes() == random.Random(step).randbytes(5_000)
        assert not list((run / "checkpoints").glob(".tmp*"))
        results.append(step)
        shutil.rmtree(run)
    assert results[0] != 20 and results[-1] == 20 and results == sorted(results, key=lambda step: step == 20)


# Damage that the disk, a copy or a hand may do.


def test_truncation_at_50_offsets(run, tmp_path):
    original = run / "checkpoints" / "step-00000020"
    shutil.copytree(original, tmp_path / "kept")
    draw = random.Random(0)
    for _ in range(50):
        path = draw.choice(sorted(p for p in original.rglob("*") if p.is_file()))
        os.truncate(path, draw.randrange(path.stat().st_size))
        assert_passed_over(run, path.name)
        shutil.copy(tmp_path / "kept" / path.relative_to(original), path)
    assert newest_step(run) == 20


def test_100_bit_flips(run, tmp_path):
    """Each one in any file, the manifest too."""
    original = run / "checkpoints" / "step-00000020"
    shutil.copytree(original, tmp_path / "kept")
    draw = random.Random(1)
    paths = sorted(p for p in original.rglob("*") if p.is_file())
    for _ in range(100):
        path = draw.choices(paths, [p.stat().st_size for p in paths])[0]
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        assert_passed_over(run, path.name)
        shutil.copy(tmp_path / "kept" / path.relative_to(original), path)
    assert newest_step(run) == 20


def bit_flip(folder: Path) -> None:
    path = folder / "state" / "a.pt"
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(content)


def another_runs_manifest(folder: Path) -> None:
    """The manifest that another run with the same files has for the same step."""
    other = folder.parents[1] / "other"
    with Lease(other) as lease:
        shutil.copy(make_checkpoint(other, lease.attempt, 20) / "manifest.json", folder)


def another_runs_folder(folder: Path) -> None:
    other = folder.parents[1] / "other"
    with Lease(other) as lease:
        made = make_checkpoint(other, lease.attempt, 20)
    shutil.rmtree(folder)
    shutil.copytree(made, folder)


def renamed_from_another_step(folder: Path) -> None:
    """The folder of step 10 under the name of step 20."""
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "step-00000010", folder)


def linked(folder: Path) -> None:
    """A link to the same bytes somewhere else, where they can change after the check."""
    path = folder / "state" / "a.pt"
    shutil.move(path, folder.parents[1] / "a.pt")
    path.symlink_to(folder.parents[1] / "a.pt")


@pytest.mark.parametrize(("damage", "named"), [
    (bit_flip, "a.pt differs"),
    (lambda f: (f / "state" / "b.pt").unlink(), "b.pt is missing"),
    (lambda f: (f / "state" / "c.pt").write_bytes(b"x"), "c.pt is not in the manifest"),
    (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
    (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    (lambda f: (f / "manifest.json").write_text('{"files": 3}'), "manifest.json cannot be read"),
    (lambda f: shutil.copy(f.parent / "step-00000010" / "manifest.json", f), "manifest.json is that of step 10"),
    (renamed_from_another_step, "manifest.json is that of step 10"),
    (another_runs_manifest, "manifest.json is that of another run"),
    (another_runs_folder, "manifest.json is that of another run"),
    (linked, "a.pt is no plain file"),
])
def test_damage_is_named_and_set_aside(run, damage, named):
    damage(run / "checkpoints" / "step-00000020")
    assert_passed_over(run, named)
    with Lease(run) as lease:
        assert checkpoint.resume_point(run, lease.attempt)[1].step == 10
        told = checkpoint.damages(run)
        assert len(told) == 1 and named in told[0] and "step-00000020" in told[0]
        assert (run / "checkpoints" / "damaged-step-00000020").is_dir(), "never deleted"
        make_checkpoint(run, lease.attempt, 20)
        bit_flip(run / "checkpoints" / "step-00000020")
        checkpoint.resume_point(run, lease.attempt)
    assert (run / "checkpoints" / "damaged-step-00000020-2").is_dir() and len(checkpoint.damages(run)) == 2


@pytest.mark.parametrize("damage", [Path.unlink, lambda p: p.write_text(""), lambda p: p.write_text(
    p.read_text().replace('"run": "', '"run": "f'))], ids=["lost", "empty", "changed"])
def test_a_damaged_identity_loses_no_checkpoint(run, damage):
    damage(run / "checkpoints" / "identity.json")
    assert newest_step(run) == 20
    with Lease(run) as lease:
        make_checkpoint(run, lease.attempt, 30)
    assert newest_step(run) == 30


def test_looking_at_a_run_names_the_damage_and_touches_nothing(run):
    bit_flip(run / "checkpoints" / "step-00000020")
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    found = preflight.continues(run)
    assert found.ok and found.finding == ("the run continues from step 10; step-00000020 is damaged "
                                          "(state/a.pt differs from its checksum)")
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_another_format_is_no_damage(run):
    path = run / "checkpoints" / "step-00000020" / "manifest.json"
    facts = json.loads(path.read_text()) | {"format": 99, "new": True}
    del facts["sha256"]
    path.write_bytes(checkpoint._sealed(facts))
    with pytest.raises(UserError, match="step-00000020 has format 99"):
        checkpoint.newest(run)


def test_a_fenced_attempt_commits_and_cleans_nothing(tmp_path):
    with Lease(tmp_path) as old:
        make_checkpoint(tmp_path, old.attempt, 10)
        with Lease(tmp_path, takeover=True) as new:
            make_checkpoint(tmp_path, new.attempt, 20)
            fill(tmp_path, new.attempt, 30)
            with pytest.raises(Fenced):
                make_checkpoint(tmp_path, old.attempt, 30)
            with pytest.raises(Fenced):
                checkpoint.resume_point(tmp_path, old.attempt)
            assert checkpoint.temporary_folder(tmp_path, 30, new.attempt).exists()
    assert newest_step(tmp_path) == 20


# Retention.


def steps(run: Path) -> list[int]:
    return [int(folder.name.removeprefix("step-")) for folder in checkpoint.folders(run)]


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    scores = {10: 0.2, 20: 0.9, 30: None, 40: 0.9, 50: 0.3, 60: None}
    with Lease(tmp_path) as lease:
        for step, score in scores.items():
            make_checkpoint(tmp_path, lease.attempt, step, score=score)
            retention.retain(tmp_path, keep=1, keep_best=1, read=checkpoint.ReadOnce())
            best = max((s for s in scores if s <= step and scores[s] is not None), key=lambda s: (scores[s], s))
            assert steps(tmp_path) == sorted({step, best})
        make_checkpoint(tmp_path, lease.attempt, 70)
        retention.retain(tmp_path, keep=2, keep_best=0, read=checkpoint.ReadOnce())
    assert steps(tmp_path) == [60, 70]


def test_retention_reads_a_file_once_and_a_changed_one_again(tmp_path, monkeypatch):
    """Else every checkpoint would read all that are kept; times that are set back do not deceive it."""
    opened, plain, read = [], checkpoint.digest, checkpoint.ReadOnce()

    def spy(path):
        opened.append(path.relative_to(tmp_path / "checkpoints").parts[0])
        return plain(path)

    monkeypatch.setattr(checkpoint, "digest", spy)
    with Lease(tmp_path) as lease:
        for step in (10, 20):
            make_checkpoint(tmp_path, lease.attempt, step)
        for expected in ({"step-00000010", "step-00000020"}, set()):
            opened.clear()
            retention.retain(tmp_path, keep=2, keep_best=0, read=read)
            assert {name for name in opened if name.startswith("step-")} == expected
        damaged = tmp_path / "checkpoints" / "step-00000020"
        before = {path: path.stat() for path in damaged.rglob("*") if path.is_file()}
        bit_flip(damaged)
        for path, status in before.items():
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        retention.retain(tmp_path, keep=1, keep_best=0, read=read)
        assert steps(tmp_path) == [10, 20], "the damaged one does not count"


def test_a_death_while_an_old_one_is_removed_is_no_damage(tmp_path):
    for left in range(4):
        with Lease(tmp_path / str(left)) as lease:
            for step in (10, 20):
                make_checkpoint(tmp_path / str(left), lease.attempt, step)
            with pytest.MonkeyPatch.context() as patch:
                Countdown(patch, left)
                try:
                    retention.retain(tmp_path / str(left), keep=1, keep_best=0, read=checkpoint.ReadOnce())
                except Death:
                    pass
            assert checkpoint.resume_point(tmp_path / str(left), lease.attempt)[1].step == 20
        assert checkpoint.damages(tmp_path / str(left)) == [] and not list((tmp_path / str(left)).rglob("*.tmp*"))
        assert steps(tmp_path / str(left)) == ([10, 20] if left == 0 else [20])


def test_damaged_checkpoints_do_not_count_and_the_last_whole_one_stays(tmp_path):
    with Lease(tmp_path) as lease:
        for step in (10, 20, 30, 40):
            make_checkpoint(tmp_path, lease.attempt, step)
        for step in (30, 40):
            bit_flip(tmp_path / "checkpoints" / f"step-000000{step}")
        retention.retain(tmp_path, keep=1, keep_best=0, read=checkpoint.ReadOnce())
        assert steps(tmp_path) == [20, 30, 40], "10 goes; the damaged ones are for whoever resumes"
        assert checkpoint.resume_point(tmp_path, lease.attempt)[1].step == 20
    assert steps(tmp_path) == [20]
