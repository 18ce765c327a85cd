"""What a run's report shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from diptych.data.examples import PairExamples
from diptych.jobs.explain import word_patch_maps
from diptych.report import Facts, Findings, Section, Table, curves, write_report
from diptych.step import Floor

MAPS = 6  # pictures with heat maps in a report
SEVERITY = {
    "early": "note",
    "learning": "note",
    "stuck": "warning",
    "unused": "warning",
    "zero gradient": "warning",
    "not finite": "error",
}
SHOWN = ("itm", "mlm", "wpa", "grid", "classes", "vqa", "retrieval", "learning_rate", "grad_norm", "samples_per_second")


def training_sections(out: Path, floors: Mapping[str, Floor]) -> list[Section]:
    """Curves with their floors, and what the loss doctor found."""
    named = {name: (floor.value, floor.name) for name, floor in floors.items()}
    shown = [c for c in curves(out / "metrics.jsonl", named) if _shown(c.name)]
    return [*shown, Findings(findings(out))]


def _shown(name: str) -> bool:
    return name.removeprefix("val/").split("/")[0] in SHOWN


def findings(out: Path) -> list[tuple[str, str]]:
    """The doctor's sentences, and the samples that were skipped."""
    told: list[tuple[str, str]] = []
    if (out / "doctor.json").is_file():
        for finding in json.loads((out / "doctor.json").read_text())["findings"]:
            told.append(
                (SEVERITY[finding["verdict"]], f"Step {finding['step']}, {finding['subject']}: {finding['message']}")
            )
    if (out / "skipped.json").is_file():
        skipped = json.loads((out / "skipped.json").read_text())
        if skipped:
            head = "; ".join(f"{s['where']}: {s['why']}" for s in skipped[:5])
            told.append(("warning", f"{len(skipped)} samples were skipped (skipped.json lists them): {head}"))
    return told


def facts_section(out: Path) -> Facts:
    """run.json, flat."""
    told = json.loads((out / "run.json").read_text())
    return Facts(
        {
            "command": told["command"],
            "machine": told["machine"],
            **told["versions"],
            **_flat(told["run"]),
            **told["facts"],
        }
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def evaluation_tables(out: Path) -> list[Section]:
    """One table for each task evaluated in this folder, the control beside the result."""
    tables: list[Section] = []
    for path in sorted(out.glob("evaluate-*/metrics.json")):
        told = json.loads(path.read_text())
        rows = [[name, value] for name, value in told["metrics"].items()]
        tables.append(Table(path.parent.name, ("measure", "value"), rows, told["what"]))
    return tables


def write(
    out: Path, title: str, module: nn.Module, floors: Mapping[str, Floor], pairs: PairExamples | None,
    examples: Sequence[Section] = (),
) -> Path:  # fmt: skip
    """report.html: tables, curves, findings, examples, heat maps, facts."""
    sections: list[Section] = [*evaluation_tables(out), *training_sections(out, floors), *examples]
    if pairs is not None:
        module.eval()
        spread = [len(pairs) * i // MAPS for i in range(MAPS)]
        sections += word_patch_maps(module.model, pairs, spread)  # type: ignore[arg-type]
    return write_report(out / "report.html", title, [*sections, facts_section(out)])
