"""Initial weights must come from a model with the same number of attention heads and the same activation."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from diptych.checkpoints.read import WeightsError
from diptych.cli import main
from diptych.config.validation import shown
from diptych.inference.saved_model import RunError
from diptych.models.configs import (
    ALBEFConfig,
    BEiT3Config,
    BLIPConfig,
    CLIPConfig,
    CLIPResNetConfig,
    CoCaConfig,
    CrossViTConfig,
    MAEConfig,
    Model,
    SCANConfig,
    ViLBERTConfig,
    ViLTConfig,
    VisualBERTConfig,
    VisualTokenizerConfig,
    ViTConfig,
    VLMoConfig,
    VSEppConfig,
    model_name,
)
from diptych.runs.check_init import check_image_start, check_same_model, check_text_start
from diptych.utils.state_dict import without_weights
from tests.runs.tiny_runs import TRAINING, pretrain

IMAGE = {"image_dim": 16, "image_depth": 1, "image_num_heads": 4, "image_mlp_dim": 8}
TEXT: dict[str, Any] = {"dim": 16, "num_heads": 4, "mlp_dim": 8, "vocab_size": 30, "patch_size": 4, "grid": (2, 2)}
VIT = ViTConfig(dim=16, depth=1, num_heads=4, mlp_dim=8, patch_size=4, grid=(2, 2), activation="gelu")


@pytest.mark.parametrize(
    "model",
    [
        ALBEFConfig(**IMAGE, **TEXT, text_depth=1, fusion_depth=1),
        BLIPConfig(**IMAGE, **TEXT, depth=1, bos_token_id=1, enc_token_id=2),
        VLMoConfig(**TEXT, depth=1, vl_start_layer=1, relative_position=False),
        ViLTConfig(**TEXT, depth=1),
    ],
    ids=model_name,
)
def test_a_vit_s_heads_activation_and_eps_must_be_the_encoder_s(model: Any):
    built = model.build()
    check_image_start(VIT, built, "vit")
    check_image_start(CLIPConfig(num_heads=8), built, "vit")  # not a ViT: refused elsewhere
    with pytest.raises(RunError, match="vit has 2 attention heads, but the model that it initialises has 4"):
        check_image_start(replace(VIT, num_heads=2), built, "vit")
    for name in ("relu", "gelu_tanh", "quick_gelu", "silu"):
        with pytest.raises(RunError, match=f"vit has the activation {name}, but .* GELU"):
            check_image_start(replace(VIT, activation=name), built, "vit")
    with pytest.raises(RunError, match=r"vit has the LayerNorm eps 1e-12, but .* 1e-06"):
        check_image_start(replace(VIT, eps=1e-12), built, "vit")


HIDDEN: dict[type, dict[str, Any]] = {
    ViTConfig: {"num_heads": 2, "activation": "relu", "eps": 0.1, "pooling": "average"},
    MAEConfig: {"num_heads": 2, "decoder_num_heads": 1},
    ViLTConfig: {"num_heads": 2, "activation": "silu", "eps": 0.1, "text_eps": 0.1},
    VLMoConfig: {"num_heads": 2},
    ALBEFConfig: {"num_heads": 2, "image_num_heads": 2},
    BLIPConfig: {"num_heads": 2, "image_num_heads": 2, "image_activation": "relu", "image_eps": 0.1,
                 "activation": "relu", "eps": 0.1, "bos_token_id": 7, "enc_token_id": 7},
    CLIPConfig: {"num_heads": 2, "text_num_heads": 1, "activation": "gelu", "text_activation": "relu", "eps": 0.1,
                 "text_eps": 0.1},
    CLIPResNetConfig: {"num_heads": 16, "text_num_heads": 4, "activation": "gelu"},
    CoCaConfig: {"num_heads": 2, "text_num_heads": 1, "decoder_num_heads": 1, "pool_num_heads": 2,
                 "activation": "relu", "pad_token_id": 7},
    BEiT3Config: {"num_heads": 2, "mask_token_id": 7},
    ViLBERTConfig: {"num_heads": 2, "image_num_heads": 2, "coattention_num_heads": 2, "schedule": ((5, 0), (7, 1),
                    (8, 2), (9, 3), (10, 4), (11, 5))},
    VisualBERTConfig: {"num_heads": 2},
    SCANConfig: {"direction": "image", "norm": "l2", "aggregate": "mean", "lambda_softmax": 4.0, "lambda_lse": 5.0},
    VSEppConfig: {"measure": "order"},
    CrossViTConfig: {"num_heads": (2, 2)},
    VisualTokenizerConfig: {"num_heads": 2},
}  # fmt: skip
"""By kind of model: another value of every setting that changes outputs though no weight's shape shows it."""


def test_every_kind_of_model_is_listed():
    assert set(HIDDEN) == set(get_args(Model))


@pytest.mark.parametrize("kind", HIDDEN, ids=lambda kind: kind.__name__)
@pytest.mark.slow
def test_a_run_of_the_same_system_must_agree_in_every_setting_that_shapes_do_not_show(kind: type):
    own = replace(kind(), relative_position=False) if kind is VLMoConfig else kind()
    names = {field.name for field in fields(kind)}
    check_same_model(own, own, "before")
    for name, value in HIDDEN[kind].items():
        with pytest.raises(RunError, match=rf"before holds weights of a .* with {name} .*set --model\.{name} "):
            check_same_model(replace(own, **{name: value}), own, "before")
    for name in names & {"dropout", "drop_path", "decay"}:
        check_same_model(replace(own, **{name: 0.25}), own, "before")
    if "grid" in names:
        check_same_model(replace(own, grid=(3, 5)), own, "before")
    check_same_model(SCANConfig(direction="image") if kind is not SCANConfig else VSEppConfig(), own, "before")


def head_settings(kind: type) -> list[str]:
    return [field.name for field in fields(kind) if field.name.endswith("num_heads")]


@pytest.mark.parametrize("kind", [kind for kind in HIDDEN if head_settings(kind)], ids=lambda kind: kind.__name__)
@pytest.mark.slow
def test_heads_are_regrouped_in_fine_tuning_and_each_change_is_named(kind: type):
    trained = replace(kind(), relative_position=False) if kind is VLMoConfig else kind()
    assert set(head_settings(kind)) <= HIDDEN[kind].keys(), "every head count is one that shapes do not show"
    assert check_same_model(trained, trained, "before", regroup=True) == []
    for name in head_settings(kind):
        own = replace(trained, **{name: HIDDEN[kind][name]})
        notes = check_same_model(trained, own, "before", regroup=True)
        before, after = (shown(getattr(config, name)) for config in (trained, own))
        assert notes == [f"heads regrouped: {name} {before} -> {after}"]
        assert head_counts(own) != head_counts(trained)
    for name, value in HIDDEN[kind].items():
        if name not in head_settings(kind):
            with pytest.raises(RunError, match=f"with {name} "):
                check_same_model(trained, replace(trained, **{name: value}), "before", regroup=True)


def head_counts(config: Any) -> list[int]:
    """The number of attention heads of every attention layer of a config's model."""
    with without_weights():
        return [module.num_heads for module in config.build().modules() if hasattr(module, "num_heads")]


@pytest.mark.slow
def test_other_settings_than_those_of_the_initial_weights_are_refused_at_the_command_line(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    assert main([*pretrain(tmp_path / "out", "--init_from", str(pretrained)), "--model.num_heads", "4"]) == 2
    assert "with num_heads " in capsys.readouterr().err
    for name, value in (("activation", "relu"), ("eps", "0.1"), ("text_eps", "0.1")):
        for command in (
            pretrain(tmp_path / "out", "--init_from", str(pretrained)),
            ["finetune", "vqa", "--init_from", str(pretrained), *TRAINING, "--out", str(tmp_path / "out")],
        ):
            capsys.readouterr()
            assert main([*command, f"--model.{name}", value]) == 2
            assert f"with {name} " in capsys.readouterr().err


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
        ({"layer_norm_eps": 1e-6}, "has the LayerNorm eps 1e-06"),
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
