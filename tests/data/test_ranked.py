from __future__ import annotations

import pytest
from tiny_data import Colours

from diptych.data.ranked import RankedExamples
from diptych.data.source import DataError
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageSettings

SMALL = ImageSettings(shorter=16, patch=16)


def ranked(n: int = 6, false: int = 5) -> RankedExamples:
    return RankedExamples(Colours(n), Tokenizer(16), SMALL, false)


def test_false_texts_are_captions_of_other_images():
    examples = ranked()
    for index in range(len(examples)):
        pair, others = examples.load(index, 0, 3)
        own = {f"grey {index // 2}", f"image number {index // 2}"}
        assert pair.caption in own and len(others) == 5
        assert not own & set(others)


def test_a_batch_holds_as_many_false_texts_for_each_sample_one_after_the_other():
    examples, ids = ranked(), [3, 8]
    loaded = [examples.load(i, 0, 1) for i in ids]
    batch = examples.collate(loaded, ids, 0, 1)
    assert batch.false_texts is not None and batch.matching is None and len(batch.false_texts) == 10
    said = [examples.pairs.tokenizer.decode(row) for row in batch.false_texts.ids.tolist()]
    assert said == [*loaded[0][1], *loaded[1][1]]


def test_draws_are_keyed():
    examples = ranked()
    assert examples.load(2, 0, 1)[1] == examples.load(2, 0, 1)[1] != examples.load(2, 0, 2)[1]


def test_one_image_cannot_be_ranked():
    with pytest.raises(DataError, match="at least two images"):
        ranked(1)


def test_a_caption_that_is_no_text_is_nobody_s_false_text():
    class Broken(Colours):
        def captions(self, index: int) -> tuple[str, ...]:
            return ("\ud83d", " ") if index == 1 else super().captions(index)

    examples = RankedExamples(Broken(3), Tokenizer(16), SMALL, 5)
    loaded = [examples.load(i, 0, step) for step in range(20) for i in (0, 1, 4, 5)]
    assert {text for _, others in loaded for text in others} == {f"grey {i}" for i in (0, 2)} | {
        f"image number {i}" for i in (0, 2)
    }
    examples.collate(loaded, range(len(loaded)), 0, 0)
