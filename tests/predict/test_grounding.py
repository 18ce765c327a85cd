"""diptych ground: rows and pictures of the boxes that phrases refer to, by models of toy size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diptych.api import load
from diptych.attribution.grounding import PhraseMap
from diptych.config.data import ImageSettings
from diptych.config.predict import GroundPhrases
from diptych.config.run import Finetune
from diptych.config.tasks import GroundingOptions
from diptych.data.sources.base import BadSample, DataError
from diptych.inference.saved_model import RunError
from diptych.predict.grounding import SIDE, Grounded, check_own_picture, draw, ground_phrases
from diptych.protocols import UnsupportedOperation
from diptych.report.images import captioned, side_by_side
from diptych.runs import finetune
from diptych.runs.recipes import recipe
from diptych.tasks.definition import NO_LABELS
from tests.models.test_first_step import toy
from tests.predict.tiny_models import untrained, with_vocabulary
from tests.runs.tiny_runs import write_model

CPU: dict[str, Any] = {"device": "cpu"}
ORANGE = (232, 89, 12)  # report.images.PREDICTED_BOX


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(untrained(tmp_path_factory.mktemp("runs") / "blip"))


@pytest.fixture(scope="module")
def grounding(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained ViLT with a grounding head."""
    full = recipe("vilt.base")
    like = toy(full)
    images = replace(like.images, shorter_side=32, patch_size=16, square=True, augment=False)
    run = Finetune(
        task="grounding", options=GroundingOptions(), model=with_vocabulary(like.model, full.model), images=images,
        training=like.training, data="scenes:8",
    )  # fmt: skip
    return str(write_model(tmp_path_factory.mktemp("runs") / "vilt", run, finetune.build(run, NO_LABELS)))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph of 90 x 60 pixels that lies on its side (EXIF)."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    return tmp_path / "photo.png"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method"), [("blip", "gradcam"), ("grounding", "head")])
def test_each_phrase_has_a_row_with_the_best_box_of_the_api(
    kind: str, method: str, photo: Path, request: pytest.FixtureRequest
):
    run = request.getfixturevalue(kind)
    rows = ground_phrases(run, str(photo), ["a dog", "two cats"], GroundPhrases(**CPU))
    assert [(row["phrase"], row["method"]) for row in rows] == [("a dog", method), ("two cats", method)]
    model = load(run, "cpu")
    for row in rows:
        best = model.ground(photo, row["phrase"])[0]
        assert row["box"] == pytest.approx(best.box) and row["score"] == pytest.approx(best.score, rel=1e-4)
        x1, y1, x2, y2 = row["box"]
        assert 0 <= x1 < x2 <= 60 and 0 <= y1 < y2 <= 90  # of the upright photograph


@pytest.mark.slow
def test_the_picture_has_a_panel_for_each_phrase_and_only_own_files_are_replaced(blip: str, photo: Path):
    out = photo.with_name("boxed.png")
    config = GroundPhrases(out=str(out), **CPU)
    ground_phrases(blip, str(photo), ["a dog"], config)
    with Pillow.open(out) as one:
        width, height = one.size
        assert height > SIDE > width
    ground_phrases(blip, str(photo), ["a dog", "two cats"], replace(config, map=True))
    with Pillow.open(out) as two:
        assert two.height == height and two.width > 2 * width
    before = photo.read_bytes()
    with pytest.raises(RunError, match=r"photo\.png exists, and was not written by this command"):
        ground_phrases(blip, str(photo), ["a dog"], replace(config, out=str(photo)))
    assert photo.read_bytes() == before


def test_the_box_is_drawn_where_it_is():
    """Also of a photograph that was decoded at a smaller scale than its boxes are in."""
    photo = Pillow.new("RGB", (100, 50), "white")
    picture = draw(photo, (400, 200), [Grounded("a dog", (100.0, 50.0, 300.0, 150.0), 0.5, None)], with_map=False)
    pixels = np.asarray(picture)
    ys, xs = np.nonzero((pixels == ORANGE).all(2))
    assert (xs.min(), xs.max()) == pytest.approx((SIDE / 4, SIDE * 3 / 4), abs=2)
    assert (ys.min(), ys.max()) == pytest.approx((SIDE / 8, SIDE * 3 / 8), abs=2)
    assert (pixels[SIDE // 2 :].min(2) < 100).any()  # the phrase, in black below the photograph


def test_the_map_colours_its_maximum():
    values = np.zeros((2, 4), np.float32)
    values[1, 3] = 1
    heat = PhraseMap(torch.from_numpy(values), None, ImageSettings(square=True))
    grounded = Grounded("a dog", (0.0, 0.0, 10.0, 10.0), 0.5, heat)
    picture = draw(Pillow.new("RGB", (400, 200), "black"), (400, 200), [grounded], with_map=True)
    pixels = np.asarray(picture.convert("RGB")).astype(int)[: SIDE // 2]
    assert pixels[-10, -10].sum() > 300 and pixels[SIDE // 4, SIDE // 8].sum() < 30


def test_captions_are_cut_to_the_picture_and_panels_are_in_rows():
    image = Pillow.new("RGB", (120, 80), "red")
    panel = captioned(image, "a very long phrase " * 20)
    assert panel.width == 120 and panel.height > 80
    assert np.asarray(panel)[80:, 117:].min() == 255  # nothing is written over the edge
    assert captioned(Pillow.new("RGB", (4, 4)), "long").width == 4
    grid = side_by_side([image] * 5, columns=3, gap=5)
    assert grid.size == (3 * 120 + 2 * 5, 2 * 80 + 5)


@pytest.mark.slow
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    blip: str, grounding: str, photo: Path, tmp_path: Path
):
    out = str(tmp_path / "boxed.png")
    with pytest.raises(UnsupportedOperation, match="has a grounding head, whose scores need no Grad-CAM"):
        ground_phrases(grounding, str(photo), ["a dog"], GroundPhrases(out=out, map=True, **CPU))
    vit = str(untrained(tmp_path / "vit", "vit.base"))
    with pytest.raises(UnsupportedOperation, match="ground: this ViT has no trained grounding head, nor an ITM"):
        ground_phrases(vit, str(photo), ["a dog"], GroundPhrases(out=out, **CPU))
    with pytest.raises(ValueError, match=r"layer must be in \[0, 1\]: got 9"):
        ground_phrases(blip, str(photo), ["a dog"], GroundPhrases(out=out, layer=9, **CPU))
    with pytest.raises(DataError, match="expected one photograph, got 2"):
        Pillow.open(photo).save(tmp_path / "second.png")
        ground_phrases(blip, str(tmp_path / "*.png"), ["a dog"], GroundPhrases(out=out, **CPU))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photograph")
    with pytest.raises(BadSample, match=r"broken\.jpg"):
        ground_phrases(blip, str(tmp_path / "broken.jpg"), ["a dog"], GroundPhrases(out=out, **CPU))
    assert not Path(out).exists()


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_no_picture_of_this_command_is_never_replaced(content: bytes, tmp_path: Path):
    path = tmp_path / "boxed.png"
    path.write_bytes(content)
    with pytest.raises(RunError, match="was not written by this command"):
        check_own_picture(path)
    with pytest.raises(RunError, match=r"expected a file \.png"):
        check_own_picture(tmp_path / "boxed.jpg")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RunError, match="is a folder; give a file in it"):
        check_own_picture(tmp_path / "folder.png")
    check_own_picture(tmp_path / "new.png")
