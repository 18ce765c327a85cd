"""Our reader of PyTorch's files: tensors equal those of torch.load; a file that declares more than it contains raises
before memory is allocated.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diptych.checkpoints.read import WeightsError, load_all_state_dicts, load_state_dict
from diptych.checkpoints.torch_file import MAGIC, PROTOCOL

TYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip


def views_of(x: Tensor) -> list[Tensor]:
    """Several views of the same storage."""
    return [x, x.transpose(0, -1), x[..., ::2], x[1:], x.flatten()[3:9], x[:0], x[0].sum().to(x.dtype)]


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for i in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(TYPES))
        x = torch.arange(24).reshape(draw(st.sampled_from(((2, 3, 4), (4, 6), (24, 1))))).to(dtype)
        for j in draw(st.sets(st.integers(0, 6), min_size=1)):
            state[f"w{i}.{j}"] = views_of(x)[j]
    return state


@given(states(), st.booleans(), st.sampled_from([2, 3, 4]))
@settings(max_examples=40, deadline=None)
@pytest.mark.slow
def test_tensors_equal_what_torch_reads(
    tmp_path_factory: pytest.TempPathFactory, state: dict, archive: bool, protocol: int
):
    path = tmp_path_factory.mktemp("torch") / "x.pth"
    torch.save(state, path, _use_new_zipfile_serialization=archive, pickle_protocol=protocol)
    theirs, ours = torch.load(path, weights_only=True) if protocol == 2 else state, load_state_dict(path)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("archive", [True, False])
def test_other_values_that_training_saves_are_skipped(tmp_path: Path, archive: bool, protocol: int):
    linear = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(linear.parameters())
    linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": linear.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.5, "name": "x",
        "milestones": Counter({30: 1}), "shape": torch.Size([2, 3]), "device": torch.device("cpu"),
        "type": torch.float16,
        "parameter": nn.Parameter(torch.ones(2)), "set": {1, 2}, "raw": b"\x00\xff", "none": None, "long": 2**70,
        "pairs": [(1, 2.0), OrderedDict(a=1)], "args": Namespace(lr=0.1), "accuracy": np.float64(0.5),
        "counts": defaultdict(list, a=[1]), "array": np.ones((2, 3)), "keys": {(1, 2): 3}, "frozen": frozenset({1}),
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=archive, pickle_protocol=protocol)
    states = {one.key_path: one for one in load_all_state_dicts(tmp_path / "x.pth")}
    assert states.keys() == {"", "model"}
    assert all(torch.equal(states["model"].state[name], tensor) for name, tensor in linear.state_dict().items())
    assert torch.equal(states[""].state["parameter"], torch.ones(2))
    assert set(states["model"].other_keys) == content.keys() - {"parameter"}


def foreign_class(module: str, name: str, base: type = object) -> type:
    """A class of a package that need not be installed, importable while the test pickles it."""
    cls = type(name, (base,), {"__module__": module})
    vars(sys.modules.setdefault(module, ModuleType(module)))[name] = cls
    return cls


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_of_training_frameworks_are_skipped(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch):
    """As Lightning saved ViLT's and VLMo's files: callbacks by class, and settings in a subclass of dict."""
    for module in (
        "pytorch_lightning",
        "sacred",
        "my_project",
        "pytorch_lightning.callbacks",
        "sacred.config",
        "my_project.settings",
    ):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    callback = foreign_class("pytorch_lightning.callbacks", "ModelCheckpoint")
    settings = foreign_class("sacred.config", "ReadOnlyDict", dict)(lr=0.1, paths=[Path("/data")])
    names = foreign_class("sacred.config", "ReadOnlyList", list)(["a", "b"])
    content = {"callbacks": {callback: {"best": torch.ones(1)}}, "hyper_parameters": settings, "names": names}
    content |= {
        "checkpoint_callback": callback(),
        "state_dict": {"weight": torch.ones(2)},
        "args": Namespace(out=Path("x")),
    }
    torch.save(content, tmp_path / "x.ckpt", pickle_protocol=protocol)
    (state,) = load_all_state_dicts(tmp_path / "x.ckpt")
    assert state.key_path == "state_dict" and torch.equal(state.state["weight"], torch.ones(2))
    torch.save(
        content | {"own": foreign_class("my_project.settings", "Mine")()}, tmp_path / "y.ckpt", pickle_protocol=protocol
    )
    with pytest.raises(WeightsError, match=r"it names 'my_project\.settings\.Mine'"):
        load_all_state_dicts(tmp_path / "y.ckpt")


@pytest.mark.parametrize("name", ["pathlib\nos.system", "lightning.os\nsystem.x", "posix\nsystem"])
def test_code_under_the_name_of_an_allowed_package_raises(name: str, tmp_path: Path):
    (tmp_path / "x.pth").write_bytes(archived(f"c{name}\n(S'exit 1'\ntR.".encode(), {}))
    with pytest.raises(WeightsError, match="it names"):
        load_all_state_dicts(tmp_path / "x.pth")


def test_newer_dtypes_are_read(tmp_path: Path):
    torch.save({"a": torch.tensor([1, 65535], dtype=torch.uint16)}, tmp_path / "x.pth")
    assert load_state_dict(tmp_path / "x.pth")["a"].tolist() == [1, 65535]


def archived(data: bytes, storages: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive as PyTorch writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        archive.writestr("x/data.pkl", data)
        for key, content in storages.items():
            archive.writestr(f"x/data/{key}", content)
    return file.getvalue()


def tensor_pickle(numel: int, size: int, offset: int = 0, stride: int = 1, view: bool = False) -> bytes:
    """The pickle of {"w": tensor} whose storage "0" declares `numel` floats."""
    last = "N" if view else ""  # the legacy format has the view of a storage, or None
    return (
        f"\x80\x02}}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
        f"((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        f"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuI{numel}\n{last}tQI{offset}\nI{size}\n\x85I{stride}\n\x85\x89}}tRs."
    ).encode("latin1")


def legacy(data: bytes, numel: int, content: bytes) -> bytes:
    head = b"".join(pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL, {"little_endian": True}))
    return head + data + pickle.dumps(["0"], 2) + struct.pack("<q", numel) + content


def npz(header: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        padded = header.encode() + b"\n"
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + content)
    return file.getvalue()


HUGE, FOUR = 2**30, bytes(16)
CRAFTED = {
    "bytearray.pth": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85R.",
    "archived_bytearray.pth": archived(
        b"\x80\x02}X\x01\x00\x00\x00wc__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85Rs.", {}
    ),
    "bytearray8.pth": b"\x80\x05\x96" + struct.pack("<Q", 2**32) + b".",
    "unicode8.pth": legacy(b"\x80\x04\x8d" + struct.pack("<Q", 2**32) + b".", 0, b""),
    "bytes8.pth": archived(b"\x80\x04\x8e" + struct.pack("<Q", 2**32) + b".", {}),
    "memo.pth": archived(b"\x80\x02}r\xff\xff\xff\xff.", {}),
    "memo_of_one_hash.pth": archived(
        b"\x80\x02}" + b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(40_000)) + b".", {}
    ),
    "storage_call.pth": archived(b"\x80\x02}X\x01\x00\x00\x00wctorch\nFloatStorage\nJ\x00\x00\x00\x40\x85Rs.", {}),
    "announces.pth": archived(tensor_pickle(HUGE, HUGE), {"0": FOUR}),
    "claims.pth": archived(tensor_pickle(4, HUGE), {"0": FOUR}),
    "strides.pth": archived(tensor_pickle(4, 4, stride=HUGE), {"0": FOUR}),
    "offset.pth": archived(tensor_pickle(4, 4, offset=HUGE), {"0": FOUR}),
    "negative.pth": archived(tensor_pickle(4, 4, offset=-1), {"0": FOUR}),
    "missing.pth": archived(tensor_pickle(4, 4), {}),
    "expanded.pth": archived(tensor_pickle(4, HUGE, stride=0), {"0": FOUR}),
    "bomb.pth": archived(tensor_pickle(2**28, 2**28), {"0": bytes(2**26)}, zipfile.ZIP_DEFLATED),
    "old_announces.pth": legacy(tensor_pickle(HUGE, HUGE, view=True), HUGE, FOUR),
    "old_numel.pth": legacy(tensor_pickle(4, 4, view=True), 2**60, FOUR),
    "old_claims.pth": legacy(tensor_pickle(4, HUGE, view=True), 4, FOUR),
    "header.npz": npz("{'descr': '<f4', 'fortran_order': False, 'shape': (1073741824,), }", FOUR),
    "header_of_less.npz": npz("{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }", FOUR),
    "header_small.npz": npz("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", FOUR),
    "header_text.npz": npz("{'descr': '<U100000000', 'fortran_order': False, 'shape': (10,), }", FOUR),
    "header.safetensors": struct.pack("<Q", 2**40) + b"{}",
    "claims.safetensors": (lambda h: struct.pack("<Q", len(h)) + h)(
        b'{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}'
    ) + FOUR,
}  # fmt: skip
LIMITED = """
import resource, sys, pathlib
from diptych.checkpoints.read import WeightsError, load_all_state_dicts
bound = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 2**29
resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
for path in sys.argv[1:]:
    try:
        load_all_state_dicts(pathlib.Path(path))
    except WeightsError as error:
        assert "MemoryError" not in str(error) and "Unable to allocate" not in str(error), error
        print(path, "rejected:", error)
    else:
        print(path, "read")
"""


@pytest.mark.parametrize("name", CRAFTED)
def test_a_file_that_declares_more_than_it_contains_raises(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(CRAFTED[name])
    with pytest.raises(WeightsError) as error:
        load_all_state_dicts(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_colliding_memo_keys_raise_at_the_first_implausible_one(tmp_path: Path):
    (tmp_path / "memo_of_one_hash.pth").write_bytes(CRAFTED["memo_of_one_hash.pth"])  # 20 s if all were stored
    with pytest.raises(WeightsError, match="it uses a memo index beyond 1000000"):
        load_all_state_dicts(tmp_path / "memo_of_one_hash.pth")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to know what a process already has")
def test_crafted_files_need_at_most_512_mib(tmp_path: Path):
    for name, content in CRAFTED.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in CRAFTED]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *paths],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("rejected:") == len(CRAFTED)


def test_a_file_with_the_declared_size_is_read(tmp_path: Path):
    (tmp_path / "x.pth").write_bytes(archived(tensor_pickle(4, 4), {"0": np.arange(4, dtype=np.float32).tobytes()}))
    assert load_state_dict(tmp_path / "x.pth")["w"].tolist() == [0, 1, 2, 3]
    content = np.arange(4, dtype=np.float32).tobytes()
    (tmp_path / "y.pth").write_bytes(legacy(tensor_pickle(4, 4, view=True), 4, content))
    assert load_state_dict(tmp_path / "y.pth")["w"].tolist() == [0, 1, 2, 3]


def test_deeply_nested_and_cyclic_values_are_skipped(tmp_path: Path):
    loop: dict[str, Any] = {"w": torch.ones(2)}
    loop["self"] = loop
    nested_lists: list[Any] = [{"w": torch.ones(2)}]
    for _ in range(60):
        nested_lists = [nested_lists, nested_lists]
    torch.save({"model": loop, "laughs": nested_lists}, tmp_path / "x.pth")
    assert [one.key_path for one in load_all_state_dicts(tmp_path / "x.pth")] == ["model"]


def test_colliding_dict_keys_raise(tmp_path: Path):
    torch.save({"w": torch.ones(1), "state": {i * (2**61 - 1): 0 for i in range(1, 50)}}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"an integer key beyond 2\*\*60"):
        load_all_state_dicts(tmp_path / "x.pth")
