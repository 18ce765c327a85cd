"""Initialisation of text and image encoders from a BERT and a ViT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.batch import Image
from diptych.checkpoints.read import WeightsError
from diptych.models.albef.config import ALBEFConfig
from diptych.models.albef.model import ALBEF
from diptych.models.blip.config import BLIPConfig
from diptych.models.blip.model import BLIP
from diptych.models.initialize import (
    initialize_image_encoder,
    initialize_text_encoder,
    initialize_text_encoder_from_file,
)
from diptych.models.vilbert.config import ViLBERTConfig
from diptych.models.vilbert.model import ViLBERT
from diptych.models.vilt.config import ViLTConfig
from diptych.models.vilt.model import ViLT
from diptych.models.visualbert.config import VisualBERTConfig
from diptych.models.visualbert.model import VisualBERT
from diptych.models.vit.config import ViTConfig
from diptych.models.vit.model import ViT
from diptych.models.vlmo.config import VLMoConfig
from diptych.models.vlmo.model import VLMo
from diptych.utils.state_dict import named_weights

SIZE = {"dim": 8, "num_heads": 2, "mlp_dim": 16, "vocab_size": 20, "text_length": 12, "dropout": 0.0}
IMAGE = {"image_dim": 8, "image_depth": 1, "image_num_heads": 2, "image_mlp_dim": 16, "patch_size": 4, "grid": (3, 3)}


def bert(layers: int = 4, old: bool = False) -> dict[str, torch.Tensor]:
    """A tiny BERT under its official names; `old`: the names of the first checkpoints."""
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
def test_albef_has_the_first_layers_in_its_text_encoder_and_the_others_in_its_multimodal_encoder(old: bool):
    model = ALBEF(ALBEFConfig(**SIZE, **IMAGE, text_depth=2, fusion_depth=2, embed_dim=4))  # type: ignore[arg-type]
    cross = model.fusion[0][0].cross.query.weight.clone()  # type: ignore[index]
    initialize_text_encoder(model, bert(old=old))
    state, source = named_weights(model), bert()
    assert torch.equal(state["words.word.weight"], source["embeddings.word_embeddings.weight"])
    assert torch.equal(state["text.1.feedforward.fc1.weight"], source["encoder.layer.1.intermediate.dense.weight"])
    qkv = [source[f"encoder.layer.3.attention.self.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(state["fusion.1.0.attention.qkv.weight"], torch.cat(qkv))
    assert torch.equal(model.fusion[0][0].cross.query.weight, cross)  # type: ignore[index]


def test_blip_has_the_same_layers_in_encoder_and_decoder():
    model = BLIP(BLIPConfig(**SIZE, **IMAGE, depth=2, bos_token_id=18, enc_token_id=19, embed_dim=4))  # type: ignore[arg-type]
    initialize_text_encoder(model, bert())
    state = named_weights(model)
    assert torch.equal(state["encoder.blocks.1.attention.qkv.weight"], state["decoder.blocks.1.attention.qkv.weight"])
    assert torch.equal(state["encoder.words.norm.bias"], bert()["embeddings.LayerNorm.bias"])


def test_vilbert_and_visualbert_are_initialised_from_a_bert():
    both = ViLBERT(ViLBERTConfig(
        **SIZE, depth=2, image_dim=8, image_depth=1, image_num_heads=2, image_mlp_dim=16, coattention_dim=8, coattention_num_heads=2,
        schedule=((1, 0),), feature_dim=6,
    ))  # type: ignore[arg-type]  # fmt: skip
    single = VisualBERT(VisualBERTConfig(**SIZE, depth=2, feature_dim=6))  # type: ignore[arg-type]
    initialize_text_encoder(both, bert())
    initialize_text_encoder(single, bert())
    expected = bert()["encoder.layer.1.output.LayerNorm.weight"]
    assert torch.equal(named_weights(both)["streams.text.1.norm2.weight"], expected)
    assert torch.equal(named_weights(single)["transformer.blocks.1.norm2.weight"], expected)


def test_albefs_image_encoder_is_initialised_from_a_vit_with_a_resized_grid():
    model = ALBEF(ALBEFConfig(**SIZE, **IMAGE, text_depth=1, fusion_depth=1, embed_dim=4))  # type: ignore[arg-type]
    vit = ViT(ViTConfig(8, 1, 2, 16, 4, (2, 2), num_classes=5))
    initialize_image_encoder(model, vit.state_dict())
    assert torch.equal(
        named_weights(model)["image.blocks.0.attention.qkv.weight"], vit.state_dict()["blocks.0.attention.qkv.weight"]
    )
    assert named_weights(model)["image.patches.position"].shape == (1, 10, 8)
    assert torch.equal(named_weights(model)["image.patches.position"][:, 0], vit.patches.position[:, 0])


def test_a_vlmo_initialised_from_a_vit_has_the_same_image_features():
    model = VLMo(
        VLMoConfig(8, 2, 2, 16, 1, 4, (3, 3), 20, 12, relative_position=False, layer_scale=0.0, drop_path=0.0)
    ).eval()
    vit, text = (
        ViT(ViTConfig(8, 2, 2, 16, 4, (3, 3), num_classes=5)).eval(),
        named_weights(model)["transformer.blocks.0.modality_ffn.text.norm.weight"],
    )
    for name, p in vit.named_parameters():
        torch.nn.init.normal_(p, 1.0 if "norm" in name else 0.0, 0.3)
    loaded = initialize_image_encoder(model, vit.state_dict())
    with torch.no_grad():
        model.modality.weight.zero_()
        image = Image.from_full(torch.randn(2, 3, 12, 12))
        features = model.encode_unimodal(model.encode_image(image)).to_padded()
        assert torch.allclose(features, vit.encode_image(image).to_padded(), atol=1e-5)
    assert not [name for name in loaded if ".text." in name or ".vl_ffn." in name]
    assert torch.equal(named_weights(model)["transformer.blocks.0.modality_ffn.text.norm.weight"], text)
    with pytest.raises(WeightsError, match="relative positions cannot be initialised from a ViT"):
        initialize_image_encoder(VLMo(VLMoConfig(8, 2, 2, 16, 1, 4, (3, 3), 20, 12)), vit.state_dict())
    with pytest.raises(WeightsError, match=r"lacks transformer\.blocks\.1"):
        initialize_image_encoder(model, ViT(ViTConfig(8, 1, 2, 16, 4, (3, 3), num_classes=0)).state_dict())


def test_weights_that_do_not_fit_raise():
    model = ALBEF(ALBEFConfig(**SIZE, **IMAGE, text_depth=2, fusion_depth=2, embed_dim=4))  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in named_weights(model).items()}
    with pytest.raises(WeightsError, match=r"lacks encoder\.layer\.3"):
        initialize_text_encoder(model, bert(layers=3))
    with pytest.raises(WeightsError, match="ViLT has no BERT"):
        initialize_text_encoder(ViLT(ViLTConfig(8, 1, 2, 16, 4, (2, 2), 20, 12)), bert())
    with pytest.raises(WeightsError, match="of another shape"):
        initialize_image_encoder(model, ViT(ViTConfig(16, 1, 2, 16, 4, (3, 3), num_classes=0)).state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_weights(model).items())


@pytest.mark.parametrize("old", [False, True])
def test_a_bert_with_prefixed_names_is_loaded(old: bool, tmp_path: Path):
    plain, wrapped = (ALBEF(ALBEFConfig(**SIZE, **IMAGE, text_depth=2, fusion_depth=2, embed_dim=4)) for _ in range(2))  # type: ignore[arg-type]
    wrapped.load_state_dict(plain.state_dict())
    names = initialize_text_encoder(plain, bert(old=old))
    prefixed = {f"module._orig_mod.{name}": tensor for name, tensor in bert(old=old).items()}
    average = {name: tensor + 1 for name, tensor in prefixed.items()}
    torch.save({"state_dict_ema": average, "state_dict": prefixed, "epoch": 1}, tmp_path / "bert.pth")
    again, notes = initialize_text_encoder_from_file(wrapped, tmp_path / "bert.pth")
    assert again == names and 'from "state_dict"' in notes[0] and "state_dict_ema" in notes[1]
    assert all(torch.equal(tensor, wrapped.state_dict()[name]) for name, tensor in plain.state_dict().items())


def test_nonfinite_weights_raise_with_their_names(tmp_path: Path):
    model = ALBEF(ALBEFConfig(**SIZE, **IMAGE, text_depth=2, fusion_depth=2, embed_dim=4))  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = bert()
    weights["encoder.layer.1.output.dense.bias"][2] = float("nan")
    torch.save(weights, tmp_path / "bert.pth")
    with pytest.raises(
        WeightsError, match=r"bert\.pth: NaN or infinite weights: encoder\.layer\.1\.output\.dense\.bias"
    ):
        initialize_text_encoder_from_file(model, tmp_path / "bert.pth")
    weights["pooler.dense.weight"][0] = float("inf")  # it is not loaded
    weights["encoder.layer.1.output.dense.bias"][2] = 0.0
    torch.save(weights, tmp_path / "bert.pth")
    vit = named_weights(ViT(ViTConfig(8, 1, 2, 16, 4, (3, 3), 0)))
    vit["blocks.0.norm1.bias"] = torch.full((8,), float("inf"))
    with pytest.raises(WeightsError, match=r"NaN or infinite weights: image\.blocks\.0\.norm1\.bias"):
        initialize_image_encoder(model, vit)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert initialize_text_encoder_from_file(model, tmp_path / "bert.pth")[1] == []


def test_a_vit_s_representation_layer_and_classifier_are_not_loaded():
    model = ALBEF(ALBEFConfig(**SIZE, **IMAGE, text_depth=2, fusion_depth=2, embed_dim=4))  # type: ignore[arg-type]
    vit = named_weights(ViT(ViTConfig(8, 1, 2, 16, 4, (3, 3), num_classes=5, representation=6)))
    assert not any("representation" in name or "head" in name for name in initialize_image_encoder(model, vit))
    assert torch.equal(model.image.norm.weight, vit["norm.weight"])
