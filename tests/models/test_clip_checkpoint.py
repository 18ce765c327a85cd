"""CLIP with a ViT: full-size names, shapes and parameter counts in both directions, and settings from configs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.mapping import KeyMapping
from diptych.checkpoints.read import WeightsError
from diptych.models.clip import checkpoint as clip
from diptych.models.clip.config import CLIPConfig
from diptych.models.importing import OfficialCheckpoint, identify_system, load_official, map_official
from tests.parity.goldens import GOLDEN_CASES

OPEN_CLIP = GOLDEN_CASES / "open_clip"


def tower(prefix: str, dim: int, layers: int = 12) -> dict[str, tuple[int, ...]]:
    """The shapes of a transformer under OpenAI's names."""
    weights = {
        "attn.in_proj_weight": (3 * dim, dim), "attn.in_proj_bias": (3 * dim,),
        "attn.out_proj.weight": (dim, dim), "attn.out_proj.bias": (dim,),
        "ln_1.weight": (dim,), "ln_1.bias": (dim,), "ln_2.weight": (dim,), "ln_2.bias": (dim,),
        "mlp.c_fc.weight": (4 * dim, dim), "mlp.c_fc.bias": (4 * dim,),
        "mlp.c_proj.weight": (dim, 4 * dim), "mlp.c_proj.bias": (dim,),
    }  # fmt: skip
    return {f"{prefix}resblocks.{i}.{name}": shape for i in range(layers) for name, shape in weights.items()}


TEXT = tower("transformer.", 512) | {
    "positional_embedding": (77, 512), "text_projection": (512, 512), "logit_scale": (),
    "token_embedding.weight": (49408, 512), "ln_final.weight": (512,), "ln_final.bias": (512,),
}  # fmt: skip
VIT_B32 = tower("visual.transformer.", 768) | TEXT | {
    "visual.class_embedding": (768,), "visual.positional_embedding": (50, 768), "visual.proj": (768, 512),
    "visual.conv1.weight": (768, 3, 32, 32), "visual.ln_pre.weight": (768,), "visual.ln_pre.bias": (768,),
    "visual.ln_post.weight": (768,), "visual.ln_post.bias": (768,),
}  # fmt: skip
"""OpenAI's and open_clip's ViT-B/32."""


def meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.slow
def test_full_size_names_shapes_and_counts_are_the_published_ones():
    state = meta(VIT_B32)
    arguments = clip.infer(state, {})
    with torch.device("meta"):
        step = clip.build(arguments, "pretraining", clip.NAMES.from_official(state))
    shapes = {name: tuple(tensor.shape) for name, tensor in clip.NAMES.to_official(step.state_dict()).items()}
    assert shapes == VIT_B32
    assert sum(parameter.numel() for parameter in step.parameters()) == 151_277_313
    with torch.device("meta"):
        assert CLIPConfig(**arguments).build().state_dict().keys() == CLIPConfig().build().state_dict().keys()
    assert arguments["num_heads"] == 12 and arguments["text_num_heads"] == 8


def official() -> dict[str, Tensor]:
    return dict(torch.load(OPEN_CLIP / "checkpoint.pth", weights_only=True))


CONFIG = {"vision_cfg": {"head_width": 12}, "text_cfg": {"heads": 5}}


def test_names_are_translated_both_ways_bit_for_bit():
    state = official()
    imported = map_official("clip", state, CONFIG)
    back = imported.names.to_official(imported.state)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_sizes_in_the_archive_are_ignored_and_half_precision_becomes_float32():
    state = {name: tensor.half() for name, tensor in official().items()}
    state |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(13), "vocab_size": torch.tensor(190)}
    imported = map_official("clip", state, CONFIG)
    assert imported.ignored.keys() == {"input_resolution", "context_length", "vocab_size"}
    assert {tensor.dtype for tensor in imported.state.values()} == {torch.float32}
    assert identify_system(state, {"vision_width": 48}) == "clip"
    assert identify_system(state, {"quick_gelu": True}) == identify_system(state, {"vision_cfg": {}}) == "open_clip"
    with pytest.raises(WeightsError, match="names of both clip and open_clip"):
        identify_system(state)


def load(system: str, tmp_path: Path) -> OfficialCheckpoint:
    torch.save(official(), tmp_path / "x.pt")
    return load_official(system, tmp_path / "x.pt", num_heads=4)


@pytest.mark.parametrize(("system", "activation"), [("clip", "quick_gelu"), ("open_clip", "gelu")])
def test_the_default_activation_depends_on_the_system(system: str, activation: str, tmp_path: Path):
    assert load(system, tmp_path).arguments["activation"] == activation


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, "quick_gelu"),
        ({"quick_gelu": False}, "gelu"),
        ({"quick_gelu": True, "activation": "gelu (erf)"}, "quick_gelu"),
        ({"activation": "gelu (erf)"}, "gelu"),
        ({"activation": "QuickGELU x*sigmoid(1.702x)"}, "quick_gelu"),
    ],
)
def test_the_activation_is_read_from_the_config(config: dict, activation: str):
    assert clip.infer(official(), CONFIG | config)["activation"] == activation


def test_fused_weights_are_split_and_concatenated():
    names = KeyMapping({"a[0]": "x", "a[1]": "y", "b": "z"}, split={"a": ("a[0]", "a[1]")})
    state = {"a": torch.arange(6.0), "b": torch.zeros(())}
    ours = names.from_official(state)
    assert ours["x"].tolist() == [0, 1, 2] and ours["y"].tolist() == [3, 4, 5]
    back = names.to_official(ours)
    assert back.keys() == state.keys() and torch.equal(back["a"], state["a"])
