"""Grad-CAM of attention equals a plain loop over samples and heads, for every system with such attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from diptych.attribution.grad_cam import (
    CLASS_TO_IMAGE,
    TEXT_TO_IMAGE,
    Attention,
    GradCAM,
    Relevance,
    Score,
    matching_score,
    position_columns,
    similarity_score,
)
from diptych.batch import Image, Regions, Text
from diptych.modules import attention as attention_module
from diptych.modules.attention import Causal, CrossAttention, causal
from diptych.modules.heads import ITMHead, RankingHead
from diptych.modules.tokens import FusedTokens, Layout, Span, Tokens, packing
from diptych.protocols import UnsupportedOperation
from tests.models.systems.common import SMALL, batch_of
from tests.models.systems.vilbert import as_regions
from tests.models.test_battery import SYSTEMS, amplified

BATCH = batch_of(4)
REGIONS = as_regions(BATCH.image)  # type: ignore[arg-type]


class Case(NamedTuple):
    """A system of the battery, its image input, and how many of its layers have the attention."""

    system: str
    attention: Attention
    layers: int
    image: Image | Regions = BATCH.image  # type: ignore[assignment]


CASES = [
    Case("albef", TEXT_TO_IMAGE, 2),
    Case("albef", CLASS_TO_IMAGE, 2),
    Case("blip", TEXT_TO_IMAGE, 2),
    Case("blip", CLASS_TO_IMAGE, 2),
    Case("vilt", TEXT_TO_IMAGE, 2),
    Case("vlmo", TEXT_TO_IMAGE, 3),
    Case("vlmo", CLASS_TO_IMAGE, 3),
    Case("beit3", TEXT_TO_IMAGE, 2),
    Case("clip", CLASS_TO_IMAGE, 2),
    Case("vilbert", TEXT_TO_IMAGE, 2, REGIONS),
    Case("visualbert", TEXT_TO_IMAGE, 2, REGIONS),
]
IDS = [f"{case.system} {'itm' if case.attention is TEXT_TO_IMAGE else 'itc'}" for case in CASES]


def score_of(case: Case) -> Score:
    torch.manual_seed(0)
    model: Any = amplified(SYSTEMS[case.system].small()).eval()
    heads: Any = amplified(model.pretraining_heads()).eval()
    if case.attention is CLASS_TO_IMAGE:
        return similarity_score(model, heads["itc"])
    head = heads["itm"] if "itm" in heads else amplified(RankingHead(SMALL["dim"]))
    return matching_score(model, head)


@pytest.fixture
def doubles():
    """Float64, in which the order of a sum does not show."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def double(x: Any) -> Any:
    """An image input in float64."""
    fields = {name: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for name, v in vars(x).items()}
    return type(x)(**fields)


def by_loop(
    case: Case, score: Score, text: Text, image: Image | Regions, layer: int, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """Grad-CAM of one sample without padding: attention is computed head by head, and its probabilities are kept."""
    heads: list[list[Tensor]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        (q, k, v), outputs = (x[0] for x in (q, k, v)), []
        for head in range(len(q)):
            scores = q[head] @ k[head].T / math.sqrt(q.shape[-1])
            if mask is not None:
                added = mask.expand(1, len(q), *scores.shape)[0, head]
                scores = scores.masked_fill(~added, -math.inf) if added.dtype == torch.bool else scores + added
            heads[-1].append(scores.softmax(1))
            outputs.append(heads[-1][-1] @ v[head])
        return torch.stack(outputs)[None]

    plain = attention_module._attend_padded
    layouts: list[tuple[Layout, Layout]] = []

    def recorded(query: Tensor, key: Tensor, value: Tensor, num_heads: int, query_layout: Layout, key_layout: Layout,
                 allowed: Any = None, bias: Any = None) -> Tensor:  # fmt: skip
        layouts.append((query_layout, key_layout))
        heads.append([])
        if isinstance(allowed, Causal):
            allowed = causal(query.shape[1], key.shape[1])
        return plain(query, key, value, num_heads, key_layout, allowed, bias)

    with monkeypatch.context() as patched:
        patched.setattr(attention_module, "_softmax_attention", attend)
        patched.setattr(attention_module, "scaled_dot_product_attention", recorded)
        patched.setattr("diptych.modules.multiway.scaled_dot_product_attention", recorded)
        value = score(text, image).sum()
    of_kind = [i for i, pair in enumerate(layouts) if case.attention.among(*pair)]
    used = [
        i for i in of_kind if torch.autograd.grad(value, heads[i], retain_graph=True, allow_unused=True)[0] is not None
    ]
    chosen = used[layer]
    gradients = torch.autograd.grad(value, heads[chosen])
    query, key = layouts[chosen]
    result = torch.zeros(query.mask.shape[1], key.mask.shape[1])
    for probabilities, gradient in zip(heads[chosen], gradients, strict=True):
        for i in range(result.shape[0]):
            for j in range(result.shape[1]):
                result[i, j] += probabilities[i, j].detach() * max(gradient[i, j].item(), 0.0) / len(gradients)
    return result[case.attention.queries(query)][:, position_columns(key)]


def alone(text: Text, image: Image | Regions, i: int) -> tuple[Text, Image | Regions]:
    """Sample `i` without padding."""
    n = int(text.mask[i].sum())
    one = text[i : i + 1]
    words = Text(one.ids[:, :n], one.mask[:, :n])
    if isinstance(image, Image):
        h, w = image.sizes[i].tolist()
        return words, Image(image.pixels[i : i + 1, :, :h, :w], image.sizes[i : i + 1])
    real = image.mask[i]
    return words, Regions(
        image.features[i : i + 1, real], image.boxes[i : i + 1, real], real[real][None], has_whole_image=True
    )


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_grad_cam_equals_a_plain_loop(case: Case, layer: int, doubles: None, monkeypatch: pytest.MonkeyPatch):
    score, image = score_of(case), double(case.image)
    assert BATCH.text is not None
    with packing(), torch.no_grad():  # as evaluations compute
        maps = GradCAM(score, case.attention, layer)(BATCH.text, image)
    assert maps.values.shape == (*maps.queries.shape, maps.positions.shape[1])
    for i in range(len(BATCH)):
        wanted = by_loop(case, score, *alone(BATCH.text, image, i), layer, monkeypatch)
        got = maps.values[i][maps.queries[i]][:, maps.positions[i]]
        torch.testing.assert_close(got, wanted.float(), rtol=1e-4, atol=1e-7)
        assert maps.values[i].sum().item() == pytest.approx(got.sum().item(), rel=1e-5)  # zero at padding
    last_text_is_unused = case.system == "beit3" and layer == 1  # the score is that of the image's class token
    assert bool(maps.values.sum() > 0) != last_text_is_unused


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_layer_that_does_not_exist_is_refused_with_the_number_of_layers(case: Case):
    assert BATCH.text is not None
    with pytest.raises(ValueError, match=rf"layer must be in \[0, {case.layers - 1}\]: got 7; {case.layers} layers"):
        GradCAM(score_of(case), case.attention, 7)(BATCH.text, case.image)


def test_the_default_layers_are_those_of_albefs_official_code():
    assert TEXT_TO_IMAGE.default_layer(6) == 8 - 6  # block 8 of BERT, whose fusion layers begin at 6
    assert CLASS_TO_IMAGE.default_layer(12) == 8
    assert [kind.default_layer(1) for kind in (TEXT_TO_IMAGE, CLASS_TO_IMAGE)] == [0, 0]


def test_weights_without_gradients_give_the_same_map():
    case = CASES[0]
    assert BATCH.text is not None
    wanted = GradCAM(score_of(case), case.attention)(BATCH.text, case.image)
    torch.manual_seed(0)
    model: Any = amplified(SYSTEMS["albef"].small()).eval()
    heads: Any = amplified(model.pretraining_heads()).eval()
    got = GradCAM(matching_score(model.requires_grad_(False), heads["itm"].requires_grad_(False)), case.attention)(
        BATCH.text, case.image
    )
    torch.testing.assert_close(got.values, wanted.values)
    assert all(p.grad is None for p in model.parameters())


class Pointer(nn.Module):
    """A model of one cross-attention layer, set by hand: a text attends to the patch with its own number.

    Patch i of an image and the word 10 + i are both the i-th unit vector. The score of a pair is the sum of what the
    text's first word attends to, weighted by `sign`.
    """

    def __init__(self, patches: int, sign: float = 1.0):
        super().__init__()
        self.patches = patches
        self.cross = CrossAttention(patches, 1)
        for layer in (self.cross.query, self.cross.key, self.cross.value, self.cross.out):
            layer.weight.data.copy_(torch.eye(patches))
            layer.bias.data.zero_()
        self.cross.query.weight.data.mul_(8)
        self.cross.value.weight.data.copy_(sign * torch.eye(patches))

    def encode_image(self, image: Image) -> Tokens:
        values = torch.eye(self.patches).expand(len(image), -1, -1)
        mask = torch.ones(values.shape[:2], dtype=torch.bool)
        return Tokens.from_padded(values, mask, Span("image", "patches", self.patches, grid=(2, self.patches // 2)))

    def encode_text(self, text: Text) -> Tokens:
        words = nn.functional.one_hot((text.ids - 10).clamp(min=0), self.patches).float()
        return Tokens.from_padded(words, text.mask, Span("text", "words", text.ids.shape[1]))

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        attended = self.cross(text, image)
        return FusedTokens(attended, image, (attended.values * text.values).sum((1, 2))[:, None])


def pointed(sign: float, words: list[int]) -> Relevance:
    model = Pointer(6, sign)
    texts = Text(torch.tensor([words, words[::-1]]), torch.ones(2, len(words), dtype=torch.bool))
    image = Image.from_full(torch.zeros(2, 3, 8, 8))
    return GradCAM(matching_score(model, lambda pooled: pooled), TEXT_TO_IMAGE)(texts, image)  # type: ignore[arg-type]


def test_each_word_points_to_the_patch_that_it_attends_to():
    maps = pointed(1.0, [13, 15])
    assert maps.grid == (2, 3)
    assert maps.values.argmax(2).tolist() == [[3, 5], [5, 3]]
    assert maps.mean(torch.tensor([[True, False], [True, False]])).argmax(1).tolist() == [3, 5]
    both = maps.mean()
    assert both[0].topk(2).indices.sort().values.tolist() == [3, 5]
    torch.testing.assert_close(both[0], both[1])


def test_attention_that_lowers_the_score_counts_as_zero():
    assert pointed(-1.0, [13, 15]).values.abs().max() == 0


def test_a_model_without_attention_to_positions_is_refused():
    def score(text: Text, image: Image | Regions) -> Tensor:
        return torch.zeros(len(text))

    assert BATCH.text is not None and BATCH.image is not None
    with pytest.raises(UnsupportedOperation, match="this model has no attention of a text to positions of an image"):
        GradCAM(score, TEXT_TO_IMAGE)(BATCH.text, BATCH.image)


def test_the_logit_of_a_match_is_explained():
    """The second of an ITM head's two logits, as in the official code: the first, of a mismatch, has another map."""
    torch.manual_seed(0)
    model: Any = amplified(SYSTEMS["albef"].small()).eval()
    head: Callable[..., Tensor] = amplified(ITMHead(SMALL["dim"]))
    assert BATCH.text is not None and BATCH.image is not None
    pooled = model(BATCH.image, BATCH.text).pooled
    torch.testing.assert_close(matching_score(model, head)(BATCH.text, BATCH.image), head(pooled)[:, 1])
