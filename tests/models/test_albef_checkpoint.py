"""ALBEF at full size: names, shapes and parameter counts of the official models, and errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.models.albef.checkpoint import ADAPTER
from diptych.models.importing import identify_system, map_official, resize_grid

WIDTH, HIDDEN, WORDS, TEXTS, JOINT = 768, 3072, 30522, 512, 256
Shapes = dict[str, tuple[int, ...]]


def layer(name: str, *shape: int) -> Shapes:
    """Weight and bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def image(cells: int) -> Shapes:
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + cells, WIDTH), **layer("norm", WIDTH)}
    shapes |= layer("patch_embed.proj", WIDTH, 3, 16, 16)
    for i in range(12):
        block = layer("norm1", WIDTH) | layer("norm2", WIDTH) | layer("attn.qkv", 3 * WIDTH, WIDTH)
        block |= layer("attn.proj", WIDTH, WIDTH) | layer("mlp.fc1", HIDDEN, WIDTH)
        shapes |= under(f"blocks.{i}", block | layer("mlp.fc2", WIDTH, HIDDEN))
    return shapes


def attention(name: str) -> Shapes:
    shapes = layer(f"{name}.output.dense", WIDTH, WIDTH) | layer(f"{name}.output.LayerNorm", WIDTH)
    for part in ("query", "key", "value"):
        shapes |= layer(f"{name}.self.{part}", WIDTH, WIDTH)
    return shapes


def bert(layers: int, text_layers: int) -> Shapes:
    """The shapes of BERT; the first `text_layers` layers have no cross-attention."""
    shapes: Shapes = {"embeddings.position_ids": (1, TEXTS), **layer("embeddings.LayerNorm", WIDTH)}
    for name, rows in (("word", WORDS), ("position", TEXTS), ("token_type", 2)):
        shapes[f"embeddings.{name}_embeddings.weight"] = (rows, WIDTH)
    for i in range(layers):
        block = attention("attention") | (attention("crossattention") if i >= text_layers else {})
        block |= layer("intermediate.dense", HIDDEN, WIDTH) | layer("output.dense", WIDTH, HIDDEN)
        shapes |= under(f"encoder.layer.{i}", block | layer("output.LayerNorm", WIDTH))
    return shapes


def words() -> Shapes:
    head = {"bias": (WORDS,), **layer("transform.dense", WIDTH, WIDTH), **layer("transform.LayerNorm", WIDTH)}
    return under("cls.predictions", head | layer("decoder", WORDS, WIDTH))


def doubled(*parts: Shapes) -> Shapes:
    """The shapes of the student and of its momentum model."""
    student = {name: shape for part in parts for name, shape in part.items()}
    return student | {name.replace(".", "_m.", 1): shape for name, shape in student.items()}


PROJECTIONS = layer("vision_proj", JOINT, WIDTH) | layer("text_proj", JOINT, WIDTH)
QUEUES: Shapes = {"temp": (), "image_queue": (JOINT, 64), "text_queue": (JOINT, 64), "queue_ptr": (1,)}
PIXELS = under("visual_encoder", image(196))
TWO_IMAGES = under("text_encoder", bert(18, 6))


def classifier(answers: int) -> Shapes:
    return layer("cls_head.0", WIDTH, WIDTH) | layer("cls_head.2", answers, WIDTH)


# By task: shapes, and millions of parameters, all and trained, where they are published.
PUBLISHED: dict[str, tuple[Shapes, float | None, float | None]] = {
    "pretraining": (
        doubled(
            under("visual_encoder", image(256)),
            under("text_encoder", under("bert", bert(12, 6)) | words()),
            PROJECTIONS,
        )
        | QUEUES | layer("itm_head", 2, WIDTH),
        419.9, 209.9,
    ),
    "retrieval": (
        doubled(PIXELS, under("text_encoder", bert(12, 6)), PROJECTIONS)
        | QUEUES | {"idx_queue": (1, 64)} | layer("itm_head", 2, WIDTH),
        None, None,
    ),
    "vqa": (
        doubled(PIXELS, under("text_encoder", bert(12, 6)), under("text_decoder", under("bert", bert(6, 0)) | words())),
        580.1, 290.0,
    ),
    "entailment": (doubled(PIXELS, under("text_encoder", bert(12, 6)), classifier(3)), None, None),
    "nlvr2": (doubled(PIXELS, TWO_IMAGES, classifier(2)), None, 259.1),
    "assignment": (
        PIXELS | TWO_IMAGES | PROJECTIONS | {"temp": ()} | layer("ta_head", 3, WIDTH), None, None
    ),
}  # fmt: skip


def meta(shapes: Shapes) -> dict[str, Tensor]:
    integers = {"queue_ptr", "idx_queue"}
    return {
        name: torch.empty(shape, device="meta", dtype=torch.long if name in integers else None)
        for name, shape in shapes.items()
    }


@pytest.mark.quick("pretraining")
@pytest.mark.parametrize("task", PUBLISHED)
def test_full_size_names_shapes_and_counts_are_the_published_ones(task: str):
    shapes, millions, trained = PUBLISHED[task]
    state = meta(shapes)
    assert identify_system(state) == "albef" and ADAPTER.task(state) == task
    imported = map_official("albef", state, {})
    back = imported.names.to_official(imported.state) | imported.ignored_tensors
    assert {name: tuple(tensor.shape) for name, tensor in back.items()} == shapes
    with torch.device("meta"):
        step = ADAPTER.build(imported.arguments, task, imported.state)
    parameters = list(step.parameters())
    if millions is not None:
        assert sum(p.numel() for p in parameters) / 1e6 == pytest.approx(millions, abs=0.06)
    if trained is not None:
        assert sum(p.numel() for p in parameters if p.requires_grad) / 1e6 == pytest.approx(trained, abs=0.06)
    depths = (imported.arguments["text_depth"], imported.arguments["fusion_depth"], imported.arguments["decoder_depth"])
    assert depths == (6, 6, 6 if task == "vqa" else 0)


def test_both_images_share_keys_and_values():
    shapes, *_ = PUBLISHED["assignment"]
    tied = map_official("albef", meta(shapes), {}).names.tied
    layers = "text_encoder.encoder.layer"
    for i in range(6, 18, 2):
        for part in ("key", "value"):
            name = f"crossattention.self.{part}.weight"
            assert tied[f"{layers}.{i + 1}.{name}"] == f"{layers}.{i}.{name}"
    assert len(tied) == 6 * 4


@pytest.mark.slow
def test_both_position_grids_of_a_momentum_model_are_resized():
    imported = map_official("albef", meta(PUBLISHED["retrieval"][0]), {})
    larger = resize_grid(imported, (24, 24))
    resized = [name for name, tensor in larger.state.items() if tensor.shape == (1, 1 + 24 * 24, WIDTH)]
    assert sorted(resized) == [f"{who}.model.image.patches.position" for who in ("student", "teacher")]


def test_an_incomplete_checkpoint_or_an_unknown_task_raises():
    with pytest.raises(WeightsError, match="neither decoder nor head nor queue"):
        map_official("albef", meta(PIXELS | under("text_encoder", bert(12, 6))), {})
    shapes, *_ = PUBLISHED["entailment"]
    with pytest.raises(WeightsError, match="missing parts of weights: teacher"):
        lost = "text_encoder_m.encoder.layer.3.attention.self.key.weight"
        map_official("albef", meta({n: s for n, s in shapes.items() if n != lost}), {})
