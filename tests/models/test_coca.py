"""CoCa's text decoder: the tokens that its [CLS] attends to, and incremental decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.batch import Image, Text
from diptych.models.coca.config import CoCaConfig
from diptych.models.coca.model import CoCa
from diptych.modules.attention import KVCache
from diptych.modules.tokens import packing

SIZES: dict[str, Any] = dict(
    dim=16,
    depth=1,
    num_heads=2,
    mlp_dim=32,
    patch_size=4,
    grid=(2, 2),
    num_queries=4,
    pool_num_heads=2,
    text_dim=16,
    text_depth=2,
    text_num_heads=2,
    text_mlp_dim=32,
    vocab_size=20,
    text_length=6,
    decoder_depth=2,
    decoder_num_heads=2,
    decoder_mlp_dim=32,
    embed_dim=8,
)


def model() -> CoCa:
    torch.manual_seed(0)
    coca = CoCa(CoCaConfig(**SIZES)).eval()
    for parameter in coca.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return coca


def text(*rows: list[int], columns: int = 6) -> Text:
    ids = torch.tensor([row + [0] * (columns - len(row)) for row in rows])
    return Text(ids, torch.arange(columns) < torch.tensor([[len(row)] for row in rows]))


def text_features(coca: CoCa, batch: Text) -> Tensor:
    return coca.pooled_features(coca.encode_text(batch))[0]


def test_cls_attends_to_the_pad_after_its_text_as_in_the_released_weights():
    coca, batch = model(), text([3, 5, 7], [2, 4, 6, 8, 9, 11])
    before = text_features(coca, batch)
    with torch.no_grad():
        coca.text.word.weight[0] += torch.arange(16) % 3
    moved = (text_features(coca, batch) - before).abs().amax(1) > 1e-3
    assert moved.tolist() == [True, False], "a text that fills all positions has no padding after it"


def test_padding_changes_no_text_features():
    coca = model()
    long = text_features(coca, text([3, 5, 7]))
    for packed in (False, True):
        with packing(packed):
            torch.testing.assert_close(text_features(coca, text([3, 5, 7], columns=3)), long, rtol=1e-4, atol=1e-5)


def test_a_token_with_the_padding_s_id_masks_the_next_token():
    """As in open_clip's mask: the id 0 is also a "!"."""
    coca = model()
    a, b = text([3, 0, 7, 5]), text([3, 0, 8, 5])
    a, b = (coca.encode_text(x).select(name="words").to_padded() for x in (a, b))
    torch.testing.assert_close(a[:, 3], b[:, 3])
    assert not torch.allclose(a[:, 2], b[:, 2], atol=1e-3)


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (2, 1, 1), (1, 3)])
def test_incremental_decoding_gives_the_same_logits(chunks: tuple[int, ...]):
    coca = model()
    image = coca.encode_image(Image.from_full(torch.randn(2, 3, 8, 8)))
    batch = text([3, 5, 7, 2], [9, 4, 6, 8], columns=4)
    at_once, cache, out = coca.next_token_logits(batch, image), KVCache(), []
    for start, n in zip(torch.tensor(chunks).cumsum(0) - torch.tensor(chunks), chunks, strict=True):
        part = slice(int(start), int(start) + n)
        out.append(coca.next_token_logits(Text(batch.ids[:, part], batch.mask[:, part]), image, cache))
    torch.testing.assert_close(torch.cat(out, 1), at_once, rtol=1e-4, atol=1e-5)


def test_a_text_longer_than_the_position_table_raises():
    with pytest.raises(ValueError, match="text of 7 tokens, but the model has positions for 6"):
        model().encode_text(text([3], columns=7))
