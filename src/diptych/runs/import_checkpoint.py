"""Importing an official or Hugging Face checkpoint: as a model in memory, or as a run folder for other commands."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.checkpoints.digests import Damaged, holds_tensors
from diptych.checkpoints.strict import load_strict
from diptych.inference.folder import IGNORED_WEIGHTS, write_config
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import CONFIG_FILE, RunError, SavedModel, read_config
from diptych.inference.tokenizer import tokenizer_of
from diptych.models.importing import OfficialCheckpoint
from diptych.protocols import student_of
from diptych.runs.import_settings import saved_from_checkpoint
from diptych.runs.import_source import ImportSource, named_labels, open_source, system_of_folder
from diptych.runs.load_model import module_of
from diptych.runs.run_folder import RUN_FILE
from diptych.training.checkpoint import CHECKPOINT, MODEL, save_tensors, save_weights
from diptych.utils.lock import single_writer
from diptych.utils.state_dict import named_weights


@dataclass(frozen=True)
class ImportedModel:
    """An imported checkpoint before it is written.

    `checkpoint`: the official weights under our names. `saved`: the content of config.json. `step`: the training step
    with the checkpoint's weights.
    """

    checkpoint: OfficialCheckpoint
    saved: SavedModel
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
    task: str = "",
) -> ImportedModel:
    """Writes config.json and model.safetensors for a checkpoint; returns the imported model.

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
        task: the one to import the model for, of a file that has the heads of several tasks (ViLBERT's).

    Raises DataError, WeightsError, RunError.
    """
    source = open_source(system, checkpoint, config)
    name = _name_of(checkpoint, source)
    _refuse_other_run(out, name)
    imported = read_checkpoint(source, name, num_heads, grid, answers, regions, vocabulary, task)
    _refuse_other_weights(out, imported.step)
    write_config(out, imported.saved)
    save_weights(out, imported.step)
    unused = imported.checkpoint.ignored_tensors | _teacher_and_queue(imported.checkpoint)
    if unused:
        save_tensors(out / IGNORED_WEIGHTS, {name: tensor.contiguous().clone() for name, tensor in unused.items()})
    return imported


def read_checkpoint(
    source: ImportSource,
    name: str,
    num_heads: int | None = None,
    grid: tuple[int, int] | None = None,
    answers: Path | None = None,
    regions: str = "",
    vocabulary: Path | None = None,
    task: str = "",
) -> ImportedModel:
    """The model of a checkpoint with its weights and settings; nothing is written.

    `name`: of the checkpoint, for config.json. Other arguments: see `import_checkpoint`.

    Raises DataError, WeightsError, RunError.
    """
    imported = source.load(num_heads, grid, task)
    step = imported.build()
    saved = saved_from_checkpoint(imported, source.settings, regions, name)
    saved = source.with_images(saved, resized=grid is not None)
    if vocabulary := vocabulary or source.vocabulary:
        saved = replace(saved, vocabulary=str(vocabulary))
        tokenizer_of(saved)  # raises if it does not fit the model
    notes = source.notes(saved.model)
    labels, label_notes = named_labels(imported, step, answers, source.hf)
    assert saved.imported is not None
    origin = replace(saved.imported, notes=(*notes, *label_notes))
    return ImportedModel(imported, replace(saved, labels=tuple(labels), imported=origin), step)


def load_hf_folder(folder: Path, device: torch.device) -> LoadedModel:
    """The model of a Hugging Face folder, which is what `import_checkpoint` would write and `load_model` would load.

    Raises DataError, WeightsError, RunError.
    """
    source = open_source(system_of_folder(folder), folder, None)
    imported = read_checkpoint(source, _name_of(folder, source))
    weights = named_weights(student_of(imported.step))
    module = module_of(imported.saved, weights)
    load_strict(module, weights, str(folder))
    return LoadedModel(imported.saved, module.to(device).eval(), device)


def _name_of(checkpoint: Path, source: ImportSource) -> str:
    """The file name of a checkpoint; of a folder, its name and that of its weights."""
    return f"{checkpoint.resolve().name}/{source.weights.name}" if checkpoint.is_dir() else checkpoint.name


def _refuse_other_run(out: Path, name: str) -> None:
    """Raises RunError if `out` holds a trained run, or one imported from a file or folder of another name."""
    if any((out / file).exists() for file in (CHECKPOINT, "metrics.jsonl", RUN_FILE)):
        raise RunError(f"{out} holds a training run; give another --out")
    if not (out / CONFIG_FILE).is_file():
        return
    source = read_config(out).imported
    if source is None or source.checkpoint != name:
        other = f"what was imported from {source.checkpoint}" if source else "a model that was not imported"
        raise RunError(f"{out} holds {other}; give another --out, or remove it first")


def _refuse_other_weights(out: Path, step: nn.Module) -> None:
    """Raises RunError if `out` holds other weights than those of `step`.

    Checkpoints of the same file name may differ. A damaged file may be overwritten.
    """
    path = out / MODEL
    with suppress(Damaged):
        if path.is_file() and not holds_tensors(path, named_weights(student_of(step))):
            raise RunError(f"{out} holds other weights than this checkpoint's; give another --out, or remove it first")


def _teacher_and_queue(imported: OfficialCheckpoint) -> dict[str, Tensor]:
    """The weights of the momentum teacher and its queue, by official names; a run's weights are only the student's."""
    weights = {name: tensor for name, tensor in imported.state.items() if name.startswith(("teacher.", "queue."))}
    return imported.names.to_official(weights)
