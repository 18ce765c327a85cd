"""The source of an import: a checkpoint file, or a Hugging Face folder with config, image processor and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from diptych.checkpoints.huggingface.folder import (
    CONFIG_FILE,
    WEIGHT_FILES,
    find_weights,
    is_model_folder_weights,
    read_json_object,
)
from diptych.checkpoints.official_config import RecordedConfig
from diptych.checkpoints.read import WeightsError
from diptych.checkpoints.strict import differences_beyond_shapes
from diptych.config.validation import check_fields
from diptych.data.sources.base import DataError
from diptych.data.sources.paths import data_in_json, read_text
from diptych.inference.saved_model import RunError, SavedModel, is_saved
from diptych.models.configs import Model
from diptych.models.huggingface.config import CONFIGS, HFConfig, are_placeholders, is_hf, read_config, system_of
from diptych.models.importing import OfficialCheckpoint, load_official
from diptych.protocols import student_of
from diptych.runs.exported_settings import read_exported_settings
from diptych.runs.hf_images import image_settings, read_image_processor, with_size
from diptych.runs.hf_vocabulary import custom_vocabulary
from diptych.tasks.classification import Classification
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.open_vqa import OpenVQA
from diptych.tasks.vqa import ClosedVQA


@dataclass(frozen=True)
class ImportSource:
    """A checkpoint's weights with the settings that describe its model.

    `settings`: of the official code, as JSON, with a record of the keys that were used. `hf`: of Hugging Face's
    config.json instead. `folder`: the Hugging Face folder with the files of the image processor and the tokenizer, if
    there is one. `exported`: the settings are those that `export` wrote beside or into the file.
    """

    system: str
    weights: Path
    settings: RecordedConfig
    file: str = ""  # of the settings
    hf: HFConfig | None = None
    folder: Path | None = None
    exported: bool = False

    def notes(self, model: Model) -> list[str]:
        """Notes on the settings, to print once all of them were read: what is not supported, and what was not used.

        Args:
            model: the settings of the imported model.

        Raises:
            WeightsError: a key is misspelled; contradicts the model; or is unknown, in settings that `export` wrote.
        """
        if self.hf is not None:
            return list(self.hf.notes)
        unused = self.settings.unused()
        try:
            self.settings.check_spelling()
            _check_agrees(unused, model)
            if unused and self.exported:
                raise WeightsError(f"{next(iter(unused))} is no key of a config that diptych export writes; remove it")
        except WeightsError as error:
            raise WeightsError(f"{self.file}: {error}") from None
        return [f"{self.file}: keys that were not used: {', '.join(unused)}"] if unused else []

    @property
    def vocabulary(self) -> Path | None:
        """The folder's vocabulary file, if it differs from the bundled one. Raises WeightsError."""
        return custom_vocabulary(self.folder, self.system) if self.folder else None

    def load(self, num_heads: int | None, grid: tuple[int, int] | None, task: str = "") -> OfficialCheckpoint:
        """The checkpoint in our names. Raises WeightsError, also if its weights are not those of the config."""
        if self.hf is None:
            try:
                return load_official(self.system, self.weights, num_heads, grid, self.settings, task)
            except WeightsError as error:
                raise WeightsError(f"{error} (settings read from {self.file})" if self.file else str(error)) from None
        self.hf.check_heads(num_heads)
        imported = load_official(self.system, self.weights, None, grid, self.hf.official_config, task)
        self.hf.check(imported.arguments, imported.task, resized=grid is not None)
        return imported

    def with_images(self, saved: SavedModel, resized: bool) -> SavedModel:
        """The config with the image preprocessing of the folder's image processor. Raises WeightsError."""
        processor = read_image_processor(self.folder) if self.folder and self.system in CONFIGS else None
        if processor is None:
            return saved
        values, where = processor
        model: Any = saved.model
        (rows, columns), patch = model.grid, model.patch_size
        side = (rows * patch, columns * patch)
        if resized and self.system != "vilt":
            values = with_size(values, side)
        return replace(saved, images=image_settings(saved.images, values, where, self.system, side, patch))


def open_source(system: str, checkpoint: Path, config: Path | None) -> ImportSource:
    """The source at `checkpoint`, a file or a Hugging Face folder.

    The weights file of a Hugging Face folder is read as the folder, unless a `config` is given. Raises WeightsError,
    RunError.
    """
    folder = checkpoint if checkpoint.is_dir() else None
    _refuse_own_run(folder or checkpoint.parent)
    if folder is None and config is None and system in CONFIGS and is_model_folder_weights(checkpoint):
        folder, config = checkpoint.parent, checkpoint.parent / CONFIG_FILE
    elif folder is not None:
        weights = find_weights(folder)
        if weights is None:
            raise RunError(
                f"{folder} is a folder without a {WEIGHT_FILES[0]} (nor any of {', '.join(WEIGHT_FILES[1:])}); give the "
                "checkpoint file itself"
            )
        checkpoint, config = weights, config or next(iter(folder.glob(CONFIG_FILE)), None)
    file, exported = str(config or ""), False
    try:
        settings = read_json_object(config) if config else {}
        if config is None and (found := read_exported_settings(checkpoint)):
            (file, settings), exported = found, True
    except WeightsError as error:
        raise RunError(str(error)) from None
    hf = read_config(system, settings, file) if is_hf(system, settings, folder is not None) else None
    return ImportSource(system, checkpoint, RecordedConfig(settings), file, hf, folder, exported)


def system_of_folder(folder: Path) -> str:
    """The system whose model a Hugging Face folder holds, by its config.json. Raises WeightsError, RunError."""
    _refuse_own_run(folder)
    return system_of(read_json_object(folder / CONFIG_FILE), str(folder / CONFIG_FILE))


def _check_agrees(unused: Mapping[str, Any], model: Any) -> None:
    """Raises WeightsError if an unused key names a setting of the model and states another value, which would be lost.

    Settings that follow from the shapes of the weights are not compared.
    """
    for key, value in unused.items():
        if key not in [field.name for field in fields(model)] or getattr(model, key) == value:
            continue
        with suppress(ValueError):  # another setting of the official code with the same name
            check_fields(type(model), {key: value})
            if differences_beyond_shapes(model, replace(model, **{key: value})):
                raise WeightsError(
                    f"{key} is {value!r}, but the model would be imported with {getattr(model, key)!r}; to set it, "
                    f'state it as a constructor argument: {{"arguments": {{"{key}": {json.dumps(value)}}}}}'
                )


def _refuse_own_run(folder: Path) -> None:
    """Raises RunError if a folder contains a saved model of ours, whose weights have our names already."""
    if is_saved(folder):
        raise RunError(
            f"{folder} is a run of Diptych, which needs no import: evaluate it as it is, or train from it with "
            f"--init_from {folder}"
        )


def named_labels(
    imported: OfficialCheckpoint, step: nn.Module, file: Path | None, hf: HFConfig | None
) -> tuple[list[str], list[str]]:
    """The names of a classifier's answers or classes, and notes to print.

    They come from `file`, else from the config's id2label, else they are numbers. Raises RunError, WeightsError.
    """
    step = student_of(step)
    if isinstance(step, OpenVQA):
        return _listed(file, None) if file else [], []
    if isinstance(step, NLVR2) and hf is not None:
        _check_truth(hf)
    if isinstance(step, ClosedVQA):
        head: Any = step.head
        many, one, count = "answers", "answer", head.answers.out_features
    elif isinstance(step, Classification):
        many, one, count = "classes", "class", imported.arguments["num_classes"]
    else:
        return [], []
    if file is not None:
        return _listed(file, count), []
    names = hf.labels(count) if hf else [f"{one} {i}" for i in range(count)]
    unnamed = (
        f"its {count} {many} have no names in the checkpoint or its config: they are numbered; give --answers FILE, a "
        "JSON list"
    )
    return names, [unnamed] if hf is None or are_placeholders(names) else []


def _check_truth(hf: HFConfig) -> None:
    """Raises WeightsError unless the classes of an NLVR2 head are false and true, in this order."""
    names = hf.labels(2)
    if not are_placeholders(names) and [name.lower() for name in names] != ["false", "true"]:
        raise WeightsError(f"{hf.file}: id2label is {names}; expected False, True: NLVR2's classes in this order")


def _listed(file: Path, count: int | None) -> list[str]:
    """The strings of a JSON list of length `count` (None: any). Raises RunError."""
    try:
        answers = data_in_json(read_text(file), file)
    except DataError as error:
        raise RunError(f"{error}; expected a JSON list of answers") from None
    if (
        not isinstance(answers, list)
        or not all(isinstance(a, str) for a in answers)
        or len(answers) != (count or len(answers))
    ):
        expected = "strings" if count is None else f"{count} answers, one for each class of the checkpoint"
        raise RunError(f"{file}: must be a JSON list of {expected}")
    return answers
