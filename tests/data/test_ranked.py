from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_data import Colours, picture_bytes

from diptych.data.files import open_captions
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


def test_captions_of_a_copy_are_not_false_texts(tmp_path: Path):
    """Pictures 0 and 1, each under two names with a caption of its own under each."""
    rows = [{"image": f"{name}{n}.jpg", "caption": f"{name} {n}"} for n in (0, 1) for name in ("photo", "copy")]
    for n in (0, 1):
        for name in ("photo", "copy"):
            (tmp_path / f"{name}{n}.jpg").write_bytes(picture_bytes(n))
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = RankedExamples(open_captions(str(tmp_path), "train"), Tokenizer(16), SMALL, 3)
    for step in range(10):
        for index in range(4):
            assert {text[-1] for text in examples.load(index, 0, step)[1]} == {str(1 - index // 2)}
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
    with pytest.raises(DataError, match="at least two"):
        RankedExamples(open_captions(str(tmp_path), "train"), Tokenizer(16), SMALL, 3)


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
