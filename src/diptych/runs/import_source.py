"""What is imported: a checkpoint file, or a folder as Hugging Face keeps a model, with all that stands beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from diptych.checkpoints.huggingface.folder import CONFIG, WEIGHTS, in_folder, read_object, weights_of
from diptych.checkpoints.read import WeightsError
from diptych.config.run import ImportedCheckpoint
from diptych.data.sources.base import DataError
from diptych.data.sources.paths import parse_json, read_text
from diptych.models.huggingface.config import CONFIGS, HFConfig, is_hf, placeholders, read_config
from diptych.models.importing import Imported, load_official
from diptych.protocols import student_of
from diptych.runs.hf_images import fitted, image_settings, read_images
from diptych.runs.hf_vocabulary import own_vocabulary
from diptych.runs.run_folder import RunError
from diptych.tasks.classification import Classification
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.vqa import ClosedVQA, OpenVQA
from diptych.training.checkpoint import MODEL


@dataclass(frozen=True)
class ImportSource:
    """`settings`: the official code's, as JSON. `hf`: those of Hugging Face's config.json instead. `folder`: where the
    image processor's and the tokenizer's files lie, if a folder was given.
    """

    system: str
    weights: Path
    settings: Mapping[str, Any]
    hf: HFConfig | None = None
    folder: Path | None = None

    @property
    def notes(self) -> list[str]:
        return list(self.hf.notes) if self.hf else []

    @property
    def vocabulary(self) -> Path | None:
        """The folder's vocabulary, where it is another than the bundled one. Raises WeightsError."""
        return own_vocabulary(self.folder, self.system) if self.folder else None

    def load(self, num_heads: int | None, grid: tuple[int, int] | None) -> Imported:
        """Raises WeightsError, also where the weights are not those that the config describes."""
        if self.hf is None:
            return load_official(self.system, self.weights, num_heads, grid, self.settings)
        self.hf.check_heads(num_heads)
        found = load_official(self.system, self.weights, None, grid, self.hf.told)
        self.hf.check(found.arguments, found.task, resized=grid is not None)
        return found

    def shown(self, run: Any, found: Imported, resized: bool) -> Any:
        """The run with pictures prepared as the folder's image processor does. Raises WeightsError."""
        read = read_images(self.folder) if self.folder and self.system in CONFIGS else None
        if isinstance(run, ImportedCheckpoint) or read is None:
            return run
        values, where = read
        rows, columns = found.arguments["grid"]
        patch = found.arguments["patch_size"]
        side = (rows * patch, columns * patch)
        if resized and self.system != "vilt":
            values = fitted(values, side)
        return replace(run, images=image_settings(run.images, values, where, self.system, side, patch))


def open_source(system: str, checkpoint: Path, config: Path | None) -> ImportSource:
    """`checkpoint`: a file, or a folder as Hugging Face keeps a model, which the file of its weights stands for too unless a
    `config` is given. Raises WeightsError, RunError.
    """
    folder = checkpoint if checkpoint.is_dir() else None
    _refuse_own_run(folder or checkpoint.parent)
    if folder is None and config is None and system in CONFIGS and in_folder(checkpoint):
        folder, config = checkpoint.parent, checkpoint.parent / CONFIG
    elif folder is not None:
        weights = weights_of(folder)
        if weights is None:
            raise RunError(
                f"{folder} is a folder without a {WEIGHTS[0]} ({', '.join(WEIGHTS[1:])} are not there either); give the "
                "checkpoint file itself"
            )
        checkpoint, config = weights, config or next(iter(folder.glob(CONFIG)), None)
    try:
        settings = read_object(config) if config else {}
    except WeightsError as error:
        raise RunError(str(error)) from None
    hf = read_config(system, settings, str(config)) if is_hf(system, settings, folder is not None) else None
    return ImportSource(system, checkpoint, settings, hf, folder)


def _refuse_own_run(folder: Path) -> None:
    """Raises RunError where a folder is that of a run, whose weights have our names already."""
    if (folder / "run.json").is_file() and (folder / MODEL).is_file() and not (folder / "config.json").is_file():
        raise RunError(
            f"{folder} is a run of Diptych, which needs no import: evaluate it as it is, or train from it with --init_from {folder}"
        )


def named_classes(
    found: Imported, step: nn.Module, file: Path | None, hf: HFConfig | None
) -> tuple[dict[str, list[str]], list[str]]:
    """The answers or classes that a task chooses among, by the names of a run's facts, and notes to print.

    They are those of `file`, else of the config's id2label, else numbers. Raises RunError, WeightsError.
    """
    step = student_of(step)
    if isinstance(step, OpenVQA):
        return {"answers": _listed(file, None) if file else []}, []
    if isinstance(step, NLVR2) and hf is not None:
        _check_truth(hf)
    if isinstance(step, ClosedVQA):
        fact, one, count = "answers", "answer", len(found.state["head.answers.bias"])
    elif isinstance(step, Classification):
        fact, one, count = "classes", "class", found.arguments["num_classes"]
    else:
        return {}, []
    if file is not None:
        return {fact: _listed(file, count)}, []
    names = hf.labels(count) if hf else [f"{one} {i}" for i in range(count)]
    unnamed = f"its {count} {fact} have no names in the checkpoint or its config: they are numbered; give --answers FILE, a JSON list"
    return {fact: names}, [unnamed] if hf is None or placeholders(names) else []


def _check_truth(hf: HFConfig) -> None:
    """NLVR2's classes are false and true, in this order."""
    names = hf.labels(2)
    if not placeholders(names) and [name.lower() for name in names] != ["false", "true"]:
        raise WeightsError(f"{hf.file}: id2label is {names}; expected False, True: NLVR2's classes in this order")


def _listed(file: Path, count: int | None) -> list[str]:
    """The strings of a JSON list, of which there must be `count`."""
    try:
        answers = parse_json(read_text(file), file)
    except DataError as error:
        raise RunError(f"{error}; expected a JSON list of answers") from None
    if (
        not isinstance(answers, list)
        or not all(isinstance(a, str) for a in answers)
        or len(answers) != (count or len(answers))
    ):
        many = "strings" if count is None else f"{count} answers, one for each class of the checkpoint"
        raise RunError(f"{file}: must be a JSON list of {many}")
    return answers
