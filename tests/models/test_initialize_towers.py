"""Towers that begin with a BERT's layers and a ViT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.batch import Image
from diptych.checkpoints.read import WeightsError
from diptych.models.albef.model import ALBEF
from diptych.models.blip.model import BLIP
from diptych.models.initialize import start_image, start_text, start_text_from
from diptych.models.vilbert.model import ViLBERT
from diptych.models.vilt.model import ViLT
from diptych.models.visualbert.model import VisualBERT
from diptych.models.vit.model import ViT
from diptych.models.vlmo.model import VLMo
from diptych.utils.state_dict import named_weights

SIZE = {"dim": 8, "num_heads": 2, "mlp_dim": 16, "vocab_size": 20, "text_length": 12, "dropout": 0.0}
IMAGE = {"image_dim": 8, "image_depth": 1, "image_num_heads": 2, "image_mlp_dim": 16, "patch_size": 4, "grid": (3, 3)}


def bert(layers: int = 4, old: bool = False) -> dict[str, torch.Tensor]:
    """A tiny BERT under its own names; `old`: as the first checkpoints were written."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "embeddings.word_embeddings.weight": (20, 8),
        "embeddings.position_embeddings.weight": (12, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "embeddings.LayerNorm.weight": (8,),
        "embeddings.LayerNorm.bias": (8,),
        "pooler.dense.weight": (8, 8),
    }
    for i in range(layers):
        for name, rows, columns in (
            ("attention.self.query", 8, 8), ("attention.self.key", 8, 8), ("attention.self.value", 8, 8),
            ("attention.output.dense", 8, 8), ("intermediate.dense", 16, 8), ("output.dense", 8, 16),
        ):  # fmt: skip
            shapes |= {f"encoder.layer.{i}.{name}.weight": (rows, columns), f"encoder.layer.{i}.{name}.bias": (rows,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{name}.{kind}": (8,) for kind in ("weight", "bias")}
    state = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    if old:
        state = {
            f"bert.{n}".replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
            for n, t in state.items()
        }
    return state


@pytest.mark.parametrize("old", [False, True])
def test_albef_reads_with_the_first_layers_and_fuses_with_the_others(old: bool):
    model = ALBEF(**SIZE, **IMAGE, text_depth=2, fusion_depth=2, embed_dim=4)  # type: ignore[arg-type]
    cross = model.fusion[0][0].cross.query.weight.clone()  # type: ignore[index]
    start_text(model, bert(old=old))
    state, given = named_weights(model), bert()
    assert torch.equal(state["words.word.weight"], given["embeddings.word_embeddings.weight"])
    assert torch.equal(state["text.1.feedforward.grow.weight"], given["encoder.layer.1.intermediate.dense.weight"])
    qkv = [given[f"encoder.layer.3.attention.self.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(state["fusion.1.0.attention.qkv.weight"], torch.cat(qkv))
    assert torch.equal(model.fusion[0][0].cross.query.weight, cross)  # type: ignore[index]


def test_blip_encodes_and_decodes_with_the_same_layers():
    model = BLIP(**SIZE, **IMAGE, depth=2, bos_token_id=18, enc_token_id=19, embed_dim=4)  # type: ignore[arg-type]
    start_text(model, bert())
    state = named_weights(model)
    assert torch.equal(state["encoder.blocks.1.attention.qkv.weight"], state["decoder.blocks.1.attention.qkv.weight"])
    assert torch.equal(state["encoder.words.norm.bias"], bert()["embeddings.LayerNorm.bias"])


def test_models_of_regions_begin_with_a_bert():
    both = ViLBERT(
        **SIZE, depth=2, image_dim=8, image_depth=1, image_num_heads=2, image_mlp_dim=16, coattention_dim=8, coattention_num_heads=2,
        schedule=((1, 0),), feature_dim=6,
    )  # type: ignore[arg-type]  # fmt: skip
    single = VisualBERT(**SIZE, depth=2, feature_dim=6)  # type: ignore[arg-type]
    start_text(both, bert())
    start_text(single, bert())
    wanted = bert()["encoder.layer.1.output.LayerNorm.weight"]
    assert torch.equal(named_weights(both)["streams.text.1.norm2.weight"], wanted)
    assert torch.equal(named_weights(single)["transformer.blocks.1.norm2.weight"], wanted)


def test_albefs_images_begin_with_a_vit_whose_grid_is_resized():
    model = ALBEF(**SIZE, **IMAGE, text_depth=1, fusion_depth=1, embed_dim=4)  # type: ignore[arg-type]
    vit = ViT(8, 1, 2, 16, 4, (2, 2), num_classes=5)
    start_image(model, vit.state_dict())
    assert torch.equal(
        named_weights(model)["image.blocks.0.attention.qkv.weight"], vit.state_dict()["blocks.0.attention.qkv.weight"]
    )
    assert named_weights(model)["image.patches.position"].shape == (1, 10, 8)
    assert torch.equal(named_weights(model)["image.patches.position"][:, 0], vit.patches.position[:, 0])


def test_a_vlmo_that_begins_with_a_vit_sees_what_that_sees():
    model = VLMo(8, 2, 2, 16, 1, 4, (3, 3), 20, 12, relative=False, scale=0.0, drop_path=0.0).eval()
    vit, text = (
        ViT(8, 2, 2, 16, 4, (3, 3), num_classes=5).eval(),
        named_weights(model)["transformer.blocks.0.apart.text.norm.weight"],
    )
    for name, p in vit.named_parameters():
        torch.nn.init.normal_(p, 1.0 if "norm" in name else 0.0, 0.3)
    loaded = start_image(model, vit.state_dict())
    with torch.no_grad():
        model.modality.weight.zero_()
        image = Image.from_full(torch.randn(2, 3, 12, 12))
        seen = model.encode_unimodal(model.encode_image(image)).to_padded()
        assert torch.allclose(seen, vit.encode_image(image).to_padded(), atol=1e-5)
    assert not [name for name in loaded if ".text." in name or ".together." in name]
    assert torch.equal(named_weights(model)["transformer.blocks.0.apart.text.norm.weight"], text)
    with pytest.raises(WeightsError, match="relative positions cannot start from a ViT"):
        start_image(VLMo(8, 2, 2, 16, 1, 4, (3, 3), 20, 12), vit.state_dict())
    with pytest.raises(WeightsError, match=r"lacks transformer\.blocks\.1"):
        start_image(model, ViT(8, 1, 2, 16, 4, (3, 3), num_classes=0).state_dict())


def test_what_does_not_fit_is_refused():
    model = ALBEF(**SIZE, **IMAGE, text_depth=2, fusion_depth=2, embed_dim=4)  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in named_weights(model).items()}
    with pytest.raises(WeightsError, match=r"lacks encoder\.layer\.3"):
        start_text(model, bert(layers=3))
    with pytest.raises(WeightsError, match="a ViLT has no BERT"):
        start_text(ViLT(8, 1, 2, 16, 4, (2, 2), 20, 12), bert())
    with pytest.raises(WeightsError, match="of another shape"):
        start_image(model, ViT(16, 1, 2, 16, 4, (3, 3), num_classes=0).state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_weights(model).items())


@pytest.mark.parametrize("old", [False, True])
def test_a_wrapped_bert_is_started_from(old: bool, tmp_path: Path):
    plain, wrapped = (ALBEF(**SIZE, **IMAGE, text_depth=2, fusion_depth=2, embed_dim=4) for _ in range(2))  # type: ignore[arg-type]
    wrapped.load_state_dict(plain.state_dict())
    names = start_text(plain, bert(old=old))
    held = {f"module._orig_mod.{name}": tensor for name, tensor in bert(old=old).items()}
    average = {name: tensor + 1 for name, tensor in held.items()}
    torch.save({"state_dict_ema": average, "state_dict": held, "epoch": 1}, tmp_path / "bert.pth")
    again, notes = start_text_from(wrapped, tmp_path / "bert.pth")
    assert again == names and 'from "state_dict"' in notes[0] and "state_dict_ema" in notes[1]
    assert all(torch.equal(tensor, wrapped.state_dict()[name]) for name, tensor in plain.state_dict().items())


def test_towers_that_are_no_numbers_are_refused_by_name(tmp_path: Path):
    model = ALBEF(**SIZE, **IMAGE, text_depth=2, fusion_depth=2, embed_dim=4)  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spoiled = bert()
    spoiled["encoder.layer.1.output.dense.bias"][2] = float("nan")
    torch.save(spoiled, tmp_path / "bert.pth")
    with pytest.raises(
        WeightsError, match=r"bert\.pth: NaN or infinite weights: encoder\.layer\.1\.output\.dense\.bias"
    ):
        start_text_from(model, tmp_path / "bert.pth")
    spoiled["pooler.dense.weight"][0] = float("inf")  # nothing reads it
    spoiled["encoder.layer.1.output.dense.bias"][2] = 0.0
    torch.save(spoiled, tmp_path / "bert.pth")
    vit = named_weights(ViT(8, 1, 2, 16, 4, (3, 3), 0))
    vit["blocks.0.norm1.bias"] = torch.full((8,), float("inf"))
    with pytest.raises(WeightsError, match=r"NaN or infinite weights: image\.blocks\.0\.norm1\.bias"):
        start_image(model, vit)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert start_text_from(model, tmp_path / "bert.pth")[1] == []


def test_a_vit_s_representation_layer_stays_behind_with_its_classifier():
    model = ALBEF(**SIZE, **IMAGE, text_depth=2, fusion_depth=2, embed_dim=4)  # type: ignore[arg-type]
    vit = named_weights(ViT(8, 1, 2, 16, 4, (3, 3), num_classes=5, representation=6))
    assert not any("representation" in name or "head" in name for name in start_image(model, vit))
    assert torch.equal(model.image.norm.weight, vit["norm.weight"])
