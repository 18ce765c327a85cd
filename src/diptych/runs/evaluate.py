"""Scoring a run on a task: metrics.json, per-sample predictions, and pictures of what was right and wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diptych.config.run import Evaluation, Finetune, Pretrain
from diptych.data.sources.splits import asked_split
from diptych.data.sources.vqa import OWN
from diptych.modules.tokens import packing
from diptych.runs import build as building
from diptych.runs import finetune, report
from diptych.runs.feature_extractors import check_given
from diptych.runs.fitting import check_model, check_module
from diptych.runs.qualitative_examples import write_shown
from diptych.runs.run_folder import RunError, load_run, read_run
from diptych.runs.scoring.base import EvaluatedModel, Result
from diptych.runs.scoring.captioning import captioning
from diptych.runs.scoring.classification import classification
from diptych.runs.scoring.matching import matching
from diptych.runs.scoring.retrieval import retrieval
from diptych.runs.scoring.vqa import vqa
from diptych.training.distributed import pick_device, takes_bf16
from diptych.utils.cache import digest
from diptych.utils.io import atomic_write
from diptych.utils.lock import locked

SCORERS: dict[str, Callable[[EvaluatedModel], Result]] = {
    "retrieval": retrieval, "captioning": captioning, "vqa": vqa, "matching": matching,
    "classification": classification,
}  # fmt: skip


def evaluate(folder: Path, asked: Evaluation) -> dict[str, float]:
    """Scores the run in `folder`; writes an ``evaluate-…/`` folder in it, and then its report anew, whose failure is one printed
    line. Raises DataError, RunError, InUse, NotWritten.
    """
    run, facts = read_run(folder)
    asked = complete(asked, run)
    device = pick_device(asked.device)
    module = restored(folder, run, facts).to(device).eval()
    bf16, out = takes_bf16(device, asked.precision), folder / name_of(asked, run.data)
    with locked(out):
        with torch.no_grad(), packing(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            scored = SCORERS[asked.task](EvaluatedModel(run, facts, module, asked, device))
        write(out, asked, scored)
    report.write(folder, run, module)
    return scored.metrics


def complete(asked: Evaluation, run: Pretrain | Finetune) -> Evaluation:
    """What was left open, from the run: its own task and data. Raises RunError."""
    own = run.task if isinstance(run, Finetune) else "matching"
    asked = replace(asked, task=asked.task or own, data=asked.data or run.data)
    asked = replace(asked, split=asked_split(asked.split, asked.data, OWN if asked.task == "vqa" else ()))
    if asked.task not in SCORERS:
        raise RunError(f"there is no task {asked.task!r}; there are: {', '.join(SCORERS)}")
    if asked.ablate and asked.task != "vqa":
        raise RunError(f"--ablate hides a part of questions, for vqa; {asked.task} has --shuffle_captions True")
    return asked


def restored(folder: Path, run: Pretrain | Finetune, facts: dict[str, Any]) -> nn.Module:
    """The run's module with its weights, whose sizes are compared before any are allocated. Raises RunError, WeightsError."""
    check_given(run, facts)
    check_model(folder, run)
    check_module(folder, lambda: rebuilt(run, facts))
    return load_run(rebuilt(run, facts), folder)


def rebuilt(run: Pretrain | Finetune, facts: dict[str, Any]) -> nn.Module:
    """The run's module, its weights not yet loaded. Raises RunError where it is given other features than it learned from."""
    check_given(run, facts)
    if isinstance(run, Pretrain):
        counted = {name: value for name, value in facts.items() if isinstance(value, int | float)}
        return building.build(run, counted, guided=False)
    return finetune.build(run, facts)


def name_of(asked: Evaluation, own: str) -> str:
    """The folder of an evaluation: one asked otherwise, but for where and how fast it is made (device, workers) and how many
    samples it may skip, has another, and the report shows them all. `own`: the data of the run; other data is told by a
    digest too, since its last name may be another's.
    """
    told = short_name(asked)
    if asked.data.partition(":")[0] != "scenes" and (place := Path(asked.data).resolve()) != Path(own).resolve():
        told += f"-{digest(str(place)).hex()[:8]}"
    told += f"-seed{asked.seed}" if asked.seed != Evaluation.seed else ""
    return told + (f"-{asked.precision}" if asked.precision != Evaluation.precision else "")


def short_name(asked: Evaluation) -> str:
    """The folder of an evaluation, as it was called when not all was told that it may differ in."""
    data = re.sub(r"[^\w-]+", "_", Path(asked.data).resolve().stem).strip("_")
    parts = ["evaluate", asked.task, data, asked.split]
    parts += [f"gallery{asked.gallery}"] * bool(asked.gallery) + [f"captions{asked.captions}"] * bool(asked.captions)
    how = {"retrieval": ("rerank", "rerank_by"), "captioning": ("num_beams", "max_length")}.get(asked.task, ())
    parts += [f"{name}_{getattr(asked, name)}" for name in how if getattr(asked, name) != getattr(Evaluation(), name)]
    parts += [f"ablate_{asked.ablate}"] * bool(asked.ablate) + ["shuffle_captions"] * asked.shuffle_captions
    return "-".join(parts)


def write(out: Path, asked: Evaluation, scored: Result) -> None:
    """metrics.json, predictions.jsonl, skipped.json and what else the task has; then shown.json, the examples of the report."""
    out.mkdir(exist_ok=True)
    what = f"{asked.data}, split {asked.split}" + (
        ", captions dealt to other pictures" if asked.shuffle_captions else ""
    )
    what += f", blind {asked.ablate}" if asked.ablate else ""
    metrics = {name: value if math.isfinite(value) else None for name, value in scored.metrics.items()}
    files = {"skipped.json": [asdict(s) for s in scored.skipped], **scored.files}
    files["metrics.json"] = {"what": what, "asked": asdict(asked), "metrics": metrics}
    rows = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in scored.predictions)
    with atomic_write(out / "predictions.jsonl") as path:
        path.write_text(rows, encoding="utf-8", errors="backslashreplace")  # half a character: JSON's own escape
    for name, content in files.items():
        with atomic_write(out / name) as path:
            path.write_text(json.dumps(content, indent=1, allow_nan=False))
    report.report_errors("the report's examples", lambda: write_shown(out, scored.shown()), None)
