"""Pre-training: from a run to a folder with its weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diptych.data.examples import LONGEST_TEXT, Examples, PairExamples
from diptych.data.files import open_captions
from diptych.data.pictures import PictureExamples
from diptych.data.source import Captioned
from diptych.data.wordpiece import Tokenizer, bundled, vocabulary
from diptych.jobs.folder import RunError, read_run, read_weights
from diptych.jobs.reading import tokenizer_of
from diptych.jobs.training import train
from diptych.models.cnn import FrozenCNN
from diptych.models.vilt import ViLT
from diptych.models.vit import ViT
from diptych.objectives.draws import Masking
from diptych.objectives.hard import HardMatching
from diptych.objectives.imitation import ClassImitation, GridImitation
from diptych.objectives.itc import ImageTextContrast
from diptych.objectives.itm import ImageTextMatching
from diptych.objectives.mlm import MaskedWords
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.wpa import WordPatchAlignment
from diptych.recipes import models as settings
from diptych.recipes.run import Pretrain
from diptych.train.checkpoint import weights
from diptych.train.distributed import processes
from diptych.weights.names import within
from diptych.weights.start import start_vilt_from_vit
from diptych.weights.strict import load_strict

MOST_UNKNOWN = 0.1  # of the captions' pieces


def objectives(run: Pretrain, contrasts: tuple[str, ...] = ("contrast",)) -> list[Objective]:
    """The losses whose weight is not 0. `contrasts`: the heads of contrast."""
    chosen = run.objectives
    # a model of another vocabulary may be built, to be compared; `tokenizer_of` refuses to train it
    known = bundled(settings.pieces(run.model)) or vocabulary()
    masking = Masking(known.size, known.mask, chosen.mask_rate, chosen.whole_words)
    possible: list[Objective] = [
        ImageTextContrast(weight=chosen.itc, heads=contrasts),
        HardMatching(weight=chosen.itm) if chosen.hard_negatives else ImageTextMatching(weight=chosen.itm),
        MaskedWords(masking, weight=chosen.mlm, alone=chosen.alone),
        WordPatchAlignment(weight=chosen.wpa),
        GridImitation(weight=chosen.grid),
        ClassImitation(weight=chosen.classes),
    ]
    return [o for o in possible if o.weight]


def build(run: Pretrain, statistics: Mapping[str, float] | None = None, guided: bool = True) -> Pretraining:
    """The run's model with fresh weights, keyed by its seed, under its objectives. `guided` False leaves the guide out."""
    torch.manual_seed(run.training.seed)
    model: Any = run.model.build()
    guided = guided and bool(run.objectives.grid or run.objectives.classes)
    if isinstance(model, ViT):
        heads = nn.ModuleDict({"grid": nn.Linear(model.width, 1280), "classes": nn.Linear(model.width, 1000)})
    else:
        heads = model.heads()
    contrasts = tuple(name for name in heads if name.startswith("contrast"))
    return Pretraining(
        model, heads, objectives(run, contrasts), statistics, run.most_patches or None, FrozenCNN() if guided else None
    )


def examples(run: Pretrain, split: str, augment: bool) -> Examples:
    """What the run learns from, or is held out from it."""
    source = open_captions(run.data, split, least=run.images.shorter)
    images = replace(run.images, augment=augment and run.images.augment)
    if not (run.objectives.itm or run.objectives.mlm or run.objectives.itc or run.objectives.wpa):
        return PictureExamples(source, images)
    drawn = run.objectives.wpa or (run.objectives.itm and not run.objectives.hard_negatives)
    matching = 0.5 if drawn else 0.0
    return PairExamples(source, tokenizer_of(run), images, matching)


def statistics(source: Captioned, tokenizer: Tokenizer, most: int = 20_000) -> dict[str, float]:
    """Facts of the captions that floors are made of: the entropy of the pieces that masking may hide, in nats.

    Raises RunError where the vocabulary is one of another language or world.
    """
    texts = []
    for i in range(len(source)):
        texts += [text[:LONGEST_TEXT].encode(errors="ignore").decode() for text in source.captions(i)]
        if len(texts) >= most:
            break
    counts: Counter[int] = Counter()
    for at in range(0, len(texts), 1000):
        text = tokenizer.encode(texts[at : at + 1000])
        counts.update(text.ids[text.real].tolist())
    for special in tokenizer.vocabulary.special:
        counts.pop(special, None)
    total = sum(counts.values())
    if counts[tokenizer.vocabulary.unknown] > MOST_UNKNOWN * total:
        raise RunError(
            f"the vocabulary {tokenizer.vocabulary.name} does not know {counts[tokenizer.vocabulary.unknown] / total:.0%} of "
            f"the words of {source.name}; give --model.vocabulary {vocabulary().size}"
        )
    return {
        "captions_counted": len(texts),
        "unigram_entropy": -sum(n / total * math.log(n / total) for n in counts.values()) if total else 0.0,
    }


def start(module: Pretraining, folder: Path) -> None:
    """Begins with another run's weights: all of a pre-training run of the same model, or a ViT's for a ViLT's image side."""
    before, _ = read_run(folder)
    state, model = read_weights(folder), module.get_submodule("model")
    if type(before.model).__name__ == type(model).__name__:
        if state.keys() == weights(module).keys():
            load_strict(module, state, str(folder))
        else:  # other objectives, other heads
            load_strict(model, within(state, "model."), str(folder))
    elif isinstance(before.model, settings.ViT) and isinstance(model, ViLT):
        start_vilt_from_vit(model, within(state, "model."))
    else:
        raise RunError(
            f"{folder} holds a {type(before.model).__name__}, which a {type(model).__name__} cannot start from"
        )


def pretrain(run: Pretrain, out: Path) -> None:
    """Trains, going on where `out` stands; writes run.json, metrics.jsonl, model.safetensors, report.html.

    Raises DataError, RunError, WeightsError, CheckpointError, Diverged.
    """
    with processes(run.training.device) as group:
        food = examples(run, run.split, augment=True)
        facts: dict[str, Any] = {"examples": len(food)}
        if isinstance(food, PairExamples):
            facts |= statistics(food.source, food.tokenizer)
        module = build(run, facts)
        if run.start:
            start(module, Path(run.start))
        train(run, module, food, lambda: examples(run, "val", augment=False), facts, out, group)
