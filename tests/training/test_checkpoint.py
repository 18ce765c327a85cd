import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diptych.training import checkpoint
from diptych.training.checkpoint import CHECKPOINT, MODEL, CheckpointError
from diptych.training.log import Log, _cut_back


def trained(steps: int = 1) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    module[2].weight = module[0].weight  # tied
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(steps):
        module(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return module, optimizer


def test_a_checkpoint_restores_weights_buffers_and_optimizer(tmp_path):
    module, optimizer = trained(3)
    checkpoint.save(tmp_path, module, optimizer, {"step": 3, "sum": 0.1 + 0.2})
    other, its_optimizer = trained(0)
    checkpoint.load(tmp_path, other, its_optimizer)
    assert checkpoint.read_training_state(tmp_path) == {"step": 3, "sum": 0.1 + 0.2}
    for name, t in module.state_dict().items():
        assert torch.equal(t, other.state_dict()[name]), name
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        for key, t in optimizer.state[p].items():
            assert torch.equal(t, its_optimizer.state[q][key]), key
    assert other[2].weight is other[0].weight


@pytest.mark.parametrize("where", ["write", "rename"])
def test_a_crash_while_writing_keeps_the_old_checkpoint(tmp_path, monkeypatch, where):
    module, optimizer = trained(1)
    checkpoint.save(tmp_path, module, optimizer, {"step": 1})
    before = (tmp_path / CHECKPOINT).read_bytes()

    def half(tensors, path, metadata=None):
        path.write_bytes(before[: len(before) // 2])
        raise OSError("no space left")

    def crash(*_):
        raise OSError("power cut")

    monkeypatch.setattr(checkpoint, "save_file", half) if where == "write" else monkeypatch.setattr(
        os, "replace", crash
    )
    with pytest.raises(OSError):
        checkpoint.save(tmp_path, *trained(2), {"step": 2})
    assert (tmp_path / CHECKPOINT).read_bytes() == before and not list(tmp_path.glob("*.partial"))
    assert checkpoint.read_training_state(tmp_path) == {"step": 1}


def test_loading_a_checkpoint_is_strict(tmp_path):
    module, optimizer = trained()
    checkpoint.save(tmp_path, module, optimizer, {})
    tensors = load_file(tmp_path / CHECKPOINT)
    for change, message in (
        ({"weight/extra": torch.ones(1)}, "unexpected: extra"),
        ({"weight/2.weight": torch.ones(3, 3)}, r"different: 2\.weight and 0\.weight"),
        ({"weight/0.bias": torch.ones(2)}, r"0\.bias is \(2,\)"),
        ({"exp_avg/0.bias": torch.ones(2)}, r"exp_avg of 0\.bias does not fit"),
    ):
        save_file(tensors | change, tmp_path / CHECKPOINT)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(tmp_path, module, optimizer)
    del tensors["weight/0.bias"]
    save_file(tensors, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match=r"missing: 0\.bias"):
        checkpoint.load(tmp_path, module, optimizer)


def test_a_file_that_is_not_a_checkpoint_is_a_one_line_error(tmp_path):
    assert checkpoint.read_training_state(tmp_path) is None
    (tmp_path / CHECKPOINT).write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_training_state(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match="is not a training checkpoint"):
        checkpoint.read_training_state(tmp_path)


def test_the_model_file_has_a_tied_weight_once(tmp_path):
    module, _ = trained()
    checkpoint.save_weights(tmp_path, module)
    assert "2.weight" not in load_file(tmp_path / MODEL) and "0.weight" in load_file(tmp_path / MODEL)


def test_rows_after_the_step_and_an_incomplete_line_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    assert _cut_back(path, 2) == [{"step": 1}, {"step": 2}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_metric_without_a_value_does_not_end_the_run(tmp_path):
    with Log(tmp_path, 0, 2) as log:
        log.row({"step": 1, "val/itm": float("nan")})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "val/itm": null}\n'


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_weights_have_the_file_mode_of_other_files(tmp_path: Path):
    (tmp_path / "usual").touch()
    (tmp_path / f"{MODEL}.partial").touch(0o600)  # of a killed run
    checkpoint.save_weights(tmp_path, nn.Linear(2, 2))
    mode, default_mode = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (MODEL, "usual"))
    assert mode == default_mode


def test_two_spellings_of_one_folder_are_the_same_setting(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for spelling in ("data", "data/", str(tmp_path / "data"), "./data"):
        checkpoint.check_same_settings(tmp_path, {"data": "data"}, {"data": spelling})
    with pytest.raises(CheckpointError, match="contains a run with data = data, not other: continue it with"):
        checkpoint.check_same_settings(tmp_path, {"data": "data"}, {"data": "other"})


def test_only_a_run_with_other_steps_names_init_from(tmp_path):
    saved = {"steps": 12, "seed": 0}
    with pytest.raises(CheckpointError, match=r"steps = 12, not 14: the steps of a run cannot be changed.*--init_from"):
        checkpoint.check_same_settings(tmp_path, saved, saved | {"steps": 14})
    with pytest.raises(CheckpointError, match="seed = 0, not 1: continue it with the same value"):
        checkpoint.check_same_settings(tmp_path, saved, {"steps": 14, "seed": 1})
