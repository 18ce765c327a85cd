"""The best weights of a run by a validation metric, and the end of a run whose metric no longer improves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.utils.io import atomic_write, read_json

BEST_FILE = "best.json"
_NUMBER_OR_NONE = (int, float, type(None))
BEST_STATE = {
    "metric": str,
    "step": int,
    "value": _NUMBER_OR_NONE,
    "last_step": int,
    "last_value": _NUMBER_OR_NONE,
    "without_improvement": int,
}
"""The shape of `BestWeights.state`, in the training state and in best.json."""
SCORES = ("accuracy", "agreement", "score")


def is_minimized(metric: str, losses: Iterable[str]) -> bool:
    """Whether a lower value of a metric is better: true of losses, false of those that end in SCORES.

    Raises ValueError for other metrics, such as the parts of a loss, which have no better direction.
    """
    if metric in losses:
        return True
    if metric.rpartition("/")[2] in SCORES:
        return False
    raise ValueError(
        f"keep_best: expected a loss ({', '.join(losses)}) or a metric whose name ends in /{' or /'.join(SCORES)}, "
        f"got {metric!r:.60}"
    )


@dataclass
class BestWeights:
    """The weights with the best value of a validation metric so far, and the values that they are compared by.

    `stop_after`: validations without a better value after which the run ends; 0: never. `weights` are on the CPU, and
    on rank 0 only. A value that is not finite is never better.
    """

    metric: str
    minimized: bool
    stop_after: int = 0
    step: int = 0  # optimizer steps done at the best value
    value: float | None = None
    last_step: int = 0
    last_value: float | None = None
    without_improvement: int = 0  # validations since the best
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def exhausted(self) -> bool:
        """Whether the run ends because its last `stop_after` validations were no better."""
        return 0 < self.stop_after <= self.without_improvement

    def update(self, row: Mapping[str, Any], weights: Callable[[], dict[str, Tensor]]) -> None:
        """Compares a validation ("step" and metrics by "val/NAME") with the best, and keeps `weights()` of a better one.

        Every rank must call it: gathering weights takes all. Raises ValueError if the row lacks the metric.
        """
        if f"val/{self.metric}" not in row:
            present = ", ".join(name.removeprefix("val/") for name in row if name != "step")
            raise ValueError(f"keep_best: the validation has no metric {self.metric!r:.60}; it has {present}")
        value = row[f"val/{self.metric}"]
        self.last_step, self.last_value = row["step"], value if value is not None and math.isfinite(value) else None
        if self._is_better(self.last_value):
            self.step, self.value, self.without_improvement = self.last_step, self.last_value, 0
            self.weights = {name: tensor.clone() for name, tensor in weights().items()}
        else:
            self.without_improvement += 1

    def _is_better(self, value: float | None) -> bool:
        if value is None or self.value is None:
            return value is not None
        return value < self.value if self.minimized else value > self.value

    def state(self) -> dict[str, Any]:
        """The values, for the training state."""
        return {name: getattr(self, name) for name in BEST_STATE}

    def restore(self, state: Mapping[str, Any], weights: dict[str, Tensor]) -> None:
        """Continues from the values and weights of a checkpoint."""
        for name in BEST_STATE:
            setattr(self, name, state[name])
        self.weights = weights

    def save(self, out: Path) -> None:
        """Writes ``out/best.json``."""
        with atomic_write(out / BEST_FILE) as path:
            path.write_text(json.dumps(self.state() | {"stopped_early": self.exhausted}, indent=1))


def best_summary(out: Path) -> str:
    """One sentence on the best and the last validation of the run in `out`; "" if it saves its last weights."""
    if not (out / BEST_FILE).is_file():
        return ""
    best = read_json(out / BEST_FILE, BEST_STATE | {"stopped_early": bool})
    if best["value"] is None:
        return f"no validation of {best['metric']} was finite: the weights are the last"
    last = "not finite" if best["last_value"] is None else f"{best['last_value']:.4g}"
    text = (
        f"the saved weights are those of step {best['step']}, the best by {best['metric']} on val, {best['value']:.4g}; "
        f"last, at step {best['last_step']}: {last}"
    )
    if best["stopped_early"]:
        text += f"; stopped early, after {best['without_improvement']} validations without a better value"
    return text
