"""Parity with the official code: a golden folder is recomputed and compared tensor by tensor, in both layouts.

The rule: |a − b| ≤ 1e-5 · max|b| + 1e-6 for every element, 1e-4 for gradients; values ≤ −100 are fill values, which
must be equal exactly and are excluded from max|b|; integers must be equal. In the padded layout every element is
compared, padding included; in the packed layout, real positions only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.models.importing import OfficialCheckpoint
from diptych.modules.tokens import packing
from tests.parity.golden_case import Case, Golden, Recomputation, Recomputed, Table, read_golden
from tests.parity.recompute import RECOMPUTATIONS

LAYOUTS = ("padded", "packed")
RELATIVE, RELATIVE_GRADIENT, ABSOLUTE = 1e-5, 1e-4, 1e-6
FILL = -100.0
GRADIENT = "grad."
RULE = {"relative": RELATIVE, "gradients": RELATIVE_GRADIENT, "absolute": ABSOLUTE, "fill": FILL}


@dataclass(frozen=True)
class Row:
    """The comparison of one tensor in one layout. `error`: the largest |a − b|, None if nothing could be compared."""

    tensor: str
    layout: str
    error: float | None
    tolerance: float | None
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The comparison of a golden folder: a row for every tensor in each layout."""

    system: str
    task: str
    source: str  # the official code, as the golden names it
    hashes: dict[str, str]
    rows: list[Row]

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)


def parity(folder: Path) -> Report:
    """Recomputes and compares every out.* tensor of a golden folder. Raises WeightsError if it cannot be read."""
    golden = read_golden(folder)
    rows = [
        compare(name, layout, expected, recomputed[name])
        for layout in LAYOUTS
        for recomputed in [recompute(golden, layout)]
        for name, expected in golden.expected.items()
    ]
    imported = golden.imported
    return Report(imported.system, imported.task, str(golden.config.get("source", "unknown")), golden.hashes, rows)


def recompute(golden: Golden, layout: str) -> dict[str, Recomputed | str]:
    """Every expected tensor as our code computes it, or the reason why it cannot."""
    step = golden.step().eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in golden.expected.items()}
    with packing(layout == "packed"):
        try:
            recomputation: Recomputation = RECOMPUTATIONS[golden.imported.system](
                Case(step, golden.config, golden.inputs, shapes, golden.meanings)
            )
        except LookupError as error:
            return dict.fromkeys(golden.expected, f"cannot be recomputed: {error}")
        source = _Source(golden.imported, step, recomputation)
        return {name: source.compute(name) for name in golden.expected}


@dataclass
class _Source:
    """Recomputed tensors: from the system's table, or gradients of its training loss."""

    imported: OfficialCheckpoint
    step: nn.Module
    recomputation: Recomputation

    def compute(self, name: str) -> Recomputed | str:
        try:
            if not name.startswith(GRADIENT):
                if name not in self.table:
                    raise LookupError("it is not in the system's table")
                return self.table[name]()
            if (weight := name.removeprefix(GRADIENT)) not in self.gradients:
                return f"cannot be recomputed: the loss has no gradient with respect to {weight}"
            return Recomputed(self.gradients[weight])
        except Exception as error:  # the folder is untrusted: inconsistent content is a failed row
            return f"cannot be recomputed: {type(error).__name__}: {error}".split("\n")[0]

    @cached_property
    def table(self) -> Table:
        return self.recomputation.table()

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the training loss by official name."""
        self.recomputation.total().backward()
        ours = {name: p.grad for name, p in self.step.named_parameters() if p.grad is not None}
        return self.imported.names.to_official(ours)


def compare(name: str, layout: str, expected: Tensor, recomputed: Recomputed | str) -> Row:
    """The comparison of one tensor by the rule above; a string is the reason why it could not be recomputed."""

    def failed(note: str) -> Row:
        return Row(name, layout, None, None, False, note)

    if isinstance(recomputed, str):
        return failed(recomputed)
    ours = recomputed.value.detach()
    if ours.shape != expected.shape or ours.dtype != expected.dtype:
        return failed(f"{_kind(ours)} was recomputed, {_kind(expected)} expected")
    if layout == "packed" and recomputed.mask is not None:
        ours, expected = ours[recomputed.mask], expected[recomputed.mask]
    if not expected.is_floating_point():
        wrong = int((ours != expected).sum())
        return Row(name, layout, float(wrong), 0.0, wrong == 0, f"{wrong} integers differ" if wrong else "")
    ours, expected = ours.double(), expected.double()
    gradient = name.startswith(GRADIENT)
    fill = torch.zeros_like(expected, dtype=torch.bool) if gradient else (expected <= FILL) | (ours <= FILL)
    if not torch.equal(ours[fill], expected[fill]):
        return failed("fill values differ")
    ours, expected = ours[~fill], expected[~fill]
    if not (ours.isfinite().all() and expected.isfinite().all()):
        return failed("not finite")
    if not len(expected):
        return Row(name, layout, 0.0, 0.0, True, "only fills")
    error = (ours - expected).abs().max().item()
    relative = RELATIVE_GRADIENT if gradient else RELATIVE
    tolerance = relative * expected.abs().max().item() + ABSOLUTE
    return Row(name, layout, error, tolerance, error <= tolerance)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
