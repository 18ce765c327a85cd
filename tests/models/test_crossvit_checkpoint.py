"""CrossViT: names, shapes and parameter counts at every published size, its fusion schedules, and timm's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.models.crossvit.checkpoint import ADAPTER
from diptych.models.crossvit.config import CrossViTConfig
from diptych.models.crossvit.model import CrossViT
from diptych.models.importing import identify_system, load_official, map_official
from tests.parity.goldens import GOLDEN_CASES

Shapes = dict[str, tuple[int, ...]]
FOLDER = GOLDEN_CASES / "crossvit_dagger"


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def official(dims: tuple[int, int], depth: int, ratio: int, stem: bool, cells: tuple[int, int]) -> Shapes:
    """The shapes of the published models: three stages, one block in the first branch, one cross-attention."""
    shapes: Shapes = {}
    for i, (width, patch) in enumerate(zip(dims, (12, 16), strict=True)):
        shapes |= {f"pos_embed.{i}": (1, 1 + cells[i], width), f"cls_token.{i}": (1, 1, width)}
        shapes |= layer(f"norm.{i}", width) | layer(f"head.{i}", 1000, width)
        if stem:
            for at, sizes in ((0, (width // 4, 3, 7)), (2, (width // 2, width // 4, 3)), (4, (width, width // 2, 3))):
                shapes |= layer(f"patch_embed.{i}.proj.{at}", *sizes, sizes[-1])
        else:
            shapes |= layer(f"patch_embed.{i}.proj", width, 3, patch, patch)
    for n in range(3):
        for i, (width, other) in enumerate((dims, dims[::-1])):
            for j in range((1, depth)[i]):
                block = f"blocks.{n}.blocks.{i}.{j}"
                shapes |= layer(f"{block}.norm1", width) | layer(f"{block}.norm2", width)
                shapes |= layer(f"{block}.attn.qkv", 3 * width, width) | layer(f"{block}.attn.proj", width, width)
                shapes |= layer(f"{block}.mlp.fc1", ratio * width, width)
                shapes |= layer(f"{block}.mlp.fc2", width, ratio * width)
            fusion = f"blocks.{n}.fusion.{i}"
            shapes |= layer(f"blocks.{n}.projs.{i}.0", width) | layer(f"blocks.{n}.projs.{i}.2", other, width)
            shapes |= layer(f"blocks.{n}.revert_projs.{i}.0", other)
            shapes |= layer(f"blocks.{n}.revert_projs.{i}.2", width, other) | layer(f"{fusion}.norm1", other)
            for part in ("wq", "wk", "wv", "proj"):
                shapes |= layer(f"{fusion}.attn.{part}", other, other)
    return shapes


PUBLISHED: dict[str, tuple[tuple[Any, ...], float]] = {  # and millions of parameters
    "tiny": (((96, 192), 4, 4, False), 7.01),
    "small": (((192, 384), 4, 4, False), 26.86),
    "base": (((384, 768), 4, 4, False), 105.03),
    "9": (((128, 256), 3, 3, False), 8.55),
    "15 dagger": (((192, 384), 5, 3, True), 28.21),
    "18": (((224, 448), 6, 3, False), 43.27),
}


@pytest.mark.quick("9")
@pytest.mark.parametrize("size", PUBLISHED)
def test_full_size_names_shapes_and_counts_are_the_published_ones(size: str):
    sizes, millions = PUBLISHED[size]
    widths, depth, ratio, stem = sizes
    shapes = official(widths, depth, ratio, stem, (400, 196))
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert identify_system(state) == "crossvit"
    imported = map_official("crossvit", state, {})
    assert imported.arguments["image_sizes"] == (240, 224) and imported.arguments["patch_sizes"] == (12, 16)
    assert imported.arguments["num_heads"] == (widths[0] // 32, widths[0] // 32)
    with torch.device("meta"):
        step = ADAPTER.build(imported.arguments, imported.task, imported.state)
    assert {n: tuple(t.shape) for n, t in imported.names.to_official(step.state_dict()).items()} == shapes
    assert sum(p.numel() for p in step.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


SMALL: dict[str, Any] = dict(
    image_sizes=(24, 32),
    patch_sizes=(12, 16),
    dims=(8, 16),
    num_heads=(2, 4),
    mlp_dims=(16, 24),
    num_classes=3,
    dropout=0.0,
)


def official_state(**arguments: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = CrossViT(CrossViTConfig(**arguments))
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return ADAPTER.names(arguments, "classification").to_official(state)


@pytest.mark.parametrize("stages", [((1, 2, 0),), ((1, 1, 1), (2, 3, 1)), ((1, 2, 0), (2, 1, 3))])
@pytest.mark.parametrize("stem", [False, True])
def test_every_schedule_is_inferred_from_the_names(stages: Any, stem: bool):
    arguments = {**SMALL, "stages": stages, "stem": stem}
    state = official_state(**arguments)
    assert ("blocks.0.fusion.0.norm1.weight" in state) == (stages[0][2] == 0)
    imported = map_official("crossvit", state, {"num_heads": [2, 4]})
    assert {**imported.arguments, "dropout": 0.0} == arguments
    back = imported.names.to_official(imported.state)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in back)


@pytest.mark.slow
def test_timm_s_layout_is_the_same_model(tmp_path: Path):
    state = torch.load(FOLDER / "checkpoint.pth", weights_only=True)
    renamed = {
        name.replace("pos_embed.", "pos_embed_").replace("cls_token.", "cls_token_")
        if name.startswith(("pos_embed", "cls_token"))
        else name: tensor
        for name, tensor in state.items()
    }
    assert "pos_embed_0" in renamed
    torch.save(renamed, tmp_path / "timm.pth")
    ours, theirs = (
        load_official("crossvit", path, num_heads=4) for path in (FOLDER / "checkpoint.pth", tmp_path / "timm.pth")
    )
    assert ours.state.keys() == theirs.state.keys() and ours.arguments == theirs.arguments
    assert all(torch.equal(ours.state[name], theirs.state[name]) for name in ours.state)


def test_inconsistent_sizes_and_unknown_weights_raise():
    state = official_state(**SMALL, stages=((1, 1, 0),), stem=False)
    with pytest.raises(
        WeightsError, match=r"the number of heads is \[2\]; expected one number for both branches, or one for each"
    ):
        map_official("crossvit", state, {"num_heads": [2]})
    with pytest.raises(WeightsError, match="width 8 of branch 0 does not divide into 3 heads"):
        map_official("crossvit", state, {"num_heads": 3})
    with pytest.raises(WeightsError, match="unexpected weights: invented"):
        map_official("crossvit", {**state, "invented": torch.ones(1)}, {"num_heads": 2})
