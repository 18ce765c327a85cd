"""Import of checkpoints nested and prefixed as training loops save them: the same weights for every system.

A checkpoint with an additional or a missing key is an error that names the key.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.checkpoints.read import load_state_dict
from diptych.cli import main
from diptych.models.importing import ADAPTERS
from tests.parity.goldens import GOLDEN_CASES

CASES = {
    "vit": "vit", "vilt": "vilt_pretrain", "vsepp": "vsepp", "scan": "scan", "vilbert": "vilbert_pretrain",
    "crossvit": "crossvit_dagger", "mae": "mae", "albef": "albef_pretrain", "open_clip": "open_clip", "coca": "coca",
    "beit3": "beit3_caption", "blip": "blip_caption", "vlmo": "vlmo_pretrain", "clip": "open_clip",
}  # fmt: skip
PREFIXES = (
    "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "module.model.", "module.module.",
    "net.module.", "_forward_module.model.", "backbone.", "learner.",
)  # fmt: skip
NESTS = (
    ("model",), ("state_dict",), ("model_state_dict",), ("net",), ("params",), ("module",), ("ema",), ("model_ema",),
    ("state_dict_ema",), ("teacher",), ("student",), ("checkpoint", "model"), ("anything",), ("model_ema", "module"),
)  # fmt: skip
RESNET: dict[str, Any] = dict(
    dim=6, depths=(1, 1, 2, 1), num_heads=4, grid=(1, 1), text_dim=8, text_depth=1, text_num_heads=2, text_mlp_dim=12,
    vocab_size=20, text_length=7, embed_dim=5,
)  # fmt: skip


def official(system: str, folder: Path) -> tuple[dict[str, Tensor], Path]:
    """A small checkpoint under official names, and the settings that cannot be inferred from weight shapes."""
    config = folder / "config.json"
    if system == "clip_resnet":
        config.write_text(json.dumps({"vision_heads": 4, "transformer_heads": 2}))
        names, step = ADAPTERS[system].names(RESNET, ""), ADAPTERS[system].build(RESNET, "pretraining", {})
        return {n: t.contiguous() for n, t in names.to_official(dict(step.state_dict())).items()}, config
    case = GOLDEN_CASES / CASES[system]
    config.write_text((case / "config.json").read_text())
    return load_state_dict(case / "checkpoint.pth"), config


def wrapped(state: dict[str, Tensor], prefix: str, nest: tuple[str, ...]) -> dict[str, Any]:
    """The state nested and prefixed as a training loop saves it, with epoch and optimizer state."""
    content: dict[str, Any] = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    for key in reversed(nest):
        content = {"epoch": 3, key: content, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    return content


def run_import(system: str, content: Any, config: Path, out: Path) -> int:
    torch.save(content, out.with_suffix(".pth"))
    return main(["import", system, str(out.with_suffix(".pth")), "--out", str(out), "--config", str(config)])


def imported(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("system", ADAPTERS)
def test_wrapped_weights_are_imported_unchanged_and_an_extra_or_missing_key_is_named(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    state, config = official(system, tmp_path)
    draw = random.Random(system)
    assert run_import(system, state, config, tmp_path / "plain") == 0
    dead = set(re.findall(r"^left out: (\S+) \(", capsys.readouterr().out, re.MULTILINE))
    for turn in range(3):
        prefix, nest = draw.choice(PREFIXES), draw.choice(NESTS)
        out = tmp_path / f"wrapped{turn}"
        capsys.readouterr()
        assert run_import(system, wrapped(state, prefix, nest), config, out) == 0, (prefix, nest)
        output = capsys.readouterr().out
        assert f'from "{".".join(nest)}"' in output and "other keys of the file, not read: epoch, optimizer" in output
        assert same(imported(out), imported(tmp_path / "plain"))
    prefix, nest = draw.choice(PREFIXES), draw.choice(NESTS)
    extra = draw.choice(("stray.weight", "blocks.extra", "head2.bias"))
    assert run_import(system, wrapped({**state, extra: torch.ones(2)}, prefix, nest), config, tmp_path / "more") == 2
    assert extra in (output := capsys.readouterr().err) and str(tmp_path) in output and output.count("\n") == 1
    lost = draw.choice(sorted(name for name in state if name not in dead))
    less = {name: tensor for name, tensor in state.items() if name != lost}
    assert run_import(system, wrapped(less, prefix, nest), config, tmp_path / "less") == 2
    assert lost in (output := capsys.readouterr().err) and output.count("\n") == 1, (lost, output)
    assert not (tmp_path / "more").exists() and not (tmp_path / "less").exists()


def vit(folder: Path) -> tuple[dict[str, Tensor], Path]:
    return official("vit", folder)


def shifted(state: dict[str, Tensor], by: float = 1.0) -> dict[str, Tensor]:
    return {name: tensor + by for name, tensor in state.items()}


@pytest.mark.quick("True-ema", "False-teacher")
@pytest.mark.parametrize("average", ["ema", "model_ema", "state_dict_ema", "ema_state_dict", "teacher", "swa_model"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.slow
def test_trained_weights_take_precedence_over_their_average_with_a_message(
    average: str, first: bool, tmp_path: Path, capsys
):
    state, config = vit(tmp_path)
    both = [("student", state), (average, shifted(state))]
    assert run_import("vit", dict(both if first else both[::-1]), config, tmp_path / "run") == 0
    output = capsys.readouterr().out
    assert 'weights read from "student"' in output and f"not used, though it fits too: {average}" in output
    assert torch.equal(imported(tmp_path / "run")["model.patches.cls"], state["cls_token"])
    assert run_import("vit", {average: shifted(state), "step": 3}, config, tmp_path / "average") == 0
    assert torch.equal(imported(tmp_path / "average")["model.patches.cls"], state["cls_token"] + 1)


def test_of_two_different_trained_sets_none_is_taken(tmp_path: Path, capsys):
    state, config = vit(tmp_path)
    assert run_import("vit", {"model": state, "net": shifted(state)}, config, tmp_path / "run") == 2
    assert "several sets of weights fit, and differ: model, net; save the one to import" in capsys.readouterr().err
    assert run_import("vit", {"model": state, "copy": dict(state)}, config, tmp_path / "run") == 0  # two equal copies


def test_a_key_outside_the_prefix_of_the_others_is_named(tmp_path: Path, capsys):
    state, config = vit(tmp_path)
    content = {f"model.{name}": tensor for name, tensor in state.items()} | {"criterion.weight": torch.ones(3)}
    assert run_import("vit", {"state_dict": content}, config, tmp_path / "run") == 2
    assert 'criterion.weight: without the prefix "model." that the other names have' in capsys.readouterr().err


def test_torch_s_own_averaged_model_is_read(tmp_path: Path, capsys):
    state, config = vit(tmp_path)
    content = {"n_averaged": torch.tensor(7)} | {f"module.{name}": tensor for name, tensor in state.items()}
    assert run_import("vit", content, config, tmp_path / "run") == 0
    assert "not read: n_averaged" in capsys.readouterr().out


def test_wrapped_parts_inside_of_a_model_are_read(tmp_path: Path):
    state, config = vit(tmp_path)
    content = {
        name.replace("blocks.1.", "blocks.1._orig_mod._checkpoint_wrapped_module."): t for name, t in state.items()
    }
    content = {name.replace("patch_embed.", "patch_embed.module."): tensor for name, tensor in content.items()}
    assert (
        run_import("vit", content, config, tmp_path / "run")
        == 0
        == run_import("vit", state, config, tmp_path / "plain")
    )
    assert same(imported(tmp_path / "run"), imported(tmp_path / "plain"))


@pytest.mark.quick("nan")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.slow
def test_nonfinite_weights_are_an_error_that_names_them(value: float, tmp_path: Path, capsys):
    state, config = vit(tmp_path)
    state["blocks.1.mlp.fc1.bias"][3] = value
    assert run_import("vit", {"model": wrapped(state, "module.", ())}, config, tmp_path / "run") == 2
    assert "NaN or infinite weights: blocks.1.mlp.fc1.bias" in capsys.readouterr().err
    good = vit(tmp_path)[0]
    assert run_import("vit", {"model": state, "ema": good}, config, tmp_path / "run") == 2  # not replaced by an average
    assert run_import("vit", {"model": good, "ema": state}, config, tmp_path / "run") == 0
    wide = good | {"cls_token": good["cls_token"].double() * 1e300}  # infinite as float32
    assert run_import("vit", wide, config, tmp_path / "run2") == 2
    assert "cls_token" in capsys.readouterr().err
