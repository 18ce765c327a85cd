"""Cells of the benchmark table, read only from run folders: losses and their chance levels, metrics, training time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.checkpoints.digests import CheckpointError
from diptych.config import training as settings
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import Evaluation
from diptych.inference.feature_extractors import changed_features
from diptych.inference.saved_model import read_config
from diptych.metrics.bootstrap import Scores
from diptych.objectives.definition import losses_that_train
from diptych.runs import report
from diptych.runs import train as training
from diptych.runs.build import build
from diptych.runs.evaluate import complete, name_of, recorded
from diptych.runs.run_folder import read_run
from diptych.training import checkpoint
from diptych.training.log import ROW
from diptych.utils.io import read_json, read_json_lines

LAST_SHARE = 0.05  # the share of the steps over which the final loss is averaged


@dataclass(frozen=True)
class Loss:
    """A training loss: its first logged mean, its mean over the last steps, and its chance level, if it has one."""

    start: float
    end: float
    chance: float | None


@dataclass(frozen=True)
class StageResult:
    """A trained and evaluated run.

    `minutes` of training; `scores`: the metrics of each task's evaluation; `intervals`: their confidence intervals.
    """

    recipe: str
    steps: int
    minutes: float
    parameters: int  # trainable ones
    losses: dict[str, Loss]
    scores: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]


@dataclass(frozen=True)
class RowResult:
    """The results of a row with one seed. Without stages: why it failed, or ``""`` if it was not run."""

    row: str
    seed: int
    stages: tuple[StageResult, ...] = ()
    failed: str = ""


def scorable_tasks(run: Pretrain) -> tuple[str, ...]:
    """The tasks that a pre-trained run can be evaluated on, by its objectives."""
    trained = run.objectives.present().keys()
    return tuple(task for task in ("retrieval", "matching", "captioning") if trained & losses_that_train(task))


def same_run(folder: Path, run: Pretrain) -> bool:
    """Whether a folder contains this run, on the same features. The name, device and speed settings may differ."""
    if not (folder / "run.json").is_file():
        return False
    existing, facts = read_run(folder)
    if run.training.epochs:
        run = replace(run, training=run.training.for_examples(facts["examples"]))
    return _identity(existing) == _identity(run) and not changed_features(read_config(folder))


def _identity(run: Pretrain | Finetune) -> dict[str, Any]:
    """What equal runs share. Folders may have been moved, so only the name of `init_from` counts."""
    return training.identity(run) | {"init_from": Path(run.init_from).name, "training": settings.identity(run.training)}


def is_trained(folder: Path) -> bool:
    """Whether a folder contains a finished run."""
    try:
        state = checkpoint.read_training_state(folder)
    except CheckpointError:  # training reports the damage and resumes from the checkpoint before
        return False
    if state is None or not (folder / checkpoint.MODEL).is_file():
        return False
    return checkpoint.is_finished(state, read_run(folder)[0].training.steps)


def stored_metrics(folder: Path, run: Pretrain, evaluation: Evaluation) -> Scores | None:
    """The metrics of a finished evaluation with exactly these settings; None if there is none."""
    evaluation = complete(evaluation, folder)
    if not (path := folder / name_of(evaluation, run.data) / "metrics.json").is_file():
        return None
    stored = read_json(path, report.SCORES)
    if stored["settings"] != json.loads(json.dumps(recorded(evaluation))):
        return None
    ends = {name: (low, high) for name, (low, high) in stored.get("intervals", {}).items()}
    return Scores(stored["metrics"], ends, stored.get("resampling", ""))


def stage_result(folder: Path, run: Pretrain, evaluations: Mapping[str, Evaluation]) -> StageResult | None:
    """The result of a run that is trained and evaluated on all tasks of `evaluations`; None if it is not."""
    if not same_run(folder, run) or not is_trained(folder):
        return None
    scores = {task: stored_metrics(folder, run, evaluation) for task, evaluation in evaluations.items()}
    if None in scores.values():
        return None
    _, facts = read_run(folder)
    module = build(run, guided=False)
    chance = {name: level["value"] for name, level in facts["chance_losses"].items()}
    state = checkpoint.read_training_state(folder) or {}
    return StageResult(
        recipe=run.recipe,
        steps=state["step"],
        minutes=state["seconds"] / 60,
        parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        losses=losses(folder, tuple(module.weights), chance),
        scores={task: dict(metrics) for task, metrics in scores.items() if metrics is not None},
        intervals={task: metrics.intervals for task, metrics in scores.items() if metrics is not None},
    )


def losses(folder: Path, names: tuple[str, ...], chance: Mapping[str, float]) -> dict[str, Loss]:
    """The first and last values of each loss in metrics.jsonl, with its chance level."""
    rows = [row for _, row in read_json_lines(folder / "metrics.jsonl", ROW)]
    rows = [row for row in rows if all(name in row for name in names)]  # not those of evaluations
    last = [row for row in rows if row["step"] > (1 - LAST_SHARE) * rows[-1]["step"]]
    return {name: Loss(rows[0][name], sum(row[name] for row in last) / len(last), chance.get(name)) for name in names}
