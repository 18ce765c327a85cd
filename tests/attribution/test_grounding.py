"""Maps of phrases: their place in the photograph, scores of boxes, the pointing game, and which models have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from torch import Tensor

from diptych.attribution.grounding import (
    PhraseMap,
    canvas_size,
    grad_cam_of,
    ground_by_map,
    lacks_maps,
    phrase_maps,
    pointing_game,
    word_maps,
    word_numbers,
)
from diptych.batch import Batch, Image, Text
from diptych.config.data import ImageSettings
from diptych.data.images.transforms import transform, visible_area
from diptych.data.regions.arrays import fixed_boxes
from diptych.inference.loaded_model import LoadedModel, ModelWithHeads
from diptych.protocols import UnsupportedOperation
from diptych.runs.load_model import load_model
from tests.models.systems.common import images, texts
from tests.models.systems.vilbert import as_regions
from tests.models.test_battery import SYSTEMS, amplified
from tests.predict.tiny_models import untrained

WHOLE = ImageSettings(square=True, shorter_side=32, patch_size=16)
CROPPED = ImageSettings(shorter_side=32, patch_size=16, crop=32)


def peaked(row: int, column: int, rows: int = 4, columns: int = 6, images: ImageSettings = WHOLE) -> PhraseMap:
    """A map whose mass is on one patch."""
    values = torch.zeros(rows, columns)
    values[row, column] = 1.0
    return PhraseMap(values, None, images)


def test_the_map_lies_over_the_whole_photograph():
    one = peaked(1, 4)
    assert one.on_pixels((120, 80)).shape == (80, 120)
    assert one.maximum((120, 80)) == pytest.approx((4.5 * 20, 1.5 * 20), abs=2)


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (100, 100), (101, 67)])
def test_the_map_of_a_centre_crop_lies_where_the_crop_was(size: tuple[int, int]):
    """A white square in the photograph is in the pixels that the model gets where the map says."""
    width, height = size
    left, top, right, bottom = visible_area(height, width, CROPPED)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 255
    assert transform(Pillow.fromarray(pixels), CROPPED).mean() > 240  # a crop of nothing else
    canvas = PhraseMap(torch.ones(2, 2), None, CROPPED).on_pixels(size)
    assert (canvas > 0.5).equal(torch.from_numpy(pixels[:, :, 0] > 0))


def test_scores_of_boxes_are_sums_over_the_root_of_the_area():
    """As ALBEF's official code: of pixels of the map, interpolated bicubically to the photograph."""
    values, size = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), (40, 30)
    boxes = torch.tensor([[0, 0, 40, 30], [4, 6, 20, 12], [39, 29, 40, 30]])  # pixels
    canvas = F.interpolate(values[None, None], (30, 40), mode="bicubic")[0, 0]
    wanted = [canvas[y1:y2, x1:x2].sum() / ((x2 - x1) * (y2 - y1)) ** 0.5 for x1, y1, x2, y2 in boxes.tolist()]
    got = PhraseMap(values, None, WHOLE).score_boxes(boxes / torch.tensor([40, 30, 40, 30]), size)
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_the_best_of_the_fixed_boxes_is_around_the_maximum():
    boxes, scores = peaked(0, 5).scored_boxes((120, 80))
    assert len(boxes) == len(fixed_boxes())
    left, top, right, bottom = boxes[scores.argmax()].tolist()
    assert left <= 5.5 / 6 <= right and top <= 0.5 / 4 <= bottom
    assert (right - left) * (bottom - top) <= 0.16
    given = torch.tensor([[0.0, 0.5, 1.0, 1.0], [0.8, 0.0, 1.0, 0.3]])
    boxes, scores = peaked(0, 5).scored_boxes((120, 80), given)
    assert boxes is given and scores.argmax() == 1


def test_regions_are_scored_by_their_own_relevance():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    one = PhraseMap(torch.tensor([0.1, 0.7, 0.3]), boxes, WHOLE)
    chosen, scores = one.scored_boxes((40, 20))
    assert chosen is boxes and scores.tolist() == one.values.tolist()
    assert one.maximum((40, 20)) == (30.0, 15.0)
    canvas = one.on_pixels((40, 20))
    assert canvas.sum().item() == pytest.approx(1.1, rel=1e-5)  # each region's relevance, spread over its box
    assert canvas[15, 30] > canvas[5, 5] > canvas[15, 5] > 0


def test_the_pointing_game():
    one, size = peaked(1, 4), (120, 80)  # maximum near (90, 30)
    shares = torch.tensor([120.0, 80.0, 120.0, 80.0])
    hit = torch.tensor([[80.0, 20.0, 100.0, 40.0]]) / shares
    miss = torch.tensor([[0.0, 0.0, 60.0, 80.0], [100.0, 20.0, 120.0, 40.0]]) / shares
    assert pointing_game(one, hit, size) == pytest.approx(
        {"pointing": 1, "pointing/center": 0, "pointing/chance": 20 * 20 / (120 * 80)}
    )
    assert pointing_game(one, miss, size) == pytest.approx(
        {"pointing": 0, "pointing/center": 1, "pointing/chance": (60 * 80 + 20 * 20) / (120 * 80)}
    )
    assert pointing_game(one, torch.cat([miss, hit]), size)["pointing"] == 1
    assert pointing_game(one, miss, size, tolerance=15)["pointing"] == 1


def test_a_canvas_has_the_photographs_proportions():
    assert canvas_size((4000, 2000), 1000) == (1000, 500)
    assert canvas_size((40, 20), 1000) == (40, 20)
    assert canvas_size((100_000, 1), 1000) == (1000, 1)


def test_tokens_are_numbered_by_word():
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    starts = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0]]).bool()
    text = Text(torch.ones(2, 6, dtype=torch.long), mask, starts)
    assert word_numbers(text).tolist() == [[0, 1, 1, 2, 3, 0], [0, 1, 0, 0, 0, 0]]
    assert word_numbers(replace(text, word_start=None)).tolist() == [[0, 1, 2, 3, 4, 0], [0, 1, 0, 0, 0, 0]]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """An untrained BLIP with ITM and ITC heads."""
    return load_model(untrained(tmp_path_factory.mktemp("runs") / "blip"), torch.device("cpu"))


def phrases(loaded: LoadedModel, *texts: str) -> Batch:
    pixels = torch.randn(len(texts), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    image = Image(pixels, torch.tensor([[32, 32], [32, 16]])[: len(texts)])
    image.pixels[1:, :, :, 16:] = 0
    return Batch(0, 0, torch.arange(len(texts)), image=image, text=loaded.tokenizer.encode(list(texts)))


def test_a_map_has_the_patches_of_its_image_and_does_not_depend_on_the_batch(blip: LoadedModel):
    batch = phrases(blip, "a red fish swims", "a boat")
    both = phrase_maps(blip, batch)
    assert batch.text is not None and batch.image is not None
    assert [tuple(one.values.shape) for one in both] == [(2, 2), (2, 1)]
    assert all(one.boxes is None and one.values.sum() > 0 for one in both)
    n = int(batch.text.mask[1].sum())
    alone = Batch(
        0, 0, torch.arange(1),
        image=Image(batch.image.pixels[1:, :, :, :16], batch.image.sizes[1:]),
        text=Text(batch.text.ids[1:, :n], batch.text.mask[1:, :n]),
    )  # fmt: skip
    with blip.computing(False):
        torch.testing.assert_close(phrase_maps(blip, alone)[0].values, both[1].values, rtol=1e-4, atol=1e-9)


def test_the_map_of_a_phrase_is_the_mean_over_its_tokens(blip: LoadedModel):
    """Of words over the word's tokens; of the phrase over all, special tokens included."""
    batch = phrases(blip, "a red fish swims", "a boat")
    words, whole = word_maps(blip, batch), phrase_maps(blip, batch)
    assert [[word for word, _ in of_text] for of_text in words] == [["a", "red", "fish", "swims"], ["a", "boat"]]
    explain = grad_cam_of(blip)
    assert batch.text is not None and batch.image is not None
    relevance = explain(batch.text, batch.image)
    lengths = batch.text.mask.sum(1).tolist()
    for i, (of_text, one) in enumerate(zip(words, whole, strict=True)):
        inside = relevance.positions[i]
        tokens = relevance.values[i, : lengths[i], inside]
        torch.testing.assert_close(one.values.flatten(), tokens.mean(0))
        number = word_numbers(batch.text)[i, : lengths[i]]
        for n, (_, of_word) in enumerate(of_text, 1):
            torch.testing.assert_close(of_word.values.flatten(), tokens[number == n].mean(0))


def test_the_explained_score_can_be_chosen(blip: LoadedModel):
    batch = phrases(blip, "a red fish swims", "a boat")
    default, itm, itc = (phrase_maps(blip, batch, grad_cam_of(blip, method)) for method in ("", "itm", "itc"))
    assert default[0].values.equal(itm[0].values)
    assert not itc[0].values.allclose(itm[0].values)
    with pytest.raises(UnsupportedOperation, match="gives one map of the whole text"):
        word_maps(blip, batch, grad_cam_of(blip, "itc"))


@pytest.mark.slow
def test_which_models_have_maps(tmp_path: Path):
    def loaded(name: str) -> LoadedModel:
        return load_model(untrained(tmp_path / name, name), torch.device("cpu"))

    clip, vit, vilt = loaded("clip.base"), loaded("vit.base"), loaded("vilt.base")
    assert lacks_maps(clip) == "" == lacks_maps(clip, "itc") == lacks_maps(vilt) == lacks_maps(vilt, "itm")
    assert lacks_maps(clip, "itm") == "has no trained ITM or ranking head, whose score a map could explain"
    assert lacks_maps(vilt, "itc") == "has no trained contrastive head, whose score a map could explain"
    assert lacks_maps(vit).startswith("has no trained ITM, ranking or contrastive head")
    with pytest.raises(UnsupportedOperation, match="this ViT has no trained ITM, ranking or contrastive head"):
        grad_cam_of(vit)
    assert len(phrase_maps(clip, phrases(clip, "a fish", "a boat"))) == 2


def test_boxes_are_in_pixels_of_the_photograph_the_best_first(blip: LoadedModel):
    photo = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8))
    phrase_map, boxes = ground_by_map(blip, photo, "a red fish")
    assert len(boxes) == len(fixed_boxes())
    assert boxes[0][1] == max(score for _, score in boxes)
    assert max(x for box, _ in boxes for x in box) == 90
    assert max(y for box, _ in boxes for y in box[1::2]) == 50
    torch.testing.assert_close(phrase_map.scored_boxes((90, 50))[1].max(), torch.tensor(boxes[0][1]))


@pytest.mark.parametrize("system", ["vilbert", "visualbert"])
def test_the_region_of_the_whole_image_is_no_answer(system: str, blip: LoadedModel):
    """A model of regions gives a map with the other regions and their boxes."""
    torch.manual_seed(0)
    model: Any = amplified(SYSTEMS[system].small())
    heads: Any = amplified(model.pretraining_heads())
    loaded = replace(blip, module=ModelWithHeads(model, heads).eval())
    regions = as_regions(images(2, 0))
    batch = Batch(0, 0, torch.arange(2), regions=regions, text=texts(2, 1))
    for i, one in enumerate(phrase_maps(loaded, batch)):
        boxes: Tensor | None = one.boxes
        assert boxes is not None and boxes.equal(regions.boxes[i, 1:, :4][regions.mask[i, 1:]])
        assert len(one.values) == len(boxes) == int(regions.mask[i].sum()) - 1
        assert one.values.sum() > 0
