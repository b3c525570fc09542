"""Whether the models of a space can be built: what networks and weight files refuse, the configuration cannot know."""
from __future__ import annotations

import random

from pipelines.finding import Finding
from pipelines.training import preflight
from pipelines.tuning.space import Point, Space, identity

REFUSED_LATE = ("model.width", "model.backbone.", "model.concrete.", "model.text.", "model.fusion.")
"""Keys with values that only building the model refuses."""
DRAWS = 20
"""Points that are tried before a value counts as impossible; each costs as long as building a model."""


class Models:
    """Builds the model of each point once, where the space holds a key that asks for it."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._keys = [key for key in space.domains if key.startswith(REFUSED_LATE)]
        self._known: dict[str, str] = {}

    def refusal(self, point: Point) -> str:
        """Why the model of a point, which is a configuration, cannot be built; empty where it can."""
        if not self._keys:
            return ""
        name = identity({key: point[key] for key in self._keys})
        if name not in self._known:
            found, _ = preflight.model(self._space.configure(point))
            self._known[name] = "" if found.ok else found.finding
        return self._known[name]

    def impossible(self) -> list[Finding]:
        """The values with which no model can be built."""
        rng = random.Random(0)
        values = [(key, value) for key in self._keys for value in self._space.domains[key].values]
        return [Finding("model", False, f"tune.space.{key}: no model has the value {value!r}: {why}")
                for key, value in values if (why := self._why_never(key, value, rng))]

    def _why_never(self, key: str, value: object, rng: random.Random) -> str:
        """The last refusal of models with this value; empty where one of them can be built."""
        why = ""
        for _ in range(DRAWS):
            point = {**self._space.draw(rng), key: value}
            why = self._space.refusal(point) or self.refusal(point)
            if not why:
                return ""
        return why
