"""The negatives of retrieval training: from the options to the batch, in training and in validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diptych.batch import Image
from diptych.config.run import Finetune
from diptych.config.tasks import RetrievalOptions
from diptych.data.ranking import RankedExamples
from diptych.models.vilt import recipes as vilt
from diptych.runs.recipes import recipe
from diptych.tasks.definition import NO_LABELS
from diptych.tasks.retrieval_training import training_examples

FOUR_WAY = RetrievalOptions(negative_texts=1, negative_images=1, hard_texts=1)


def run_of(options: RetrievalOptions) -> Finetune:
    tiny = vilt.tiny()
    return Finetune(
        task="retrieval",
        model=tiny.model,
        images=tiny.images,
        training=tiny.training,
        data="scenes:16",
        options=options,
    )


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The nearest image of each is the next one; the list has an item for each search."""
    searches: list[int] = []

    def following(source: Any, loader: Any, k: int, *_: Any) -> np.ndarray:
        searches.append(k)
        return (np.arange(len(source))[:, None] + 1) % len(source)

    monkeypatch.setattr("diptych.tasks.retrieval_training.comparable_features", lambda run: (None, b""))
    monkeypatch.setattr("diptych.tasks.retrieval_training.nearest_images", following)
    return searches


def hard_texts(examples: RankedExamples, indices: Sequence[int]) -> list[str]:
    return [examples.load(i, 0, 0).negative_texts[-1] for i in indices]


def test_hard_negatives_of_training_are_of_nearest_images_and_those_of_validation_are_random(searched: list[int]):
    run = run_of(replace(FOUR_WAY, nearest_images=20))
    indices, is_next = (0, 7, 21, 40), []
    for split in ("train", "val"):
        examples = training_examples(run, split, NO_LABELS, split == "train")
        source = examples.source
        captions = [source.captions((int(examples.pairs.owner[i]) + 1) % len(source)) for i in indices]
        is_next.append([text in own for text, own in zip(hard_texts(examples, indices), captions, strict=True)])
    assert all(is_next[0]) and not any(is_next[1])
    assert searched == [20]


def test_four_way_batches_are_the_same_for_the_same_seed_and_step(searched: list[int]):
    examples = training_examples(run_of(FOUR_WAY), "train", NO_LABELS, True)
    ids = [0, 9, 30]
    batches = [examples.collate([examples.load(i, 0, s) for i in ids], ids, 0, s) for s in (3, 3, 4)]
    texts, images = [], []
    for batch in batches:
        assert batch.negative_texts is not None and isinstance(batch.negative_images, Image)
        assert len(batch.negative_texts) == 6 and len(batch.negative_images) == 3
        texts.append(batch.negative_texts.ids.tolist())
        images.append(batch.negative_images.pixels)
    assert texts[0] == texts[1] != texts[2]
    assert images[0].equal(images[1]) and not images[0].equal(images[2])


def test_no_search_without_hard_negatives(searched: list[int]):
    training_examples(run_of(RetrievalOptions(negative_texts=1, negative_images=1)), "train", NO_LABELS, True)
    assert searched == []


def test_options_without_any_negative_raise():
    with pytest.raises(ValueError, match="at least one of negative_texts, negative_images, hard_texts and hard_images"):
        RetrievalOptions(negative_texts=0)
    assert RetrievalOptions(negative_texts=0, hard_images=2).num_negatives == 2


def test_vilbert_is_trained_by_a_four_way_choice():
    run = recipe("vilbert.retrieval", "Finetune")
    assert run.options == FOUR_WAY and FOUR_WAY.nearest_images == 100 and FOUR_WAY.num_negatives == 3
