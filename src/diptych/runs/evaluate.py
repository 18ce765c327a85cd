"""Evaluation of a run on a task: metrics.json, predictions.jsonl, and examples for the report."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import diptych
from diptych.config.tasks import EVALUATIONS, Evaluation
from diptych.data.sources.splits import requested_split
from diptych.inference.loaded_model import LoadedModel, model_digest
from diptych.inference.saved_model import RunError, read_config
from diptych.metrics.bootstrap import Scores
from diptych.objectives.gather import without_gathering
from diptych.runs import report
from diptych.runs.check_inputs import data_of, layout_of, needed_data
from diptych.runs.load_model import load_model
from diptych.runs.matching import matching
from diptych.runs.qualitative_examples import write_examples
from diptych.tasks.definition import Result, tasks
from diptych.tasks.operations import settings_without_effect
from diptych.tasks.session import session
from diptych.training.distributed import Group, processes, uses_bf16
from diptych.utils.feature_cache import digest
from diptych.utils.io import atomic_write
from diptych.utils.lock import locked
from diptych.utils.terminal import echo


def evaluate(folder: Path, settings: Evaluation, explicit: Collection[str] = ()) -> Scores:
    """Metrics of the run in `folder` on one task, with their confidence intervals.

    Under torchrun the ranks share the work, the main one writes and prints, and all return the same metrics. If it is
    interrupted, the same call continues (see `tasks.session`).

    Writes a folder ``evaluate-…`` in it, then the run's report again. A report that fails is one printed line.

    Args:
        explicit: names of the settings that a person gave. For each that has no effect on this model a line is printed.

    Raises:
        DataError, RunError: the data or the run cannot be evaluated with these settings.
        InUse: another process writes the same evaluation.
        WriteError: a file cannot be written.
    """
    settings = complete(settings, folder)
    out = folder / name_of(settings, data_of(folder))
    with processes(settings.device) as group, printing(group.main):
        loaded = load_model(folder, group.device)
        for name, why in settings_without_effect(loaded, settings).items():
            if name in explicit:
                echo(f"{name} has no effect: {why}")
        with locked(out) if group.main else nullcontext():
            result = compute(loaded, settings, group, out)
        if group.main:
            report.write(folder, loaded.model)
        group.wait()  # when the call returns on any rank, the files are written
    return result.scores


def compute(loaded: LoadedModel, settings: Evaluation, group: Group, out: Path) -> Result:
    """The result of an evaluation, by all ranks; the main one writes it into the folder `out`. Raises as `evaluate`."""
    bf16 = uses_bf16(loaded.device, settings.precision, loaded.module)

    def identity() -> dict[str, Any]:
        """What the rows of an interrupted evaluation depend on."""
        speed = {"workers", "max_skipped"}
        values = {name: value for name, value in recorded(settings).items() if name not in speed}
        device = {"device": loaded.device.type, "precision": "bf16" if bf16 else "fp32"}
        return values | device | {"model": model_digest(loaded), "version": diptych.__version__}

    with session(group, out, identity) as parts:
        with loaded.computing(bf16), without_gathering():
            result = evaluators()[settings.task](loaded, settings)
        if group.main:
            write(out, settings, result)
            parts.remove()
    return result


@contextmanager
def printing(when: bool) -> Iterator[None]:
    """Context in which standard output is shown only `when` it is that of the main rank."""
    with open(os.devnull, "w") as nothing, nullcontext() if when else redirect_stdout(nothing):
        yield


def evaluators() -> dict[str, Callable[[LoadedModel, Any], Result]]:
    """The evaluation of each task, and that of a pre-training run's own losses."""
    return {name: task.evaluate for name, task in tasks().items()} | {"matching": matching}


def complete(settings: Evaluation, folder: Path) -> Evaluation:
    """Settings with empty fields filled in from the run in `folder`: its data, and what a baseline was trained without.

    The split has the name that it has in the data. Raises RunError for settings that are not of a task.
    """
    if settings.task not in EVALUATIONS:
        names = ", ".join(evaluation.__name__ for evaluation in EVALUATIONS.values())
        raise RunError(f"an evaluation is of one task: give one of {names}, not {type(settings).__name__}")
    if not settings.data:
        settings = replace(settings, data=needed_data(folder), **layout_of(folder, settings))
    options = read_config(folder).options
    settings = settings if options is None else settings.of_run(options)
    return replace(settings, split=requested_split(settings.split, settings.data, settings.splits))


def name_of(settings: Evaluation, run_data: str) -> str:
    """Folder name of an evaluation, different for all settings that can change a score.

    So the report shows each of them. Not part of the name: `device`, `workers` and `max_skipped`.

    Args:
        run_data: data of the run. Other data adds a digest of its path, as two folders may have the same last name.
    """
    name = short_name(settings)
    if settings.data.partition(":")[0] != "scenes":
        path = Path(settings.data).resolve()
        name += f"-{digest(str(path)).hex()[:8]}" if path != Path(run_data).resolve() else ""
    name += f"-seed{settings.seed}" if settings.seed != Evaluation.seed else ""
    return name + (f"-{settings.precision}" if settings.precision != Evaluation.precision else "")


def short_name(settings: Evaluation) -> str:
    """First part of the folder name: task, data, split and the task's options that differ from their defaults."""
    data = re.sub(r"[^\w-]+", "_", Path(settings.data).resolve().stem).strip("_")
    parts = ["evaluate", settings.task, data, settings.split]
    shared = {field.name for field in fields(Evaluation)}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name not in shared and value != field.default:
            parts.append(field.name if value is True else f"{field.name}_{value}")
    return "-".join(parts)


def recorded(settings: Evaluation) -> dict[str, Any]:
    """The settings as metrics.json has them, with the name of the task."""
    return {"task": settings.task, **asdict(settings)}


def write(out: Path, settings: Evaluation, result: Result) -> None:
    """Writes predictions.jsonl, skipped.json, files of the task and metrics.json; then examples.json for the report."""
    out.mkdir(exist_ok=True)
    description = f"{settings.data}, split {settings.split}"
    description += f", {settings.condition}" if settings.condition else ""
    metrics = {name: value if math.isfinite(value) else None for name, value in result.metrics.items()}
    files = {"skipped.json": [asdict(sample) for sample in result.skipped], **result.files}
    files["metrics.json"] = {"description": description, "settings": recorded(settings), "metrics": metrics}
    if result.resampled is not None:
        files["metrics.json"] |= {"intervals": result.scores.intervals, "resampling": result.scores.resampling}
    rows = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in result.predictions)
    with atomic_write(out / "predictions.jsonl") as path:
        path.write_text(rows, encoding="utf-8", errors="backslashreplace")  # a lone surrogate becomes JSON's own escape
    for name, content in files.items():
        with atomic_write(out / name) as path:
            path.write_text(json.dumps(content, indent=1, allow_nan=False))
    report.continue_on_error("the report's examples", lambda: write_examples(out, result.make_examples()), None)
