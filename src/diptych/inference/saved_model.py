"""A saved model: config.json, which describes the model whose weights lie beside it in model.safetensors.

Every run folder is one, and so is what an import writes. Torch-free.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import field, replace
from pathlib import Path
from typing import TypeVar

import diptych
from diptych.config.data import Embedders, ImageSettings
from diptych.config.serialization import check_version, from_json
from diptych.config.tasks import FinetuningOptions
from diptych.config.validation import Text, settings
from diptych.models.configs import Model
from diptych.utils.io import DamagedFile, check_digest, read_json

CONFIG_FILE, MODEL_TYPE = "config.json", "diptych"
UNREADABLE_VERSIONS = ("0.1",)
"""Versions (major.minor) whose run folders are refused."""


class RunError(Exception):
    """A run folder, or a run's settings, that cannot be used: the message says which, why and what to do."""


@settings(kw_only=True)
class ModelSettings:
    """A model and its inputs: what a run in training and a saved model share."""

    model: Model
    images: ImageSettings
    embedders: Embedders = Embedders()
    vocabulary: str = ""  # vocabulary file of the text tokenizer; empty: the bundled one of the model's size


@settings(kw_only=True)
class Imported:
    """The checkpoint that a model was imported from."""

    system: Text  # the name that `diptych import` takes
    task: Text  # the task under whose names the official code stores its heads
    checkpoint: str  # file name
    ignored: dict[str, str] = field(default_factory=dict)  # official weights that were not loaded, and why
    notes: tuple[str, ...] = ()  # on the import, as it printed them


@settings(kw_only=True)
class SavedModel(ModelSettings):
    """A trained model without its training, as config.json describes it."""

    task: Text = "pretraining"  # what its heads are for: pretraining, vqa, retrieval, classification ...
    heads: tuple[str, ...] = ()  # pre-training heads
    losses: tuple[str, ...] = ()  # what it was trained with: names of objectives, or the task
    labels: tuple[str, ...] = ()  # answers of VQA or classes of classification, in the order of the head's outputs
    frozen_features: dict[str, str] = field(default_factory=dict)  # digest of each frozen network that it reads
    options: FinetuningOptions | None = None  # that it was fine-tuned with
    recipe: str = ""  # name of the run that trained it
    imported: Imported | None = None

    def __post_init__(self) -> None:
        if len(set(self.heads)) < len(self.heads):
            raise ValueError(f"heads must be different names: got {', '.join(self.heads):.60}")


Settings = TypeVar("Settings", bound=ModelSettings)


def vocabulary_from(folder: Path, settings: Settings) -> Settings:
    """The settings read from a folder, with the path of the vocabulary file there."""
    if not settings.vocabulary:
        return settings
    return replace(settings, vocabulary=str(folder / Path(settings.vocabulary).name))


def read_config(folder: Path) -> SavedModel:
    """The saved model that config.json in a folder describes.

    Raises RunError: there is none, it is damaged, or another version wrote it that this one does not read.
    """
    check_saved(folder)
    path = folder / CONFIG_FILE
    try:
        record = read_json(path, {"model_type": str, "version": str}, "train or import it again")
        check_digest(path, record)
        check_version(record.pop("version"), diptych.__version__)
        del record["model_type"]
        record.pop("digest", None)
        return vocabulary_from(folder, from_json(SavedModel, record, "config"))
    except DamagedFile as error:
        raise RunError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not a model that this version can read ({error})") from None


def is_saved(folder: Path) -> bool:
    """Whether a folder's config.json is that of a saved model of ours, damaged or not."""
    with suppress(OSError), (folder / CONFIG_FILE).open("rb") as file:
        return f'"{MODEL_TYPE}"'.encode() in file.read(200)
    return False


def check_saved(folder: Path) -> None:
    """Raises RunError if a folder contains no saved model, or one of a version that this one does not read."""
    with suppress(DamagedFile):  # reported when the whole file is read
        old = read_json(folder / "run.json", {"versions": {"diptych": str}})["versions"]["diptych"]
        new = diptych.__version__
        if ".".join(old.split(".")[:2]) in UNREADABLE_VERSIONS:
            raise RunError(
                f"{folder}: run folder of Diptych {old:.20}, which {new} does not read: train again with {new}, or "
                f"export its weights with {old:.20} (diptych export) and import them with {new} (diptych import)"
            )
    if not (folder / CONFIG_FILE).is_file():
        trained = (folder / "run.json").is_file()
        advice = "it was removed since: restore it" if trained else "give the folder that --out named"
        raise RunError(f"{folder}: no {CONFIG_FILE} there; {advice}")
    if not is_saved(folder):
        raise RunError(
            f'{folder / CONFIG_FILE}: expected "model_type": "{MODEL_TYPE}" as its first key: it is damaged, or '
            "another library's model, which diptych import converts"
        )
