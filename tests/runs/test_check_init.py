"""Initial weights must come from a model with the same number of attention heads and the same activation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diptych.checkpoints.read import WeightsError
from diptych.models.configs import ALBEFConfig, CLIPConfig, ViLBERTConfig, ViTConfig
from diptych.models.vit.model import ViT
from diptych.runs.check_init import check_image_start, check_text_start
from diptych.runs.check_inputs import RunError


def test_a_vit_s_heads_and_activation_must_be_the_encoder_s():
    block = ViT(
        ViTConfig(dim=16, depth=1, num_heads=4, mlp_dim=8, patch_size=4, grid=(2, 2), activation="relu")
    ).blocks[0]
    check_image_start(ViTConfig(num_heads=4, activation="relu"), block, "vit")
    check_image_start(CLIPConfig(num_heads=8), block, "vit")  # not a ViT: another check raises
    with pytest.raises(RunError, match="vit has 2 attention heads, but the model that it initialises has 4"):
        check_image_start(ViTConfig(num_heads=2, activation="relu"), block, "vit")
    for name in ("gelu", "gelu_tanh", "quick_gelu", "silu"):
        with pytest.raises(RunError, match=f"vit has the activation {name}, but .* ReLU"):
            check_image_start(ViTConfig(num_heads=4, activation=name), block, "vit")


@pytest.mark.parametrize("kind", [ALBEFConfig, ViLBERTConfig])
def test_a_bert_s_heads_and_activation_must_be_the_encoder_s(kind: type, tmp_path: Path):
    image = {"image_dim": 16, "image_num_heads": 2, "image_mlp_dim": 8}
    sizes = {
        ALBEFConfig: {"text_depth": 1, "fusion_depth": 1, "image_depth": 1},
        ViLBERTConfig: {"coattention_dim": 16, "coattention_num_heads": 2},
    }[kind] | image
    model = kind(**sizes, dim=24, mlp_dim=8, num_heads=2).build()
    file, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    check_text_start(weights, model)  # no config: nothing to compare
    config = {
        "model_type": "bert",
        "num_attention_heads": 2,
        "architectures": ["BertForMaskedLM"],
        "layer_norm_eps": 1e-12,
    }
    file.write_text(json.dumps(config))
    check_text_start(weights, model)
    for change, message in (
        ({"num_attention_heads": 4}, "has 4 attention heads, but the model that it initialises has 2"),
        ({"hidden_act": "relu"}, "has the activation relu"),
    ):
        file.write_text(json.dumps(config | change))
        with pytest.raises(RunError, match=message):
            check_text_start(weights, model)
    oldest = {"num_attention_heads": 4, "hidden_act": "gelu", "type_vocab_size": 2, "vocab_size": 30522}
    file.write_text(json.dumps(oldest))  # states no model_type
    with pytest.raises(RunError, match="has 4 attention heads"):
        check_text_start(weights, model)
    file.write_text(json.dumps({"model_type": "clip", "num_attention_heads": 4}))
    check_text_start(weights, model)  # the config of another model in the same folder
    file.write_text(json.dumps(config | {"position_embedding_type": "relative_key"}))
    with pytest.raises(WeightsError, match="position_embedding_type is 'relative_key'; expected 'absolute'"):
        check_text_start(weights, model)
