"""Importing an official or Hugging Face checkpoint: as a model in memory, or as a run folder for other commands."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.checkpoints.digests import Damaged, holds_tensors
from diptych.checkpoints.strict import load_strict
from diptych.config.run import Finetune, ImportedCheckpoint, Pretrain
from diptych.models.importing import OfficialCheckpoint
from diptych.protocols import student_of
from diptych.runs.import_settings import run_from_checkpoint
from diptych.runs.import_source import ImportSource, named_classes, open_source, system_of_folder
from diptych.runs.loaded_model import LoadedModel, initial_module
from diptych.runs.run_folder import RunError, read_any, write_run
from diptych.runs.tokenizer import tokenizer_of
from diptych.training.checkpoint import CHECKPOINT, MODEL, save_tensors, save_weights
from diptych.utils.lock import single_writer
from diptych.utils.state_dict import named_weights

IGNORED_WEIGHTS = "ignored.safetensors"
"""The official weights that a run does not use (teacher, queue, ...), which `export` writes back."""


@dataclass(frozen=True)
class ImportedModel:
    """An imported checkpoint before it is written.

    `checkpoint`: the official weights under our names. `run`, `facts`: the content of run.json. `step`: the training
    step with the checkpoint's weights.
    """

    checkpoint: OfficialCheckpoint
    run: Pretrain | Finetune | ImportedCheckpoint
    facts: dict[str, Any]
    step: nn.Module


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
    name = _name_of(checkpoint, source)
    _refuse_other_run(out, name)
    imported = read_checkpoint(source, name, num_heads, grid, answers, regions, vocabulary)
    _refuse_other_weights(out, imported.step)
    write_run(out, imported.run, imported.facts)
    save_weights(out, imported.step)
    unused = imported.checkpoint.ignored_tensors | _teacher_and_queue(imported.checkpoint)
    if unused:
        save_tensors(out / IGNORED_WEIGHTS, {name: tensor.contiguous().clone() for name, tensor in unused.items()})
    return imported.checkpoint


def read_checkpoint(
    source: ImportSource,
    name: str,
    num_heads: int | None = None,
    grid: tuple[int, int] | None = None,
    answers: Path | None = None,
    regions: str = "",
    vocabulary: Path | None = None,
) -> ImportedModel:
    """The model of a checkpoint with its weights, settings and facts; nothing is written.

    `name`: of the checkpoint, for run.json. Other arguments: see `import_checkpoint`.

    Raises DataError, WeightsError, RunError.
    """
    imported = source.load(num_heads, grid)
    step = imported.build()
    run = run_from_checkpoint(imported, student_of(step), source.settings, regions, source.weights.name)
    run = source.with_images(run, imported, resized=grid is not None)
    if vocabulary := vocabulary or source.vocabulary:
        run = _with_vocabulary(run, vocabulary)
    notes = source.notes(None if isinstance(run, ImportedCheckpoint) else run.model)
    facts = {"imported": name, "ignored": imported.ignored, "system": imported.system, "task": imported.task}
    if isinstance(run, Finetune):
        classes, class_notes = named_classes(imported, step, answers, source.hf)
        facts, notes = facts | classes, notes + class_notes
    return ImportedModel(imported, run, facts | {"notes": notes}, step)


def load_hf_folder(folder: Path, device: torch.device) -> LoadedModel:
    """The model of a Hugging Face folder, which is what `import_checkpoint` would write and `load_model` would load.

    Raises DataError, WeightsError, RunError.
    """
    source = open_source(system_of_folder(folder), folder, None)
    imported = read_checkpoint(source, _name_of(folder, source))
    assert not isinstance(imported.run, ImportedCheckpoint)  # every supported class of Hugging Face has a recipe
    module = initial_module(imported.run, imported.facts)
    load_strict(module, named_weights(student_of(imported.step)), str(folder))
    return LoadedModel(imported.run, imported.facts, module.to(device).eval(), device)


def _name_of(checkpoint: Path, source: ImportSource) -> str:
    """The file name of a checkpoint; of a folder, its name and that of its weights."""
    return f"{checkpoint.resolve().name}/{source.weights.name}" if checkpoint.is_dir() else checkpoint.name


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
