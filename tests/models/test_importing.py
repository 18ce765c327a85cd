"""Import of official ViT and ViLT checkpoints: sizes, names in both directions, and errors that name the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.read import WeightsError
from diptych.checkpoints.strict import load_strict
from diptych.models.importing import OfficialCheckpoint, load_official
from diptych.models.vilt import checkpoint as vilt
from diptych.models.vit import checkpoint as vit
from diptych.modules.position import resize_bicubic, resize_bilinear


def vilt_state(folder: Path) -> dict[str, Tensor]:
    return dict(torch.load(folder / "checkpoint.pth", weights_only=True)["state_dict"])


def load(state: dict[str, Tensor], folder: Path, system: str = "vilt", **options: Any) -> OfficialCheckpoint:
    torch.save({"state_dict": state}, folder / "x.ckpt")
    arguments: dict[str, Any] = {"num_heads": 4} | options
    return load_official(system, folder / "x.ckpt", **arguments)


def error_of(state: dict[str, Tensor], folder: Path, system: str = "vilt", **options: Any) -> str:
    with pytest.raises(WeightsError) as error:
        load(state, folder, system, **options)
    message = str(error.value)
    assert message.startswith(str(folder / "x.ckpt")) and "\n" not in message
    return message


def test_an_official_vilt_is_imported(vilt_folder: Path):
    imported = load_official("vilt", vilt_folder / "checkpoint.pth", num_heads=4)
    assert imported.task == "pretraining"
    assert imported.heads == ["heads.itm", "heads.mlm"]
    assert imported.arguments == {
        "dim": 40, "depth": 4, "num_heads": 4, "mlp_dim": 160, "patch_size": 8, "grid": (4, 4), "vocab_size": 220,
        "text_length": 12, "num_images": 1,
    }  # fmt: skip
    assert list(imported.ignored) == ["text_embeddings.position_ids"]
    assert set(imported.build().state_dict()) == set(imported.state)


def test_the_task_follows_from_the_heads(vilt_folder: Path, tmp_path: Path):
    state = vilt_state(vilt_folder)
    matching = {name: tensor for name, tensor in state.items() if not name.startswith("mlm_score.")}
    imported = load(matching, tmp_path)
    assert (imported.task, imported.heads) == ("pretraining", ["heads.itm"])
    assert {o.name for o in imported.build().objectives} == {"itm", "wpa"}  # type: ignore[union-attr]
    encoder = {name: tensor for name, tensor in matching.items() if not name.startswith("itm_score.")}
    assert load(encoder, tmp_path).task == "encoder"
    ranked = matching | {"rank_output.weight": torch.ones(1, 40), "rank_output.bias": torch.ones(1)}
    imported = load(ranked, tmp_path)
    assert (imported.task, imported.heads) == ("retrieval", ["rank"])
    assert {"itm_score.fc.weight", "itm_score.fc.bias"} < imported.ignored.keys()


@pytest.mark.parametrize("system", ["vit", "vilt"])
def test_names_are_translated_both_ways(system: str, vit_folder: Path, vilt_folder: Path):
    folder = vit_folder if system == "vit" else vilt_folder
    official = torch.load(folder / "checkpoint.pth", weights_only=True)
    official = official.get("state_dict", official)
    imported = load_official(system, folder / "checkpoint.pth", num_heads=4)
    back = imported.names.to_official(imported.state)
    assert back.keys() == official.keys() - imported.ignored.keys()
    assert all(torch.equal(back[name], official[name]) for name in back)
    with pytest.raises(WeightsError, match=r"without an official name: model\.invented"):
        imported.names.to_official({"model.invented": torch.ones(1)})


@pytest.mark.slow
def test_weights_that_do_not_fit_are_named(vilt_folder: Path, tmp_path: Path):
    state = vilt_state(vilt_folder)
    assert "unexpected weights: invented.weight" in error_of(state | {"invented.weight": torch.ones(1)}, tmp_path)
    short = {name: tensor for name, tensor in state.items() if name != "transformer.blocks.2.attn.proj.bias"}
    assert "missing: model.transformer.blocks.2.attention.out.bias" in error_of(short, tmp_path)
    odd = state | {"pooler.dense.weight": torch.ones(40, 41)}
    assert "pooler.dense.weight is (40, 41), the model has (40, 40)" in error_of(odd, tmp_path)
    flat = state | {"transformer.cls_token": torch.ones(40)}
    assert "transformer.cls_token is (40,)" in error_of(flat, tmp_path)
    integers = state | {"pooler.dense.bias": torch.ones(40, dtype=torch.long)}
    assert "model.transformer.pooler.dense.bias is (40,) of integers" in error_of(integers, tmp_path)
    gap = {name.replace("blocks.3.", "blocks.7."): tensor for name, tensor in state.items()}
    assert "blocks.3." in error_of(gap, tmp_path)


def test_another_model_s_checkpoint_raises(vit_folder: Path, vilt_folder: Path):
    with pytest.raises(WeightsError, match=r"missing weights: transformer\.cls_token; is this another model's"):
        load_official("vilt", vit_folder / "checkpoint.pth", num_heads=4)
    with pytest.raises(WeightsError, match=r"missing weights: cls_token; is this another model's"):
        load_official("vit", vilt_folder / "checkpoint.pth", num_heads=4)
    with pytest.raises(WeightsError, match="no system 'flamingo' to import; there are vit, "):
        load_official("flamingo", vit_folder / "checkpoint.pth")


def test_the_number_of_heads_is_required_if_it_cannot_be_inferred(vilt_folder: Path, tmp_path: Path):
    assert "give --num_heads" in error_of(vilt_state(vilt_folder), tmp_path, num_heads=None)
    assert "does not divide into 7 heads" in error_of(vilt_state(vilt_folder), tmp_path, num_heads=7)


@pytest.mark.parametrize(("system", "resize"), [("vit", resize_bicubic), ("vilt", resize_bilinear)])
def test_a_square_position_grid_is_resized_by_the_system_s_own_rule(system, resize, vit_folder, vilt_folder):
    path = (vit_folder if system == "vit" else vilt_folder) / "checkpoint.pth"
    before = load_official(system, path, num_heads=4)
    after = load_official(system, path, num_heads=4, grid=(6, 3))
    name = "model.patches.position"
    expected = resize(before.state[name][0, 1:].view(4, 4, -1), 6, 3)
    assert after.arguments["grid"] == (6, 3)
    assert torch.equal(after.state[name][0, 1:].view(6, 3, -1), expected)
    assert torch.equal(after.state[name][:, 0], before.state[name][:, 0])
    assert after.build() is not None


def test_positions_of_a_grid_that_is_not_square_need_the_grid(vilt_folder: Path, tmp_path: Path):
    state = vilt_state(vilt_folder)
    state["transformer.pos_embed"] = torch.randn(1, 1 + 15, 40)
    assert "has 15 cells, but that is not a square number; give --grid ROWSxCOLUMNS of 15 cells" in error_of(
        state, tmp_path
    )
    imported = load(state, tmp_path, grid=(5, 3))
    assert imported.arguments["grid"] == (5, 3)
    assert torch.equal(imported.state["model.patches.position"], state["transformer.pos_embed"])
    assert "has 15 cells, but 4 x 4 is 16" in error_of(state, tmp_path, grid=(4, 4))


def test_half_precision_is_imported_as_float32(vilt_folder: Path, tmp_path: Path):
    state = {name: tensor.half() for name, tensor in vilt_state(vilt_folder).items() if tensor.is_floating_point()}
    assert {tensor.dtype for tensor in load(state, tmp_path).state.values()} == {torch.float32}


def test_nothing_is_loaded_if_one_weight_does_not_fit(vilt_folder: Path):
    imported = load_official("vilt", vilt_folder / "checkpoint.pth", num_heads=4)
    step = imported.build()
    before = {name: tensor.clone() for name, tensor in step.state_dict().items()}
    wrong = {name: tensor + 1 for name, tensor in before.items()} | {"rank.linear.bias": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"the file does not fit: unexpected: rank\.linear\.bias"):
        load_strict(step, wrong, "the file")
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.state_dict().items())


def block(dim: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """The shapes of a pre-norm block under timm's names."""
    weights = {"norm1": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "norm2": (dim,)}
    weights |= {"mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    return {f"{prefix}{n}.{k}": s if k == "weight" else s[:1] for n, s in weights.items() for k in ("weight", "bias")}


def encoder(cells: int, patch_size: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
    blocks = [block(768, f"{prefix}blocks.{i}.") for i in range(12)]
    outside = {
        "cls_token": (1, 1, 768),
        "pos_embed": (1, 1 + cells, 768),
        "patch_embed.proj.weight": (768, 3, patch_size, patch_size),
        "patch_embed.proj.bias": (768,),
        "norm.weight": (768,),
        "norm.bias": (768,),
    }
    return {f"{prefix}{name}": s for name, s in outside.items()} | {n: s for b in blocks for n, s in b.items()}


VILT_B32 = encoder(144, 32, "transformer.") | {
    "text_embeddings.word_embeddings.weight": (30522, 768), "text_embeddings.position_embeddings.weight": (40, 768),
    "text_embeddings.token_type_embeddings.weight": (2, 768), "text_embeddings.LayerNorm.weight": (768,),
    "text_embeddings.LayerNorm.bias": (768,), "token_type_embeddings.weight": (2, 768),
    "pooler.dense.weight": (768, 768), "pooler.dense.bias": (768,),
}  # fmt: skip
ITM = {"itm_score.fc.weight": (2, 768), "itm_score.fc.bias": (2,)}
MLM = {
    "mlm_score.bias": (30522,),
    "mlm_score.transform.dense.weight": (768, 768),
    "mlm_score.transform.dense.bias": (768,),
    "mlm_score.transform.LayerNorm.weight": (768,),
    "mlm_score.transform.LayerNorm.bias": (768,),
    "mlm_score.decoder.weight": (30522, 768),
}


def classifier(name: str, inputs: int, num_answers: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.0.weight": (1536, inputs), f"{name}.0.bias": (1536,), f"{name}.1.weight": (1536,),
        f"{name}.1.bias": (1536,), f"{name}.3.weight": (num_answers, 1536), f"{name}.3.bias": (num_answers,),
    }  # fmt: skip


PUBLISHED = {
    "vit": (vit, encoder(196, 16) | {"head.weight": (1000, 768), "head.bias": (1000,)}, {}, 86_567_656),
    "vilt pretraining": (vilt, VILT_B32 | MLM | ITM, {}, 135_660_092),
    "vilt vqa": (vilt, VILT_B32 | classifier("vqa_classifier", 768, 3129), {}, 117_588_537),
    "vilt nlvr2": (
        vilt, VILT_B32 | {"token_type_embeddings.weight": (3, 768)} | classifier("nlvr2_classifier", 1536, 2), {},
        113_962_754,
    ),
    # The official model keeps the frozen and unused itm_score: its 1,538 parameters are in the published count.
    "vilt retrieval": (vilt, VILT_B32 | {"rank_output.weight": (1, 768), "rank_output.bias": (1,)}, ITM, 111_597_315),
}  # fmt: skip


@pytest.mark.parametrize("system", PUBLISHED)
def test_full_size_names_shapes_and_counts_are_the_published_ones(system: str):
    module, official, frozen, published = PUBLISHED[system]
    state = {name: torch.empty(s, device="meta") for name, s in (official | frozen).items()}
    arguments, task = module.infer(state, {}), module.task(state)
    names = module.names(arguments, task)
    ours = names.from_official(state)
    with torch.device("meta"):
        step = module.build(arguments, task, ours)
    load = {name: tuple(tensor.shape) for name, tensor in names.to_official(step.state_dict()).items()}
    assert load == official
    unused = sum(state[name].numel() for name in frozen)
    assert sum(parameter.numel() for parameter in step.parameters()) + unused == published
