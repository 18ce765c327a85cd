"""Hugging Face's CLIP computes the official outputs from an export, and its files can be imported again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.checkpoints.read import load_state_dict
from diptych.models.huggingface.layouts import to_official_names
from diptych.models.importing import map_official
from tests.models.huggingface.common import equal, exported, golden, loaded, same


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip", "open_clip"])
def test_hugging_face_s_clip_gives_the_official_outputs(name: str, tmp_path: Path):
    case = golden(name)
    imported = case.imported
    assert exported(name, imported.task, imported.arguments, imported.build(), tmp_path) == []
    theirs = loaded("CLIPModel", tmp_path)
    ids, pixels = case.inputs["text"], case.inputs["image"]
    out = theirs(input_ids=ids, pixel_values=pixels, return_loss=True)
    numbers = {"loss": out.loss, "logits_per_image": out.logits_per_image, "logits_per_text": out.logits_per_text}
    if name == "open_clip":
        numbers |= {"image_features": out.image_embeds, "text_features": out.text_embeds}
    else:
        numbers |= {"image_features": theirs.get_image_features(pixels).pooler_output}
        numbers |= {"text_features": theirs.get_text_features(ids).pooler_output}
    equal(case, {name: value for name, value in numbers.items() if name in case.expected})
    back, _ = to_official_names(name, load_state_dict(tmp_path / "hf" / "model.safetensors"))
    assert same(map_official(name, back, case.config).state, imported.state)
