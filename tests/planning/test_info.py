"""`diptych info`: the parts add up to the published parameters, and methods have the FLOPs of the formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from diptych.models.configs import PUBLISHED
from diptych.models.vilt import recipes as vilt
from diptych.planning.info import info, parameters


@pytest.mark.quick("vit-*", "vilt-*")
@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("vit", "ViT-B/16 with 1,000 classes"),
        ("crossvit", "CrossViT-9"),
        ("vilt", "pre-training (masked words, matching)"),
        ("clip", "ViT-B/32"),
        ("coca", "open_clip coca_ViT-B-32"),
    ],
)
def test_parts_and_heads_have_the_published_parameters(name: str, job: str):
    parts, heads = parameters(PUBLISHED[name])
    assert sum(parts.values()) + sum(heads.values()) == PUBLISHED[name].parameters[job]


def test_shared_parameters_count_once():
    """BLIP's decoder shares all but its self-attention; ALBEF's MLM head is tied to the word embeddings."""
    (blip, _), (_, albef) = parameters(PUBLISHED["blip"]), parameters(PUBLISHED["albef"])
    attention = 4 * (768 * 768 + 768) + 2 * 768
    assert blip["decoder"] == 12 * attention + 768 * 768 + 768 + 2 * 768 + 30524
    assert albef["mlm"] == 768 * 768 + 768 + 2 * 768 + 30522


def test_a_part_that_the_model_was_built_without_is_left_out():
    parts, _ = parameters(PUBLISHED["albef"])
    assert "fusion" in parts and "decoder" not in parts and all(parts.values())


@pytest.mark.quick("mae-*")
@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("vit", ["encode_image", "classify"]),
        ("mae", ["encode_image", "reconstruct"]),
        ("blip", ["encode_image", "encode_text", "pooled_features, text", "fuse", "next_token_logits"]),
        ("albef", ["encode_image", "encode_text", "fuse"]),
        ("vilbert", ["encode_image", "encode_text", "fuse"]),
    ],
)
@pytest.mark.slow
def test_every_method_of_the_model_is_listed(name: str, methods: list[str]):
    sides = ("", "image_") if name in ("blip", "albef", "vilbert") else ("",)
    small = {f"{side}{size}": 64 for side in sides for size in ("dim", "mlp_dim")}
    listed = info(replace(PUBLISHED[name], config_overrides=small | {f"{side}num_heads": 2 for side in sides})).methods
    assert [method.name for method in listed] == methods
    assert listed[-1].flops > 1e6


@pytest.mark.slow
def test_only_a_method_that_the_model_was_built_without_is_left_out(monkeypatch: pytest.MonkeyPatch):
    small = replace(PUBLISHED["vit"], config_overrides={"dim": 64, "num_heads": 2, "mlp_dim": 64, "num_classes": 0})
    assert [method.name for method in info(small).methods] == ["encode_image"]

    def broken(*_: object) -> None:
        raise ValueError("of another reason")

    monkeypatch.setattr("diptych.models.vit.model.ViT.classify", broken)
    with pytest.raises(ValueError, match="of another reason"):
        info(small)


def test_flops_equal_the_formula():
    """A ViLT of one block: patches, qkv, scores, context, out, feed-forward, pooler."""
    run = vilt.tiny()
    run = replace(run, model=replace(run.model, depth=1))
    methods = {method.name: method for method in info(run).methods}
    model: Any = run.model
    d, n, patch, hidden = model.dim, 36 + 15, model.patch_size, model.mlp_dim
    assert methods["encode_image"].flops == 2 * 35 * 3 * patch * patch * d
    assert (methods["encode_image"].tokens, methods["encode_text"].tokens, methods["fuse"].tokens) == (36, 15, n)
    block = 2 * n * d * 3 * d + 2 * 2 * n * n * d + 2 * n * d * d + 2 * 2 * n * d * hidden
    assert methods["fuse"].flops == block + 2 * d * d
