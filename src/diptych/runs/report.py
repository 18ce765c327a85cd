"""Report of a run: the sections of report.html, collected from the files of the run folder.

A report never ends the work that it is about: a section that cannot be made is left out, with one line on stderr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from diptych.config.run import Finetune
from diptych.config.serialization import flatten
from diptych.data.sources.base import first_skipped
from diptych.inference.saved_model import CONFIG_FILE, read_config
from diptych.metrics.bootstrap import interval
from diptych.models.configs import model_name
from diptych.report import Facts, Findings, Section, Table, read_curves, write_report
from diptych.runs.heat_maps import heat_maps
from diptych.runs.qualitative_examples import EXAMPLES_FILE, read_examples
from diptych.runs.run_folder import RUN, RUN_FILE, ancestors, read_run
from diptych.training.best import best_summary
from diptych.utils.io import FINDING_SCHEMA, NUMBER, SKIPPED_SCHEMA, read_json
from diptych.utils.terminal import echo

T = TypeVar("T")

debugging = ContextVar("debugging", default=False)
"""Whether an error while a report is made is raised (`--debug`) instead of printed in one line."""

SEVERITY_BY_VERDICT = {
    "early": "note",
    "learning": "note",
    "stuck": "warning",
    "unused": "warning",
    "zero gradient": "warning",
    "not finite": "error",
}

SCORES = {
    "description": str,
    "settings": {},
    "metrics": {str: (*NUMBER, type(None))},
    "intervals?": {str: [NUMBER]},
    "resampling?": str,
}
"""Shape of metrics.json of an evaluation: data and conditions in words, settings, scores (null: not finite).

And the ends of their confidence intervals, and how these were computed.
"""


def continue_on_error(what: str, make: Callable[[], T], otherwise: T) -> T:
    """The result of `make()`. If that fails, `otherwise`, after one line on stderr: what could not be made, and why."""
    try:
        return make()
    except Exception as error:
        if debugging.get():
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        echo(f"diptych: {what} could not be made ({why[:300]}); --debug shows where", error=True)
        return otherwise


def training_sections(out: Path) -> list[Section]:
    """Curves with their chance levels, and the findings of the training diagnostics. Empty without a log of training."""
    if not (out / "metrics.jsonl").is_file():
        return []
    facts = read_run(out)[1] if (out / RUN_FILE).is_file() else {}
    levels = {name: (level["value"], level["name"]) for name, level in facts.get("chance_losses", {}).items()}
    return [*read_curves(out / "metrics.jsonl", levels), Findings(findings(out))]


def findings(out: Path) -> list[tuple[str, str]]:
    """(severity, sentence) of each finding of the training diagnostics, and of the skipped samples if there are any."""
    rows: list[tuple[str, str]] = []
    if (out / "diagnostics.json").is_file():
        for finding in read_json(out / "diagnostics.json", {"findings": [FINDING_SCHEMA]})["findings"]:
            severity = SEVERITY_BY_VERDICT.get(finding["verdict"], "note")
            rows.append((severity, f"Step {finding['step']}, {finding['subject']}: {finding['message']}"))
    if sentence := best_summary(out):
        rows.append(("note", sentence))
    if sentence := skipped(out):
        rows.append(("warning", sentence))
    return rows


def skipped(out: Path) -> str:
    """One sentence on the skipped samples, with the first five different ones; "" if there are none."""
    samples = read_json(out / "skipped.json", SKIPPED_SCHEMA) if (out / "skipped.json").is_file() else []
    if not samples:
        return ""
    number = "1 sample was" if len(samples) == 1 else f"{len(samples)} samples were"
    first = first_skipped((sample["where"], sample["why"]) for sample in samples)
    return f"{number} skipped (skipped.json lists them): {first}"


def facts_section(out: Path) -> Facts:
    """Content of run.json as one flat table; of config.json, if the model was not trained there."""
    if not (out / RUN_FILE).is_file():
        return Facts(flatten(read_json(out / CONFIG_FILE, {})))
    record = read_json(out / RUN_FILE, RUN)
    return Facts(
        {
            "command": record["command"],
            "machine": record["machine"],
            **record["versions"],
            **flatten(record["run"]),
            **flatten(record["facts"]),
        }
    )


def evaluation_tables(out: Path) -> list[Section]:
    """One table of scores for each evaluation in the run folder; a control is a table beside the result."""
    tables: list[Section] = []
    for path in sorted(out.glob("evaluate-*/metrics.json")):
        tables += continue_on_error(f"the report's table of {path.parent.name}", lambda path=path: [_table(path)], [])
    return tables


def _table(path: Path) -> Table:
    scores = read_json(path, SCORES)
    return score_table(path.parent.name, scores)


def score_table(title: str, scores: Mapping[str, Any]) -> Table:
    """The table of the content of a metrics.json; with a column for the confidence intervals, if it has some."""
    ends, caption = scores.get("intervals", {}), scores["description"]
    rows: list[list[Any]] = [[name, value] for name, value in scores["metrics"].items()]
    if note := scores.get("resampling", ""):
        caption += f"; {note}"
    if not ends:
        return Table(title, ("metric", "value"), rows, caption)
    cells = [interval(tuple(ends[name])) if name in ends else "" for name, _ in rows]
    return Table(
        title, ("metric", "value", "95 % interval"), [[*row, x] for row, x in zip(rows, cells, strict=True)], caption
    )


def write(out: Path, model: nn.Module) -> Path | None:
    """Writes report.html: scores, examples, curves, findings, heat maps, facts. A section that fails is left out.

    Args:
        model: the trained model.

    Returns:
        Its path; None if the page itself could not be made, in which case an earlier page stays.
    """
    parts: dict[str, Callable[[], Iterable[Section]]] = {
        "scores": lambda: evaluation_tables(out),
        "examples": lambda: example_sections(out),
        "curves and findings": lambda: training_sections(out),
        "heat maps": lambda: heat_maps(read_run(out)[0], model) if (out / RUN_FILE).is_file() else [],
        "facts": lambda: [facts_section(out)],
    }
    sections = [
        section for name, part in parts.items() for section in continue_on_error(f"the report's {name}", part, ())
    ]
    return continue_on_error("report.html", lambda: write_report(out / "report.html", title(out), sections), None)


def title(out: Path) -> str:
    """Title of the report, for example "Fine-tuning for vqa (vilt.small) on scenes:2000, initialised from runs/pre"."""
    saved = read_config(out)
    if (imported := saved.imported) is not None:
        return f"{imported.checkpoint}, imported ({imported.system}, {imported.task})"
    if not (out / RUN_FILE).is_file():
        return f"{saved.recipe or model_name(saved.model)}, a saved model ({saved.task})"
    run, _ = read_run(out)
    task = f"Fine-tuning for {run.task}" if isinstance(run, Finetune) else "Pre-training"
    recipe = f" ({run.recipe})" if run.recipe else ""
    initial = f", initialised from {ancestors(run)}" if run.init_from else ""
    return f"{task}{recipe} on {run.data}{initial}"


def example_sections(out: Path) -> list[Section]:
    """Examples of all evaluations in the run folder, grouped by kind (answers, captions, retrieval)."""
    examples: list[Section] = []
    for path in sorted(out.glob(f"evaluate-*/{EXAMPLES_FILE}")):
        name = f"the report's examples of {path.parent.name}"
        examples += continue_on_error(name, lambda path=path: read_examples(path), [])
    return sorted(examples, key=lambda section: type(section).__name__)
