"""Pre-training: from a run to a folder with its weights."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from diptych.config.run import Objectives, Pretrain
from diptych.data.examples import LONGEST_TEXT, Examples, ImageExamples, PairExamples, TextExamples
from diptych.data.mixgen import MixedPairs
from diptych.data.sources.base import Captioned, NoSplit
from diptych.data.sources.captions import open_captions
from diptych.data.sources.splits import asked_split, named_split
from diptych.data.tokenizers.tokenizer import Tokenizer, vocabulary
from diptych.data.webdataset.shards import shards
from diptych.data.webdataset.stream import Stream
from diptych.runs.build import build, frozen_tokenizer, init_from_run, with_teacher
from diptych.runs.embedders import image_key_names, shown_images
from diptych.runs.run_folder import RunError
from diptych.runs.tokenizer import tokenizer_of
from diptych.runs.train import train
from diptych.runs.training_data import Streamed, TrainingData, size_text
from diptych.runs.validate import check_inputs, check_out_is_apart
from diptych.training.distributed import processes
from diptych.training.recovery import claimed
from diptych.utils.state_dict import listed
from diptych.utils.terminal import echo

MOST_UNKNOWN = 0.1  # of the captions' pieces


def examples(run: Pretrain, split: str, augment: bool) -> Examples:
    """What the run learns from, or is held out from it."""
    return examples_of(run, open_captions(run.data, split, least=run.images.shorter_side), augment)


def training_data(run: Pretrain) -> TrainingData:
    """What the run learns from: a stream, where it asks for lanes."""
    if not run.streaming.lanes:
        return examples(run, run.split, augment=True)
    stream = Stream(run.data, run.split, run.streaming)
    head = examples_of(run, stream.head(run.images.shorter_side), augment=True)
    return Streamed(stream, partial(examples_of, run, augment=True), head, run.images.shorter_side)


def held_out(run: Pretrain) -> Examples:
    """What the run is held out from. Raises NoSplit where nothing is, DataError where that cannot be used."""
    if run.streaming.lanes and any(named_split(shard) is None for shard in shards(run.data)):
        raise NoSplit("a stream learns from every tar whose name speaks of no split; name one val")
    return examples(run, "val", augment=False)


def examples_of(run: Pretrain, source: Captioned, augment: bool) -> Examples:
    """Captioned images as the run's objectives want them."""
    asked = run.objectives
    if not reads_text(asked):
        return ImageExamples(source, shown_images(run, augment), image_key_names(run, augment))
    if not reads_images(asked):
        return TextExamples(source, tokenizer_of(run))
    drawn = asked.wpa or (asked.itm and not asked.hard_negatives)
    pairs = PairExamples(source, tokenizer_of(run), shown_images(run, augment), 0.5 if drawn else 0.0)
    return MixedPairs(pairs, run.mixgen) if run.mixgen and augment else pairs


def reads_text(asked: Objectives) -> bool:
    """Whether any objective reads texts."""
    paired = (
        asked.itm,
        asked.mlm,
        asked.itc,
        asked.wpa,
        asked.lm,
        asked.masked_captions,
        asked.masked_regions,
        asked.triplet,
        asked.masked_codes,
    )
    return any(paired) or bool(asked.mlm_text_only)


def reads_images(asked: Objectives) -> bool:
    """Whether any objective looks at images."""
    seeing = (asked.grid_distillation, asked.class_distillation, asked.mim, asked.masked_codes_image_only, asked.vqkd)
    return not asked.text_only or any(seeing) or reads_text(replace(asked, mlm=0.0, mlm_text_only=0.0))


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
        counts.update(text.ids[text.mask].tolist())
    for special in tokenizer.vocabulary.special:
        counts.pop(special, None)
    total = sum(counts.values())
    if counts[tokenizer.vocabulary.unknown] > MOST_UNKNOWN * total:
        raise RunError(
            f"the vocabulary {tokenizer.vocabulary.name} does not know {counts[tokenizer.vocabulary.unknown] / total:.0%} of "
            f"the words of {source.name}; give --model.vocab_size {vocabulary().size}"
        )
    return {
        "captions_counted": len(texts),
        "unigram_entropy": -sum(n / total * math.log(n / total) for n in counts.values()) if total else 0.0,
    }


def pretrain(run: Pretrain, out: Path) -> None:
    """Trains, going on where `out` stands; writes run.json, metrics.jsonl, model.safetensors, report.html.

    Raises DataError, RunError, WeightsError, CheckpointError, InUse, NotWritten, Diverged.
    """
    check_inputs(run)
    check_out_is_apart(run.data, out)
    run = replace(run, split=asked_split(run.split, run.data))
    with processes(run.training.device) as group, claimed(out, group):
        if group.main:
            echo(f"reading {run.data} ({run.split})")
        given = training_data(run)
        facts: dict[str, Any] = {"examples": size_text(given)}
        head = given.head if isinstance(given, Streamed) else given
        head = head.pairs if isinstance(head, MixedPairs) else head
        if isinstance(head, PairExamples | TextExamples):
            facts |= statistics(head.source, head.tokenizer)
        if run.objectives.itc:
            facts["candidates"] = run.training.batch_size // run.training.grad_accum + run.teacher.queue_size
        if run.objectives.masked_codes or run.objectives.masked_codes_image_only:
            facts["code_entropy"] = frozen_tokenizer(run).entropy()
        module = build(run, facts)
        if (left := init_from_run(module, run)) and group.main:
            echo(f"of {run.init_from} this run does not take: {listed(left)}")
        train(run, with_teacher(module, run), given, lambda: held_out(run), facts, out, group)
