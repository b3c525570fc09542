"""Steps to a target: at which validation a held-out recall first passed given thresholds."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

MEASURES = {
    "retrieval/i2t_r5": "image to text",
    "retrieval/t2i_r5": "text to image",
    "retrieval_unseen/i2t_r5": "unseen things, image to text",
    "retrieval_unseen/t2i_r5": "unseen things, text to image",
}
"""The metric keys that targets are set for, in words."""


def steps_to_target(lines: Iterable[dict[str, Any]], targets: Sequence[float]) -> dict[str, dict[str, int | None]]:
    """For each measure that the lines of metrics.jsonl hold: target -> the first step whose value is at least it.

    None where no validation passed it. Without a validation or a target the mapping is empty.
    """
    found: dict[str, dict[str, int | None]] = {}
    for line in sorted(lines, key=lambda line: int(line["step"])):
        for key in MEASURES:
            if targets and key in line:
                steps = found.setdefault(key, {f"{target:g}": None for target in targets})
                for target in targets:
                    if line[key] >= target and steps[f"{target:g}"] is None:
                        steps[f"{target:g}"] = int(line["step"])
    return {key: found[key] for key in MEASURES if key in found}
