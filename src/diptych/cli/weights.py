"""diptych import SYSTEM CKPT|FOLDER --out DIR [--heads N] [--grid ROWSxCOLUMNS] [--config FILE] [--answers FILE] [--regions PATH]
               [--vocabulary FILE]
diptych export RUN --to official|safetensors|hf --out FILE

import reads an official or Hugging Face checkpoint (and ViT's JAX .npz) strictly: every weight has its place, or it is
named. FOLDER: as Hugging Face keeps a model (one file or shards, .safetensors or .bin), with its config.json, image processor
and tokenizer, which are read, also where CKPT is the model.safetensors or pytorch_model.bin in it; a key that cannot be followed is refused by name. What comes of it is a run like any other: to be evaluated,
started from, fine-tuned, used to bootstrap. --config is the official code's settings as JSON, where they are not the published
ones: ViLBERT's schedule, open_clip's config, mean and std of pictures (a DeiT's: ImageNet's). --answers: the answers or classes
of a task, a JSON list. --regions: where the regions lie that ViLBERT, SCAN and VSE++ read. --vocabulary: the file of the pieces
that it reads, where they are neither BERT's nor CLIP's:
BEiT-3's sentencepiece model, SCAN's words (.json) or VSE++'s (.pkl, of which nothing is run). export writes a run's weights under
the paper's official names (a .pth as the official code nests it, or .safetensors), or a folder that Hugging Face's class loads,
where transformers has one that is equal. parity recomputes an official golden folder, every out.* tensor, and exits with 1 where
one differs.

Wrapped weights: a file may nest them ("model", "state_dict", "ema" …) and prefix their names ("module.", "_orig_mod.", "model." …).
Wrappers come off where the rest then fits exactly, and what came off is printed. Where several nests fit, trained weights
are taken and not their averages (ema, teacher, swa); of two different sets of trained weights none is. NaN and infinite weights
are refused. Weight-normed weights (ViLBERT's answers) are imported as the plain ones that they stand for, and exported as
weight_g (their norm) and weight_v, from which the official code computes the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.cli.arguments import asks_help, positional, take, whole
from diptych.cli.refusal import UsageError
from diptych.config.validation import Cells, NumHeads
from diptych.utils.terminal import echo


def import_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        echo(__doc__)
        return
    system, checkpoint = (
        positional(words, "the system (vit, vilt, albef …)"),
        Path(positional(words, "the checkpoint file")),
    )
    out = Path(take(words, "--out"))
    heads, grid, answers = take(words, "--heads", ""), take(words, "--grid", ""), take(words, "--answers", "")
    config, regions = take(words, "--config", ""), take(words, "--regions", "")
    vocabulary = take(words, "--vocabulary", "")
    if words:
        raise UsageError(f"import does not know {' '.join(words)}")
    from diptych.runs.imports import import_checkpoint
    from diptych.runs.run_folder import read_any

    found = import_checkpoint(
        system,
        checkpoint,
        out,
        whole(heads, "--heads", NumHeads) if heads else None,
        _grid(grid) if grid else None,
        Path(answers) if answers else None,
        Path(config) if config else None,
        regions,
        Path(vocabulary) if vocabulary else None,
    )
    size = sum(tensor.numel() for tensor in found.state.values())
    heads_found = f" with {', '.join(found.heads)}" if found.heads else ""
    echo(f"{out}: {system}, {found.task}{heads_found}, {size:,} parameters, every weight in its place")
    if heads := _heads(found.arguments):
        echo(f"{heads} (weight shapes do not show them: from --heads, --config or config.json, else as published)")
    for note in found.notes:
        echo(note)
    for name, reason in found.ignored.items():
        echo(f"left out: {name} ({reason})")
    for note in read_any(out)[1]["notes"]:
        echo(note)


def _heads(arguments: dict[str, Any]) -> str:
    """The numbers of attention heads of a model, by the names of its settings (CrossViT: one number for each branch)."""
    counts = ", ".join(f"{name} {n}" for name, n in arguments.items() if name.endswith("heads"))
    return counts and f"attention heads: {counts}"


def _grid(text: str) -> tuple[int, int]:
    rows, by, columns = text.partition("x")
    if not by:
        raise UsageError(f"--grid is ROWSxCOLUMNS, as 12x20, not {text!r}")
    return whole(rows, "--grid", Cells), whole(columns, "--grid", Cells)


def export_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        echo(__doc__)
        return
    folder = Path(positional(words, "the run's folder"))
    to, out = take(words, "--to"), Path(take(words, "--out"))
    if to not in ("official", "safetensors", "hf"):
        raise UsageError(f"--to is official, safetensors or hf, not {to!r}")
    if words:
        raise UsageError(f"export does not know {' '.join(words)}")
    from diptych.runs.export import arguments_of, export

    if out.exists() and out.resolve() in (folder.resolve(), *(part.resolve() for part in folder.iterdir())):
        raise UsageError(f"{out} is a part of the run itself; give another --out")
    lost = export(folder, to, out)
    echo(f"{out}: written, {to} layout")
    if to != "hf" and (heads := _heads(arguments_of(folder))):
        echo(f"{heads} (weight shapes do not show them: give them to `diptych import` by --heads or --config)")
    for sentence in lost:
        echo(f"left out: {sentence}")
