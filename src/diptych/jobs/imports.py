"""From an official checkpoint to a run folder that every command can start from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diptych.jobs.folder import RunError, read_any, write_run
from diptych.jobs.imported import run_of
from diptych.jobs.reading import tokenizer_of
from diptych.recipes.run import Finetune, ImportedCheckpoint, Pretrain
from diptych.step import pupil
from diptych.tasks.classification import Classification
from diptych.tasks.open_vqa import OpenVQA
from diptych.tasks.vqa import ClosedVQA
from diptych.train.checkpoint import CHECKPOINT, save_tensors, save_weights
from diptych.train.lock import alone
from diptych.weights.official import Imported, load_official

DEAD = "dead.safetensors"  # what the official file has and no run reads, teacher and queue too: `export` gives it back


@alone
def import_official(
    system: str,
    checkpoint: Path,
    out: Path,
    heads: int | None = None,
    grid: tuple[int, int] | None = None,
    answers: Path | None = None,
    config: Path | None = None,
    regions: str = "",
    vocabulary: Path | None = None,
) -> Imported:
    """Writes run.json and model.safetensors. `answers`: a JSON list of the answers of a VQA checkpoint, or of the classes of
    one that classifies, in their order, which official checkpoints do not carry. `config`: the official code's settings as
    JSON, for what stands in no shape. `regions`: where the regions lie that a model reads. `vocabulary`: the file
    of the pieces that it reads, where the package has them not. Raises DataError, WeightsError, RunError.

    `checkpoint` may be a folder as Hugging Face keeps it, whose config.json is then the `config`.
    """
    _refuse_another(out, checkpoint)
    if checkpoint.is_dir():
        folder, checkpoint = checkpoint, checkpoint / "model.safetensors"
        if not checkpoint.is_file():
            raise RunError(f"{folder} is a folder without a model.safetensors; give the checkpoint file itself")
        config = config or next(iter(folder.glob("config.json")), None)
    settings = _settings(config)
    found = load_official(system, checkpoint, heads, grid, settings)
    step = found.build()
    run = run_of(found, pupil(step), settings, regions, checkpoint.name)
    if vocabulary is not None:
        run = _reading(run, vocabulary)
    facts = {"imported": checkpoint.name, "dead": found.dead, "system": found.system, "task": found.task}
    if isinstance(run, Finetune):
        facts |= _told(found, step, answers)
    write_run(out, run, facts)
    save_weights(out, step)
    left = found.left | _beside(found)
    if left:
        save_tensors(out / DEAD, {name: tensor.contiguous().clone() for name, tensor in left.items()})
    return found


def _refuse_another(out: Path, checkpoint: Path) -> None:
    """Raises RunError where `out` holds a run that was trained there, or was imported from a file by another name."""
    if (out / CHECKPOINT).exists() or (out / "metrics.jsonl").exists():
        raise RunError(f"{out} holds a training run; give another --out")
    if not (out / "run.json").is_file():
        return
    imported = read_any(out)[1].get("imported")
    if imported not in (checkpoint.name, "model.safetensors"):  # what Hugging Face's folders are read from
        told = f"what was imported from {imported}" if imported else "a run that was not imported"
        raise RunError(f"{out} holds {told}; give another --out, or remove it first")


def _reading(run: Any, vocabulary: Path) -> Pretrain | Finetune:
    """With the vocabulary of a file, which must fit."""
    if isinstance(run, ImportedCheckpoint):
        raise RunError(
            "what no recipe expresses is kept to be exported, and reads no vocabulary; leave --vocabulary out"
        )
    run = replace(run, vocabulary=str(vocabulary))
    tokenizer_of(run)
    return run


def _beside(found: Imported) -> dict[str, Tensor]:
    """The teacher and queue that a student stood beside, by their official names: a run's weights are the student's."""
    beside = {name: tensor for name, tensor in found.state.items() if name.startswith(("teacher.", "queue."))}
    return found.names.to_official(beside)


def _settings(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: not readable as JSON ({error})") from None
    if not isinstance(settings, dict):
        raise RunError(f"{file}: holds a {type(settings).__name__}, not names and values")
    return settings


def _told(found: Imported, step: nn.Module, file: Path | None) -> dict[str, list[str]]:
    """The answers or classes that a task chooses among, by the names of a run's facts."""
    step = pupil(step)
    if isinstance(step, ClosedVQA):
        return {"answers": _answers(file, len(found.state["head.answers.bias"]), "answer")}
    if isinstance(step, Classification):
        return {"classes": _answers(file, found.arguments["classes"], "class")}
    return {"answers": _answers(file, None, "answer")} if isinstance(step, OpenVQA) else {}


def _answers(file: Path | None, most: int | None, what: str) -> list[str]:
    """Those of a file, of which there must be as many; numbered where there is none. `most` None: any number, or none."""
    if file is None:
        return [f"{what} {i}" for i in range(most or 0)]
    try:
        answers = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: not a JSON list of answers ({error})") from None
    fits = (
        isinstance(answers, list)
        and all(isinstance(a, str) for a in answers)
        and len(answers) == (most or len(answers))
    )
    if not fits:
        many = "strings" if most is None else f"{most} answers, one for each class of the checkpoint"
        raise RunError(f"{file}: must be a JSON list of {many}")
    return answers
