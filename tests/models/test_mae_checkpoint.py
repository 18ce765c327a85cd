"""MAE's names, shapes and counts at full size, both ways."""

from __future__ import annotations

import pytest
import torch

from diptych.checkpoints.read import WeightsError
from diptych.models.importing import load_official, recognise, understood
from diptych.models.mae.checkpoint import SYSTEM
from tests.parity.goldens import GOLDEN_CASES

FOLDER = GOLDEN_CASES / "mae"
Shapes = dict[str, tuple[int, ...]]


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def blocks(prefix: str, depth: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for name in (f"{prefix}blocks.{i}" for i in range(depth)):
        shapes |= layer(f"{name}.norm1", width) | layer(f"{name}.norm2", width)
        shapes |= layer(f"{name}.attn.qkv", 3 * width, width) | layer(f"{name}.attn.proj", width, width)
        shapes |= layer(f"{name}.mlp.fc1", 4 * width, width) | layer(f"{name}.mlp.fc2", width, 4 * width)
    return shapes


def official(width: int, depth: int, patch: int, cells: int) -> Shapes:
    """With the decoder that all sizes share: 8 blocks of 512."""
    return {
        "cls_token": (1, 1, width), "pos_embed": (1, 1 + cells, width), "mask_token": (1, 1, 512),
        "decoder_pos_embed": (1, 1 + cells, 512), **layer("patch_embed.proj", width, 3, patch, patch),
        **layer("norm", width), **layer("decoder_embed", 512, width), **layer("decoder_norm", 512),
        **layer("decoder_pred", 3 * patch * patch, 512), **blocks("", depth, width), **blocks("decoder_", 8, 512),
    }  # fmt: skip


@pytest.mark.quick("768-*")
@pytest.mark.parametrize(
    ("width", "depth", "patch", "cells"), [(768, 12, 16, 196), (1024, 24, 16, 196), (1280, 32, 14, 256)]
)
def test_full_size_names_and_shapes_are_the_published_ones(width: int, depth: int, patch: int, cells: int):
    shapes = official(width, depth, patch, cells)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert recognise(state) == "mae"
    found = understood("mae", state, {})
    heads = {768: 12, 1024: 16, 1280: 16}[width]  # models_mae.py: the huge one has 16 as well
    assert (found.arguments["heads"], found.arguments["decoder_heads"]) == (heads, 16)
    with torch.device("meta"):
        step = SYSTEM.build(found.arguments, found.task, found.state)
    load = step.state_dict()
    assert {name: tuple(t.shape) for name, t in found.names.to_official(load).items()} == shapes
    fixed = (1 + cells) * (width + 512)
    assert sum(p.numel() for p in step.parameters()) + fixed == sum(tensor.numel() for tensor in state.values())


def test_base_has_as_many_numbers_as_its_official_file():
    assert sum(torch.Size(shape).numel() for shape in official(768, 12, 16, 196).values()) == 111_907_840


def test_names_go_both_ways():
    state = torch.load(FOLDER / "checkpoint.pth", weights_only=True)["model"]
    with pytest.raises(WeightsError, match="width 32 does not divide into 5 heads"):
        understood("mae", state, {"num_heads": 4, "decoder_num_heads": 5})
    found = load_official("mae", FOLDER / "checkpoint.pth", heads=4)
    back = found.names.to_official(found.state)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in back)
