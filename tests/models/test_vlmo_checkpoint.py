"""VLMo at full size: the names, shapes and counts of the official models, and what its files tell of sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.models.importing import recognise, resized, understood
from diptych.models.vlmo.checkpoint import SYSTEM
from diptych.modules.position import resize_table
from tests.parity.goldens import GOLDEN_CASES

Shapes = dict[str, tuple[int, ...]]
TABLE = "relative_position_bias_table"


def layer(name: str, *shape: int) -> Shapes:
    """Weight and bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def expert(name: str, width: int) -> Shapes:
    hidden = 4 * width
    return (
        layer(f"norm2_{name}", width)
        | layer(f"mlp_{name}.fc1", hidden, width)
        | layer(f"mlp_{name}.fc2", width, hidden)
    )


def block(width: int, together: bool, scaled: bool) -> Shapes:
    shapes = layer("norm1", width) | layer("attn.proj", width, width) | expert("text", width) | expert("imag", width)
    shapes |= {"attn.qkv.weight": (3 * width, width), "attn.q_bias": (width,), "attn.v_bias": (width,)}
    shapes |= {"gamma_1": (width,), "gamma_2": (width,)} if scaled else {}
    return shapes | expert("vl", width) if together else shapes


def body(width: int, depth: int, first: int, side: int, heads: int = 0, images: int = 1) -> Shapes:
    """`heads`: of a model whose positions stand in attention; 0: they are added to the embeddings."""
    shapes: Shapes = {
        "transformer.cls_token": (1, 1, width),
        **layer("transformer.patch_embed.proj", width, 3, 16, 16),
        **layer("transformer.norm", width),
        "text_embeddings.word_embeddings.weight": (30522, width),
        "text_embeddings.token_type_embeddings.weight": (2, width),
        **layer("text_embeddings.LayerNorm", width),
        "token_type_embeddings.weight": (1 + images, width),
        **layer("pooler.dense", width, width),
    }
    if heads:
        shapes[TABLE] = ((2 * side - 1) ** 2 + 5 + 2 * 196, heads * depth)
    else:
        shapes["transformer.pos_embed"] = (1, 1 + side * side, width)
        shapes["text_embeddings.position_embeddings.weight"] = (40, width)
    for i in range(depth):
        inner = block(width, i >= first, heads > 0)
        shapes |= {f"transformer.blocks.{i}.{name}": shape for name, shape in inner.items()}
    return shapes


def words(width: int) -> Shapes:
    return {
        "mlm_score.bias": (30522,),
        **layer("mlm_score.transform.dense", width, width),
        **layer("mlm_score.transform.LayerNorm", width),
        "mlm_score.decoder.weight": (30522, width),
    }


def contrast(width: int, vl: str = "") -> Shapes:
    sides: Shapes = {f"itc{vl}_{side}_proj.fc.weight": (width, width) for side in ("text", "image")}
    return sides | {f"logit{vl}_scale": ()}


def pretrained(width: int) -> Shapes:
    return words(width) | layer("itm_score.fc", 2, width) | contrast(width) | contrast(width, "_vl")


def classifier(name: str, inputs: int, hidden: int, answers: int) -> Shapes:
    return layer(f"{name}.0", hidden, inputs) | layer(f"{name}.1", hidden) | layer(f"{name}.3", answers, hidden)


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
    told: dict[str, Any] = {"heads": 16} if model == "base plus" else {}
    arguments = SYSTEM.infer(state, told)
    assert recognise(state) == "vlmo" and SYSTEM.task(state) == task
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


TOLD = {"heads": 4, "max_text_len_of_initckpt": 16}


def test_what_a_file_holds_decides_the_step():
    state = golden()
    found = understood("vlmo", state, TOLD)
    assert found.task == "pretraining"
    assert [o.name for o in found.build().objectives] == ["itc", "itm", "mlm"]  # type: ignore[union-attr]
    assert found.build().weights == {"itc": 1.0, "itm": 1.0, "mlm": 0.25}
    own = {n: t for n, t in state.items() if not n.startswith(("mlm_", "itm_", "itc_vl_", "logit_vl_"))}
    retrieval = understood("vlmo", own, TOLD)
    assert (retrieval.task, retrieval.arguments["readouts"]) == ("retrieval", 1)
    bare = {n: t for n, t in own.items() if not n.startswith(("itc_", "logit_"))}
    assert understood("vlmo", bare, TOLD).task == "encoder"
    before = {n: t for n, t in state.items() if "_vl" not in n and not n.startswith(("itm_", "itc_", "logit_"))}
    step: Any = understood("vlmo", before, TOLD).build()
    assert [(o.name, o.alone, o.weight) for o in step.objectives] == [("mlm", True, 1.0)]


def test_old_files_carry_indices_which_are_left_behind():
    index = torch.zeros(17, 17, dtype=torch.long)
    found = understood("vlmo", golden() | {"relative_position_index": index}, TOLD)
    assert {"relative_position_index", "text_embeddings.position_embeddings.weight"} < found.dead.keys()


def test_sizes_that_do_not_go_together_are_named():
    with pytest.raises(WeightsError, match="86 rows, which are of no square image beside texts of 196 tokens"):
        understood("vlmo", golden(), {"heads": 4})
    with pytest.raises(WeightsError, match=r"positions\.table is \(86, 20\), the model has \(86, 10\)"):
        understood("vlmo", golden(), TOLD | {"heads": 2})
    assert understood("vlmo", golden(), {"max_text_len_of_initckpt": 16}).arguments["heads"] == 4


def test_another_grid_resizes_the_table_and_leaves_texts_as_they_are():
    found = understood("vlmo", golden(), TOLD)
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
    found = resized(understood("vlmo", state, {"heads": 16}), (5, 3))
    assert found.state["model.patches.position"].shape == (1, 16, found.arguments["width"])
