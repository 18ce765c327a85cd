"""Importing an official checkpoint as a run folder, which other commands can evaluate, fine-tune and export."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diptych.checkpoints.digests import Damaged, holds_tensors
from diptych.config.run import Finetune, ImportedCheckpoint, Pretrain
from diptych.models.importing import OfficialCheckpoint
from diptych.protocols import student_of
from diptych.runs.import_settings import run_from_checkpoint
from diptych.runs.import_source import named_classes, open_source
from diptych.runs.run_folder import RunError, read_any, write_run
from diptych.runs.tokenizer import tokenizer_of
from diptych.training.checkpoint import CHECKPOINT, MODEL, save_tensors, save_weights
from diptych.utils.lock import single_writer
from diptych.utils.state_dict import named_weights

IGNORED_WEIGHTS = "ignored.safetensors"
"""The official weights that a run does not use (teacher, queue, ...), which `export` writes back."""


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
) -> OfficialCheckpoint:
    """Writes run.json and model.safetensors for a checkpoint; returns the imported checkpoint.

    Args:
        checkpoint: a file, or a Hugging Face folder, whose config.json is then the `config`, and whose
            preprocessor_config.json and tokenizer files are read too.
        num_heads: the number of attention heads, which cannot be inferred from weight shapes.
        grid: rows and columns of patches to resize position embeddings to.
        answers: a JSON list of a VQA checkpoint's answers, or of a classifier's classes, in order, if its config does
            not name them.
        config: the official code's settings as JSON, or Hugging Face's config.json, for settings that cannot be
            inferred from weight shapes.
        regions: the folder of the region features that the model takes.
        vocabulary: the model's vocabulary file, if it is not a bundled one.

    Raises DataError, WeightsError, RunError.
    """
    source = open_source(system, checkpoint, config)
    name = f"{checkpoint.resolve().name}/{source.weights.name}" if checkpoint.is_dir() else checkpoint.name
    _refuse_other_run(out, name)
    imported = source.load(num_heads, grid)
    step = imported.build()
    _refuse_other_weights(out, step)
    run = run_from_checkpoint(imported, student_of(step), source.settings, regions, source.weights.name)
    run = source.with_images(run, imported, resized=grid is not None)
    if vocabulary := vocabulary or source.vocabulary:
        run = _with_vocabulary(run, vocabulary)
    notes = source.notes(None if isinstance(run, ImportedCheckpoint) else run.model)
    facts = {"imported": name, "ignored": imported.ignored, "system": imported.system, "task": imported.task}
    if isinstance(run, Finetune):
        classes, class_notes = named_classes(imported, step, answers, source.hf)
        facts, notes = facts | classes, notes + class_notes
    write_run(out, run, facts | {"notes": notes})
    save_weights(out, step)
    unused = imported.ignored_tensors | _teacher_and_queue(imported)
    if unused:
        save_tensors(out / IGNORED_WEIGHTS, {name: tensor.contiguous().clone() for name, tensor in unused.items()})
    return imported


def _refuse_other_run(out: Path, name: str) -> None:
    """Raises RunError if `out` holds a trained run, or one imported from a file or folder of another name."""
    if (out / CHECKPOINT).exists() or (out / "metrics.jsonl").exists():
        raise RunError(f"{out} holds a training run; give another --out")
    if not (out / "run.json").is_file():
        return
    source = read_any(out)[1].get("imported")
    if source != name:
        other = f"what was imported from {source}" if source else "a run that was not imported"
        raise RunError(f"{out} holds {other}; give another --out, or remove it first")


def _refuse_other_weights(out: Path, step: nn.Module) -> None:
    """Raises RunError if `out` holds other weights than those of `step`.

    Checkpoints of the same file name may differ. A damaged file may be overwritten.
    """
    path = out / MODEL
    with suppress(Damaged):
        if path.is_file() and not holds_tensors(path, named_weights(student_of(step))):
            raise RunError(f"{out} holds other weights than this checkpoint's; give another --out, or remove it first")


def _with_vocabulary(run: Any, vocabulary: Path) -> Pretrain | Finetune:
    """The run with the vocabulary of a file. Raises RunError if it does not fit the model."""
    if isinstance(run, ImportedCheckpoint):
        raise RunError("no recipe expresses this checkpoint: it is kept for export only; leave --vocabulary out")
    run = replace(run, vocabulary=str(vocabulary))
    tokenizer_of(run)
    return run


def _teacher_and_queue(imported: OfficialCheckpoint) -> dict[str, Tensor]:
    """The weights of the momentum teacher and its queue, by official names; a run's weights are only the student's."""
    weights = {name: tensor for name, tensor in imported.state.items() if name.startswith(("teacher.", "queue."))}
    return imported.names.to_official(weights)
