"""MAE: names, shapes and parameter counts at full size, in both directions."""

from __future__ import annotations

import pytest
import torch

from diptych.checkpoints.read import WeightsError
from diptych.models.importing import identify_system, load_official, map_official
from diptych.models.mae.checkpoint import ADAPTER
from tests.parity.goldens import GOLDEN_CASES

FOLDER = GOLDEN_CASES / "mae"
Shapes = dict[str, tuple[int, ...]]


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def blocks(prefix: str, depth: int, dim: int) -> Shapes:
    shapes: Shapes = {}
    for name in (f"{prefix}blocks.{i}" for i in range(depth)):
        shapes |= layer(f"{name}.norm1", dim) | layer(f"{name}.norm2", dim)
        shapes |= layer(f"{name}.attn.qkv", 3 * dim, dim) | layer(f"{name}.attn.proj", dim, dim)
        shapes |= layer(f"{name}.mlp.fc1", 4 * dim, dim) | layer(f"{name}.mlp.fc2", dim, 4 * dim)
    return shapes


def official(dim: int, depth: int, patch_size: int, cells: int) -> Shapes:
    """The shapes of a model; the decoder, 8 blocks of width 512, is the same for all sizes."""
    return {
        "cls_token": (1, 1, dim), "pos_embed": (1, 1 + cells, dim), "mask_token": (1, 1, 512),
        "decoder_pos_embed": (1, 1 + cells, 512), **layer("patch_embed.proj", dim, 3, patch_size, patch_size),
        **layer("norm", dim), **layer("decoder_embed", 512, dim), **layer("decoder_norm", 512),
        **layer("decoder_pred", 3 * patch_size * patch_size, 512),
        **blocks("", depth, dim), **blocks("decoder_", 8, 512),
    }  # fmt: skip


@pytest.mark.quick("768-*")
@pytest.mark.parametrize(
    ("dim", "depth", "patch_size", "cells"), [(768, 12, 16, 196), (1024, 24, 16, 196), (1280, 32, 14, 256)]
)
def test_full_size_names_and_shapes_are_the_published_ones(dim: int, depth: int, patch_size: int, cells: int):
    shapes = official(dim, depth, patch_size, cells)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert identify_system(state) == "mae"
    imported = map_official("mae", state, {})
    heads = {768: 12, 1024: 16, 1280: 16}[dim]  # models_mae.py: ViT-H has 16 too
    assert (imported.arguments["num_heads"], imported.arguments["decoder_num_heads"]) == (heads, 16)
    with torch.device("meta"):
        step = ADAPTER.build(imported.arguments, imported.task, imported.state)
    load = step.state_dict()
    assert {name: tuple(t.shape) for name, t in imported.names.to_official(load).items()} == shapes
    fixed = (1 + cells) * (dim + 512)
    assert sum(p.numel() for p in step.parameters()) + fixed == sum(tensor.numel() for tensor in state.values())


def test_the_base_model_has_as_many_parameters_as_its_official_file():
    assert sum(torch.Size(shape).numel() for shape in official(768, 12, 16, 196).values()) == 111_907_840


def test_names_are_translated_both_ways():
    state = torch.load(FOLDER / "checkpoint.pth", weights_only=True)["model"]
    with pytest.raises(WeightsError, match="width 32 does not divide into 5 heads"):
        map_official("mae", state, {"num_heads": 4, "decoder_num_heads": 5})
    imported = load_official("mae", FOLDER / "checkpoint.pth", num_heads=4)
    back = imported.names.to_official(imported.state)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in back)
