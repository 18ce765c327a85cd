"""CLIP's weights in Hugging Face's layout, compared with transformers' outputs, and in open_clip's "custom_text"."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.batch import Image, Text
from diptych.checkpoints.read import WeightsError
from diptych.models.huggingface.clip_layouts import to_openai_names
from diptych.models.importing import load_official
from diptych.modules.heads import ITCHead
from tests.parity.goldens import GOLDEN_CASES

GOLDEN = GOLDEN_CASES / "open_clip"


@pytest.mark.parametrize(("system", "activation"), [("clip", "quick_gelu"), ("open_clip", "gelu")])
@pytest.mark.slow
def test_hugging_face_s_features_are_ours(system: str, activation: str, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    both = {"hidden_act": activation, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={**both, "hidden_size": 24, "intermediate_size": 96, "vocab_size": 30, "max_position_embeddings": 9,
                     "bos_token_id": 28, "eos_token_id": 29, "pad_token_id": 0},
        vision_config={**both, "hidden_size": 32, "intermediate_size": 128, "image_size": 16, "patch_size": 4},
        projection_dim=12,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(theirs.state_dict(), tmp_path / "x.bin")
    step = load_official(system, tmp_path / "x.bin", num_heads=4).build().eval()
    model, contrast = step.get_submodule("model"), step.get_submodule("heads.itc")
    assert isinstance(contrast, ITCHead)
    ids = torch.tensor([[28, 3, 9, 29, 0, 0, 0, 0, 0], [28, 5, 4, 8, 1, 2, 7, 6, 29]])
    text, image = Text(ids, torch.arange(9) < torch.tensor([[4], [9]])), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=image)
        features = contrast.project_image(model.pooled_features(model.encode_image(Image.from_full(image)))[0])  # type: ignore[operator]
        torch.testing.assert_close(features, expected.image_embeds, rtol=1e-4, atol=1e-5)
        features = contrast.project_text(model.pooled_features(model.encode_text(text))[0])  # type: ignore[operator]
        torch.testing.assert_close(features, expected.text_embeds, rtol=1e-4, atol=1e-5)


def official() -> dict[str, Tensor]:
    return dict(torch.load(GOLDEN / "checkpoint.pth", weights_only=True))


def test_a_separate_text_encoder_is_the_same_checkpoint():
    state = official()
    text = ("transformer.", "token_embedding", "positional_embedding", "ln_final", "text_projection")
    separate = {f"text.{name}" if name.startswith(text) else name: tensor for name, tensor in state.items()}
    assert separate.keys() != state.keys()
    back = to_openai_names(separate)
    assert back.keys() == state.keys() and all(back[name] is tensor for name, tensor in state.items())
    assert to_openai_names(state) == state


def test_an_incomplete_projection_is_named():
    name = "text_model.encoder.layers.0.self_attn.{}_proj.weight"
    with pytest.raises(WeightsError, match=r"transformer\.resblocks\.0\.attn\.in_proj_weight lacks self_attn\.v_proj"):
        to_openai_names({name.format("q"): torch.ones(2, 2), name.format("k"): torch.ones(2, 2)})
