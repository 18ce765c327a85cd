"""VLMo at full size: names, shapes and parameter counts of the official models, and sizes inferred from its files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.models.importing import identify_system, map_official, resize_grid
from diptych.models.vlmo.checkpoint import ADAPTER
from diptych.modules.position import resize_table
from tests.parity.goldens import GOLDEN_CASES

Shapes = dict[str, tuple[int, ...]]
TABLE = "relative_position_bias_table"


def layer(name: str, *shape: int) -> Shapes:
    """Weight and bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def expert(name: str, dim: int) -> Shapes:
    hidden = 4 * dim
    return layer(f"norm2_{name}", dim) | layer(f"mlp_{name}.fc1", hidden, dim) | layer(f"mlp_{name}.fc2", dim, hidden)


def block(dim: int, fused: bool, scaled: bool) -> Shapes:
    shapes = layer("norm1", dim) | layer("attn.proj", dim, dim) | expert("text", dim) | expert("imag", dim)
    shapes |= {"attn.qkv.weight": (3 * dim, dim), "attn.q_bias": (dim,), "attn.v_bias": (dim,)}
    shapes |= {"gamma_1": (dim,), "gamma_2": (dim,)} if scaled else {}
    return shapes | expert("vl", dim) if fused else shapes


def body(dim: int, depth: int, first: int, side: int, num_heads: int = 0, num_images: int = 1) -> Shapes:
    """The shapes of a model; `num_heads`: for relative positions, 0 for absolute ones."""
    shapes: Shapes = {
        "transformer.cls_token": (1, 1, dim),
        **layer("transformer.patch_embed.proj", dim, 3, 16, 16),
        **layer("transformer.norm", dim),
        "text_embeddings.word_embeddings.weight": (30522, dim),
        "text_embeddings.token_type_embeddings.weight": (2, dim),
        **layer("text_embeddings.LayerNorm", dim),
        "token_type_embeddings.weight": (1 + num_images, dim),
        **layer("pooler.dense", dim, dim),
    }
    if num_heads:
        shapes[TABLE] = ((2 * side - 1) ** 2 + 5 + 2 * 196, num_heads * depth)
    else:
        shapes["transformer.pos_embed"] = (1, 1 + side * side, dim)
        shapes["text_embeddings.position_embeddings.weight"] = (40, dim)
    for i in range(depth):
        inner = block(dim, i >= first, num_heads > 0)
        shapes |= {f"transformer.blocks.{i}.{name}": shape for name, shape in inner.items()}
    return shapes


def words(dim: int) -> Shapes:
    return {
        "mlm_score.bias": (30522,),
        **layer("mlm_score.transform.dense", dim, dim),
        **layer("mlm_score.transform.LayerNorm", dim),
        "mlm_score.decoder.weight": (30522, dim),
    }


def contrast(dim: int, vl: str = "") -> Shapes:
    sides: Shapes = {f"itc{vl}_{side}_proj.fc.weight": (dim, dim) for side in ("text", "image")}
    return sides | {f"logit{vl}_scale": ()}


def pretrained(dim: int) -> Shapes:
    return words(dim) | layer("itm_score.fc", 2, dim) | contrast(dim) | contrast(dim, "_vl")


def classifier(name: str, inputs: int, mlp_dim: int, num_answers: int) -> Shapes:
    return layer(f"{name}.0", mlp_dim, inputs) | layer(f"{name}.1", mlp_dim) | layer(f"{name}.3", num_answers, mlp_dim)


PUBLISHED: dict[str, tuple[str, Shapes]] = {
    "base": ("pretraining", body(768, 12, 10, 14, 12) | pretrained(768)),
    "base, before images": ("pretraining", body(768, 12, 12, 14, 12) | words(768)),
    "base, vqa at 224": ("vqa", body(768, 12, 10, 14, 12) | classifier("vqa_classifier", 768, 1536, 3129)),
    "base, nlvr2 at 384": ("nlvr2", body(768, 12, 10, 24, 12, 2) | classifier("nlvr2_classifier", 1536, 1536, 2)),
    "base, retrieval at 384": ("retrieval", body(768, 12, 10, 24, 12) | contrast(768)),
    "base plus": ("pretraining", body(544, 24, 21, 14) | pretrained(544)),
    "large": ("pretraining", body(1024, 24, 21, 14, 16) | pretrained(1024)),
}
UNUSED = 40 * 768  # absolute text positions, which the official model has besides the relative ones
MILLIONS = {"base": 202.4, "base, vqa at 224": 182.0}  # of the official model, counted
README = {"base": 175, "base plus": 167, "large": 562}  # millions of the model without its heads


@pytest.mark.parametrize("model", PUBLISHED)
def test_full_size_names_shapes_and_counts_are_the_published_ones(model: str):
    task, official = PUBLISHED[model]
    state = {name: torch.empty(shape, device="meta") for name, shape in official.items()}
    config: dict[str, Any] = {"num_heads": 16} if model == "base plus" else {}
    arguments = ADAPTER.infer(state, config)
    assert identify_system(state) == "vlmo" and ADAPTER.task(state) == task
    names = ADAPTER.names(arguments, task)
    with torch.device("meta"):
        step = ADAPTER.build(arguments, task, names.from_official(state))
    ours = dict(step.named_parameters())
    assert {name: tuple(t.shape) for name, t in names.to_official(ours).items()} == official
    if model in MILLIONS:
        assert round((sum(p.numel() for p in ours.values()) + UNUSED) / 1e6, 1) == MILLIONS[model]
    if model in README:
        assert sum(p.numel() for n, p in ours.items() if n.startswith("model.")) / 1e6 == pytest.approx(
            README[model], abs=1
        )


def golden() -> dict[str, Tensor]:
    folder = GOLDEN_CASES / "vlmo_pretrain"
    return dict(torch.load(folder / "checkpoint.pth", weights_only=True)["state_dict"])


CONFIG = {"num_heads": 4, "max_text_len_of_initckpt": 16}


@pytest.mark.slow
def test_the_training_step_follows_from_the_heads():
    state = golden()
    imported = map_official("vlmo", state, CONFIG)
    assert imported.task == "pretraining"
    assert [o.name for o in imported.build().objectives] == ["itc", "itm", "mlm"]  # type: ignore[union-attr]
    assert imported.build().weights == {"itc": 1.0, "itm": 1.0, "mlm": 0.25}
    own = {n: t for n, t in state.items() if not n.startswith(("mlm_", "itm_", "itc_vl_", "logit_vl_"))}
    retrieval = map_official("vlmo", own, CONFIG)
    assert (retrieval.task, retrieval.arguments["num_itc_branches"]) == ("retrieval", 1)
    bare = {n: t for n, t in own.items() if not n.startswith(("itc_", "logit_"))}
    assert map_official("vlmo", bare, CONFIG).task == "encoder"
    before = {n: t for n, t in state.items() if "_vl" not in n and not n.startswith(("itm_", "itc_", "logit_"))}
    step: Any = map_official("vlmo", before, CONFIG).build()
    assert [(o.name, o.text_only, o.weight) for o in step.objectives] == [("mlm", True, 1.0)]


def test_position_indices_of_old_files_are_ignored():
    index = torch.zeros(17, 17, dtype=torch.long)
    imported = map_official("vlmo", golden() | {"relative_position_index": index}, CONFIG)
    assert {"relative_position_index", "text_embeddings.position_embeddings.weight"} < imported.ignored.keys()


def test_inconsistent_sizes_are_named():
    with pytest.raises(WeightsError, match="86 rows, which do not fit a square image with texts of 196 tokens"):
        map_official("vlmo", golden(), {"num_heads": 4})
    with pytest.raises(WeightsError, match=r"positions\.table is \(86, 20\), the model has \(86, 10\)"):
        map_official("vlmo", golden(), CONFIG | {"num_heads": 2})
    assert map_official("vlmo", golden(), {"max_text_len_of_initckpt": 16}).arguments["num_heads"] == 4


def test_another_grid_resizes_the_table_except_for_text():
    imported = map_official("vlmo", golden(), CONFIG)
    wider = resize_grid(imported, (6, 6))
    name = "model.transformer.positions.table"
    old, new = (x.build().state_dict()[name] for x in (imported, wider))
    assert len(new) - len(old) == 11**2 - 7**2 and torch.equal(new[11**2 :], old[7**2 :])
    assert torch.equal(new, resize_table(old, (4, 4), (6, 6)))
    narrow = replace(imported, arguments=imported.arguments | {"grid": (2, 2)})
    with pytest.raises(WeightsError, match="positions cannot be resized: cubic spline interpolation"):
        resize_grid(narrow, (6, 6))


def test_absolute_positions_are_resized_too():
    state = {name: torch.empty(shape, device="meta") for name, shape in PUBLISHED["base plus"][1].items()}
    imported = resize_grid(map_official("vlmo", state, {"num_heads": 16}), (5, 3))
    assert imported.state["model.patches.position"].shape == (1, 16, imported.arguments["dim"])
