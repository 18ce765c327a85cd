"""Wrong inputs of every system give a ValueError that says what was expected, what was got, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from diptych.batch import Image, Regions, Text
from diptych.models.albef.config import ALBEFConfig
from diptych.models.albef.model import ALBEF
from diptych.models.clip.config import CLIPResNetConfig
from diptych.models.crossvit.model import CrossViT
from diptych.models.scan.config import SCANConfig
from diptych.models.vilbert.config import ViLBERTConfig
from diptych.models.vilt.model import ViLT
from diptych.models.visualbert.config import VisualBERTConfig
from diptych.models.vlmo.model import VLMo
from diptych.models.vsepp.config import VSEppConfig
from diptych.modules.tokens import packing
from diptych.protocols import UnsupportedOperation
from tests.models.systems.blip import small as small_blip
from tests.models.systems.common import VOCABULARY, batch_of, rows
from tests.models.test_battery import SYSTEMS

BATCH = batch_of(4)
BY_REGIONS = ("vilbert", "12-in-1", "visualbert")  # their entries make regions of whole batches only; see below
OTHERS = [name for name in SYSTEMS if name.split(",")[0] not in BY_REGIONS]
LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])


def cropped(image: Image) -> Image:
    """With one row and one column of pixels less than whole patches have."""
    return Image(image.pixels[..., :-1, :-1], image.sizes)


def refused(call: Callable[[], object], packed: bool = False) -> str:
    """The message of the ValueError that the call must raise."""
    with (
        packing(packed),
        torch.no_grad(),
        pytest.raises(ValueError, match=r"(expected .*got .+|fuses .+): .+") as error,
    ):
        call()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@LAYOUTS
@pytest.mark.parametrize("name", OTHERS)
def test_a_batch_of_no_samples(name: str, packed: bool):
    model, nothing = SYSTEMS[name].small().eval(), rows(BATCH, torch.tensor([], dtype=torch.long))
    assert "empty batches" in refused(lambda: SYSTEMS[name].forward.call(model, nothing), packed)


def has_patches(model: nn.Module) -> bool:
    """Whether the model reads images in patches of their own size: no regions, no resizing of images."""
    parts = (getattr(model, "patches", None), getattr(getattr(model, "image", None), "patches", None))
    return not isinstance(model, CrossViT) and any(part is not None for part in parts)


@LAYOUTS
@pytest.mark.parametrize("name", SYSTEMS)
def test_pixels_that_are_not_whole_patches(name: str, packed: bool):
    model: Any = SYSTEMS[name].small().eval()
    image = BATCH.image
    if not has_patches(model):
        pytest.skip("reads regions, or resizes images to its own size")
    assert isinstance(image, Image) and isinstance(BATCH.image2, Image)
    odd = replace(BATCH, image=cropped(image), image2=cropped(BATCH.image2))
    message = refused(lambda: SYSTEMS[name].forward.call(model, odd), packed)
    assert "multiples of the patch size, 8, got 23 x 31: pad them" in message
    grey = replace(BATCH, image=Image(image.pixels[:, :1], image.sizes))
    assert "shape (images, 3, height, width)" in refused(lambda: model.encode_image(grey.image), packed)


@LAYOUTS
@pytest.mark.parametrize(
    "name", [name for name in OTHERS if name.split(",")[0].split()[0] not in ("clip", "vsepp", "scan")]
)
def test_fewer_images_than_texts(name: str, packed: bool):
    model: Any = SYSTEMS[name].small().eval()
    if not hasattr(model, "encode_text"):
        pytest.skip("reads no text")
    assert isinstance(BATCH.image, Image) and isinstance(BATCH.image2, Image)
    fewer = replace(BATCH, image=BATCH.image[:3], image2=BATCH.image2[:3])
    message = refused(lambda: SYSTEMS[name].forward.call(model, fewer), packed)
    assert re.search(r"got (3 and 4|4 and 3): repeat or select samples", message)


@LAYOUTS
@pytest.mark.parametrize("count", [1, 3])
def test_blip_for_nlvr2_with_another_number_of_images(count: int, packed: bool):
    model, (image, text) = small_blip("nlvr2").eval(), (BATCH.image, BATCH.text)
    assert "fuses a text with 2 images, got" in refused(lambda: model((image,) * count, text), packed)
    assert "fuses a text with two images" in refused(lambda: model(image, text), packed)


@pytest.mark.parametrize("variant", ["pretraining", "retrieval", "vqa", "caption"])
def test_blip_of_one_image_with_a_pair(variant: str):
    model = small_blip(variant).eval()
    with pytest.raises(
        ValueError, match=r"this BLIP (fuses a text with one image|has no text encoder).*: .*model\.variant"
    ):
        model((BATCH.image, BATCH.image), BATCH.text)


@pytest.mark.parametrize("count", [1, 3])
def test_albef_with_another_number_of_images(count: int):
    sizes = dict(
        text_depth=1, fusion_depth=1, num_heads=2, mlp_dim=8, vocab_size=VOCABULARY, text_length=9, embed_dim=4
    )
    image: Any = dict(image_dim=8, image_depth=1, image_num_heads=2, image_mlp_dim=8, patch_size=8, grid=(3, 4))
    model = ALBEF(ALBEFConfig(dim=8, num_images=2, **image | sizes)).eval()
    images = BATCH.image if count == 1 else (BATCH.image,) * count
    assert f"fuses a text with 2 images, got {count}: set" in refused(lambda: model(images, BATCH.text))
    assert BATCH.text is not None and BATCH.image is not None
    with pytest.raises(UnsupportedOperation) as error:
        model.fuse(model.encode_text(BATCH.text), model.encode_image(BATCH.image))
    assert str(error.value) == model.unsupported()["fuse"]


@LAYOUTS
@pytest.mark.parametrize("name", [name for name in SYSTEMS if isinstance(SYSTEMS[name].small(), ViLT | VLMo)])
def test_an_image_beyond_num_images(name: str, packed: bool):
    model: Any = SYSTEMS[name].small().eval()
    n = model.modality.num_embeddings - 1

    def fuse(image_index: int) -> object:
        return model.fuse(model.encode_text(BATCH.text), model.encode_image(BATCH.image).with_image_index(image_index))

    assert f"image_index below {n}, the number of images of a sample, got {n}: set" in refused(lambda: fuse(n), packed)
    with torch.no_grad():
        fuse(n - 1)


def test_texts_and_images_of_other_shapes():
    ids = torch.ones(2, 3, dtype=torch.long)
    for text in (Text(ids[:, :0], ids[:, :0].bool()),):
        with pytest.raises(ValueError, match=r"expected token ids .* got ids of shape \(2, 0\)"):
            text.check()
    Text(ids, ids.bool()).check()
    with pytest.raises(ValueError, match=r"at least one image, got \(0, 3, 8, 8\)"):
        Image.from_full(torch.zeros(0, 3, 8, 8)).check()
    Image.from_full(torch.zeros(1, 7, 8, 9)).check()


def regions(*counts: int, feature_dim: int = 6) -> Regions:
    """A batch of images with these numbers of regions."""
    n, mask = max(counts), torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return Regions(torch.randn(len(counts), n, feature_dim), torch.rand(len(counts), n, 5), mask)


def test_an_image_of_no_regions_is_refused_when_regions_are_made():
    with pytest.raises(
        ValueError, match=r"at least one region for each image, got none for .* indices \[1, 3\]: leave"
    ):
        regions(2, 0, 1, 0)
    assert len(regions(2, 1)) == 2


REGION_MODELS = {
    "vsepp": VSEppConfig(6, 8, VOCABULARY, 4),
    "scan": SCANConfig(6, 8, VOCABULARY, 4),
    "vilbert": ViLBERTConfig(8, 1, 2, 8, 8, 1, 2, 8, 8, 2, ((1, 1),), 6, 5, VOCABULARY, 9),
    "visualbert": VisualBERTConfig(8, 1, 2, 8, 6, VOCABULARY, 9),
}


@LAYOUTS
@pytest.mark.parametrize("name", REGION_MODELS)
def test_no_regions_or_texts_and_fewer_regions_than_texts(name: str, packed: bool):
    model = REGION_MODELS[name].build().eval()
    nothing = Regions(torch.zeros(0, 2, 6), torch.zeros(0, 2, 5), torch.zeros(0, 2, dtype=torch.bool), None, True)
    texts = Text(torch.ones(3, 4, dtype=torch.long), torch.ones(3, 4, dtype=torch.bool))
    assert "empty batches" in refused(lambda: model(nothing, texts), packed)
    assert "empty batches" in refused(lambda: model(regions(2, 1).with_whole_image(), texts[:0]), packed)
    if hasattr(model, "fuse"):
        message = refused(lambda: model(regions(2, 1).with_whole_image(), texts), packed)
        assert re.search(r"got (3 and 2|2 and 3): repeat or select samples", message)


@LAYOUTS
@pytest.mark.parametrize("name", REGION_MODELS)
def test_regions_of_another_detector(name: str, packed: bool):
    model = REGION_MODELS[name].build().eval()
    other = regions(3, 2, feature_dim=7).with_whole_image()
    message = refused(lambda: model.encode_image(other), packed)
    assert "region features of shape (images, regions, 6)" in message and "got (2, 4, 7)" in message


@pytest.mark.parametrize("name", ["vsepp", "scan"])
def test_a_text_of_no_words(name: str):
    model = REGION_MODELS[name].build().eval()
    text = Text(torch.ones(2, 3, dtype=torch.long), torch.tensor([[True] * 3, [False] * 3]))
    assert "got none for the texts with indices [1]: leave" in refused(lambda: model.encode_text(text))


def test_clips_resnet_without_images():
    config = CLIPResNetConfig(8, (1, 1), 4, (2, 2), 8, 1, 2, 8, VOCABULARY, 9, 4)
    model = config.build().eval()
    assert "at least one image" in refused(lambda: model.encode_image(Image.from_full(torch.zeros(0, 3, 32, 32))))
