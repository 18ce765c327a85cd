"""From a run's folder back to the layout in which its paper's official code, or Hugging Face's, keeps weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych.checkpoints import digests
from diptych.checkpoints.reader import as_two_sides
from diptych.config.run import Finetune, ImportedCheckpoint, Pretrain
from diptych.models.configs import model_name
from diptych.models.huggingface.export import HF
from diptych.models.importing import SYSTEMS
from diptych.runs.fitting import check_depth, check_model, shapes
from diptych.runs.hf_images import FILE, OWN, exported
from diptych.runs.imports import DEAD
from diptych.runs.run_folder import RunError, read_any, read_weights
from diptych.utils.io import atomic_write
from diptych.utils.lock import locked

Target = Literal["official", "safetensors", "hf"]


def export(folder: Path, to: Target, out: Path) -> list[str]:
    """Writes `out`: a .pth as the official code nests it, the same names as .safetensors, or for Hugging Face a folder with
    config.json and model.safetensors. Gives what was left out, a sentence each. Raises RunError, WeightsError.
    """
    _check_suffix(to, out)
    run, facts = read_any(folder)
    system, task, arguments = _identity(run, facts)
    if system not in SYSTEMS:
        raise RunError(f"{folder} holds a {system}, which has no official layout; there are: {', '.join(SYSTEMS)}")
    if isinstance(run, ImportedCheckpoint):
        check_depth(folder, arguments, len(shapes(folder)))
    else:
        check_model(folder, run)
    try:
        names = SYSTEMS[system].names(arguments, task)
    except (TypeError, KeyError, ValueError) as error:
        raise RunError(f"{folder}: run.json has no arguments of a {system} for {task} ({error})") from None
    ours = read_weights(folder)
    beside = names.teacher_names
    if beside:
        names = names.without_teacher  # a run's weights are the student's
    official = names.to_official(ours)
    dead = digests.read(folder / DEAD)[0] if (folder / DEAD).is_file() else {}
    unread = {} if "imported" in facts else names.ignored  # an import kept what it found
    lost = [f"{name} ({why})" for name, why in unread.items() if name not in dead]
    if beside and not any(name in dead for name in beside):
        lost.append("the momentum model and its queue (a run keeps its student)")
    if to == "hf":
        held = official | {n: t for n, t in dead.items() if n not in names.ignored}
        left = _write_hf(system, task, arguments, held, _beside(system, run, facts), out)
        return [f"{name} ({names.ignored[name]})" for name in dead if name in names.ignored] + left
    whole = {name: tensor.contiguous() for name, tensor in (official | dead).items()}
    with locked(out.parent, out.name), atomic_write(out) as path:
        if to == "safetensors":
            save_file({name: tensor.clone() for name, tensor in whole.items()}, path)
        else:
            nest = SYSTEMS[system].model_prefix
            torch.save({nest: as_two_sides(whole)} if nest else whole, path)
    return lost


def _check_suffix(to: Target, out: Path) -> None:
    """Raises RunError where a file's name ends as that of another format: readers, ours too, go by the ending."""
    if to == "safetensors" and out.suffix != ".safetensors":
        raise RunError(
            f"--out {out}: expected a name that ends in .safetensors for --to safetensors, as {out.stem}.safetensors"
        )
    if to == "official" and out.suffix in (".safetensors", ".npz"):
        raise RunError(f"--out {out}: --to official writes PyTorch's format; expected a name such as {out.stem}.pth")
    if to == "hf" and out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file; --to hf writes a folder: give another --out")


def arguments_of(folder: Path) -> dict[str, Any]:
    """What a run's model was made with."""
    return _identity(*read_any(folder))[2]


def _identity(
    run: Pretrain | Finetune | ImportedCheckpoint, facts: Mapping[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    """System, task and the model's arguments."""
    if isinstance(run, ImportedCheckpoint):
        return run.system, run.task, run.arguments
    arguments = asdict(run.model)
    if "system" in facts:  # as it was imported
        return facts["system"], facts["task"], arguments
    system = model_name(run.model).lower()
    return system, run.task if isinstance(run, Finetune) else _pretrained_for(run, system), arguments


def _pretrained_for(run: Pretrain, system: str) -> str:
    """The task under whose names the official code keeps the heads of a pre-training run."""
    asked = run.objectives
    if system == "beit3":
        return "captioning" if asked.masked_captions else "retrieval" if asked.itc else "encoder"
    if system == "albef" and not {"*", "words"} & set(run.heads):
        return "retrieval"
    if system == "blip" and run.model.variant != "pretraining":  # type: ignore[union-attr]
        return run.model.variant  # type: ignore[union-attr]
    return "encoder" if system == "vit" else "pretraining"


def _beside(
    system: str, run: Pretrain | Finetune | ImportedCheckpoint, facts: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What a Hugging Face folder holds beside sizes and weights, by file: the names of the classes for config.json, and how
    pictures are prepared.
    """
    named = facts.get("classes") or facts.get("answers")
    labels: dict[str, Any] = {}
    if named and system in OWN and system != "blip":
        labels["id2label"] = {str(i): name for i, name in enumerate(named)}
        labels["label2id"] = {name: i for i, name in enumerate(named)}
    if isinstance(run, ImportedCheckpoint) or system not in OWN:
        return {"config.json": labels}
    return {"config.json": labels, FILE: exported(system, run.images)}


def _write_hf(
    system: str,
    task: str,
    arguments: Mapping[str, Any],
    official: Mapping[str, Tensor],
    beside: Mapping[str, dict[str, Any]],
    out: Path,
) -> list[str]:
    """Gives what has no place there, a sentence each."""
    if system not in HF:
        raise RunError(f"Hugging Face has no class that {system} equals; there are: {', '.join(HF)}")
    config, state, left = HF[system](arguments, task, official)
    with locked(out):
        for name, values in {**beside, "config.json": config | beside["config.json"]}.items():
            with atomic_write(out / name) as path:
                path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        with atomic_write(out / "model.safetensors") as path:
            save_file({n: t.contiguous().clone() for n, t in state.items()}, path, {"format": "pt"})
    return left
