"""What a run's model is shown of its pictures: a setting decides it, and every kind of examples follows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from diptych.data.seen import DetectorRegions, SeenGrids, SeenRegions
from diptych.data.settings import ImageSettings
from diptych.data.source import DataError
from diptych.inputs import Regions
from diptych.jobs.building import build
from diptych.jobs.embedding import shown
from diptych.jobs.folder import RunError
from diptych.jobs.pretrain import examples
from diptych.recipes import models
from diptych.recipes.run import Embedders, Objectives, Pretrain
from diptych.train.settings import Training

VILT = models.ViLT(16, 1, 2, 32, 32, (1, 1), vocabulary=30522, text_length=16)
VISUALBERT = models.VisualBERT(features=3, width=16, depth=1, heads=2, hidden=32, vocabulary=30522, text_length=16)


def run(model: models.Model, image: str) -> Pretrain:
    images = ImageSettings(shorter=32, patch=32, square=True)
    return Pretrain(model, Objectives(itm=1.0), images, Training(steps=1), embed=Embedders(image, features=3))


@pytest.mark.parametrize(("image", "kind"), [("grid", SeenGrids), ("boxes", SeenRegions), ("own", ImageSettings)])
def test_a_setting_decides_what_is_shown(image: str, kind: type):
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `cnn`")
    assert isinstance(shown(run(VILT, image)), kind)
    if kind is SeenRegions:
        of_vilbert = replace(run(VILT, image), model=models.ViLBERT())
        assert shown(of_vilbert).whole and not shown(replace(of_vilbert, model=VISUALBERT)).whole  # type: ignore[union-attr]


def test_a_model_of_regions_is_not_shown_pixels():
    with pytest.raises(RunError, match=r'set embed\.image to "boxes", or where they lie'):
        shown(run(VISUALBERT, "own"))
    with pytest.raises(DataError, match=r"neither a \.tsv nor a folder"):
        shown(run(VISUALBERT, "nowhere"))


def photos(folder: Path, n: int = 4) -> Path:
    """A Karpathy folder of `n` grey pictures."""
    entries = []
    for i in range(n):
        Pillow.new("RGB", (40, 30), (i, i, i)).save(folder / f"grey_{i}.jpg")
        entries.append({"filename": f"grey_{i}.jpg", "split": "train", "sentences": [{"raw": f"grey number {i}"}]})
    (folder / "dataset_grey.json").write_text(json.dumps({"images": entries}))
    return folder


def test_published_regions_reach_the_model(tmp_path: Path):
    data, detected = photos(tmp_path), tmp_path / "detected"
    detected.mkdir()
    for i in range(4):
        boxes = np.array([[0, 0, 9, 9], [1, 1, 5, 5]][: 1 + i % 2], dtype=np.float32)
        features = np.full((len(boxes), 3), i, dtype=np.float32)
        np.savez(detected / f"grey_{i}.npz", features=features, boxes=boxes, image_w=10, image_h=10)
    asked = replace(run(VISUALBERT, str(detected)), data=str(data))
    assert isinstance(shown(asked), DetectorRegions)
    food = examples(asked, "train", augment=False)
    batch = food.collate([food.load(i, 0, 0) for i in range(4)], range(4), 0, 0)
    assert isinstance(batch.regions, Regions) and batch.regions.features[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert batch.regions.real.sum(1).tolist() == [1, 2, 1, 2]
    assert build(asked)(batch)["itm"].isfinite()
