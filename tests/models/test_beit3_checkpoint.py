"""BEiT-3 at full size: names, shapes and parameter counts of the official models."""

from __future__ import annotations

import pytest
import torch

from diptych.checkpoints.read import WeightsError
from diptych.models.beit3.checkpoint import ADAPTER

WIDTH, HIDDEN, TEXTS = 768, 3072, 1024
Shapes = dict[str, tuple[int, ...]]


def layer(name: str, *shape: int) -> Shapes:
    """Weight and bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def body(cells: int, depth: int = 12) -> Shapes:
    shapes: Shapes = {
        "beit3.text_embed.weight": (64010, WIDTH),
        "beit3.vision_embed.mask_token": (1, 1, WIDTH),
        "beit3.vision_embed.cls_token": (1, 1, WIDTH),
        **layer("beit3.vision_embed.proj", WIDTH, 3, 16, 16),
        "beit3.encoder.embed_positions.A.weight": (cells + 3, WIDTH),
        "beit3.encoder.embed_positions.B.weight": (TEXTS, WIDTH),
    }
    for i in range(depth):
        at = f"beit3.encoder.layers.{i}"
        for x in "AB":
            for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
                shapes |= layer(f"{at}.self_attn.{projection}.{x}", WIDTH, WIDTH)
            for norm in ("self_attn.inner_attn_ln", "self_attn_layer_norm", "final_layer_norm"):
                shapes |= layer(f"{at}.{norm}.{x}", WIDTH)
            shapes |= layer(f"{at}.ffn.{x}.fc1", HIDDEN, WIDTH) | layer(f"{at}.ffn.{x}.fc2", WIDTH, HIDDEN)
            shapes |= layer(f"{at}.ffn.{x}.ffn_layernorm", HIDDEN)
    return shapes


NORM = layer("beit3.encoder.layer_norm.A", WIDTH) | layer("beit3.encoder.layer_norm.B", WIDTH)
PUBLISHED: dict[str, tuple[Shapes, float]] = {
    "vqa": (
        body(900) | layer("pooler.norm", WIDTH) | layer("pooler.dense", WIDTH, WIDTH) | layer("head.0", 1536, WIDTH)
        | layer("head.1", 1536) | layer("head.3", 3129, 1536), 227.57 + (900 - 196) * WIDTH / 1e6,
    ),
    "nlvr2": (
        body(196) | NORM | layer("head.norm1", 3072) | layer("head.dense1", 1536, 3072) | layer("head.norm2", 1536)
        | layer("head.dense2", 2, 1536), 225.72,
    ),
    "retrieval": (
        body(196) | NORM
        | {"vision_head.weight": (WIDTH, WIDTH), "language_head.weight": (WIDTH, WIDTH), "logit_scale": ()},
        222.17,
    ),
    "captioning": (body(196) | NORM | layer("mlm_head", 64010, WIDTH), 270.21),
    "classification": (body(196) | layer("fc_norm", WIDTH) | layer("head", 1000, WIDTH), 221.75),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("task", PUBLISHED)
def test_full_size_names_shapes_and_counts_are_the_published_ones(task: str):
    official, millions = PUBLISHED[task]
    state = {name: torch.empty(shape, device="meta") for name, shape in official.items()}
    arguments = ADAPTER.infer(state, {})
    assert ADAPTER.matches(state) and ADAPTER.task(state) == task
    names = ADAPTER.names(arguments, task)
    with torch.device("meta"):
        step = ADAPTER.build(arguments, task, names.from_official(state))
    ours = dict(step.named_parameters())
    assert {name: tuple(t.shape) for name, t in names.to_official(ours).items()} == official
    assert round(sum(p.numel() for p in ours.values()) / 1e6, 2) == pytest.approx(millions, abs=0.011)


def test_a_missing_part_of_a_fused_weight_is_named():
    official, _ = PUBLISHED["retrieval"]
    state = {name: torch.empty(shape, device="meta") for name, shape in official.items()}
    del state["beit3.encoder.layers.3.self_attn.k_proj.B.weight"]
    arguments = ADAPTER.infer(state, {})
    with pytest.raises(WeightsError, match=r"blocks\.3\.qkv\.text\.weight\[1/3\]"):
        ADAPTER.names(arguments, "retrieval").from_official(state)
