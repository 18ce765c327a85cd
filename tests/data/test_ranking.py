from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from diptych.batch import Image
from diptych.data.images.transforms import ImageSettings
from diptych.data.ranking import HardNegatives, RankedExamples
from diptych.data.sources.base import BadSample, DataError, NoSplit
from diptych.data.sources.captions import open_captions
from diptych.data.tokenizers.tokenizer import Tokenizer
from tests.data.tiny_data import Colours, image_bytes

SMALL = ImageSettings(shorter_side=16, patch_size=16)


def ranked(n: int = 6, num_texts: int = 5) -> RankedExamples:
    return RankedExamples(Colours(n), Tokenizer(16), SMALL, num_texts)


def test_negative_texts_are_captions_of_other_images():
    examples = ranked()
    for index in range(len(examples)):
        ranked_pair = examples.load(index, 0, 3)
        pair, others = ranked_pair.pair, ranked_pair.negative_texts
        own = {f"grey {index // 2}", f"image number {index // 2}"}
        assert pair.caption in own and len(others) == 5
        assert not own & set(others)


def test_captions_of_a_copy_are_not_negative_texts(tmp_path: Path):
    """Images 0 and 1, each under two names with a caption of its own under each."""
    rows = [{"image": f"{name}{n}.jpg", "caption": f"{name} {n}"} for n in (0, 1) for name in ("photo", "copy")]
    for n in (0, 1):
        for name in ("photo", "copy"):
            (tmp_path / f"{name}{n}.jpg").write_bytes(image_bytes(n))
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = RankedExamples(open_captions(str(tmp_path), "train"), Tokenizer(16), SMALL, 3)
    for step in range(10):
        for index in range(4):
            assert {text[-1] for text in examples.load(index, 0, step).negative_texts} == {str(1 - index // 2)}
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
    with pytest.raises(DataError, match="at least two"):
        RankedExamples(open_captions(str(tmp_path), "train"), Tokenizer(16), SMALL, 3)


def test_a_batch_contains_the_negative_texts_of_each_sample_in_order():
    examples, ids = ranked(), [3, 8]
    loaded = [examples.load(i, 0, 1) for i in ids]
    batch = examples.collate(loaded, ids, 0, 1)
    assert batch.negative_texts is not None and batch.matching is None and len(batch.negative_texts) == 10
    texts = [examples.pairs.tokenizer.decode(row) for row in batch.negative_texts.ids.tolist()]
    assert texts == [*loaded[0].negative_texts, *loaded[1].negative_texts]


def test_negatives_depend_on_seed_step_and_sample():
    examples = ranked()
    assert examples.load(2, 0, 1).negative_texts == examples.load(2, 0, 1).negative_texts
    assert examples.load(2, 0, 1).negative_texts != examples.load(2, 0, 2).negative_texts


def test_one_image_has_no_negatives_and_raises():
    with pytest.raises(DataError, match="at least two images"):
        ranked(1)


def test_a_caption_that_cannot_be_tokenized_is_never_a_negative_text():
    class Broken(Colours):
        def captions(self, index: int) -> tuple[str, ...]:
            return ("\ud83d", " ") if index == 1 else super().captions(index)

    examples = RankedExamples(Broken(3), Tokenizer(16), SMALL, 5)
    loaded = [examples.load(i, 0, step) for step in range(20) for i in (0, 1, 4, 5)]
    assert {text for one in loaded for text in one.negative_texts} == {f"grey {i}" for i in (0, 2)} | {
        f"image number {i}" for i in (0, 2)
    }
    examples.collate(loaded, range(len(loaded)), 0, 0)


class Described:
    """Images with these captions."""

    name, split = "described", "train"

    def __init__(self, *captions: tuple[str, ...]):
        self.listed = captions

    def __len__(self) -> int:
        return len(self.listed)

    def image(self, index: int) -> Pillow.Image:
        return Pillow.new("RGB", (16, 16), (index,) * 3)

    def captions(self, index: int) -> tuple[str, ...]:
        return self.listed[index]

    def where(self, index: int) -> str:
        return f"row {index}"


def of(*captions: tuple[str, ...], num_texts: int = 5) -> RankedExamples:
    return RankedExamples(Described(*captions), Tokenizer(16), SMALL, num_texts)


@pytest.mark.parametrize(
    "captions",
    [
        (("a",),),
        (("a",), ("a",)),
        (("a", "b"), ("b", "a")),
        (("A cat",), ("a  cat ",), ("a cat",)),
        (("a",), ("a", " ")),
    ],
)
def test_data_without_any_negative_text_raises(captions):
    with pytest.raises(
        NoSplit, match=r"described \(train\): no negative text for any image: .* at least two images with different"
    ):
        of(*captions)


def test_a_sample_without_negative_texts_is_a_bad_sample():
    examples = of(("a", "b"), ("A",), ("b", "b"))
    for index in (0, 1):
        with pytest.raises(BadSample, match="row 0: no negative text: every caption of the data is one of its own"):
            examples.load(index, 0, 0)
    assert examples.load(2, 0, 0).negative_texts == ["b"] * 5 and set(examples.load(3, 0, 0).negative_texts) <= {
        "a",
        "A",
    }


def test_a_caption_of_the_image_itself_is_not_a_negative_text():
    examples = of(("a dog", "dogs"), ("A  dog",), ("dogs",), ("a cat",))
    assert {text for step in range(20) for text in examples.load(0, 0, step).negative_texts} == {"a cat"}


def test_every_sample_has_the_configured_number_of_negative_texts():
    examples = of(("one",), *[("two",)] * 500, num_texts=3)  # 12 draws, one of which must be the first
    loaded = [examples.load(i, 0, 0) for i in (0, 7, 300)]
    assert [one.negative_texts for one in loaded] == [["two"] * 3, ["one"] * 3, ["one"] * 3]
    assert len(examples.collate(loaded, [0, 7, 300], 0, 0).negative_texts or ()) == 9


def test_zero_negative_texts_raise():
    with pytest.raises(DataError, match="no negatives: at least one of negative_texts"):
        of(("a",), ("b",), num_texts=0)


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "A", "b", "c", " ", "\ud83d"]), min_size=1, max_size=3).map(tuple),
        min_size=1,
        max_size=5,
    )
)
@pytest.mark.slow
def test_a_negative_text_is_of_another_image_only_or_the_sample_is_bad(captions):
    try:
        examples = of(*captions, num_texts=2)
    except NoSplit:
        assert len({frozenset(text.lower() for text in texts if text in "aAbc") for texts in captions}) == 1
        return
    for index in range(len(examples)):
        own = {text.lower() for text in captions[examples.pairs.owner[index]]}
        others = {text.lower() for texts in captions for text in texts if text in "aAbc"} - own
        try:
            negatives = examples.load(index, 0, 0).negative_texts
        except BadSample:
            assert not others or examples.pairs.caption(index) not in "aAbc"
        else:
            assert len(negatives) == 2 and {text.lower() for text in negatives} <= others


def shade(image: np.ndarray) -> int:
    """The index of an image of `Colours` or `Described`: its grey."""
    return int(image.flat[0])


def with_images(source, num_images: int = 1, hard: HardNegatives | None = None) -> RankedExamples:
    return RankedExamples(source, Tokenizer(16), SMALL, 0, num_images, hard)


def test_negative_images_are_other_images_without_the_caption():
    examples = with_images(Described(("a", "b"), ("A",), ("c",), ("d",)), 2)
    drawn = {shade(image) for step in range(20) for image in examples.load(0, 0, step).negative_images}
    assert drawn == {2, 3}, "image 1 has the caption too"
    drawn = {shade(image) for step in range(20) for image in examples.load(1, 0, step).negative_images}
    assert drawn == {1, 2, 3}


def test_an_unreadable_image_is_never_a_negative_image():
    examples = with_images(Colours(5, bad=frozenset({1, 2})), 2)
    drawn = {shade(image) for step in range(20) for image in examples.load(0, 0, step).negative_images}
    assert drawn == {3, 4}
    with pytest.raises(BadSample, match="image 0: no negative image: no other image without this caption can be read"):
        with_images(Colours(3, bad=frozenset({1, 2}))).load(0, 0, 0)


NEAREST = np.array([[1, 2], [0, 2], [0, -1], [0, 1], [-1, -1], [-1, -1]])


@pytest.mark.parametrize(("image", "nearest"), [(0, {1, 2}), (2, {0}), (3, {0, 1}), (4, {0, 1, 2, 3, 5})])
def test_hard_negatives_are_of_the_nearest_images_or_random_where_there_is_none(image: int, nearest: set[int]):
    examples = with_images(Colours(6), 0, HardNegatives(NEAREST, texts=1, images=1))
    loaded = [examples.load(2 * image, 0, step) for step in range(80)]
    assert {int(text.split()[-1]) for one in loaded for text in one.negative_texts} == nearest
    assert {shade(one) for pair in loaded for one in pair.negative_images} == nearest


def test_a_caption_that_nearest_images_share_is_no_hard_negative():
    source = Described(("a", "b"), ("B",), ("A",), ("c",), ("d",))
    hard = HardNegatives(np.array([[1, 2], *[[-1, -1]] * 4]), texts=1, images=1)
    examples = with_images(source, 0, hard)
    loaded = [examples.load(0, 0, step) for step in range(80)]
    assert {text for one in loaded for text in one.negative_texts} == {"c", "d"}, "drawn from all captions"
    assert {shade(one) for pair in loaded for one in pair.negative_images} == {1}


def test_a_batch_has_the_candidates_of_vilbert_in_order():
    hard = HardNegatives(np.array([[1], [2], [0], [0], [0], [0]]), texts=1)
    examples, ids = RankedExamples(Colours(6), Tokenizer(16), SMALL, 1, 1, hard), [0, 3]
    loaded = [examples.load(i, 0, 1) for i in ids]
    batch = examples.collate(loaded, ids, 0, 1)
    assert batch.negative_texts is not None and batch.negative_images is not None
    texts = [examples.pairs.tokenizer.decode(row) for row in batch.negative_texts.ids.tolist()]
    assert texts == [*loaded[0].negative_texts, *loaded[1].negative_texts] and len(texts) == 4
    assert texts[1].endswith(" 1") and texts[3].endswith(" 2")
    assert isinstance(batch.negative_images, Image) and batch.negative_images.pixels.shape == (2, 3, 16, 16)


def test_random_negative_texts_do_not_change_with_other_negatives():
    plain = RankedExamples(Colours(6), Tokenizer(16), SMALL, 2)
    more = RankedExamples(Colours(6), Tokenizer(16), SMALL, 2, 1, HardNegatives(NEAREST, texts=1))
    for index in range(12):
        texts = more.load(index, 0, 5).negative_texts
        assert texts[:2] == plain.load(index, 0, 5).negative_texts and len(texts) == 3
