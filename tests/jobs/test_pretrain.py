"""Facts of the captions, and vocabularies that do not fit them."""

from __future__ import annotations

import math

import pytest

from diptych.data.scenes import Scenes
from diptych.data.wordpiece import SCENES, Tokenizer, bundled, vocabulary
from diptych.jobs.folder import RunError
from diptych.jobs.pretrain import statistics
from diptych.recipes import vilt

WORLD = Tokenizer(40, vocabulary(SCENES))


class Photographs(Scenes):
    """Pictures spoken of in words that the built-in world lacks."""

    name = "photographs"

    def captions(self, index: int) -> tuple[str, ...]:
        return ("a snowboarder jumps over a fence",)


def test_the_entropy_of_equally_common_words():
    class Two(Scenes):
        def captions(self, index: int) -> tuple[str, ...]:
            return ("red blue",)

    assert statistics(Two("val", 3), WORLD) == {"captions_counted": 3, "unigram_entropy": pytest.approx(math.log(2))}


def test_words_that_the_vocabulary_does_not_know_are_refused():
    with pytest.raises(
        RunError, match=r"scenes does not know 67% of the words of photographs; .*--model.vocabulary 30522"
    ):
        statistics(Photographs("val", 3), WORLD)
    assert statistics(Photographs("val", 3), Tokenizer(40))["unigram_entropy"] > 0


def test_a_model_reads_the_vocabulary_of_its_size():
    assert bundled(vilt.tiny().model.vocabulary) == vocabulary(SCENES)  # type: ignore[union-attr]
    assert bundled(vilt.small().model.vocabulary) == vocabulary()  # type: ignore[union-attr]
    assert bundled(99) is None
