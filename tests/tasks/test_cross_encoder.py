"""Scores of pairs with each image's keys and values, and each text's part before the image, computed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.batch import Image, Text
from diptych.models.albef.config import ALBEFConfig
from diptych.models.blip.config import BLIPConfig
from diptych.models.vilt.config import ViLTConfig
from diptych.modules import packed_attention
from diptych.modules.attention import CrossAttention
from diptych.modules.tokens import Tokens, packing
from diptych.protocols import CrossAttentionEncoder, UnsupportedOperation
from diptych.tasks.open_vqa import OpenVQA
from diptych.tasks.pair_scores import FILL, CrossEncoder, image_groups
from diptych.tasks.retrieval import RerankedRetrieval
from tests.generation.counting import flops, rows_computed

IMAGE: dict[str, Any] = dict(image_dim=24, image_depth=1, image_num_heads=2, image_mlp_dim=32)
SIZES: dict[str, Any] = dict(dim=16, num_heads=4, mlp_dim=32, vocab_size=40, text_length=12, grid=(3, 3), patch_size=4)
ALBEF_SIZES: dict[str, Any] = IMAGE | SIZES | dict(embed_dim=8, dropout=0.0)
BLIP_SIZES: dict[str, Any] = ALBEF_SIZES | dict(bos_token_id=3, enc_token_id=5)
CONFIGS: dict[str, Any] = {
    "albef": ALBEFConfig(**ALBEF_SIZES, text_depth=1, fusion_depth=3),
    "albef, one fusion layer": ALBEFConfig(**ALBEF_SIZES, text_depth=1, fusion_depth=1),
    "blip": BLIPConfig(**BLIP_SIZES, depth=2, variant="retrieval"),
    "blip, pre-training": BLIPConfig(**BLIP_SIZES, depth=2),
    "vilt": ViLTConfig(**SIZES, depth=2, dropout=0.0),
}
IMAGES, TEXTS = 4, 6


def images() -> Image:
    """Images of different sizes."""
    sizes = torch.tensor([[12, 12], [8, 12], [12, 4], [4, 8]])
    inside = (torch.arange(12) < sizes[:, :1])[:, :, None] & (torch.arange(12) < sizes[:, 1:])[:, None]
    return Image(torch.randn(IMAGES, 3, 12, 12) * inside[:, None], sizes)


def texts(columns: int = 7) -> Text:
    mask = torch.arange(columns) < torch.tensor([7, 3, 5, 6, 2, 4])[:, None]
    return Text(torch.randint(6, 40, (TEXTS, columns)) * mask, mask)


@torch.no_grad()
def encoded(name: str, packed: bool = False) -> tuple[Any, Tokens, Tokens]:
    """A model, encoded images and encoded texts."""
    torch.manual_seed(0)
    model = CONFIGS[name].build().eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3) if weight.dim() > 1 else None
    with packing(packed):
        return model, model.encode_image(images()), model.encode_text(texts())


def first_feature(pooled: Tensor) -> Tensor:
    return pooled[:, 0]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("pairs", [2, 3, 256])
@torch.no_grad()
def test_scores_are_those_of_each_pair_fused_by_itself(name: str, packed: bool, pairs: int):
    model, image, text = encoded(name, packed)
    with packing(packed):
        every = torch.stack(
            [
                first_feature(model.fuse(text, image.index_samples(torch.full((TEXTS,), i))).pooled)
                for i in range(IMAGES)
            ]
        )
        all_scores = CrossEncoder(model, first_feature, [text], pairs).score_all(image)
        torch.testing.assert_close(all_scores, every, rtol=1e-5, atol=1e-5)
        rows, columns = torch.tensor([3, 0, 3, 1, 0, 3, 3, 3]), torch.tensor([1, 5, 0, 2, 5, 4, 3, 2])
        some = CrossEncoder(model, first_feature, [text], pairs).score(image, rows, columns)
        torch.testing.assert_close(some, every[rows, columns], rtol=1e-5, atol=1e-5)
        nothing = torch.zeros(0, dtype=torch.long)
        assert CrossEncoder(model, first_feature, [text], pairs).score(image, nothing, nothing).shape == (0,)


@pytest.mark.parametrize("name", ["albef", "vilt"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@torch.no_grad()
def test_texts_may_come_in_batches_of_other_lengths(name: str, packed: bool):
    model, image, text = encoded(name, packed)
    with packing(packed):
        torch.manual_seed(1)
        short = model.encode_text(texts(9)[torch.tensor([4, 1])])
        encoder = CrossEncoder(model, first_feature, [text, short], 5)
        parts = [CrossEncoder(model, first_feature, [part]).score_all(image) for part in (text, short)]
        torch.testing.assert_close(encoder.score_all(image), torch.cat(parts, 1), rtol=1e-5, atol=1e-5)


def cross_attentions(model: Any) -> list[CrossAttention]:
    layers = model.fusion if hasattr(model, "fusion") else model.encoder.blocks
    return [module for module in layers.modules() if isinstance(module, CrossAttention)]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "vilt"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("pairs", [4, 256])
def test_keys_and_values_of_an_image_are_projected_once_per_layer(name: str, packed: bool, pairs: int):
    """Whether the pairs of an image exceed those fused at a time (4) or not."""
    model, image, text = encoded(name, packed)
    assert isinstance(model, CrossAttentionEncoder)
    layers = cross_attentions(model)
    with packing(packed), rows_computed(*(part for x in layers for part in (x.key, x.value))) as rows:
        CrossEncoder(model, first_feature, [text], pairs).score_all(image)
    assert rows == [image.mask.sum() if packed else image.mask.numel()] * (2 * len(layers))


@pytest.mark.parametrize("pairs", [4, 256])
def test_the_first_self_attention_is_computed_once_per_text_and_the_last_layer_for_the_class_token(pairs: int):
    model, image, text = encoded("albef", packed=True)
    (first,), (middle,), (last,) = model.fusion
    once = (last.attention.out, last.cross.query, last.feedforward.fc1)
    counted = (first.attention.qkv, first.feedforward.fc1, middle.attention.qkv, *once)
    with packing(True), rows_computed(*counted) as rows:
        CrossEncoder(model, first_feature, [text], pairs).score_all(image)
    tokens = int(text.mask.sum())
    assert rows == [tokens, IMAGES * tokens, IMAGES * tokens] + [IMAGES * TEXTS] * 3


def test_another_text_costs_no_operations_of_the_image(monkeypatch: pytest.MonkeyPatch):
    """The operations of pairs with images of 10 tokens, less those with images of 1: attention, and the projections of
    the images, once.
    """
    monkeypatch.setattr(packed_attention, "ADDED_CELLS", 0)  # no padding within groups of samples
    model, image, text = encoded("albef", packed=True)
    small = image.select(name="cls")
    with packing(True):
        difference = flops(lambda: CrossEncoder(model, first_feature, [text]).score_all(image)) - flops(
            lambda: CrossEncoder(model, first_feature, [text]).score_all(small)
        )
    columns, tokens = int(image.mask.sum()) - len(image), int(text.mask.sum())
    queries = 2 * tokens + TEXTS  # over the three layers
    assert difference == 2 * columns * 2 * (3 * 24 * 16 + 16 * queries)


def test_re_ranking_projects_each_image_once_for_both_directions():
    model, *_ = encoded("albef")
    heads = model.pretraining_heads()
    layers = cross_attentions(model)
    reranked = RerankedRetrieval(model, heads["itc"], heads["itm"], num_candidates=2)
    with rows_computed(*(part for x in layers for part in (x.key, x.value))) as rows:
        scores = reranked(images(), texts())
    with_candidates = ((scores.image_to_text > FILL) | (scores.text_to_image.T > FILL)).any(1).sum()
    assert rows == [with_candidates * 10] * (2 * len(layers))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_question_is_projected_once_for_all_its_candidates(packed: bool):
    torch.manual_seed(0)
    config = ALBEFConfig(**ALBEF_SIZES, text_depth=1, fusion_depth=1, decoder_depth=2)
    step = OpenVQA(config.build()).eval()
    layers = [block.cross for block in step.model.decoder]  # type: ignore[attr-defined]
    with packing(packed), torch.no_grad():
        text, image = step.model.encode_text(texts(7)), step.model.encode_image(images())
        question = step.model.fuse(text.index_samples(torch.arange(IMAGES)), image).text
        with rows_computed(*(part for x in layers for part in (x.key, x.value))) as rows:
            step.rank(question, texts(7), 3)
    assert rows == [question.mask.sum() if packed else question.mask.numel()] * 4


def test_groups_of_images_have_limited_pairs_and_images():
    assert list(image_groups([2, 2, 1, 5, 1], 4)) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)], "one image at least"
    assert list(image_groups([100, 156, 1, 300, 2, 2], 256)) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert list(image_groups([1] * 70, 256)) == [(0, 32), (32, 64), (64, 70)]
    assert list(image_groups([], 256)) == []


def test_a_model_that_fuses_two_images_says_so():
    two = ALBEFConfig(**ALBEF_SIZES, text_depth=1, fusion_depth=1, num_images=2).build()
    with pytest.raises(UnsupportedOperation, match="this ALBEF fuses a text with 2 images"):
        two.before_image(two.encode_text(texts()))
    blip = BLIPConfig(**BLIP_SIZES, depth=1, variant="nlvr2").build()
    with pytest.raises(UnsupportedOperation, match="give a pair of images"):
        blip.before_image(blip.encode_text(texts()))
