"""Pre-training: from a run to a folder with its weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.data.examples import Examples, PairExamples
from diptych.data.files import open_captions
from diptych.data.loader import loader, sweep
from diptych.data.pictures import PictureExamples
from diptych.data.source import Captioned, DataError
from diptych.data.tally import Loaded
from diptych.data.wordpiece import Tokenizer, Vocabulary
from diptych.jobs import report
from diptych.jobs.folder import RunError, read_run, read_weights, write_run
from diptych.models.cnn import FrozenCNN
from diptych.models.vit import ViT
from diptych.objectives.draws import Masking
from diptych.objectives.imitation import ClassImitation, GridImitation
from diptych.objectives.itm import ImageTextMatching
from diptych.objectives.mlm import MaskedWords
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.wpa import WordPatchAlignment
from diptych.recipes.run import Objectives, Pretrain
from diptych.tokens import Batch
from diptych.train.distributed import Group, processes
from diptych.train.loop import fit
from diptych.weights.names import load_strict, within
from diptych.weights.start import start_vilt_from_vit

HELD_OUT = 512  # pairs of the val split that an evaluation during training looks at


def objectives(chosen: Objectives) -> list[Objective]:
    """The losses whose weight is not 0."""
    masking = Masking(Vocabulary.size, Vocabulary.mask, chosen.mask_rate, chosen.whole_words)
    possible: list[Objective] = [
        ImageTextMatching(weight=chosen.itm),
        MaskedWords(masking, weight=chosen.mlm),
        WordPatchAlignment(weight=chosen.wpa),
        GridImitation(weight=chosen.grid),
        ClassImitation(weight=chosen.classes),
    ]
    return [o for o in possible if o.weight]


def build(run: Pretrain, statistics: Mapping[str, float] | None = None, guided: bool = True) -> Pretraining:
    """The run's model with fresh weights, keyed by its seed, under its objectives. `guided` False leaves the guide out."""
    torch.manual_seed(run.training.seed)
    model = run.model.build()
    guided = guided and bool(run.objectives.grid or run.objectives.classes)
    if isinstance(model, ViT):
        heads = nn.ModuleDict({"grid": nn.Linear(model.width, 1280), "classes": nn.Linear(model.width, 1000)})
    else:
        heads = model.heads()
    return Pretraining(
        model, heads, objectives(run.objectives), statistics, run.most_patches or None, FrozenCNN() if guided else None
    )


def examples(run: Pretrain, split: str, augment: bool) -> Examples:
    """What the run learns from, or is held out from it."""
    source = open_captions(run.data, split, least=run.images.shorter)
    images = replace(run.images, augment=augment and run.images.augment)
    if not (run.objectives.itm or run.objectives.mlm or run.objectives.wpa):
        return PictureExamples(source, images)
    matching = 0.5 if run.objectives.itm or run.objectives.wpa else 0.0
    return PairExamples(source, Tokenizer(run.model.text_length), images, matching)


def statistics(source: Captioned, tokenizer: Tokenizer, most: int = 20_000) -> dict[str, float]:
    """Facts of the captions that floors are made of: the entropy of the pieces that masking may hide, in nats."""
    texts = []
    for i in range(len(source)):
        texts += source.captions(i)
        if len(texts) >= most:
            break
    counts: Counter[int] = Counter()
    for at in range(0, len(texts), 1000):
        text = tokenizer.encode(texts[at : at + 1000])
        counts.update(text.ids[text.real].tolist())
    for special in Vocabulary.special:
        counts.pop(special, None)
    total = sum(counts.values())
    return {
        "captions_counted": len(texts),
        "unigram_entropy": -sum(n / total * math.log(n / total) for n in counts.values()) if total else 0.0,
    }


def start(module: Pretraining, folder: Path) -> None:
    """Begins with another run's weights: all of a pre-training run of the same model, or a ViT's for a ViLT's image side."""
    before, _ = read_run(folder)
    state = read_weights(folder)
    if type(before.model).__name__ == type(module.model).__name__:
        load_strict(module.model, within(state, "model."), str(folder))
        heads = within(state, "heads.")
        if set(heads) == set(module.heads.state_dict()):
            load_strict(module.heads, heads, str(folder))
    elif type(before.model).__name__ == "ViT":
        start_vilt_from_vit(module.model, within(state, "model."))
    else:
        raise RunError(
            f"{folder} holds a {type(before.model).__name__}, which a {type(module.model).__name__} cannot start from"
        )


def pretrain(run: Pretrain, out: Path) -> dict[str, float]:
    """Trains, going on where `out` stands; writes run.json, metrics.jsonl, model.safetensors, report.html. Gives the
    held-out means of the end. Raises DataError, RunError, WeightsError, CheckpointError, Diverged.
    """
    settings = run.training
    with processes(settings.device) as group:
        food = examples(run, run.split, augment=True)
        facts: dict[str, Any] = {"examples": len(food)}
        if isinstance(food, PairExamples):
            facts |= statistics(food.source, food.tokenizer)
        module = build(run, facts)
        if run.start:
            start(module, Path(run.start))
        if group.main:
            write_run(out, run, facts)

        def stream(first: int) -> Iterator[list[Loaded]]:
            return loader(
                food,
                batch=settings.batch,
                seed=settings.seed,
                start=first,
                steps=settings.steps,
                rank=group.rank,
                world=group.world,
                accumulate=settings.accumulate,
                workers=settings.workers,
            )

        held = held_out(run, settings.batch)
        latest: dict[str, float] = {}

        def evaluate(_: int) -> Mapping[str, float]:
            latest.update(
                {f"val/{name}": value for name, value in means(module, held, group, settings.precision).items()}
            )
            return latest

        identity = {"model": asdict(run.model), "objectives": asdict(run.objectives), "images": asdict(run.images)}
        identity |= {"data": run.data, "start": run.start}
        fit(module, stream, settings, out, evaluate=evaluate if held else None, fingerprint=identity, group=group)
        if group.main:
            pairs = val if isinstance(val := val_examples(run), PairExamples) else None
            report.write(out, f"{run.recipe or 'pre-training'} on {run.data}", module, module.floors, pairs)
    return latest


def val_examples(run: Pretrain) -> Examples | None:
    """The val split, where the data has one."""
    try:
        return examples(run, "val", augment=False)
    except DataError:
        return None


def held_out(run: Pretrain, batch: int) -> list[Batch]:
    """A few batches of the val split, the same each time; none where the data has no such split."""
    food = val_examples(run)
    if food is None:
        return []
    batches = []
    for loaded in sweep(food, min(batch, 64), seed=run.training.seed + 1, workers=0):
        batches.append(loaded.batch)
        if sum(map(len, batches)) >= HELD_OUT:
            break
    return batches


@torch.no_grad()
def means(module: Pretraining, batches: list[Batch], group: Group, precision: str) -> dict[str, float]:
    """Every loss and metric over all of `batches`, each rank doing its share."""
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    bf16 = precision == "bf16" or (precision == "auto" and group.device.type == "cuda")
    for batch in batches[group.rank :: group.world] or batches[:1]:
        batch = batch.to(group.device)
        count = module.counts(batch)
        with torch.autocast(group.device.type, torch.bfloat16, enabled=bf16):
            losses = module(batch, count)
        for name, mean in losses.items():
            totals[name] = totals.get(name, torch.zeros(())) + mean.cpu().float() * count[name].cpu()
            counts[name] = counts.get(name, torch.zeros(())) + count[name].cpu()
    totals, counts = group.sum(totals), group.sum(counts)
    return {name: (totals[name] / counts[name].clamp(min=1)).item() for name in totals}
