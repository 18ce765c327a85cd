"""The loss doctor: names a loss that sits on its trivial floor, a NaN, a dead gradient, an unused parameter; and why."""

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

LEFT_CHANCE = 0.01  # a loss this share below its floor has left it
NEAR = 0.02  # a loss within this share of its floor is on it
_WINDOW = 5  # rows averaged before judging
_OF_PARAMETERS = ("unused", "zero gradient")  # verdicts
_NAMED = 3  # of the parameters that one line is about

Verdict = Literal["early", "stuck", "learning", "not finite", "unused", "zero gradient"]


@dataclass(frozen=True)
class Finding:
    """One thing the doctor noticed."""

    step: int  # optimizer steps done
    subject: str  # a loss, a parameter
    verdict: Verdict
    message: str

    def __str__(self) -> str:
        return f"doctor, step {self.step}: {self.subject}: {self.message}"


class Diverged(Exception):
    """A loss or gradient is not finite: the run stops, and its last checkpoint stays."""

    def __init__(self, finding: Finding):
        super().__init__(str(finding))
        self.finding = finding


@dataclass
class Diagnostics:
    """Watches a run. `patience`: steps after which a loss on its floor is called stuck rather than early."""

    chance_losses: Mapping[str, ChanceLoss]
    patience: int
    findings: list[Finding] = field(default_factory=list)
    _recent: dict[str, list[float]] = field(default_factory=dict)
    _state: dict[str, Verdict] = field(default_factory=dict)

    def read(self, rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
        """All that can be said of a run from the rows of its metrics.jsonl."""
        found = [finding for row in rows for finding in self.watch(row)]
        self.findings.sort(key=lambda finding: finding.step)  # those restored were made before their step's row
        return found

    def watch(self, row: Mapping[str, Any]) -> list[Finding]:
        """What a new row adds: each loss is reported when its state changes, not at every row."""
        step, new = int(row["step"]), []
        for name, floor in self.chance_losses.items():
            if isinstance(value := row.get(name), (int, float)):
                recent = self._recent.setdefault(name, [])
                recent.append(value)
                del recent[:-_WINDOW]
                if (found := self._judge(step, name, floor, sum(recent) / len(recent))) is not None:
                    new.append(found)
        self.findings += new
        return new

    def _judge(self, step: int, name: str, floor: ChanceLoss, value: float) -> Finding | None:
        before = self._state.get(name)
        where = f"{value:.4f} against {floor.value:.4f}, the {floor.name}"
        if value < floor.value * (1 - LEFT_CHANCE):
            verdict, message = "learning", f"{where}: below its floor"
        elif step >= self.patience:
            verdict, message = "stuck", f"{where}: stuck; likely cause: {floor.usual_cause}"
        elif value <= floor.value * (1 + NEAR):
            verdict, message = "early", f"{where}: on its floor, still early (stuck if so at step {self.patience})"
        else:
            return None  # above its floor and falling, or about to
        if verdict == before:
            return None
        self._state[name] = verdict
        return Finding(step, name, verdict, message)

    def finite(self, step: int, losses: Mapping[str, float]) -> None:
        """Raises Diverged for the first loss that is not finite at step index `step`."""
        for name, value in losses.items():
            if not math.isfinite(value):
                raise Diverged(self.not_finite(step, name, value))

    def not_finite(self, step: int, subject: str, value: float) -> Finding:
        cause = (
            "likely cause: a learning rate too high or a warm-up too short; else a division by a count of zero, or bad "
            "inputs. The checkpoint before it is kept"
        )
        self.findings.append(Finding(step + 1, subject, "not finite", f"is {value}; {cause}"))
        return self.findings[-1]

    def gradients(self, step: int, module: nn.Module) -> None:
        """Names each trainable parameter without a gradient, or with one of exactly zero, once."""
        known = {(f.subject, f.verdict) for f in self.findings}
        for name, p in module.named_parameters():
            if not p.requires_grad:
                continue
            if p.grad is None:
                verdict, message = "unused", "got no gradient; no loss reads it: freeze it or leave it out"
            elif not p.grad.any():
                verdict, message = "zero gradient", "its gradient is exactly zero; likely cause: a zero weight after it"
            else:
                continue
            if (name, verdict) not in known:
                self.findings.append(Finding(step + 1, name, verdict, message))

    def held(self) -> list[dict[str, Any]]:
        """The findings that a checkpoint keeps: those on gradients, which no row of metrics.jsonl tells."""
        return [asdict(f) for f in self.findings if f.verdict in _OF_PARAMETERS]

    def restore(self, held: Iterable[Mapping[str, Any]]) -> None:
        """Takes over what `held` gave; `read` adds the rest."""
        self.findings = [Finding(**f) for f in held]

    def save(self, out: Path) -> None:
        """Writes ``out/doctor.json``: floors, patience and findings."""
        floors = {name: asdict(floor) for name, floor in self.chance_losses.items()}
        held = {"patience": self.patience, "floors": floors, "findings": [asdict(f) for f in merged(self.findings)]}
        with atomic_write(out / "doctor.json") as path:
            path.write_text(json.dumps(held, indent=1))


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """What is said of many parameters for one cause in one line: how many they are, and the first of them."""
    alike: dict[tuple[int, str, str], list[Finding]] = {}
    for finding in findings:
        subject = "" if finding.verdict in _OF_PARAMETERS else finding.subject
        alike.setdefault((finding.step, finding.verdict, subject), []).append(finding)
    return [same[0] if len(same) == 1 else replace(same[0], subject=_together(same)) for same in alike.values()]


def _together(findings: list[Finding]) -> str:
    names = [finding.subject for finding in findings]
    more = ", …" if len(names) > _NAMED else ""
    return f"{len(names)} parameters ({', '.join(names[:_NAMED])}{more})"
