"""Every system's checkpoint is imported as a run and exported bit for bit, both at the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diptych.checkpoints.read import load_state_dict
from diptych.cli import main
from diptych.models.importing import ADAPTERS
from diptych.runs.load_model import load_model
from diptych.utils.state_dict import named_weights
from tests.parity.goldens import GOLDEN_CASES

CASES = {
    "vit": "vit", "vilt": "vilt_pretrain", "vsepp": "vsepp", "scan": "scan", "vilbert": "vilbert_pretrain",
    "crossvit": "crossvit_dagger", "mae": "mae", "albef": "albef_pretrain", "open_clip": "open_clip", "coca": "coca",
    "beit3": "beit3_caption", "blip": "blip_pretrain", "vlmo": "vlmo_pretrain", "clip": "clip",
}  # fmt: skip
RESNET: dict[str, Any] = dict(
    dim=6, depths=(1, 1, 2, 1), num_heads=4, grid=(1, 1), text_dim=8, text_depth=1, text_num_heads=2, text_mlp_dim=12,
    vocab_size=20, text_length=7, embed_dim=5,
)  # fmt: skip


def files(system: str, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint, and the settings that cannot be inferred from weight shapes."""
    if system == "clip_resnet":
        step = ADAPTERS[system].build(RESNET, "pretraining", {})
        official = ADAPTERS[system].names(RESNET, "pretraining").to_official(dict(step.state_dict()))
        torch.save({name: tensor.contiguous() for name, tensor in official.items()}, tmp_path / "checkpoint.pth")
        (tmp_path / "config.json").write_text(json.dumps({"vision_heads": 4, "transformer_heads": 2}))
        return tmp_path / "checkpoint.pth", tmp_path / "config.json"
    name = CASES[system]
    folder = (
        GOLDEN_CASES / name if (GOLDEN_CASES / name).is_dir() else Path(os.environ.get("DIPTYCH_GOLDENS", "")) / name
    )
    if not folder.is_dir():
        pytest.skip(f"set DIPTYCH_GOLDENS to the folder of golden cases to check {name}")
    return folder / "checkpoint.pth", folder / "config.json"


def nests(path: Path) -> list[str]:
    return [key for key in torch.load(path, weights_only=True) if key in ("state_dict", "model")]


@pytest.mark.quick("vit", "vilt")
@pytest.mark.parametrize("system", ADAPTERS)
def test_a_checkpoint_is_imported_and_exported_again(system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint, config = files(system, tmp_path)
    run, back = tmp_path / "run", tmp_path / "back.pth"
    assert main(["import", system, str(checkpoint), "--out", str(run), "--config", str(config)]) == 0
    assert "every weight loaded" in capsys.readouterr().out
    assert main(["export", str(run), "--to", "official", "--out", str(back)]) == 0
    assert "left out" not in capsys.readouterr().out
    before, after = load_state_dict(checkpoint), load_state_dict(back)
    assert before.keys() == after.keys() and nests(checkpoint) == nests(back)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype, name
    loaded = load_model(run, torch.device("cpu"))  # the model of its config takes every weight
    weights = load_file(run / "model.safetensors")
    own = named_weights(loaded.module)
    assert own.keys() == weights.keys() and all(torch.equal(tensor, weights[name]) for name, tensor in own.items())


def test_an_invalid_config_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint, _ = files("mae", tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    for config, message in (("list.json", "holds a list"), ("none.json", "cannot be read")):
        command = ["import", "mae", str(checkpoint), "--out", str(tmp_path / "run"), "--config", str(tmp_path / config)]
        assert main(command) == 2
        assert message in capsys.readouterr().err
