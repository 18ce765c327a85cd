"""VLMo at full size: the names, shapes and counts of the official models, and what its files tell of sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.models.importing import identify_system, map_official, resized
from diptych.models.vlmo.checkpoint import SYSTEM
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


def block(dim: int, together: bool, scaled: bool) -> Shapes:
    shapes = layer("norm1", dim) | layer("attn.proj", dim, dim) | expert("text", dim) | expert("imag", dim)
    shapes |= {"attn.qkv.weight": (3 * dim, dim), "attn.q_bias": (dim,), "attn.v_bias": (dim,)}
    shapes |= {"gamma_1": (dim,), "gamma_2": (dim,)} if scaled else {}
    return shapes | expert("vl", dim) if together else shapes


def body(dim: int, depth: int, first: int, side: int, num_heads: int = 0, num_images: int = 1) -> Shapes:
    """`heads`: of a model whose positions stand in attention; 0: they are added to the embeddings."""
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
UNREAD = 40 * 768  # text positions, which the official model keeps beside the table that is read
MILLIONS = {"base": 202.4, "base, vqa at 224": 182.0}  # of the official model, counted
README = {"base": 175, "base plus": 167, "large": 562}  # millions of the model without its heads


@pytest.mark.parametrize("model", PUBLISHED)
def test_full_size_names_shapes_and_counts_are_the_published_ones(model: str):
    task, official = PUBLISHED[model]
    state = {name: torch.empty(shape, device="meta") for name, shape in official.items()}
    told: dict[str, Any] = {"num_heads": 16} if model == "base plus" else {}
    arguments = SYSTEM.infer(state, told)
    assert identify_system(state) == "vlmo" and SYSTEM.task(state) == task
    names = SYSTEM.names(arguments, task)
    with torch.device("meta"):
        step = SYSTEM.build(arguments, task, names.from_official(state))
    ours = dict(step.named_parameters())
    assert {name: tuple(t.shape) for name, t in names.to_official(ours).items()} == official
    if model in MILLIONS:
        assert round((sum(p.numel() for p in ours.values()) + UNREAD) / 1e6, 1) == MILLIONS[model]
    if model in README:
        assert sum(p.numel() for n, p in ours.items() if n.startswith("model.")) / 1e6 == pytest.approx(
            README[model], abs=1
        )


def golden() -> dict[str, Tensor]:
    folder = GOLDEN_CASES / "vlmo_pretrain"
    return dict(torch.load(folder / "checkpoint.pth", weights_only=True)["state_dict"])


TOLD = {"num_heads": 4, "max_text_len_of_initckpt": 16}


def test_what_a_file_holds_decides_the_step():
    state = golden()
    found = map_official("vlmo", state, TOLD)
    assert found.task == "pretraining"
    assert [o.name for o in found.build().objectives] == ["itc", "itm", "mlm"]  # type: ignore[union-attr]
    assert found.build().weights == {"itc": 1.0, "itm": 1.0, "mlm": 0.25}
    own = {n: t for n, t in state.items() if not n.startswith(("mlm_", "itm_", "itc_vl_", "logit_vl_"))}
    retrieval = map_official("vlmo", own, TOLD)
    assert (retrieval.task, retrieval.arguments["num_itc_branches"]) == ("retrieval", 1)
    bare = {n: t for n, t in own.items() if not n.startswith(("itc_", "logit_"))}
    assert map_official("vlmo", bare, TOLD).task == "encoder"
    before = {n: t for n, t in state.items() if "_vl" not in n and not n.startswith(("itm_", "itc_", "logit_"))}
    step: Any = map_official("vlmo", before, TOLD).build()
    assert [(o.name, o.text_only, o.weight) for o in step.objectives] == [("mlm", True, 1.0)]


def test_old_files_carry_indices_which_are_left_behind():
    index = torch.zeros(17, 17, dtype=torch.long)
    found = map_official("vlmo", golden() | {"relative_position_index": index}, TOLD)
    assert {"relative_position_index", "text_embeddings.position_embeddings.weight"} < found.ignored.keys()


def test_sizes_that_do_not_go_together_are_named():
    with pytest.raises(WeightsError, match="86 rows, which are of no square image beside texts of 196 tokens"):
        map_official("vlmo", golden(), {"num_heads": 4})
    with pytest.raises(WeightsError, match=r"positions\.table is \(86, 20\), the model has \(86, 10\)"):
        map_official("vlmo", golden(), TOLD | {"num_heads": 2})
    assert map_official("vlmo", golden(), {"max_text_len_of_initckpt": 16}).arguments["num_heads"] == 4


def test_another_grid_resizes_the_table_and_leaves_texts_as_they_are():
    found = map_official("vlmo", golden(), TOLD)
    wider = resized(found, (6, 6))
    name = "model.transformer.positions.table"
    old, new = (x.build().state_dict()[name] for x in (found, wider))
    assert len(new) - len(old) == 11**2 - 7**2 and torch.equal(new[11**2 :], old[7**2 :])
    assert torch.equal(new, resize_table(old, (4, 4), (6, 6)))
    narrow = replace(found, arguments=found.arguments | {"grid": (2, 2)})
    with pytest.raises(WeightsError, match="positions cannot be resized: a cubic spline"):
        resized(narrow, (6, 6))


def test_positions_that_are_added_are_resized_too():
    state = {name: torch.empty(shape, device="meta") for name, shape in PUBLISHED["base plus"][1].items()}
    found = resized(map_official("vlmo", state, {"num_heads": 16}), (5, 3))
    assert found.state["model.patches.position"].shape == (1, 16, found.arguments["dim"])
