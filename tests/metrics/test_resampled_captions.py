"""Caption metrics of a multiset of images equal those of the corpus in which images are repeated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.metrics.captions import caption_scores
from diptych.metrics.resampled_captions import FEWER_SAMPLES, resampled_captions

WORDS = ["a", "the", "dog", "cat", "runs", "on", "red", "grass", "."]
captions = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
corpora = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=4)), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(corpora, st.data())
def test_metrics_are_those_of_the_images_repeated(corpus: list[tuple[str, list[str]]], data: st.DataObject):
    numbers = st.lists(st.integers(0, 3), min_size=len(corpus), max_size=len(corpus)).filter(any)
    counts = data.draw(numbers)
    repeated = [pair for pair, n in zip(corpus, counts, strict=True) for _ in range(n)]
    expected = caption_scores([caption for caption, _ in repeated], [texts for _, texts in repeated])
    resampled = resampled_captions([caption for caption, _ in corpus], [texts for _, texts in corpus])
    values = {name: value for name, (value,) in resampled.metrics(np.array([counts])).items()}
    assert values == pytest.approx(
        {f"BLEU-{n}": score for n, score in enumerate(expected.bleu, 1)}
        | {"ROUGE-L": expected.rouge_l, "CIDEr-D": expected.cider_d},
        rel=1e-9,
        abs=1e-12,
    )


def test_each_draw_is_its_own_corpus():
    resampled = resampled_captions(["a dog", "a cat", "grass"], [["a dog runs"], ["the cat"], ["red grass"]])
    together = resampled.metrics(np.array([[1, 1, 1], [3, 0, 0], [0, 1, 2]]))
    for i, counts in enumerate([[1, 1, 1], [3, 0, 0], [0, 1, 2]]):
        alone = resampled.metrics(np.array([counts]))
        assert {name: values[i] for name, values in together.items()} == pytest.approx(
            {name: values[0] for name, values in alone.items()}
        )


def test_of_many_images_fewer_draws_are_made(monkeypatch: pytest.MonkeyPatch):
    assert resampled_captions(["a"] * 3, [["a"]] * 3).samples == 1000
    monkeypatch.setattr("diptych.metrics.resampled_captions.MOST_IMAGES", 2)
    assert resampled_captions(["a"] * 3, [["a"]] * 3).samples == FEWER_SAMPLES
