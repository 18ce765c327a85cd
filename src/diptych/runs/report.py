"""What a run's report shows. No failure in making it ends the work that it reports on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from diptych.config.run import Finetune, Pretrain
from diptych.protocols import ChanceLoss
from diptych.report import Facts, Findings, Section, Table, read_curves, write_report
from diptych.runs.heat_maps import heat_maps
from diptych.runs.qualitative_examples import SHOWN_FILE, read_shown
from diptych.runs.run_folder import RUN, ancestors
from diptych.utils.io import FINDING, NUMBER, SKIPPED, read_json
from diptych.utils.terminal import echo

T = TypeVar("T")

debugging = ContextVar("debugging", default=False)
"""Whether a failure in making a report is raised (--debug), where it is otherwise one printed line."""

SEVERITY = {
    "early": "note",
    "learning": "note",
    "stuck": "warning",
    "unused": "warning",
    "zero gradient": "warning",
    "not finite": "error",
}

SCORES = {"what": str, "asked": {}, "metrics": {str: (*NUMBER, type(None))}}
"""What an evaluation's metrics.json holds."""


def report_errors(what: str, make: Callable[[], T], otherwise: T) -> T:
    """What `make` returns. Where it fails: `otherwise`, after one line on stderr that names what is missing and why."""
    try:
        return make()
    except Exception as error:
        if debugging.get():
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        echo(f"diptych: {what} could not be made ({why[:300]}); --debug shows where", error=True)
        return otherwise


def training_sections(out: Path, floors: Mapping[str, ChanceLoss]) -> list[Section]:
    """Curves with their floors, and what the loss doctor found."""
    named = {name: (floor.value, floor.name) for name, floor in floors.items()}
    if not (out / "metrics.jsonl").is_file():  # imported weights were not trained here
        return []
    return [*read_curves(out / "metrics.jsonl", named), Findings(findings(out))]


def findings(out: Path) -> list[tuple[str, str]]:
    """The doctor's sentences, and the samples that were skipped."""
    told: list[tuple[str, str]] = []
    if (out / "doctor.json").is_file():
        for finding in read_json(out / "doctor.json", {"findings": [FINDING]})["findings"]:
            told.append(
                (
                    SEVERITY.get(finding["verdict"], "note"),
                    f"Step {finding['step']}, {finding['subject']}: {finding['message']}",
                )
            )
    if said := skipped(out):
        told.append(("warning", said))
    return told


def skipped(out: Path) -> str:
    """A sentence on the samples that were skipped; "" where none was."""
    listed = read_json(out / "skipped.json", SKIPPED) if (out / "skipped.json").is_file() else []
    head = "; ".join(f"{s['where']}: {s['why']}" for s in listed[:5])
    return f"{len(listed)} samples were skipped (skipped.json lists them): {head}" if listed else ""


def facts_section(out: Path) -> Facts:
    """run.json, flat."""
    told = read_json(out / "run.json", RUN)
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
        tables += report_errors(f"the report's table of {path.parent.name}", lambda path=path: [_table(path)], [])
    return tables


def _table(path: Path) -> Table:
    told = read_json(path, SCORES)
    rows = [[name, value] for name, value in told["metrics"].items()]
    return Table(path.parent.name, ("measure", "value"), rows, told["what"])


def write(out: Path, run: Pretrain | Finetune, module: nn.Module) -> Path | None:
    """report.html: scores, examples, curves, findings, heat maps, facts. A part that fails is left out; None where the page itself
    could not be made, and the former one stays.
    """
    floors = getattr(module, "chance_losses", {})
    parts: dict[str, Callable[[], Iterable[Section]]] = {
        "scores": lambda: evaluation_tables(out),
        "examples": lambda: kept_examples(out),
        "curves and findings": lambda: training_sections(out, floors),
        "heat maps": lambda: heat_maps(run, module),
        "facts": lambda: [facts_section(out)],
    }
    sections = [section for name, part in parts.items() for section in report_errors(f"the report's {name}", part, ())]
    return report_errors("report.html", lambda: write_report(out / "report.html", title(run), sections), None)


def title(run: Pretrain | Finetune) -> str:
    """What the run is, in a line."""
    task = run.task if isinstance(run, Finetune) else "pre-training"
    return (
        f"{task} on {run.data}"
        + (f", {run.recipe}" if run.recipe else "")
        + (f", from {ancestors(run)}" if run.init_from else "")
    )


def kept_examples(out: Path) -> list[Section]:
    """What the evaluations in this folder had to show, pictures beside pictures and answers beside answers."""
    found: list[Section] = []
    for path in sorted(out.glob(f"evaluate-*/{SHOWN_FILE}")):
        found += report_errors(f"the report's examples of {path.parent.name}", lambda path=path: read_shown(path), [])
    return sorted(found, key=lambda section: type(section).__name__)
