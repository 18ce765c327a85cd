"""Reading of checkpoints: every format gives the same tensors; unsafe, damaged and other files raise."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from diptych.checkpoints.read import WeightsError, load_state_dict, nonfinite

WEIGHTS = {"a.weight": torch.arange(600.0).view(20, 30), "a.bias": torch.ones(20)}


def write(path: Path, form: str) -> Path:
    path = path / form
    if form.endswith(".safetensors"):
        save_file(WEIGHTS, path)
    elif form.endswith(".npz"):
        np.savez(path, **{name: tensor.numpy() for name, tensor in WEIGHTS.items()})  # type: ignore[arg-type]
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=form != "old.pth")
    return path


FORMS = ("x.safetensors", "x.npz", "x.pth", "x.pt", "x.bin", "x.ckpt", "old.pth")


def error_of(path: Path) -> str:
    with pytest.raises(WeightsError) as error:
        load_state_dict(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_tensors(tmp_path: Path, form: str):
    tensors = load_state_dict(write(tmp_path, form))
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("nest", ["state_dict", "model", "module"])
def test_a_nested_state_is_read_and_other_values_are_ignored(tmp_path: Path, nest: str):
    torch.save({nest: WEIGHTS, "epoch": 3, "optimizer": {"step": torch.ones(1)}}, tmp_path / "x.ckpt")
    assert load_state_dict(tmp_path / "x.ckpt").keys() == WEIGHTS.keys()


class Payload:
    """An object whose unpickling creates a folder."""

    def __init__(self, target: Path):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("form", ["zip", "old", "bare", "nested"])
def test_a_pickle_that_would_run_code_raises_without_running_it(tmp_path: Path, form: str):
    payload, path = Payload(tmp_path / "made"), tmp_path / "x.pth"
    content = {"state_dict": {**WEIGHTS, "callback": payload}} if form == "nested" else {"w": payload}
    if form == "bare":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "old")
    assert "only tensors and plain values are unpickled" in error_of(path)
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(payload))
    assert (tmp_path / "made").exists(), "the payload has no effect, so this test proves nothing"


def test_an_npz_of_objects_raises(tmp_path: Path):
    np.savez(tmp_path / "x.npz", a=np.array([Payload(tmp_path / "made")], dtype=object))
    error_of(tmp_path / "x.npz")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.97])
def test_a_truncated_file_raises(tmp_path: Path, form: str, share: float):
    path = write(tmp_path, form)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    error_of(path)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_read_or_raises_a_weights_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = write(tmp_path_factory.mktemp("damaged"), data.draw(st.sampled_from(FORMS)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        tensors = load_state_dict(path)
    except WeightsError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(tensor, Tensor) for tensor in tensors.values())


def test_a_file_that_would_exhaust_memory_raises(tmp_path: Path):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(2**24, dtype=np.float32))
    assert "64 MiB" in error_of(tmp_path / "bomb.npz")
    torch.save({"a": torch.zeros(1).expand(10**9, 10**6)}, tmp_path / "stretched.pth")
    assert "shape (1000000000, 1000000), larger than its storage" in error_of(tmp_path / "stretched.pth")
    sparse = torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (10**6, 10**6), check_invariants=True)
    torch.save({"a": sparse}, tmp_path / "sparse.pth")
    assert "a: it is a sparse tensor; save it as a dense tensor" in error_of(tmp_path / "sparse.pth")


@pytest.mark.parametrize(
    ("content", "message"), [([1, 2], "a list"), ({"epoch": 3}, "no tensors"), (torch.ones(2), "a Tensor")]
)
def test_a_file_of_another_kind_raises(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "x.pth")
    assert message in error_of(tmp_path / "x.pth")


def test_a_text_file_is_reported_as_such(tmp_path: Path):
    (tmp_path / "x.ckpt").write_text("# Notes on weights\n" * 100)
    assert "not a file of PyTorch: is it text" in error_of(tmp_path / "x.ckpt")


def test_a_missing_file_is_named(tmp_path: Path):
    assert "no such file" in error_of(tmp_path / "none.pth")
    assert "no such file" in error_of(tmp_path)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.complex64],
)
def test_nonfinite_values_are_detected_in_every_dtype(dtype: torch.dtype):
    good = torch.arange(6.0)
    tensors = nonfinite(
        {"good": good.to(dtype), "empty": good[:0].to(dtype), "whole": torch.arange(3), "meta": good.to("meta")}
        | {str(x): torch.cat([good, torch.tensor([x])]).to(dtype) for x in (float("nan"), float("inf"), float("-inf"))}
    )
    assert tensors == ["nan", "inf", "-inf"]
