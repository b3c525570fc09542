"""What lies beside the code for clusters: the AWS cluster, DeepSpeed's stages, paths, and the private Ray."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster import comm_op, paths

REPOSITORY = Path(__file__).resolve().parents[1]


def aws_cluster() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text(encoding="utf-8"))


def check_cluster(raw: dict[str, Any]) -> None:
    """What `ray up` checks before it starts anything; it has no dry run."""
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(raw, json.loads(schema.read_text(encoding="utf-8")))
    validate_config(prepare_config(raw))


def test_ray_up_would_take_the_aws_cluster() -> None:
    check_cluster(aws_cluster())


@pytest.mark.parametrize("plant", [
    lambda raw: raw.update(max_worker=1), lambda raw: raw["available_node_types"]["data"].update(max_workers="6"),
    lambda raw: raw.update(head_node_type="missing"), lambda raw: raw["docker"].update(image=["a"])])
def test_the_check_sees_mistakes(plant: Any) -> None:
    raw = aws_cluster()
    plant(raw)
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        check_cluster(raw)


def test_the_aws_cluster_is_closed_and_pinned() -> None:
    raw = aws_cluster()
    options = raw["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options and "/etc/ashnets/ray_token" in raw["file_mounts"]
    assert f"--env RAY_AUTH_TOKEN_PATH={next(iter(raw['file_mounts']))}" in options
    assert not raw["docker"]["image"].endswith(":latest") and raw["setup_commands"] == []
    assert raw["available_node_types"]["head"]["resources"] == {"CPU": 0}
    for kind in raw["available_node_types"].values():
        node = kind["node_config"]
        assert node["SecurityGroupIds"] and node["IamInstanceProfile"] and "KeyName" not in node
    assert "--dashboard-host=127.0.0.1" in raw["head_start_ray_commands"][1]


@pytest.mark.parametrize("stage", range(4))
def test_deepspeed_takes_every_stage(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = json.loads((REPOSITORY / f"cluster/deepspeed/zero{stage}.json").read_text(encoding="utf-8"))
    assert config["zero_optimization"]["stage"] == stage
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = set(DeepSpeedZeroConfig.model_fields) | {f.alias for f in DeepSpeedZeroConfig.model_fields.values()}
    assert set(config["zero_optimization"]) <= known
    assert DeepSpeedZeroConfig(**config["zero_optimization"]).stage == stage
    assert not {"train_batch_size", "train_micro_batch_size_per_gpu", "bf16", "fp16"} & config.keys()


def test_default_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert paths.default_root() == REPOSITORY and not paths.inside_submitted_job()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert paths.default_root() == tmp_path / "ashnets"
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    upload = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    upload.mkdir(parents=True)
    (upload / "pyproject.toml").touch()
    monkeypatch.setattr(paths, "REPOSITORY", upload)
    assert paths.inside_submitted_job() and paths.default_root() == tmp_path / "ashnets"
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path / "site-packages")
    assert paths.default_root() == tmp_path / "ashnets"


def test_the_operators_environment_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    comm_op.set_environment()
    comm_op.set_environment()
    scripts = str(Path(sys.executable).parent)
    assert os.environ["PATH"] == f"{scripts}{os.pathsep}/usr/bin"
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(Path(sys.prefix) / "torch_extensions")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/elsewhere")
    comm_op.set_environment()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == "/elsewhere"


DRIVER = """
import sys
sys.path[0] = {repository!r}
import ray  # imported before we connect, as a library may do
from cluster.connection import connect
connect(cpus=1)
connect(cpus=1)

@ray.remote
def worker():
    import os, pipelines.config
    return pipelines.config.__file__, os.environ["RAY_AUTH_MODE"]

print(*ray.get(worker.remote()), sep="\\n")
import os, psutil
ours = {{os.getpid()}} | {{child.pid for child in psutil.Process().children(recursive=True)}}
listening = [c for c in psutil.net_connections("inet") if c.pid in ours and c.status == "LISTEN"]
addresses = {{c.laddr.ip.removeprefix("::ffff:") for c in listening}}
print(",".join(sorted(addresses)))
"""


def test_the_private_ray_is_private(tmp_path: Path) -> None:
    """It listens on loopback only, its workers import us from any folder, and the user's ~/.ray stays untouched."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("RAY_") and name != "PYTHONPATH"} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", DRIVER.format(repository=str(REPOSITORY))], cwd=tmp_path,
                          env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(REPOSITORY / "pipelines" / "config.py"), "disabled", "127.0.0.1"]
    assert not (tmp_path / ".ray").exists()
