"""The command line: layers, types, messages and exit codes."""
from __future__ import annotations

import subprocess
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from jobs import cli
from jobs.fields import walk
from pipelines.config import PretrainConfig
from pipelines.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Engine:
    """The engine of the toy."""

    power: float = 1.0
    """Its power in
    kilowatts."""
    fuel: Literal["steam", "petrol"] = "steam"
    """What it burns."""
    gears: tuple[int, ...] = (1, 2)
    """Its gears."""
    range_km: tuple[float, float] = (0.0, 1.0)
    """Least and most."""

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"engine.power={self.power} is not allowed: more than 0")
        if not self.gears:
            raise ValueError(f"engine.gears={self.gears} is not allowed: one or more")


@dataclass(frozen=True)
class Toy:
    """A toy."""

    name: str = "toy"
    """Its name."""
    wheels: int = 4
    """How many."""
    loud: bool = False
    """Whether it beeps."""
    engine: Engine = field(default_factory=Engine)


def toy(*argv: str, defaults_file: Path | None = None) -> Toy:
    return cli.parse(Toy, list(argv), description="A toy.", defaults_file=defaults_file).config


def mistakes(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        toy(*argv)
    return str(caught.value).splitlines()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_layers_lie_over_each_other(tmp_path: Path) -> None:
    demo = write(tmp_path / "demo.yaml", "wheels: 6\nengine: {power: 2, gears: [1, 2, 3]}\n")
    own = write(tmp_path / "own.yaml", "wheels: 8\n")
    assert toy() == Toy()
    assert toy(defaults_file=demo) == Toy(wheels=6, engine=Engine(power=2.0, gears=(1, 2, 3)))
    assert toy("wheels=3", "engine.power=5", defaults_file=demo) == Toy(
        wheels=3, engine=Engine(power=5.0, gears=(1, 2, 3)))
    for words in (["--config", str(own)], [f"--config={own}"]):  # in place of the demo, not above it
        assert toy(*words, defaults_file=demo) == Toy(wheels=8)
    assert toy("loud=true", "--config", str(own), "loud=false") == Toy(wheels=8, loud=False)


def test_values_are_of_their_fields_type(tmp_path: Path) -> None:
    assert toy("engine.power=1e-4").engine.power == 1e-4
    assert toy("--config", str(write(tmp_path / "a.yaml", "engine:\n  power: 1e-4\n"))).engine.power == 1e-4
    assert toy("engine.gears=[5]").engine.gears == (5,)
    assert toy("engine.range_km=[1, 2.5]").engine.range_km == (1.0, 2.5)
    assert toy("engine={power: 3, fuel: petrol}").engine == Engine(power=3.0, fuel="petrol")
    assert toy("name=").name == "" and toy("name=on").name == "on" and toy("name=1e3").name == "1e3"
    assert toy("name=a=b").name == "a=b"


@settings(deadline=None)
@given(st.floats(min_value=1e-300, max_value=1e300), st.integers(-10**12, 10**12), st.booleans())
def test_any_number_survives(power: float, wheels: int, loud: bool) -> None:
    assert toy(f"engine.power={power!r}", f"wheels={wheels}", f"loud={loud}") == Toy(
        wheels=wheels, loud=loud, engine=Engine(power=power))


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="$\\")).filter(lambda text: text != "???"))
def test_any_text_survives(text: str) -> None:
    assert toy(f"name={text}").name == text


@settings(deadline=None)
@given(st.lists(st.text(max_size=12), max_size=4))
def test_no_words_make_a_trace(words: list[str]) -> None:
    try:
        toy(*(word for word in words if word not in ("-h", "--help", "--print-config")))
    except UserError as error:
        assert all(str(error).split("\n"))


def test_every_mistake_is_named_at_once() -> None:
    found = mistakes("wheels=many", "engine.powr=3", "engine.fuel=coal", "engine.gears=[]", "engine.power=-1",
                     "loud=7.5", "engine.range_km=[1]", "power=2", "--fast", "engine=3", "engine.gears=[a",
                     "gears", "wheels=1.5")
    text = "\n".join(found)
    assert "engine.powr: unknown key; did you mean engine.power?" in text
    assert "power: unknown key; did you mean engine.power? (--help lists all)" in found
    assert "engine.fuel='coal' is not allowed: one of steam, petrol" in text
    assert "wheels='1.5' is not allowed: a whole number" in text
    assert "loud='7.5' is not allowed: true or false" in text
    assert "engine.range_km=[1] is not allowed: a list of 2 numbers such as [0.1, 0.2]" in text
    assert "engine.gears='[a' is not allowed: a list of whole numbers such as [1, 2]" in text
    assert "engine.power=-1.0 is not allowed: more than 0" in text
    assert "engine=3 is not allowed: a section of keys" in text
    assert "--fast: unknown option" in text and "gears: write key.sub=value" in text
    assert mistakes("engine.power=-1", "engine.gears=[]") == [
        "engine.power=-1.0 is not allowed: more than 0", "engine.gears=() is not allowed: one or more"]


@pytest.mark.parametrize(("key", "near"), [
    ("train.learning_rate", "train.lr"), ("learning_rate", "train.lr"), ("seed", "run.seed"), ("trian.lr", "train.lr"),
    ("model.abstract.T", "model.abstract.time_steps"), ("model.abstract.time_step", "model.abstract.time_steps"),
    ("groups.g", "groups.size"), ("scaling.num_workers", "scaling.workers"), ("model.snn.tau", "model.abstract.tau")])
def test_an_unknown_key_names_the_one_that_is_meant(key: str, near: str) -> None:
    with pytest.raises(UserError, match=f"{key}: unknown key; did you mean {near}[?]"):
        cli.parse(PretrainConfig, [f"{key}=1"], description="")


MAY_BE_NEGATIVE = {"run.seed", "data.seed", "model.summary_ratio.value"}
MAY_BE_ZERO = MAY_BE_NEGATIVE | {
    "data.short_side", "groups.regroup_every", "groups.regroup_lead", "feed.rand_augment",
    "feed.rand_augment_magnitude",
    "data.scenes", "data.scenes_val", "data.max_bad_share", "feed.max_bad_share", "model.abstract.restart_rate",
    "model.text.layers", "model.fusion.dropout", "tasks.itc.memory", "tasks.itm.hard_ramp",
    "train.max_steps", "train.schedule_steps", "train.validate_every", "train.data_version", "train.min_lr_share",
    "train.warmup_share", "train.backbone_lr_factor", "train.weight_decay", "scaling.zero_stage",
    "checkpoint.keep_best",
    "evaluation.validate_samples", "evaluation.final_samples", "evaluation.rerank", "train.betas",
    "tasks.mvm.dictionary_decay",
    *(f"tasks.{name}.weight" for name in ("itc", "itm", "mlm", "mvm", "stua"))}


@pytest.mark.parametrize("value", [0, -1])
def test_every_number_has_its_range(value: int) -> None:
    """No key takes a number without sense, and each refusal names key and value."""
    allowed = MAY_BE_ZERO if value == 0 else MAY_BE_NEGATIVE
    for key in walk(PretrainConfig):
        kind = typing.get_args(key.type)[0] if typing.get_origin(key.type) is tuple else key.type
        if kind not in (int, float):
            continue
        text = str(value) if kind is key.type else str([value] * (2 if key.key == "train.betas" else 1))
        try:
            cli.parse(PretrainConfig, [f"{key.key}={text}"], description="")
        except UserError as error:
            assert key.key not in allowed and str(error).startswith(f"{key.key}="), (key.key, str(error))
        else:
            assert key.key in allowed, key.key


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "", "one", "[1]", "null", "true"])
def test_what_is_no_number_is_refused(value: str) -> None:
    assert mistakes(f"engine.power={value}") == [f"engine.power={value!r} is not allowed: a number"]


@pytest.mark.parametrize(("text", "message"), [
    ("wheels: [1\n", "not readable as YAML"), ("a: 1\na: 2\n", "not readable as YAML"), ("- wheels\n", "not a list"),
    ("\x00", "not readable as YAML"), ("engine: 3\n", "engine=3 is not allowed: a section of keys"),
    ("engine: {powr: 3}\n", "did you mean engine.power"), ("wheels: null\n", "a whole number")])
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.yaml", text)
    found = mistakes("--config", str(path))
    assert len(found) == 1 and message in found[0]
    assert str(path) in found[0] or "engine" in found[0] or "wheels" in found[0]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "nope.yaml: the file does not exist" in mistakes("--config", str(tmp_path / "nope.yaml"))[0]
    assert "not readable" in mistakes("--config", str(tmp_path))[0]
    assert "the file is missing" in mistakes("--config")[0]
    assert toy("--config", str(write(tmp_path / "empty.yaml", "engine:\n"))) == Toy()


def test_print_config_is_a_configuration_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train.lr=1e-7", "run.name=007", "model.backbone.strides=[8, 16]", "data.store=a: b #c"]
    with pytest.raises(SystemExit) as caught:
        cli.parse(PretrainConfig, [*words, "--print-config"], description="")
    assert caught.value.code == 0
    path = write(tmp_path / "printed.yaml", capsys.readouterr().out)
    assert cli.parse(PretrainConfig, ["--config", str(path)], description="").config == cli.parse(
        PretrainConfig, words, description="").config


def test_the_difference_from_the_defaults_is_told(tmp_path: Path) -> None:
    demo = write(tmp_path / "demo.yaml", "wheels: 6\n")
    command = cli.parse(Toy, ["wheels=3", "engine.gears=[7]"], description="", defaults_file=demo)
    assert command.difference == (
        f"configuration: {demo}; changed by the command line:", "  wheels=3 (default 6)",
        "  engine.gears=[7] (default [1, 2])")
    command = cli.parse(Toy, ["--config", str(demo)], description="", defaults_file=demo)
    assert command.difference[1:] == ("  wheels=6 (default 4)",)
    assert "nothing differs" in cli.parse(Toy, [], description="", defaults_file=demo).difference[1]


def test_help_explains_every_key() -> None:
    text = cli.help_text(Toy, "A toy.", None)
    assert "  engine.power=1.0\n      Its power in kilowatts.\n" in text
    assert "What it burns. (one of steam, petrol)" in text and "engine: The engine of the toy." in text
    for key in walk(PretrainConfig):
        assert key.meaning, f"{key.key} has no line of meaning below it"


@pytest.mark.parametrize("path", sorted(cli.CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_that_we_ship_are_valid(path: Path) -> None:
    assert cli.parse(PretrainConfig, ["--config", str(path)], description="").config.train.lr > 0


def exits(tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run a job whose main is `body`."""
    script = write(tmp_path / "job.py", f"import sys\nsys.path[0] = {str(REPOSITORY)!r}\nfrom jobs import cli\n"
                   f"from ashnets.config import require\nfrom pipelines.errors import UserError\n"
                   f"from ashnets.resources import resolve\ndef main(argv):\n    {body}\ncli.run(main)\n")
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path)


@pytest.mark.parametrize(("body", "code", "message"), [
    ("return 75", 75, ""), ("pass", 0, ""), ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ("raise UserError('one\\ntwo')", 2, "error: one\nerror: two\n"),
    ("require(False, 'a.b', 3, 'more')", 2, "error: a.b=3 is not allowed: more\n"),
    ("resolve('/nowhere/at/all')", 2, "error: /nowhere/at/all: /nowhere/at/all does not exist\n")])
def test_exit_codes_without_a_trace(tmp_path: Path, body: str, code: int, message: str) -> None:
    done = exits(tmp_path, body)
    assert (done.returncode, done.stderr) == (code, message)


@pytest.mark.parametrize("body", [
    "int('x')", "open('/nowhere')", "import json; json.loads('{')", "raise RuntimeError('no')",
    "from pathlib import Path; import ashnets.resources as r; r.Path = int; r.resolve('x')"])
def test_what_is_unexpected_keeps_its_trace(tmp_path: Path, body: str) -> None:
    done = exits(tmp_path, body)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_pretrain_runs_from_any_folder_and_answers_mistakes_with_a_line(tmp_path: Path) -> None:
    job = [sys.executable, str(REPOSITORY / "jobs" / "pretrain.py")]
    done = subprocess.run([*job, "train.lr=fast"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        2, "", "error: train.lr='fast' is not allowed: a number\n")
    done = subprocess.run([*job, "--print-config"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0 and "name: demo" in done.stdout


@pytest.mark.parametrize(("text", "workers"), [("3", 3), ("[1,4]", (1, 4)), ("[ 2, 2 ]", (2, 2))])
def test_the_workers_are_a_number_or_two(tmp_path, text, workers):
    config = cli.parse(PretrainConfig, [f"scaling.workers={text}"], description="").config
    assert config.scaling.workers == workers
    file = tmp_path / "config.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert cli.parse(PretrainConfig, ["--config", str(file)], description="").config == config


@pytest.mark.parametrize("text", ["two", "0", "1.5", "[2,1]", "[1,2,3]", "true", ""])
def test_no_other_workers(text):
    with pytest.raises(UserError, match="^scaling.workers=.* is not allowed: a whole number of at least 1, or "):
        cli.parse(PretrainConfig, [f"scaling.workers={text}"], description="")


def test_a_file_below_itself_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    done = subprocess.run([sys.executable, "jobs/tune.py", "--config", str(tmp_path / "a.yaml")], cwd=REPOSITORY,
                          capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and done.stderr == (
        f"error: --config {tmp_path / 'a.yaml'}: the file is its own base: remove a `base:` line\n")
