"""From an official checkpoint to a run folder that every command can start from."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diptych.checkpoints.digests import Damaged, save_with_digest
from diptych.config.run import Finetune, ImportedCheckpoint, Pretrain
from diptych.models.importing import Imported
from diptych.protocols import student_of
from diptych.runs.import_source import named_classes, open_source
from diptych.runs.imported import run_of
from diptych.runs.run_folder import RunError, read_any, write_run
from diptych.runs.tokenizer import tokenizer_of
from diptych.training.checkpoint import CHECKPOINT, MODEL, save_tensors, save_weights
from diptych.utils.lock import single_writer
from diptych.utils.state_dict import named_weights

DEAD = "dead.safetensors"  # what the official file has and no run reads, teacher and queue too: `export` gives it back


@single_writer
def import_checkpoint(
    system: str,
    checkpoint: Path,
    out: Path,
    num_heads: int | None = None,
    grid: tuple[int, int] | None = None,
    answers: Path | None = None,
    config: Path | None = None,
    regions: str = "",
    vocabulary: Path | None = None,
) -> Imported:
    """Writes run.json and model.safetensors. `answers`: a JSON list of the answers of a VQA checkpoint, or of the classes of
    one that classifies, in their order, where its config does not name them. `config`: the official code's settings as
    JSON, or Hugging Face's config.json, for what stands in no shape. `regions`: where the regions lie that a model reads. `vocabulary`: the file
    of the pieces that it reads, where the package has them not. Raises DataError, WeightsError, RunError.

    `checkpoint` may be a folder as Hugging Face keeps it, whose config.json is then the `config`, and whose
    preprocessor_config.json and tokenizer files are read too.
    """
    source = open_source(system, checkpoint, config)
    name = f"{checkpoint.resolve().name}/{source.weights.name}" if checkpoint.is_dir() else checkpoint.name
    _refuse_another(out, name)
    found = source.load(num_heads, grid)
    step = found.build()
    _refuse_other_weights(out, step)
    run = run_of(found, student_of(step), source.settings, regions, source.weights.name)
    run = source.shown(run, found, resized=grid is not None)
    if vocabulary := vocabulary or source.vocabulary:
        run = _reading(run, vocabulary)
    facts = {"imported": name, "dead": found.ignored, "system": found.system, "task": found.task}
    notes = source.notes
    if isinstance(run, Finetune):
        named, said = named_classes(found, step, answers, source.hf)
        facts, notes = facts | named, notes + said
    write_run(out, run, facts | {"notes": notes})
    save_weights(out, step)
    left = found.ignored_tensors | _beside(found)
    if left:
        save_tensors(out / DEAD, {name: tensor.contiguous().clone() for name, tensor in left.items()})
    return found


def _refuse_another(out: Path, name: str) -> None:
    """Raises RunError where `out` holds a run that was trained there, or was imported from a file or folder by another name."""
    if (out / CHECKPOINT).exists() or (out / "metrics.jsonl").exists():
        raise RunError(f"{out} holds a training run; give another --out")
    if not (out / "run.json").is_file():
        return
    imported = read_any(out)[1].get("imported")
    if imported != name:
        held = f"what was imported from {imported}" if imported else "a run that was not imported"
        raise RunError(f"{out} holds {held}; give another --out, or remove it first")


def _refuse_other_weights(out: Path, step: nn.Module) -> None:
    """Raises RunError where `out` holds other weights than those of `step`: files of one name need not be one checkpoint. Damaged
    ones may be written anew.
    """
    path = out / MODEL
    with suppress(Damaged):
        if path.is_file() and not save_with_digest(path, named_weights(student_of(step))):
            raise RunError(f"{out} holds other weights than this file's; give another --out, or remove it first")


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
