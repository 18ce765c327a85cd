"""diptych import SYSTEM CKPT|FOLDER --out DIR [--heads N] [--grid ROWSxCOLUMNS] [--config FILE] [--answers FILE] [--regions PATH]
               [--vocabulary FILE]
diptych export RUN --to official|safetensors|hf --out FILE
diptych parity GOLDEN [--certificate FILE]

import reads an official or Hugging Face checkpoint (and ViT's JAX .npz) strictly: every weight has its place, or it is
named. FOLDER: as Hugging Face keeps a model, with its config.json. What comes of it is a run like any other: to be evaluated,
started from, fine-tuned, used to bootstrap. --config is the official code's settings as JSON, where they are not the published
ones: ViLBERT's schedule, open_clip's config, mean and std of pictures (a DeiT's: ImageNet's). --answers: the answers or classes
of a task, a JSON list. --regions: where the regions lie that ViLBERT, SCAN and VSE++ read. --vocabulary: the file of the pieces
that it reads, where they are neither BERT's nor CLIP's:
BEiT-3's sentencepiece model, SCAN's words (.json) or VSE++'s (.pkl, of which nothing is run). export writes a run's weights under
the paper's official names (a .pth as the official code nests it, or .safetensors), or a folder that Hugging Face's class loads,
where transformers has one that is equal. parity recomputes an official golden folder, every out.* tensor, and exits with 1 where
one differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diptych.cli.arguments import asks_help, positional, take
from diptych.cli.refusal import UsageError
from diptych.terminal import plain, say


def import_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        say(__doc__)
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
    from diptych.jobs.imports import import_official

    found = import_official(
        system,
        checkpoint,
        out,
        _whole(heads, "--heads") if heads else None,
        _grid(grid) if grid else None,
        Path(answers) if answers else None,
        Path(config) if config else None,
        regions,
        Path(vocabulary) if vocabulary else None,
    )
    size = sum(tensor.numel() for tensor in found.state.values())
    heads_found = f" with {', '.join(found.heads)}" if found.heads else ""
    say(f"{out}: {system}, {found.task}{heads_found}, {size:,} parameters, every weight in its place")
    if told := _heads(found.arguments):
        say(f"attention heads stand in no shape: {told}; where nothing tells them, as published (--heads, --config)")
    for name, reason in found.dead.items():
        say(f"left out: {name} ({reason})")
    if found.task in ("vqa", "classification") and not answers:
        say(
            "it tells no names of its answers: official checkpoints do not carry them; give --answers FILE, a JSON list"
        )


def _heads(arguments: dict[str, Any]) -> str:
    """How many attention heads a model has, by the names of its settings (CrossViT: one number for each branch)."""
    return ", ".join(f"{name} {n}" for name, n in arguments.items() if name.endswith("heads"))


def _whole(text: str, flag: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{flag} is a whole number of at least 1, not {text!r}")
    return int(text)


def _grid(text: str) -> tuple[int, int]:
    rows, by, columns = text.partition("x")
    if not by:
        raise UsageError(f"--grid is ROWSxCOLUMNS, as 12x20, not {text!r}")
    return _whole(rows, "--grid"), _whole(columns, "--grid")


def export_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        say(__doc__)
        return
    folder = Path(positional(words, "the run's folder"))
    to, out = take(words, "--to"), Path(take(words, "--out"))
    if to not in ("official", "safetensors", "hf"):
        raise UsageError(f"--to is official, safetensors or hf, not {to!r}")
    if words:
        raise UsageError(f"export does not know {' '.join(words)}")
    from diptych.jobs.export import arguments_of, export

    if out.exists() and out.resolve() in (folder.resolve(), *(part.resolve() for part in folder.iterdir())):
        raise UsageError(f"{out} is a part of the run itself; give another --out")
    lost = export(folder, to, out)
    say(f"{out}: written, {to} layout")
    if to != "hf" and (told := _heads(arguments_of(folder))):
        say(f"attention heads stand in no shape: {told}; `diptych import` is to be told (--heads, --config)")
    for sentence in lost:
        say(f"left out: {sentence}")


def parity_command(words: list[str]) -> int:
    if asks_help(words) or not words:
        say(__doc__)
        return 0
    folder, certificate = Path(positional(words, "the golden folder")), take(words, "--certificate", "")
    if words:
        raise UsageError(f"parity does not know {' '.join(words)}")
    from diptych.weights.parity import parity

    report = parity(folder)
    table = Table("tensor", "layout", "largest error", "tolerance", "", title=plain(f"{folder.name}: {report.source}"))
    for row in report.rows:
        error = "-" if row.error is None else f"{row.error:.2e}"
        tolerance = "-" if row.tolerance is None else f"{row.tolerance:.2e}"
        verdict = "equal" if row.ok else f"DIFFERS {row.note}"
        table.add_row(plain(row.tensor), row.layout, error, tolerance, plain(verdict))
    Console().print(table)
    if certificate:
        report.write(Path(certificate))
    wrong = [row for row in report.rows if not row.ok]
    tensors = len({row.tensor for row in report.rows})
    say(
        f"{tensors} tensors in two layouts: {'all equal' if report.passed else f'{len(wrong)} of {len(report.rows)} comparisons differ'}"
    )
    return 0 if report.passed else 1
