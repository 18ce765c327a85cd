"""Training diagnostics with likely causes: losses stuck at chance level, NaN, zero gradients, unused parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from diptych.protocols import ChanceLoss
from diptych.utils.io import atomic_write

LEFT_CHANCE = 0.01  # a loss this share below its chance level is learning
NEAR_CHANCE = 0.02  # a loss within this share of its chance level is at chance
MIN_PATIENCE = 20  # steps before a loss at chance level may be reported as stuck
_WINDOW = 5  # rows that are averaged before a verdict
_OF_PARAMETERS = ("unused", "zero gradient")  # verdicts about parameters
_NAMED = 3  # parameters that one message names

Verdict = Literal["early", "stuck", "learning", "not finite", "unused", "zero gradient"]


@dataclass(frozen=True)
class Finding:
    """A verdict on a loss or a parameter."""

    step: int  # optimizer steps done
    subject: str  # the name of the loss or parameter
    verdict: Verdict
    message: str

    def __str__(self) -> str:
        return f"diagnostics, step {self.step}: {self.subject}: {self.message}"


class Diverged(Exception):
    """A loss or gradient is not finite: the run stops, and its last checkpoint is kept."""

    def __init__(self, finding: Finding):
        super().__init__(str(finding))
        self.finding = finding


@dataclass
class Diagnostics:
    """The findings of a run, from its logged rows and its gradients.

    `chance_losses`: the chance level of each loss, by name. `patience`: steps after which a loss at chance level is
    stuck rather than early.
    """

    chance_losses: Mapping[str, ChanceLoss]
    patience: int
    findings: list[Finding] = field(default_factory=list)
    _recent: dict[str, list[float]] = field(default_factory=dict)
    _state: dict[str, Verdict] = field(default_factory=dict)

    def read(self, rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
        """The findings from all rows of a metrics.jsonl."""
        new = [finding for row in rows for finding in self.watch(row)]
        self.findings.sort(key=lambda finding: finding.step)  # restored ones precede the row of their step
        return new

    def watch(self, row: Mapping[str, Any]) -> list[Finding]:
        """The findings from one more row: a loss is reported when its verdict changes, not at every row."""
        step, new = int(row["step"]), []
        for name, chance in self.chance_losses.items():
            if isinstance(value := row.get(name), (int, float)):
                recent = self._recent.setdefault(name, [])
                recent.append(value)
                del recent[:-_WINDOW]
                if (finding := self._verdict(step, name, chance, sum(recent) / len(recent))) is not None:
                    new.append(finding)
        self.findings += new
        return new

    def _verdict(self, step: int, name: str, chance: ChanceLoss, value: float) -> Finding | None:
        before = self._state.get(name)
        where = f"loss {value:.4f}, chance level {chance.value:.4f} ({chance.name})"
        if value < chance.value * (1 - LEFT_CHANCE):
            verdict, message = "learning", f"{where}: below chance level"
        elif step >= self.patience:
            verdict, message = "stuck", f"{where}: stuck; likely cause: {chance.usual_cause}"
        elif value <= chance.value * (1 + NEAR_CHANCE):
            verdict, message = "early", f"{where}: still at chance, early (reported as stuck at step {self.patience})"
        else:
            return None  # still above chance level
        if verdict == before:
            return None
        self._state[name] = verdict
        return Finding(step, name, verdict, message)

    def check_finite(self, step: int, losses: Mapping[str, float]) -> None:
        """Raises Diverged for the first loss that is not finite at step index `step`."""
        for name, value in losses.items():
            if not math.isfinite(value):
                raise Diverged(self.record_not_finite(step, name, value))

    def record_not_finite(self, step: int, subject: str, value: float) -> Finding:
        """Adds and returns the finding that a loss or gradient is NaN or infinite at step index `step`."""
        cause = (
            "likely cause: a learning rate too high or a warm-up too short; else a division by a count of zero, or bad "
            "inputs. The checkpoint before it is kept"
        )
        self.findings.append(Finding(step + 1, subject, "not finite", f"is {value}; {cause}"))
        return self.findings[-1]

    def check_gradients(self, step: int, module: nn.Module) -> None:
        """Adds a finding, once, for each trainable parameter whose gradient is missing or exactly zero."""
        known = {(f.subject, f.verdict) for f in self.findings}
        for name, p in module.named_parameters():
            if not p.requires_grad:
                continue
            if p.grad is None:
                verdict, message = "unused", "received no gradient; no loss depends on it: freeze it or leave it out"
            elif not p.grad.any():
                verdict, message = "zero gradient", "its gradient is exactly zero; likely cause: a zero weight after it"
            else:
                continue
            if (name, verdict) not in known:
                self.findings.append(Finding(step + 1, name, verdict, message))

    def parameter_findings(self) -> list[dict[str, Any]]:
        """The findings about gradients, for the checkpoint: they cannot be computed again from metrics.jsonl."""
        return [asdict(f) for f in self.findings if f.verdict in _OF_PARAMETERS]

    def restore(self, findings: Iterable[Mapping[str, Any]]) -> None:
        """Restores the `parameter_findings` of a checkpoint; `read` adds those about losses."""
        self.findings = [Finding(**f) for f in findings]

    def save(self, out: Path) -> None:
        """Writes ``out/diagnostics.json``: chance levels, patience and findings."""
        chance = {name: asdict(loss) for name, loss in self.chance_losses.items()}
        findings = [asdict(f) for f in merge_findings(self.findings)]
        with atomic_write(out / "diagnostics.json") as path:
            path.write_text(json.dumps({"patience": self.patience, "chance": chance, "findings": findings}, indent=1))


def merge_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, with one for all parameters that share verdict and step: their number and the first names."""
    groups: dict[tuple[int, str, str], list[Finding]] = {}
    for finding in findings:
        subject = "" if finding.verdict in _OF_PARAMETERS else finding.subject
        groups.setdefault((finding.step, finding.verdict, subject), []).append(finding)
    return [same[0] if len(same) == 1 else replace(same[0], subject=_names(same)) for same in groups.values()]


def _names(findings: list[Finding]) -> str:
    names = [finding.subject for finding in findings]
    more = ", …" if len(names) > _NAMED else ""
    return f"{len(names)} parameters ({', '.join(names[:_NAMED])}{more})"
