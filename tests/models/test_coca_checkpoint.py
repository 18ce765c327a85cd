"""CoCa: full-size names, shapes and parameter count in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.batch import Text
from diptych.models.coca import checkpoint as coca
from diptych.models.coca.config import CoCaConfig
from diptych.models.importing import identify_system, map_official
from tests.parity.goldens import GOLDEN_CASES

CASE = GOLDEN_CASES / "coca"


def block(prefix: str, dim: int, context: bool = False) -> dict[str, tuple[int, ...]]:
    weights = {
        "attn.in_proj_weight": (3 * dim, dim), "attn.in_proj_bias": (3 * dim,),
        "attn.out_proj.weight": (dim, dim), "attn.out_proj.bias": (dim,),
        "mlp.c_fc.weight": (4 * dim, dim), "mlp.c_fc.bias": (4 * dim,),
        "mlp.c_proj.weight": (dim, 4 * dim), "mlp.c_proj.bias": (dim,),
    }  # fmt: skip
    norms = ("ln_1", "ln_2", "ln_1_kv") if context else ("ln_1", "ln_2")
    weights |= {f"{norm}.{kind}": (dim,) for norm in norms for kind in ("weight", "bias")}
    return {f"{prefix}{name}": shape for name, shape in weights.items()}


def tower(prefix: str, dim: int, context: bool = False) -> dict[str, tuple[int, ...]]:
    return {name: shape for i in range(12) for name, shape in block(f"{prefix}.{i}.", dim, context).items()}


def norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


VIT_B32 = {
    "logit_scale": (), "text.cls_emb": (512,), "text.positional_embedding": (77, 512),
    "text.text_projection": (512, 512), "text.token_embedding.weight": (49408, 512),
    "visual.class_embedding": (768,), "visual.proj": (512, 512),
    "visual.positional_embedding": (50, 768), "visual.conv1.weight": (768, 3, 32, 32),
    "visual.attn_pool.query": (256, 512), "visual.attn_pool.attn.q_proj_weight": (512, 512),
    "visual.attn_pool.attn.k_proj_weight": (512, 768), "visual.attn_pool.attn.v_proj_weight": (512, 768),
    "visual.attn_pool.attn.in_proj_bias": (1536,), "visual.attn_pool.attn.out_proj.weight": (512, 512),
    "visual.attn_pool.attn.out_proj.bias": (512,), "text_decoder.text_projection": (512, 49408),
    **tower("visual.transformer.resblocks", 768), **tower("text.transformer.resblocks", 512),
    **tower("text_decoder.resblocks", 512), **tower("text_decoder.cross_attn", 512, context=True),
    **norm("visual.ln_pre", 768), **norm("visual.ln_post", 512), **norm("visual.attn_pool.ln_q", 512),
    **norm("visual.attn_pool.ln_k", 768), **norm("text.ln_final", 512), **norm("text_decoder.ln_final", 512),
}  # fmt: skip


@pytest.mark.slow
def test_full_size_names_shapes_and_count_are_the_published_ones():
    state = {name: torch.empty(shape, device="meta") for name, shape in VIT_B32.items()}
    arguments = coca.infer(state, {})
    names = coca.names(arguments, "pretraining")
    with torch.device("meta"):
        step = coca.build(arguments, "pretraining", names.from_official(state))
        assert CoCaConfig(**arguments).build().state_dict().keys() == CoCaConfig().build().state_dict().keys()
    shapes = {name: tuple(tensor.shape) for name, tensor in names.to_official(step.state_dict()).items()}
    assert shapes == VIT_B32
    count = sum(parameter.numel() for parameter in step.parameters())
    assert f"{count / 1e6:.2f}" == "253.56"
    assert (arguments["text_length"], arguments["num_queries"], arguments["pool_num_heads"]) == (76, 256, 8)


def test_names_are_translated_both_ways_bit_for_bit():
    state = torch.load(CASE / "checkpoint.pth", weights_only=True)
    assert identify_system(state) == "coca"
    imported = map_official("coca", state, {"num_heads": 4})
    back = imported.names.to_official(imported.state)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert imported.arguments["activation"] == "gelu" and imported.arguments["decoder_depth"] == 3


def test_the_id_of_padding_is_read_from_either_config():
    state = torch.load(CASE / "checkpoint.pth", weights_only=True)
    configs: tuple[dict[str, Any], ...] = ({}, {"pad_id": 7}, {"text_cfg": {"pad_id": 7}})
    assert [coca.infer(state, {"num_heads": 4, **x})["pad_token_id"] for x in configs] == [0, 7, 7]


@torch.no_grad()
def test_another_id_of_padding_permutes_the_vocabulary():
    """With padding 7 and ids 0 and 7 swapped, the text features equal those with padding 0."""
    state = torch.load(CASE / "checkpoint.pth", weights_only=True)
    arguments = coca.infer(state, {"num_heads": 4})
    other = CoCaConfig(**{**arguments, "pad_token_id": 7}).build()
    first = CoCaConfig(**arguments).build()
    other.load_state_dict(first.state_dict())
    other.text.word.weight[[0, 7]] = first.text.word.weight[[7, 0]]
    ids = torch.tensor([[3, 9, 0, 5, 7], [8, 4, 6, 2, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    swapped = torch.where(ids == 0, 7, torch.where(ids == 7, 0, ids))
    features, swapped_features = (
        model.encode_text(Text(x, mask)).to_padded() for model, x in ((first, ids), (other, swapped))
    )
    assert torch.equal(features, swapped_features)
    assert not torch.equal(features, first.encode_text(Text(swapped, mask)).to_padded())
