"""Decoding with an image's keys and values computed once: the same texts, and no more work for more beams or tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from diptych.batch import Image, Text
from diptych.generation import BeamConfig, GenerationConfig, beam_search, fill_blanks, greedy, sample
from diptych.models.albef.config import ALBEFConfig
from diptych.models.beit3.config import BEiT3Config
from diptych.models.blip.config import BLIPConfig
from diptych.models.coca.config import CoCaConfig
from diptych.modules.attention import Context, CrossAttention, KVCache, SharedContext
from diptych.modules.tokens import Tokens, packing
from tests.generation.counting import flops, rows_computed

END, PAD, VOCABULARY, LENGTH, BATCH = 1, 0, 40, 8, 3
IMAGE: dict[str, Any] = dict(image_dim=24, image_depth=1, image_num_heads=2, image_mlp_dim=32, patch_size=4)
TEXT: dict[str, Any] = dict(dim=16, num_heads=4, mlp_dim=32, vocab_size=VOCABULARY, text_length=12, grid=(3, 3))
COCA: dict[str, Any] = dict(text_dim=16, text_depth=1, text_num_heads=2, text_mlp_dim=32, decoder_depth=2)
CONFIGS: dict[str, Any] = {
    "blip captions": BLIPConfig(
        **IMAGE, **TEXT, depth=2, variant="caption", bos_token_id=3, enc_token_id=5, embed_dim=8, dropout=0.0
    ),
    "blip answers": BLIPConfig(
        **IMAGE, **TEXT, depth=2, variant="vqa", bos_token_id=3, enc_token_id=5, embed_dim=8, dropout=0.0
    ),
    "albef answers": ALBEFConfig(
        **IMAGE, **TEXT, text_depth=1, fusion_depth=1, decoder_depth=2, embed_dim=8, dropout=0.0
    ),
    "coca": CoCaConfig(
        **{**TEXT, **COCA, "depth": 1}, patch_size=4, num_queries=6, pool_num_heads=2, decoder_num_heads=2,
        decoder_mlp_dim=32, embed_dim=8,
    ),
    "beit3": BEiT3Config(**TEXT, depth=2, patch_size=4, with_decoder=True, mask_token_id=4, drop_path=0.0),
}  # fmt: skip
CROSS = [name for name in CONFIGS if name != "beit3"]
RULES = GenerationConfig(END, PAD, LENGTH)


class Case(NamedTuple):
    """A model, its contexts (encoded images of different sizes, or questions about them) and prompts."""

    model: Any
    context: Tokens
    prompt: Tensor


class Copies(nn.Module):
    """The model as a decoder that computes a copy of the context for each text.

    Without a cache, CoCa attends to no token after one of the padding's id, which may be generated ("!").
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def next_token_logits(self, text: Text, context: Context, cache: KVCache | None = None) -> Tensor:
        assert isinstance(context, SharedContext)
        return self.model.next_token_logits(text, context.expanded(), cache)


@torch.no_grad()
def case(name: str, seed: int = 0, packed: bool = False) -> Case:
    torch.manual_seed(seed)
    model = CONFIGS[name].build().eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5) if weight.dim() > 1 else None  # large enough that texts differ
    sizes = torch.tensor([[12, 12], [8, 12], [12, 4]])
    inside = (torch.arange(12) < sizes[:, :1])[:, :, None] & (torch.arange(12) < sizes[:, 1:])[:, None]
    image = Image(torch.randn(BATCH, 3, 12, 12) * inside[:, None], sizes)
    with packing(packed):
        context = model.encode_image(image)
        if "answers" in name:
            ids = torch.randint(6, VOCABULARY, (BATCH, 5))
            mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
            context = model.fuse(model.encode_text(Text(ids * mask, mask)), context).text
    return Case(model, context, torch.randint(6, VOCABULARY, (BATCH, 2)))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_beams", [1, 2, 3, 4])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_beam_search_finds_the_same_texts_as_with_a_copy_for_each_beam(name: str, num_beams: int, packed: bool):
    for seed in range(3):
        model, context, prompt = case(name, seed, packed)
        beams = BeamConfig(num_beams, num_return_sequences=num_beams)
        shared = beam_search(model, context, prompt, RULES, beams)
        copies = beam_search(Copies(model), context, prompt, RULES, beams, use_cache=name == "coca")
        assert shared.ids.tolist() == copies.ids.tolist()
        torch.testing.assert_close(shared.scores, copies.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_other_searches_find_the_same_texts_as_with_a_copy_for_each_text(name: str):
    model, context, prompt = case(name)
    draws = torch.rand(BATCH, LENGTH)
    groups = BeamConfig(4, num_beam_groups=2, diversity_penalty=0.5)

    def texts(decoder: Any, use_cache: bool) -> list[Any]:
        return [
            greedy(decoder, context, prompt, RULES, use_cache).tolist(),
            sample(decoder, context, prompt, RULES, draws, use_cache=use_cache).tolist(),
            beam_search(decoder, context, prompt, RULES, groups, use_cache).ids.tolist(),
            fill_blanks(decoder, context, prompt, RULES, 4, 3, use_cache=use_cache).tolist(),
        ]

    assert texts(model, True) == texts(Copies(model), name == "coca")


def searches(name: str) -> dict[str, Callable[[Case, int, int], object]]:
    """Searches of a number of beams up to a maximum length, which no text ends before."""

    def rules(length: int) -> GenerationConfig:
        return GenerationConfig(END, PAD, length, min_length=length)

    return {
        "beam search": lambda c, beams, n: beam_search(c.model, c.context, c.prompt, rules(n), BeamConfig(beams)),
        "greedy": lambda c, _, n: greedy(c.model, c.context, c.prompt, rules(n)),
        "sample": lambda c, _, n: sample(c.model, c.context, c.prompt, rules(n), torch.full((BATCH, n), 0.5)),
    }


@pytest.mark.parametrize("name", CROSS)
@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("search", ["beam search", "greedy", "sample"])
def test_each_layer_projects_a_context_once(name: str, num_beams: int, search: str):
    """Whatever the number of beams and of tokens."""
    setting = case(name)
    decoder = setting.model.cross_blocks if name == "coca" else setting.model.decoder
    layers = [module for module in decoder.modules() if isinstance(module, CrossAttention)]
    columns = setting.context.mask.numel() - (BATCH if name == "coca" else 0)  # the first query is for contrast only
    with rows_computed(*(projection for layer in layers for projection in (layer.key, layer.value))) as rows:
        searches(name)[search](setting, num_beams, LENGTH)
    assert len(layers) == 2 and rows == [columns] * 4


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.slow
def test_a_token_costs_the_same_whatever_the_number_of_beams(name: str):
    """The prompt is computed once per context, not once per beam, and so is what a context costs."""
    setting = case(name)

    def cost(beams: int, length: int) -> int:
        return flops(lambda: searches(name)["beam search"](setting, beams, length))

    assert cost(4, 3) == cost(1, 3)
    for n in (4, 5):
        assert cost(4, n) - cost(4, n - 1) == 4 * (cost(1, n) - cost(1, n - 1))


@pytest.mark.parametrize("name", CROSS)
def test_a_token_costs_its_own_layers_and_its_attention(name: str):
    """No projection of the context, nor of earlier tokens, is among the operations for one more token."""
    model, context, prompt = setting = case(name)
    if name == "coca":
        parts = [model.text.blocks, model.self_blocks, model.cross_blocks, model.lm_head]
        columns, self_layers = context.mask.shape[1] - 1, 3  # the first query is for contrast only
    else:
        parts = [model.decoder, model.answer_head] if "albef" in name else [model.decoder]
        columns, self_layers = context.mask.shape[1], 2
    modules = [module for part in parts for module in part.modules()]
    crossed = [m for m in modules if isinstance(m, CrossAttention)]
    once = {id(projection) for m in crossed for projection in (m.key, m.value)}
    layers = sum(m.weight.numel() for m in modules if isinstance(m, nn.Linear) and id(m) not in once)
    attention = 2 * 16 * (self_layers * 4 + len(crossed) * columns)  # scores and weighted values of the fourth token
    search = searches(name)["greedy"]
    cost = flops(lambda: search(setting, 1, 5)) - flops(lambda: search(setting, 1, 4))
    assert cost == 2 * len(prompt) * (layers + attention)
