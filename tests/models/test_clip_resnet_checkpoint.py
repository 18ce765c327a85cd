"""CLIP with a ResNet: full-size names, shapes and parameter counts in both directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.models.clip import resnet_checkpoint
from diptych.models.importing import ADAPTERS, identify_system, map_official


def norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (dim,) for kind in kinds} | {f"{name}.num_batches_tracked": ()}


def resnet(dim: int, depths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of a ResNet under OpenAI's names."""
    half = dim // 2
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (out, inputs) in enumerate(((half, 3), (half, half), (dim, half)), 1):
        shapes |= {f"visual.conv{i}.weight": (out, inputs, 3, 3), **norm(f"visual.bn{i}", out)}
    inputs = dim
    for stage, depth in enumerate(depths):
        inner = dim * 2**stage
        for i in range(depth):
            block, outer = f"visual.layer{stage + 1}.{i}.", 4 * inner
            shapes |= {f"{block}conv1.weight": (inner, inputs, 1, 1), f"{block}conv2.weight": (inner, inner, 3, 3)}
            shapes |= {f"{block}conv3.weight": (outer, inner, 1, 1), **norm(f"{block}bn3", outer)}
            shapes |= norm(f"{block}bn1", inner) | norm(f"{block}bn2", inner)
            if i == 0:
                shapes |= {f"{block}downsample.0.weight": (outer, inputs, 1, 1), **norm(f"{block}downsample.1", outer)}
            inputs = outer
    return shapes


def clip(
    dim: int, depths: tuple[int, ...], cells: int, text: int, layers: int, words: int, length: int, embed_dim: int
):
    features = 32 * dim
    shapes = resnet(dim, depths)
    for part in "qkv":
        shapes |= {f"visual.attnpool.{part}_proj.weight": (features, features)}
        shapes |= {f"visual.attnpool.{part}_proj.bias": (features,)}
    shapes |= {"visual.attnpool.c_proj.weight": (embed_dim, features), "visual.attnpool.c_proj.bias": (embed_dim,)}
    shapes |= {"visual.attnpool.positional_embedding": (1 + cells, features)}
    for i in range(layers):
        block = f"transformer.resblocks.{i}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * text, text), f"{block}attn.in_proj_bias": (3 * text,)}
        shapes |= {f"{block}attn.out_proj.weight": (text, text), f"{block}attn.out_proj.bias": (text,)}
        shapes |= {f"{block}mlp.c_fc.weight": (4 * text, text), f"{block}mlp.c_fc.bias": (4 * text,)}
        shapes |= {f"{block}mlp.c_proj.weight": (text, 4 * text), f"{block}mlp.c_proj.bias": (text,)}
        shapes |= {f"{block}ln_{n}.{kind}": (text,) for n in (1, 2) for kind in ("weight", "bias")}
    return shapes | {
        "positional_embedding": (length, text), "text_projection": (text, embed_dim), "logit_scale": (),
        "token_embedding.weight": (words, text), "ln_final.weight": (text,), "ln_final.bias": (text,),
    }  # fmt: skip


def test_rn50_has_the_published_names_shapes_and_count():
    official = clip(64, (3, 4, 6, 3), 49, 512, 12, 49408, 77, 1024)
    state = {name: torch.empty(shape, device="meta") for name, shape in official.items()}
    arguments = resnet_checkpoint.infer(state, {})
    names = resnet_checkpoint.names(arguments, "pretraining")
    with torch.device("meta"):
        step = resnet_checkpoint.build(arguments, "pretraining", names.from_official(state))
    shapes = {name: tuple(tensor.shape) for name, tensor in names.to_official(step.state_dict()).items()}
    assert shapes == official
    assert sum(parameter.numel() for parameter in step.parameters()) == 102_007_137
    assert (arguments["num_heads"], arguments["text_num_heads"], arguments["grid"]) == (32, 8, (7, 7))


def small() -> dict[str, Tensor]:
    shapes = clip(4, (1, 2, 1, 1), 4, 24, 1, 30, 9, 16)
    torch.manual_seed(0)
    return {name: torch.tensor(7) if name.endswith("tracked") else torch.rand(shape) for name, shape in shapes.items()}


def test_names_are_translated_both_ways_and_other_sizes_are_inferred():
    state = small()
    assert identify_system(state) == "clip_resnet" and "clip_resnet" in ADAPTERS
    imported = map_official("clip_resnet", state, {"num_heads": 4})
    assert (imported.arguments["depths"], imported.arguments["dim"], imported.arguments["embed_dim"]) == (
        (1, 2, 1, 1),
        4,
        16,
    )
    back = imported.names.to_official(imported.build().state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_a_resnet_with_a_missing_stage_raises():
    state = {name: tensor for name, tensor in small().items() if not name.startswith("visual.layer3.")}
    with pytest.raises(WeightsError, match=r"stages of \(1, 2, 0, 1\) blocks"):
        map_official("clip_resnet", state, {"num_heads": 4})
