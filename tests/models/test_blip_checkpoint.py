"""BLIP at full size: the names, shapes and counts of the official models, and what its files tell of sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.models.blip.checkpoint import SYSTEM
from diptych.models.importing import identify_system, map_official
from tests.parity.answers.blip_tasks import GREEDY, Search, searched
from tests.parity.golden_case import Case

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


def twins(i: int) -> Shapes:
    """What a layer has for two images; the last six merge what they say."""
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
        block |= layer("attention.output.LayerNorm", WIDTH) | (twins(i) if two else cross)
        block |= layer("intermediate.dense", HIDDEN, WIDTH) | layer("output.dense", WIDTH, HIDDEN)
        shapes |= under(f"encoder.layer.{i}", block | layer("output.LayerNorm", WIDTH))
    return shapes


def decoder(context: int = WIDTH) -> Shapes:
    head = {"bias": (WORDS,), **layer("transform.dense", WIDTH, WIDTH), **layer("transform.LayerNorm", WIDTH)}
    head |= layer("decoder", WORDS, WIDTH)
    return under("text_decoder.bert", text(context)) | under("text_decoder.cls.predictions", head)


def queued(dim: int = WIDTH, depth: int = 12) -> Shapes:
    """Two encoders and their momentum models; 64 places in the queue."""
    shapes: Shapes = {"temp": (), "image_queue": (JOINT, 64), "text_queue": (JOINT, 64), **layer("itm_head", 2, WIDTH)}
    for mark in ("", "_m"):
        shapes |= under(f"visual_encoder{mark}", image(196, dim, depth)) | under(f"text_encoder{mark}", text(dim))
        shapes |= layer(f"vision_proj{mark}", JOINT, dim) | layer(f"text_proj{mark}", JOINT, WIDTH)
    return shapes


READER = under("visual_encoder", image(196)) | under("text_encoder", text())
PUBLISHED: dict[str, tuple[str, Shapes, float]] = {
    "pre-training": ("pretraining", queued() | decoder() | {"queue_ptr": (1,)}, 475.9),
    "retrieval": ("retrieval", queued() | {"idx_queue": (1, 64), "ptr_queue": (1,)}, 446.9),
    "vqa": ("vqa", READER | decoder(), 360.9),
    "captions": ("caption", under("visual_encoder", image(196)) | decoder(), 223.7),
    "nlvr2": (
        "nlvr2",
        under("visual_encoder", image(196)) | under("text_encoder", text(two=True))
        | layer("cls_head.0", WIDTH, WIDTH) | layer("cls_head.2", 2, WIDTH),
        259.1,
    ),
}  # fmt: skip


def meta(shapes: Shapes) -> dict[str, Tensor]:
    whole = {"queue_ptr", "ptr_queue", "idx_queue"}
    return {
        name: torch.empty(shape, device="meta", dtype=torch.long if name in whole else None)
        for name, shape in shapes.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_names_shapes_and_counts_are_the_published_ones(name: str):
    task, shapes, millions = PUBLISHED[name]
    state = meta(shapes)
    assert identify_system(state) == "blip" and SYSTEM.task(state) == task
    found = map_official("blip", state, {})
    back = found.names.to_official(found.state)
    assert {name: tuple(tensor.shape) for name, tensor in (back | found.ignored_tensors).items()} == shapes
    with torch.device("meta"):
        step = SYSTEM.build(found.arguments, task, found.state)
    assert sum(parameter.numel() for parameter in step.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert (found.arguments["bos_token_id"], found.arguments["enc_token_id"]) == (30522, 30523)
    assert all(name.endswith("position_ids") for name in found.ignored_tensors)


@pytest.mark.slow
def test_what_is_trained_of_the_pretrained_model():
    """252.4 million: not the momentum model."""
    state = meta(PUBLISHED["pre-training"][1])
    found = map_official("blip", state, {})
    with torch.device("meta"):
        step = SYSTEM.build(found.arguments, "pretraining", found.state)
    trained = sum(parameter.numel() for parameter in step.parameters() if parameter.requires_grad)
    assert trained / 1e6 == pytest.approx(252.4, abs=0.06)


@pytest.mark.slow
def test_a_large_vit_is_read_from_the_shapes():
    state = meta(queued(1024, 24) | decoder(1024) | {"queue_ptr": (1,)})
    arguments = map_official("blip", state, {}).arguments
    assert (arguments["image_dim"], arguments["image_depth"], arguments["image_num_heads"]) == (1024, 24, 16)
    assert (arguments["dim"], arguments["depth"], arguments["num_heads"]) == (768, 12, 12)


def test_a_checkpoint_of_no_known_task_is_refused():
    with pytest.raises(WeightsError, match="neither decoder nor head nor queue"):
        map_official("blip", meta(READER), {})


def test_tied_weights_that_differ_are_named():
    shapes = queued() | decoder() | {"queue_ptr": (1,)}
    state = {name: torch.zeros(shape).expand(shape) for name, shape in shapes.items() if "layer.3.output.dense" in name}
    names = map_official("blip", meta(shapes), {}).names
    state["text_decoder.bert.encoder.layer.3.output.dense.bias"] = torch.ones(WIDTH)
    with pytest.raises(WeightsError, match=r"tied differ: text_decoder\.bert\.encoder\.layer\.3\.output\.dense\.bias"):
        names.from_official(state)


def test_a_search_is_what_the_readme_says():
    told = "generated ids: 4 beams, repetition_penalty 1.2, min_length 3, max_length 9; end 102"
    case = Case(torch.nn.Module(), {}, {}, meanings={"out.beam_ids": told})
    assert searched(case, GREEDY, "beam_ids") == Search(4, 9, 3, 1.2)
    assert searched(case, GREEDY, "greedy_ids") == GREEDY
