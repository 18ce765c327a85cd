"""CoCa's text: what its class token sees, and that writing word by word is reading at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.batch import Image, Text
from diptych.models.coca.model import CoCa
from diptych.modules.attention import KVCache
from diptych.modules.tokens import packing

SIZES: dict[str, Any] = dict(
    dim=16, depth=1, num_heads=2, mlp_dim=32, patch_size=4, grid=(2, 2), num_queries=4, pool_num_heads=2, text_dim=16, text_depth=2,
    text_num_heads=2, text_mlp_dim=32, vocab_size=20, text_length=6, decoder_depth=2, decoder_num_heads=2, decoder_mlp_dim=32,
    embed_dim=8,
)  # fmt: skip


def model() -> CoCa:
    torch.manual_seed(0)
    made = CoCa(**SIZES).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def text(*rows: list[int], columns: int = 6) -> Text:
    ids = torch.tensor([row + [0] * (columns - len(row)) for row in rows])
    return Text(ids, torch.arange(columns) < torch.tensor([[len(row)] for row in rows]))


def summary(coca: CoCa, given: Text) -> Tensor:
    return coca.pooled_features(coca.encode_text(given))[0]


def test_the_class_token_sees_the_pad_behind_its_text_as_the_released_weights_did():
    coca, given = model(), text([3, 5, 7], [2, 4, 6, 8, 9, 11])
    before = summary(coca, given)
    with torch.no_grad():
        coca.text.word.weight[0] += torch.arange(16) % 3
    moved = (summary(coca, given) - before).abs().amax(1) > 1e-3
    assert moved.tolist() == [True, False], "a text that fills all positions has no pad behind it"


def test_a_canvas_is_no_part_of_a_text():
    coca = model()
    long = summary(coca, text([3, 5, 7]))
    for packed in (False, True):
        with packing(packed):
            torch.testing.assert_close(summary(coca, text([3, 5, 7], columns=3)), long, rtol=1e-4, atol=1e-5)


def test_a_word_of_the_padding_s_id_hides_the_word_behind_it():
    """As open_clip's mask does: the id 0 is a "!" too."""
    coca = model()
    a, b = text([3, 0, 7, 5]), text([3, 0, 8, 5])
    a, b = (coca.encode_text(x).select(name="words").to_padded() for x in (a, b))
    torch.testing.assert_close(a[:, 3], b[:, 3])
    assert not torch.allclose(a[:, 2], b[:, 2], atol=1e-3)


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1), (2, 1, 1), (1, 3)])
def test_word_by_word_it_says_the_same(pieces: tuple[int, ...]):
    coca = model()
    image = coca.encode_image(Image.from_full(torch.randn(2, 3, 8, 8)))
    given = text([3, 5, 7, 2], [9, 4, 6, 8], columns=4)
    whole, cache, out = coca.next_token_logits(given, image), KVCache(), []
    for start, n in zip(torch.tensor(pieces).cumsum(0) - torch.tensor(pieces), pieces, strict=True):
        part = slice(int(start), int(start) + n)
        out.append(coca.next_token_logits(Text(given.ids[:, part], given.mask[:, part]), image, cache))
    torch.testing.assert_close(torch.cat(out, 1), whole, rtol=1e-4, atol=1e-5)


def test_a_text_too_long_is_refused():
    with pytest.raises(ValueError, match="text of 7 tokens, but the model has positions for 6"):
        model().encode_text(text([3], columns=7))
