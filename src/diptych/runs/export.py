"""Export of a run's weights in the layout of the official code of its paper, or of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych.checkpoints import digests
from diptych.checkpoints.nested_state_dicts import split_by_modality
from diptych.inference.folder import IGNORED_WEIGHTS, check_model, read_weights
from diptych.inference.saved_model import RunError, SavedModel, read_config
from diptych.inference.tokenizer import vocabulary_of
from diptych.models.configs import BLIPConfig, ImageOnlyModel, max_text_length, model_name
from diptych.models.huggingface.export import EXPORTERS
from diptych.models.huggingface.expressible import check_expressible
from diptych.models.importing import ADAPTERS
from diptych.runs.exported_settings import (
    METADATA,
    exported_settings,
    settings_beyond_weights,
    settings_file,
)
from diptych.runs.hf_images import DEFAULT_FAMILY, IMAGE_PROCESSOR_FILE, preprocessor_config
from diptych.runs.hf_vocabulary import tokenizer_files
from diptych.utils.io import atomic_write
from diptych.utils.lock import locked

Target = Literal["official", "safetensors", "hf"]


@dataclass(frozen=True)
class Exported:
    """What an exported file does not hold.

    `left_out`: one phrase for each part of the run that is not in it. `settings`: the model's settings that the weights
    alone do not show, which are written beside or into the file.
    """

    left_out: list[str]
    settings: dict[str, Any]


def export(folder: Path, to: Target, out: Path) -> Exported:
    """Writes the weights of a run to `out`, and its model's settings where `diptych import` reads them.

    Args:
        to: "official" (a .pth nested as in the official code, with the settings in FILE.config.json beside it),
            "safetensors" (the same names, with the settings in the file's metadata), or "hf" (a folder with config.json,
            model.safetensors, the image preprocessing and the tokenizer).

    Returns:
        The parts that could not be exported, and the settings that weight shapes do not show.

    Raises:
        RunError, WeightsError: the run has no such layout, its model has settings that the layout cannot express, or its
            weights do not fit its settings.
    """
    _check_suffix(to, out)
    saved = read_config(folder)
    system, task, arguments = _identity(saved)
    if system not in ADAPTERS:
        raise RunError(
            f"{folder} holds a {system}, which has no official layout; expected one of {', '.join(ADAPTERS)}"
        )
    check_model(folder, saved)
    try:
        names = ADAPTERS[system].names(arguments, task)
    except (TypeError, KeyError, ValueError) as error:
        raise RunError(f"{folder}: config.json does not describe a {system} for {task} ({error})") from None
    weights = read_weights(folder)
    teacher_names = names.teacher_names
    if teacher_names:
        names = names.without_teacher  # a run's weights are the student's
    official = names.to_official(weights)
    # weights of an imported checkpoint that the model does not read, stored beside it
    ignored = digests.read(folder / IGNORED_WEIGHTS)[0] if (folder / IGNORED_WEIGHTS).is_file() else {}
    of_file = names.ignored if saved.imported is None else saved.imported.ignored
    unread = {name: why for name, why in names.ignored.items() if name in of_file}
    missing = [f"{name} ({why})" for name, why in unread.items() if name not in ignored]
    if teacher_names and not any(name in ignored for name in teacher_names):
        missing.append("the momentum model and its queue (a run keeps its student)")
    if to == "hf":
        state = official | {name: tensor for name, tensor in ignored.items() if name not in names.ignored}
        files, without = _processor_files(system, saved)
        unsupported = _write_hf(system, task, arguments, state, _class_names(system, saved), files, out)
        left_out = [f"{name} ({names.ignored[name]})" for name in ignored if name in names.ignored]
        return Exported(left_out + unsupported + without, {})
    state = {name: tensor.contiguous() for name, tensor in (official | ignored).items()}
    settings = exported_settings(saved)
    beyond_weights = settings_beyond_weights(system, state, arguments)
    with locked(out.parent, out.name):
        if to == "official":
            with atomic_write(settings_file(out)) as path:
                path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        with atomic_write(out) as path:
            if to == "safetensors":
                copies = {name: tensor.clone() for name, tensor in state.items()}
                save_file(copies, path, {"format": "pt", METADATA: json.dumps(settings)})
            else:
                prefix = ADAPTERS[system].model_prefix
                torch.save({prefix: split_by_modality(state)} if prefix else state, path)
    return Exported(missing, beyond_weights)


def _check_suffix(to: Target, out: Path) -> None:
    """Raises RunError if the suffix of `out` is that of another format, as readers choose the format by the suffix."""
    if to == "safetensors" and out.suffix != ".safetensors":
        raise RunError(
            f"--out {out}: expected a name that ends in .safetensors for --to safetensors, as {out.stem}.safetensors"
        )
    if to == "official" and out.suffix in (".safetensors", ".npz"):
        raise RunError(f"--out {out}: --to official writes PyTorch's format; expected a name such as {out.stem}.pth")
    if to == "hf" and out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file; --to hf writes a folder: give another --out")


def _identity(saved: SavedModel) -> tuple[str, str, dict[str, Any]]:
    """System, task and model settings of a model."""
    arguments = asdict(saved.model)
    if saved.imported is not None:
        return saved.imported.system, saved.imported.task, arguments
    own = (name for name, adapter in ADAPTERS.items() if adapter.config_class is type(saved.model))
    system = next(own, model_name(saved.model).lower())
    return system, _official_task(saved, system) if saved.task == "pretraining" else saved.task, arguments


def _official_task(saved: SavedModel, system: str) -> str:
    """The task under whose names the official code stores the heads of a pre-training run."""
    if system == "beit3":
        return (
            "captioning" if "masked_captions" in saved.losses else "retrieval" if "itc" in saved.losses else "encoder"
        )
    if system == "albef" and "mlm" not in saved.heads:
        return "retrieval"
    if isinstance(saved.model, BLIPConfig) and saved.model.variant != "pretraining":
        return saved.model.variant
    return "encoder" if system == "vit" else "pretraining"


def _class_names(system: str, saved: SavedModel) -> dict[str, Any]:
    """The names of a model's classes or answers for Hugging Face's config.json."""
    classes = saved.labels
    if not classes or system not in DEFAULT_FAMILY or system == "blip":
        return {}
    return {
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
    }


def _processor_files(system: str, saved: SavedModel) -> tuple[dict[str, str], list[str]]:
    """The image preprocessing and the tokenizer of a Hugging Face folder, by file name, and what could not be written."""
    if system not in DEFAULT_FAMILY:
        return {}, ["the image preprocessing and the tokenizer"]
    images, files, missing = preprocessor_config(system, saved.images), dict[str, str](), list[str]()
    if not isinstance(saved.model, ImageOnlyModel):
        known, processor = vocabulary_of(saved), f"{DEFAULT_FAMILY[system]}Processor"
        if known and (files := tokenizer_files(known, max_text_length(saved.model), processor)):
            images |= {"processor_class": processor}
        else:
            missing.append("the tokenizer (its vocabulary is unknown, or of a kind that Hugging Face's class lacks)")
    return {IMAGE_PROCESSOR_FILE: json.dumps(images, indent=1) + "\n", **files}, missing


def _write_hf(
    system: str,
    task: str,
    arguments: Mapping[str, Any],
    official: Mapping[str, Tensor],
    labels: Mapping[str, Any],
    files: Mapping[str, str],
    out: Path,
) -> list[str]:
    """Writes a Hugging Face folder. One phrase for each part that Hugging Face's class does not have."""
    if system not in EXPORTERS:
        raise RunError(f"Hugging Face has no class for {system}; expected one of {', '.join(EXPORTERS)}")
    config, state, unsupported = EXPORTERS[system](arguments, task, official)
    unsupported += check_expressible(system, arguments, config, official)
    with locked(out):
        for name, content in {**files, "config.json": json.dumps({**config, **labels}, indent=1) + "\n"}.items():
            with atomic_write(out / name) as path:
                path.write_text(content, encoding="utf-8")
        with atomic_write(out / "model.safetensors") as path:
            save_file({name: t.contiguous().clone() for name, t in state.items()}, path, {"format": "pt"})
    return unsupported
