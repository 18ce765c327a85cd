"""diptych import SYSTEM CHECKPOINT --out DIR [--config FILE] [--num_heads N] [--grid ROWSxCOLUMNS] [--answers FILE]
               [--regions PATH] [--vocabulary FILE] [--task TASK]
diptych export RUN --to official|safetensors|hf --out FILE

import turns official or Hugging Face weights into a run, to evaluate, fine-tune or initialise from. export writes the
weights of a run under the official names, or as a folder that Hugging Face's class loads.

Examples:
  diptych import vilt vilt_200k_mlm_itm.ckpt --out runs/vilt
  diptych import clip clip-vit-base-patch32/ --out runs/clip
  diptych import beit3 beit3_base.pth --vocabulary beit3.spm --out runs/beit3
  diptych export runs/vilt --to official --out vilt.pth
  diptych export runs/clip --to hf --out clip-hf/

Options of import:
  CHECKPOINT         a checkpoint of the official code, ViT's JAX .npz, or a Hugging Face folder (one file or shards,
                     .safetensors or .bin). A folder's config.json, image processor and tokenizer are read too, also
                     where CHECKPOINT is its model.safetensors or pytorch_model.bin; a key of config.json that is not
                     supported is an error
  --config FILE      the official code's settings as JSON, where they are not the published ones: ViLBERT's config,
                     open_clip's config, mean and std of the images (for a DeiT: ImageNet's)
  --num_heads N      the number of attention heads, which cannot be inferred from weight shapes
  --grid RxC         resize the position embeddings to this grid of patches
  --answers FILE     the answers or classes of a task, as a JSON list
  --regions PATH     the region features that ViLBERT, SCAN and VSE++ read
  --vocabulary FILE  the text tokenizer's vocabulary, where it is neither BERT's nor CLIP's: BEiT-3's SentencePiece
                     model, SCAN's words (.json) or VSE++'s (.pkl, of which no code is run)
  --task TASK        vqa, retrieval or grounding: of ViLBERT's downstream files, which have the heads of all tasks, the
                     one that the file was fine-tuned for; the other heads are kept aside for export

Options of export:
  --to official      the paper's official names, nested as by the official code, in PyTorch's format (FILE.pth); beside
                     it FILE.pth.config.json holds the model's settings that weight shapes do not show, which import
                     reads if no --config is given
  --to safetensors   the same names in FILE.safetensors, not nested, with these settings in its metadata
  --to hf            a folder for Hugging Face's class, where transformers has an equal one; a setting that its config
                     cannot express is an error

Loading is strict: missing, unexpected, NaN and infinite weights are errors. A checkpoint may nest its weights ("model",
"state_dict", "ema" ...) and prefix their names ("module.", "_orig_mod.", "model." ...): wrappers are removed where the
rest then fits exactly, and printed. Where several sets of weights fit, trained weights are taken rather than averages
(ema, teacher, swa); two different sets of trained weights are an error. Weight-normalised layers (ViLBERT's answers)
are imported as plain weights, and exported as weight_g (the norm) and weight_v, from which the official code computes
the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.cli.arguments import parse_int, pop_option, pop_positional, wants_help
from diptych.cli.errors import UsageError
from diptych.config.validation import NumHeads, PatchesPerSide
from diptych.utils.terminal import echo

LAYOUTS = ("official", "safetensors", "hf")


def import_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        echo(__doc__)
        return
    system = pop_positional(args, "the system (vit, vilt, albef …)")
    checkpoint = Path(pop_positional(args, "the checkpoint file"))
    out = Path(pop_option(args, "--out"))
    names = ("--num_heads", "--grid", "--answers", "--config", "--regions", "--vocabulary", "--task")
    heads, grid, answers, config, regions, vocabulary, task = (pop_option(args, name, "") for name in names)
    if args:
        raise UsageError(f"import takes SYSTEM, CHECKPOINT, --out, {', '.join(names)}, not {' '.join(args)}")
    from diptych.runs.import_checkpoint import import_checkpoint

    model = import_checkpoint(
        system,
        checkpoint,
        out,
        num_heads=parse_int(heads, "--num_heads", NumHeads) if heads else None,
        grid=_parse_grid(grid) if grid else None,
        answers=Path(answers) if answers else None,
        config=Path(config) if config else None,
        regions=regions,
        vocabulary=Path(vocabulary) if vocabulary else None,
        task=task,
    )
    imported = model.checkpoint
    size = sum(tensor.numel() for tensor in imported.state.values())
    output_heads = f" with {', '.join(imported.heads)}" if imported.heads else ""
    echo(f"{out}: {system}, {imported.task}{output_heads}, {size:,} parameters, every weight loaded")
    if attention := _attention_heads(imported.arguments):
        echo(f"{attention} (not in the weight shapes: from --num_heads, --config or config.json, else as published)")
    for note in imported.notes:
        echo(note)
    for name, reason in imported.ignored.items():
        echo(f"left out: {name} ({reason})")
    assert model.saved.imported is not None
    for note in model.saved.imported.notes:
        echo(note)


def export_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        echo(__doc__)
        return
    folder = Path(pop_positional(args, "the run's folder"))
    layout, out = pop_option(args, "--to"), Path(pop_option(args, "--out"))
    if layout not in LAYOUTS:
        raise UsageError(f"--to must be official, safetensors or hf: got {layout!r}")
    if args:
        raise UsageError(f"export takes RUN, --to and --out, not {' '.join(args)}")
    from diptych.runs.export import export
    from diptych.runs.exported_settings import settings_file

    if out.exists() and out.resolve() in (folder.resolve(), *(part.resolve() for part in folder.iterdir())):
        raise UsageError(f"{out} is a part of the run itself; give another --out")
    exported = export(folder, layout, out)
    echo(f"{out}: written, {layout} layout")
    if exported.settings:
        place = settings_file(out) if layout == "official" else "the file's metadata"
        settings = ", ".join(f"{name} {value}" for name, value in exported.settings.items())
        echo(f"settings that weight shapes do not show, in {place}, which diptych import reads: {settings}")
    for part in exported.left_out:
        echo(f"left out: {part}")


def _attention_heads(arguments: dict[str, Any]) -> str:
    """A model's numbers of attention heads, by the names of its settings (CrossViT has one for each branch)."""
    counts = ", ".join(f"{name} {n}" for name, n in arguments.items() if name.endswith("heads"))
    return counts and f"attention heads: {counts}"


def _parse_grid(text: str) -> tuple[int, int]:
    rows, by, columns = text.partition("x")
    if not by:
        raise UsageError(f"--grid must be ROWSxCOLUMNS, as 12x20: got {text!r}")
    return parse_int(rows, "--grid", PatchesPerSide), parse_int(columns, "--grid", PatchesPerSide)
