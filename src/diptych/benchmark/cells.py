"""What a run has learned, read from its folder alone: its losses beside their floors, its scores, and what it took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diptych.checkpoints.digests import CheckpointError
from diptych.config import training as settings
from diptych.config.run import Evaluation, Finetune, Pretrain
from diptych.runs import report
from diptych.runs import train as training
from diptych.runs.build import build
from diptych.runs.evaluate import complete, name_of, short_name
from diptych.runs.feature_extractors import changed
from diptych.runs.run_folder import read_run
from diptych.training import checkpoint
from diptych.training.log import ROW
from diptych.utils.io import read_json, read_json_lines

LAST = 0.05  # of the steps: what a loss at the end is the mean of


@dataclass(frozen=True)
class Loss:
    """An objective's loss while training: the mean of the first steps that were logged, and of the last of all steps."""

    start: float
    end: float
    floor: float | None


@dataclass(frozen=True)
class TrainedStage:
    """A run that is finished and scored. `minutes` of training; `scores` by task, as evaluations give them."""

    recipe: str
    steps: int
    minutes: float
    parameters: int  # of those that learn
    losses: dict[str, Loss]
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Cell:
    """A row with one seed: what its stages have learned, or why there is nothing to tell ("" where it was not run)."""

    row: str
    seed: int
    stages: tuple[TrainedStage, ...] = ()
    failed: str = ""


def tasks(run: Pretrain) -> tuple[str, ...]:
    """What a run can be scored on, by what it learns."""
    asked = run.objectives
    possible = {
        "retrieval": asked.itc or asked.triplet,
        "matching": asked.itm,
        "captioning": asked.lm or asked.masked_captions,
    }
    return tuple(task for task, learns in possible.items() if learns)


def same_run(folder: Path, run: Pretrain) -> bool:
    """Whether what stands in a folder is this run, on these features, but for its name and where and how fast it ran."""
    if not (folder / "run.json").is_file():
        return False
    there, facts = read_run(folder)
    return _compared(there) == _compared(run) and not changed(there, facts)


def _compared(run: Pretrain | Finetune) -> dict[str, Any]:
    """Folders may have been moved: of the run that it starts from only the name counts."""
    return training.identity(run) | {"start": Path(run.init_from).name, "training": settings.identity(run.training)}


def is_trained(folder: Path, run: Pretrain) -> bool:
    """Whether a folder holds all steps of a run."""
    try:
        held = checkpoint.rest(folder)
    except CheckpointError:  # what trains there says what is wrong, and goes on from the one before
        return False
    return held is not None and held["step"] >= run.training.steps and (folder / checkpoint.MODEL).is_file()


def is_scored(folder: Path, run: Pretrain, asked: Evaluation) -> dict[str, float] | None:
    """What an evaluation found, asked just so; None where it was not, or not to its end."""
    asked = complete(asked, run)
    for name in (name_of(asked, run.data), short_name(asked)):
        if (path := folder / name / "metrics.json").is_file():
            told = read_json(path, report.SCORES)
            if told["asked"] == json.loads(json.dumps(asdict(asked))):
                return told["metrics"]
    return None


def stage_result(folder: Path, run: Pretrain, asked: Mapping[str, Evaluation]) -> TrainedStage | None:
    """What a folder tells of a run that is finished and scored on all that was `asked`, by task; else None."""
    if not same_run(folder, run) or not is_trained(folder, run):
        return None
    scores = {task: is_scored(folder, run, evaluation) for task, evaluation in asked.items()}
    if None in scores.values():
        return None
    _, facts = read_run(folder)
    module = build(run, facts, guided=False)
    floors = {name: floor.value for name, floor in module.chance_losses.items()}
    held = checkpoint.rest(folder) or {}
    return TrainedStage(
        recipe=run.recipe,
        steps=run.training.steps,
        minutes=held["seconds"] / 60,
        parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        losses=losses(folder, tuple(module.weights), floors),
        scores={task: found for task, found in scores.items() if found is not None},
    )


def losses(folder: Path, names: tuple[str, ...], floors: Mapping[str, float]) -> dict[str, Loss]:
    """Each loss at the start and at the end of metrics.jsonl."""
    rows = [row for _, row in read_json_lines(folder / "metrics.jsonl", ROW)]
    rows = [row for row in rows if all(name in row for name in names)]  # those of training
    late = [row for row in rows if row["step"] > (1 - LAST) * rows[-1]["step"]]
    return {name: Loss(rows[0][name], sum(row[name] for row in late) / len(late), floors.get(name)) for name in names}
