from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.data.examples import PairExamples, QuestionExamples
from diptych.data.images.transforms import ImageSettings
from diptych.data.sources.base import BadSample
from diptych.data.sources.captions import open_captions
from diptych.data.tokenizers.tokenizer import Tokenizer
from tests.data.tiny_data import Colours, write_karpathy

SMALL = ImageSettings(shorter_side=16, patch_size=16)
TOKENIZER = Tokenizer(16)


def shade(image: np.ndarray | None) -> int:
    assert image is not None
    return int(image[0, 0, 0])


def test_one_example_per_caption():
    examples = PairExamples(Colours(5), TOKENIZER, SMALL, matching=0.0)
    assert len(examples) == 10 and examples.owner.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    pair = examples.load(7, 0, 0)
    assert (shade(pair.image), pair.caption, pair.matching_image) == (3, "image number 3", None)
    assert examples.length(7) == 5


def test_collate_without_matching():
    examples = PairExamples(Colours(5), TOKENIZER, SMALL, matching=0.0)
    batch = examples.collate([examples.load(i, 3, 9) for i in (4, 1)], [4, 1], 3, 9)
    assert batch.matching is None and batch.ids.tolist() == [4, 1] and (batch.seed, batch.step) == (3, 9)
    assert batch.image is not None and batch.text is not None
    assert batch.image.pixels[:, 0, 0, 0].tolist() == pytest.approx([2 / 127.5 - 1, 0 / 127.5 - 1])
    assert TOKENIZER.decode(batch.text.ids[1].tolist()) == "image number 0"


@pytest.mark.slow
def test_half_of_the_images_are_replaced_by_others_uniformly():
    examples = PairExamples(Colours(8), TOKENIZER, SMALL)
    pairs = [(i, examples.load(i, 0, step)) for step in range(150) for i in range(16)]
    others = [(i // 2, shade(p.matching_image)) for i, p in pairs if p.matching_image is not None]
    assert abs(len(others) / len(pairs) - 0.5) < 0.04
    assert all(own != other for own, other in others)
    counts = np.bincount([(other - own) % 8 for own, other in others], minlength=8)[1:]
    assert counts.min() > 0.75 * counts.mean() and counts.max() < 1.25 * counts.mean()


def test_the_true_image_is_kept_and_matched_tells_whether_the_other_is_the_same():
    examples = PairExamples(Colours(8), TOKENIZER, SMALL)
    ids = list(range(16))
    batch = examples.collate([examples.load(i, 0, 1) for i in ids], ids, 0, 1)
    assert batch.matching is not None and batch.image is not None
    same = (batch.matching.image.pixels == batch.image.pixels).flatten(1).all(1)
    assert torch.equal(same, batch.matching.matched) and 0 < int(same.sum()) < 16
    assert batch.image.pixels[:, 0, 0, 0].tolist() == pytest.approx([i // 2 / 127.5 - 1 for i in ids])


def test_draws_depend_on_seed_step_and_id_only():
    examples = PairExamples(Colours(8), TOKENIZER, SMALL)

    def drawn(seed: int, step: int) -> list[int]:
        images = [examples.load(i, seed, step).matching_image for i in range(16)]
        return [-1 if s is None else shade(s) for s in images]

    assert drawn(1, 2) == drawn(1, 2) != drawn(1, 3) and drawn(1, 2) != drawn(2, 2)


def test_all_or_no_images_are_replaced():
    always = PairExamples(Colours(2), TOKENIZER, SMALL, matching=1.0)
    assert [shade(always.load(i, 0, 0).matching_image) for i in range(4)] == [1, 1, 0, 0]
    single = PairExamples(Colours(1), TOKENIZER, SMALL, matching=1.0)
    assert single.load(0, 0, 0).matching_image is None  # there is no other image


def test_a_bad_replacement_is_drawn_again_but_a_bad_image_is_not():
    examples = PairExamples(Colours(6, bad=frozenset({2})), TOKENIZER, SMALL, matching=1.0)
    assert all(shade(examples.load(i, 0, s).matching_image) != 2 for s in range(30) for i in (0, 1, 6, 7))
    with pytest.raises(BadSample, match="image 2: broken"):
        examples.load(4, 0, 0)


@pytest.mark.parametrize("caption,why", [("", "empty"), ("\ud800", "not valid Unicode")])
def test_texts_that_cannot_be_tokenized_are_bad_samples(caption, why):
    with pytest.raises(BadSample, match=why):
        PairExamples(Colours(3, caption=caption), TOKENIZER, SMALL).load(0, 0, 0)


def test_augmentation_differs_at_each_step(tmp_path):
    write_karpathy(tmp_path, 4)
    source = open_captions(str(tmp_path), "train")
    examples = PairExamples(
        source, TOKENIZER, ImageSettings(shorter_side=32, patch_size=16, augment=True), matching=0.0
    )
    views = [examples.load(0, 0, step).image.tobytes() for step in (0, 0, 1, 2, 3)]
    assert views[0] == views[1] and len(set(views)) > 2


def test_questions_have_soft_targets():
    examples = QuestionExamples(Colours(6), TOKENIZER, SMALL, ["blue", "red", "grey"], str.lower)
    batch = examples.collate([examples.load(i, 0, 0) for i in (4, 5)], [4, 5], 0, 0)
    torch.testing.assert_close(batch.labels["targets"], torch.tensor([[1.0, 0, 0.6]] * 2))
    assert batch.labels["question"].tolist() == [104, 105] and batch.text is not None and batch.image is not None
    assert TOKENIZER.decode(batch.text.ids[0].tolist()) == "which 4?"
    assert batch.image.pixels[:, 0, 0, 0].tolist() == pytest.approx([1 / 127.5 - 1, 2 / 127.5 - 1])
