"""CLIP's weights of the ResNet form: full-size names, shapes and counts, both ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.models.clip import resnet_checkpoint
from diptych.models.importing import SYSTEMS, identify_system, map_official


def norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (dim,) for kind in kinds} | {f"{name}.num_batches_tracked": ()}


def resnet(dim: int, depths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """OpenAI's names of a ResNet under "visual."."""
    half = dim // 2
    found: dict[str, tuple[int, ...]] = {}
    for i, (out, inputs) in enumerate(((half, 3), (half, half), (dim, half)), 1):
        found |= {f"visual.conv{i}.weight": (out, inputs, 3, 3), **norm(f"visual.bn{i}", out)}
    inputs = dim
    for stage, depth in enumerate(depths):
        inner = dim * 2**stage
        for i in range(depth):
            block, outer = f"visual.layer{stage + 1}.{i}.", 4 * inner
            found |= {f"{block}conv1.weight": (inner, inputs, 1, 1), f"{block}conv2.weight": (inner, inner, 3, 3)}
            found |= {f"{block}conv3.weight": (outer, inner, 1, 1), **norm(f"{block}bn3", outer)}
            found |= norm(f"{block}bn1", inner) | norm(f"{block}bn2", inner)
            if i == 0:
                found |= {f"{block}downsample.0.weight": (outer, inputs, 1, 1), **norm(f"{block}downsample.1", outer)}
            inputs = outer
    return found


def clip(
    dim: int, depths: tuple[int, ...], cells: int, text: int, layers: int, words: int, length: int, embed_dim: int
):
    features = 32 * dim
    found = resnet(dim, depths)
    for asks in "qkv":
        found |= {f"visual.attnpool.{asks}_proj.weight": (features, features)}
        found |= {f"visual.attnpool.{asks}_proj.bias": (features,)}
    found |= {"visual.attnpool.c_proj.weight": (embed_dim, features), "visual.attnpool.c_proj.bias": (embed_dim,)}
    found |= {"visual.attnpool.positional_embedding": (1 + cells, features)}
    for i in range(layers):
        block = f"transformer.resblocks.{i}."
        found |= {f"{block}attn.in_proj_weight": (3 * text, text), f"{block}attn.in_proj_bias": (3 * text,)}
        found |= {f"{block}attn.out_proj.weight": (text, text), f"{block}attn.out_proj.bias": (text,)}
        found |= {f"{block}mlp.c_fc.weight": (4 * text, text), f"{block}mlp.c_fc.bias": (4 * text,)}
        found |= {f"{block}mlp.c_proj.weight": (text, 4 * text), f"{block}mlp.c_proj.bias": (text,)}
        found |= {f"{block}ln_{n}.{kind}": (text,) for n in (1, 2) for kind in ("weight", "bias")}
    return found | {
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
    found = {name: tuple(tensor.shape) for name, tensor in names.to_official(step.state_dict()).items()}
    assert found == official
    assert sum(parameter.numel() for parameter in step.parameters()) == 102_007_137
    assert (arguments["num_heads"], arguments["text_num_heads"], arguments["grid"]) == (32, 8, (7, 7))


def small() -> dict[str, Tensor]:
    shapes = clip(4, (1, 2, 1, 1), 4, 24, 1, 30, 9, 16)
    torch.manual_seed(0)
    return {name: torch.tensor(7) if name.endswith("tracked") else torch.rand(shape) for name, shape in shapes.items()}


def test_names_go_both_ways_bit_for_bit_and_other_sizes_are_read():
    state = small()
    assert identify_system(state) == "clip_resnet" and "clip_resnet" in SYSTEMS
    found = map_official("clip_resnet", state, {"num_heads": 4})
    assert (found.arguments["depths"], found.arguments["dim"], found.arguments["embed_dim"]) == ((1, 2, 1, 1), 4, 16)
    back = found.names.to_official(found.build().state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_a_resnet_without_all_stages_is_refused():
    state = {name: tensor for name, tensor in small().items() if not name.startswith("visual.layer3.")}
    with pytest.raises(WeightsError, match=r"stages of \(1, 2, 0, 1\) blocks"):
        map_official("clip_resnet", state, {"num_heads": 4})
