"""The lock: everything hashed, no host named, and the versions that must go together."""
from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
LOCK = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def locked() -> dict[str, str]:
    """Version of each locked package."""
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ \\]+)", LOCK, flags=re.MULTILINE))


def test_every_package_is_pinned_and_hashed() -> None:
    entries = re.split(r"\n(?=\S)", LOCK.strip())
    assert len(entries) == len(locked())
    for entry in entries:
        assert re.match(r"^[a-z0-9.-]+==\S+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\\n)?)+$", entry), entry[:80]


def test_the_lock_names_no_host() -> None:
    assert not re.search(r"://|--index|--find-links|--trusted|^#", LOCK, flags=re.MULTILINE)


def test_the_lock_fits_the_metadata() -> None:
    extras = [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        version = locked().get(canonicalize_name(requirement.name))
        assert version is not None, f"{text} is not locked: make the lock anew (CONTRIBUTING.md)"
        assert requirement.specifier.contains(version), f"{text}, but the lock has {version}"


def test_torch_stays_where_torchaudio_is() -> None:
    releases = {name: version.rsplit(".", 1)[0] for name, version in locked().items()}
    assert (releases["torch"], releases["torchaudio"], releases["torchvision"]) == ("2.11", "2.11", "0.26")
    from transformers import BertModel  # fails beside a torch that torchaudio does not fit

    assert BertModel.__name__ == "BertModel"


def test_the_sync_keeps_its_own_tools() -> None:
    assert {"uv", "pip", "setuptools"} <= locked().keys()
