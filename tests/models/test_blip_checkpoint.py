"""BLIP at full size: names, shapes and parameter counts of the official models, and sizes inferred from its files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.models.blip.checkpoint import ADAPTER
from diptych.models.importing import identify_system, map_official
from tests.parity.golden_case import Case
from tests.parity.recompute.blip_tasks import GREEDY, Search, search_from_readme

WIDTH, HIDDEN, WORDS, TEXTS, JOINT = 768, 3072, 30524, 512, 256
Shapes = dict[str, tuple[int, ...]]


def layer(name: str, *shape: int) -> Shapes:
    """Weight and bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def image(cells: int, width: int = WIDTH, depth: int = 12) -> Shapes:
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + cells, width), **layer("norm", width)}
    shapes |= layer("patch_embed.proj", width, 3, 16, 16)
    for i in range(depth):
        block = layer("norm1", width) | layer("norm2", width) | layer("attn.qkv", 3 * width, width)
        block |= layer("attn.proj", width, width) | layer("mlp.fc1", 4 * width, width)
        shapes |= under(f"blocks.{i}", block | layer("mlp.fc2", width, 4 * width))
    return shapes


def attention(name: str, context: int = WIDTH) -> Shapes:
    shapes = layer(f"{name}.query", WIDTH, WIDTH)
    return shapes | layer(f"{name}.key", WIDTH, context) | layer(f"{name}.value", WIDTH, context)


def two_images(i: int) -> Shapes:
    """Cross-attention to two images; the last six layers merge their outputs by a linear layer."""
    shapes = layer("crossattention.output.LayerNorm", WIDTH)
    for k in "01":
        shapes |= attention(f"crossattention.self{k}") | layer(f"crossattention.output.dense{k}", WIDTH, WIDTH)
    return shapes | (layer("crossattention.output.merge_layer", WIDTH, 2 * WIDTH) if i >= 6 else {})


def text(context: int = WIDTH, two: bool = False) -> Shapes:
    shapes: Shapes = {"embeddings.position_ids": (1, TEXTS), **layer("embeddings.LayerNorm", WIDTH)}
    shapes |= {"embeddings.word_embeddings.weight": (WORDS, WIDTH)}
    shapes |= {"embeddings.position_embeddings.weight": (TEXTS, WIDTH)}
    cross = attention("crossattention.self", context) | layer("crossattention.output.dense", WIDTH, WIDTH)
    cross |= layer("crossattention.output.LayerNorm", WIDTH)
    for i in range(12):
        block = attention("attention.self") | layer("attention.output.dense", WIDTH, WIDTH)
        block |= layer("attention.output.LayerNorm", WIDTH) | (two_images(i) if two else cross)
        block |= layer("intermediate.dense", HIDDEN, WIDTH) | layer("output.dense", WIDTH, HIDDEN)
        shapes |= under(f"encoder.layer.{i}", block | layer("output.LayerNorm", WIDTH))
    return shapes


def decoder(context: int = WIDTH) -> Shapes:
    head = {"bias": (WORDS,), **layer("transform.dense", WIDTH, WIDTH), **layer("transform.LayerNorm", WIDTH)}
    head |= layer("decoder", WORDS, WIDTH)
    return under("text_decoder.bert", text(context)) | under("text_decoder.cls.predictions", head)


def queued(dim: int = WIDTH, depth: int = 12) -> Shapes:
    """Two encoders, their momentum models, and a queue of 64."""
    shapes: Shapes = {"temp": (), "image_queue": (JOINT, 64), "text_queue": (JOINT, 64), **layer("itm_head", 2, WIDTH)}
    for mark in ("", "_m"):
        shapes |= under(f"visual_encoder{mark}", image(196, dim, depth)) | under(f"text_encoder{mark}", text(dim))
        shapes |= layer(f"vision_proj{mark}", JOINT, dim) | layer(f"text_proj{mark}", JOINT, WIDTH)
    return shapes


ENCODERS = under("visual_encoder", image(196)) | under("text_encoder", text())
PUBLISHED: dict[str, tuple[str, Shapes, float]] = {
    "pre-training": ("pretraining", queued() | decoder() | {"queue_ptr": (1,)}, 475.9),
    "retrieval": ("retrieval", queued() | {"idx_queue": (1, 64), "ptr_queue": (1,)}, 446.9),
    "vqa": ("vqa", ENCODERS | decoder(), 360.9),
    "captions": ("caption", under("visual_encoder", image(196)) | decoder(), 223.7),
    "nlvr2": (
        "nlvr2",
        under("visual_encoder", image(196)) | under("text_encoder", text(two=True))
        | layer("cls_head.0", WIDTH, WIDTH) | layer("cls_head.2", 2, WIDTH),
        259.1,
    ),
}  # fmt: skip


def meta(shapes: Shapes) -> dict[str, Tensor]:
    integers = {"queue_ptr", "ptr_queue", "idx_queue"}
    return {
        name: torch.empty(shape, device="meta", dtype=torch.long if name in integers else None)
        for name, shape in shapes.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_names_shapes_and_counts_are_the_published_ones(name: str):
    task, shapes, millions = PUBLISHED[name]
    state = meta(shapes)
    assert identify_system(state) == "blip" and ADAPTER.task(state) == task
    imported = map_official("blip", state, {})
    back = imported.names.to_official(imported.state)
    assert {name: tuple(tensor.shape) for name, tensor in (back | imported.ignored_tensors).items()} == shapes
    with torch.device("meta"):
        step = ADAPTER.build(imported.arguments, task, imported.state)
    assert sum(parameter.numel() for parameter in step.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert (imported.arguments["bos_token_id"], imported.arguments["enc_token_id"]) == (30522, 30523)
    assert all(name.endswith("position_ids") for name in imported.ignored_tensors)


@pytest.mark.slow
def test_the_momentum_model_is_not_trained():
    """252.4 million parameters are trained."""
    state = meta(PUBLISHED["pre-training"][1])
    imported = map_official("blip", state, {})
    with torch.device("meta"):
        step = ADAPTER.build(imported.arguments, "pretraining", imported.state)
    trained = sum(parameter.numel() for parameter in step.parameters() if parameter.requires_grad)
    assert trained / 1e6 == pytest.approx(252.4, abs=0.06)


@pytest.mark.slow
def test_a_large_vit_is_inferred_from_the_shapes():
    state = meta(queued(1024, 24) | decoder(1024) | {"queue_ptr": (1,)})
    arguments = map_official("blip", state, {}).arguments
    assert (arguments["image_dim"], arguments["image_depth"], arguments["image_num_heads"]) == (1024, 24, 16)
    assert (arguments["dim"], arguments["depth"], arguments["num_heads"]) == (768, 12, 12)


def test_a_checkpoint_of_an_unknown_task_raises():
    with pytest.raises(WeightsError, match="neither decoder nor head nor queue"):
        map_official("blip", meta(ENCODERS), {})


@pytest.mark.slow
def test_tied_weights_that_differ_are_named():
    shapes = queued() | decoder() | {"queue_ptr": (1,)}
    state = {name: torch.zeros(shape).expand(shape) for name, shape in shapes.items() if "layer.3.output.dense" in name}
    names = map_official("blip", meta(shapes), {}).names
    state["text_decoder.bert.encoder.layer.3.output.dense.bias"] = torch.ones(WIDTH)
    with pytest.raises(WeightsError, match=r"tied differ: text_decoder\.bert\.encoder\.layer\.3\.output\.dense\.bias"):
        names.from_official(state)


def test_search_settings_are_read_from_the_readme():
    description = "generated ids: 4 beams, repetition_penalty 1.2, min_length 3, max_length 9; end 102"
    case = Case(torch.nn.Module(), {}, {}, meanings={"out.beam_ids": description})
    assert search_from_readme(case, GREEDY, "beam_ids") == Search(4, 9, 3, 1.2)
    assert search_from_readme(case, GREEDY, "greedy_ids") == GREEDY
