"""Pre-training: data, model and objectives of a run, trained into a run folder."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from diptych.config.run import Pretrain
from diptych.data.examples import MAX_TEXT_CHARS, Examples, ImageExamples, PairExamples, TextExamples
from diptych.data.mixgen import MixedPairs
from diptych.data.sources.base import Captioned, DataError, NoSplit
from diptych.data.sources.captions import open_captions
from diptych.data.sources.pairs import PairTable
from diptych.data.sources.splits import named_split, requested_split
from diptych.data.tokenizers.tokenizer import Tokenizer, vocabulary
from diptych.data.webdataset.indexed_shards import shards
from diptych.data.webdataset.streamed_shards import Stream
from diptych.inference.embedders import cnn_feature_keys, image_input
from diptych.inference.saved_model import RunError
from diptych.inference.tokenizer import tokenizer_of
from diptych.objectives.definition import any_needs
from diptych.runs.build import build, frozen_tokenizer, init_from_run, with_teacher
from diptych.runs.check_inputs import check_inputs, check_out
from diptych.runs.train import train
from diptych.runs.training_data import StreamedData, TrainingData, data_size, with_steps
from diptych.training.distributed import processes
from diptych.training.recovery import locked_run_folder
from diptych.utils.state_dict import listed
from diptych.utils.terminal import echo

MAX_UNKNOWN_SHARE = 0.1  # of the captions' tokens


def examples(run: Pretrain, split: str, augment: bool, pairs: PairTable | None = None) -> Examples:
    """Examples of one split of the run's data, or of `pairs` in random access."""
    least = run.images.shorter_side
    if pairs is not None:
        return make_examples(run, pairs.split(split, min_side=least), augment)
    return make_examples(run, open_captions(run.data, split, run.layout, min_side=least), augment)


def training_data(run: Pretrain, pairs: PairTable | None = None) -> TrainingData:
    """Training examples of the run, or of `pairs`: a stream of tars if `streaming.lanes` is set, else in random access."""
    if pairs is not None or not run.streaming.lanes:
        return examples(run, run.split, augment=True, pairs=pairs)
    if run.columns:
        raise DataError("--columns is not read with --streaming.lanes: leave one of them out")
    stream = Stream(run.data, run.split, run.streaming)
    head = make_examples(run, stream.head(run.images.shorter_side), augment=True)
    return StreamedData(stream, partial(make_examples, run, augment=True), head, run.images.shorter_side)


def validation_examples(run: Pretrain, pairs: PairTable | None = None) -> Examples:
    """Examples of the val split of the run's data, or of `pairs`, without augmentation.

    Raises:
        NoSplit: the data has no val split.
        DataError: the val split cannot be used.
    """
    if pairs is None and run.streaming.lanes and any(named_split(shard) is None for shard in shards(run.data)):
        raise NoSplit("a stream trains on every tar whose name has no split word; give one tar a name with 'val'")
    return examples(run, "val", augment=False, pairs=pairs)


def make_examples(run: Pretrain, source: Captioned, augment: bool) -> Examples:
    """Training examples of captioned images: image-text pairs, images only or texts only, as the objectives need.

    Half of the images are replaced by those of other samples if an objective needs mismatched pairs.
    """
    if not any_needs(run.objectives, lambda needs: needs.text):
        return ImageExamples(source, image_input(run, augment), cnn_feature_keys(run, augment))
    if not any_needs(run.objectives, lambda needs: needs.image):
        return TextExamples(source, tokenizer_of(run))
    mismatched = 0.5 if any_needs(run.objectives, lambda needs: needs.mismatched_pairs) else 0.0
    pairs = PairExamples(source, tokenizer_of(run), image_input(run, augment), mismatched)
    return MixedPairs(pairs, run.mixgen) if run.mixgen and augment else pairs


def statistics(source: Captioned, tokenizer: Tokenizer, max_captions: int = 20_000) -> dict[str, float]:
    """Caption statistics that chance losses are computed from.

    Args:
        max_captions: captions are counted in order until there are at least so many.

    Returns:
        "captions_counted", and "unigram_entropy": entropy in nats of the tokens that MLM may mask (all but specials).

    Raises:
        RunError: more than `MAX_UNKNOWN_SHARE` of the tokens are unknown, as with captions in another language.
    """
    texts = []
    for i in range(len(source)):
        texts += [text[:MAX_TEXT_CHARS].encode(errors="ignore").decode() for text in source.captions(i)]
        if len(texts) >= max_captions:
            break
    counts: Counter[int] = Counter()
    for start in range(0, len(texts), 1000):
        text = tokenizer.encode(texts[start : start + 1000])
        counts.update(text.ids[text.mask].tolist())
    for special in tokenizer.vocabulary.special:
        counts.pop(special, None)
    total = sum(counts.values())
    unknown = counts[tokenizer.vocabulary.unknown]
    if unknown > MAX_UNKNOWN_SHARE * total:
        raise RunError(
            f"{source.name}: {unknown / total:.0%} of the caption tokens are unknown to the vocabulary "
            f"{tokenizer.vocabulary.name} (at most {MAX_UNKNOWN_SHARE:.0%} may be); give --model.vocab_size "
            f"{vocabulary().size} for the bundled WordPiece vocabulary, or --vocabulary FILE"
        )
    return {
        "captions_counted": len(texts),
        "unigram_entropy": -sum(n / total * math.log(n / total) for n in counts.values()) if total else 0.0,
    }


def pretrain(run: Pretrain, out: Path, pairs: PairTable | None = None) -> None:
    """Trains a run into the folder `out`, or resumes it there.

    Writes run.json, metrics.jsonl, checkpoints, model.safetensors and report.html.

    Args:
        pairs: the data if they are passed from Python (see `data.sources.pairs`); `run.data` is then their name.

    Raises:
        DataError, RunError, WeightsError: data, settings or initial weights cannot be used.
        CheckpointError: `out` contains a checkpoint of other settings, or a damaged one.
        InUse: another process writes `out`.
        WriteError: a file cannot be written.
        Diverged: a loss is not finite.
    """
    check_inputs(run, data_is_passed=pairs is not None)
    check_out(run.data, out)
    run = replace(run, split=requested_split(run.split, run.data))
    with processes(run.training.device) as group, locked_run_folder(out, group):
        if group.main:
            echo(f"reading {run.data} ({run.split})")
        data = training_data(run, pairs)
        run = with_steps(run, data)
        facts: dict[str, Any] = {"examples": data_size(data)}
        head = data.head if isinstance(data, StreamedData) else data
        head = head.pairs if isinstance(head, MixedPairs) else head
        if isinstance(head, PairExamples | TextExamples):
            facts |= statistics(head.source, head.tokenizer)
        if run.objectives.itc:
            facts["candidates"] = run.training.batch_size // run.training.grad_accum + run.teacher.queue_size
        if any_needs(run.objectives, lambda needs: needs.visual_tokenizer):
            facts["code_entropy"] = frozen_tokenizer(run).entropy()
        module = build(run, facts)
        if (unused := init_from_run(module, run)) and group.main:
            echo(f"weights of {run.init_from} that this run does not use: {listed(unused)}")
        train(run, with_teacher(module, run), data, lambda: validation_examples(run, pairs), facts, out, group)
