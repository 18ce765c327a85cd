"""What cannot be written is one line with the path, the system's reason and what to do; what stood there before stands."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diptych.training.log import Log, _cut_back
from diptych.utils.io import WriteError, atomic_write

full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT, errno.EIO])
def test_the_systems_refusal_is_told_with_path_and_advice(tmp_path: Path, monkeypatch, code: int):
    path = tmp_path / "x.json"
    path.write_text("before")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(WriteError) as told, atomic_write(path) as partial:
        partial.write_text("after")
    said = str(told.value)
    assert str(path) in said and os.strerror(code) in said and "then give the same command again" in said
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
@pytest.mark.parametrize("kind", ["text", "safetensors", "torch"])
def test_a_limit_on_the_size_of_files_is_told_whoever_writes(tmp_path: Path, kind: str):
    import resource

    tensors = {"a": torch.zeros(50_000)}
    write = {
        "text": lambda path: path.write_bytes(bytes(200_000)),
        "safetensors": lambda path: save_file(tensors, path),
        "torch": lambda path: torch.save(tensors, path),
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(WriteError, match=r"x cannot be written \(.*\): "), atomic_write(tmp_path / "x") as partial:
            write[kind](partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_what_goes_wrong_with_another_file_meanwhile_is_not_taken_for_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "x"):
        (tmp_path / "data" / "picture.jpg").read_bytes()
    with pytest.raises(RuntimeError, match="out of memory"), atomic_write(tmp_path / "x"):
        raise RuntimeError("CUDA error: out of memory, code: 2")


@full
def test_a_row_that_finds_no_room_is_told_with_its_file(tmp_path: Path):
    with Log(tmp_path, 0, 2) as log:
        log.file.close()
        log.file = open("/dev/full", "a")  # noqa: SIM115
        with pytest.raises(WriteError, match=r"metrics\.jsonl cannot be written .*make room on the disk"):
            log.row({"step": 1, "itm": 0.5})
        log.file = open(os.devnull, "a")  # noqa: SIM115


ROWS = [{"step": n, "itm": 0.5, "mlm": None} for n in range(1, 6)]
LINES = [b'{"step": %d, "itm": 0.5, "mlm": null}' % n for n in range(1, 6)]


@pytest.mark.parametrize("cut", range(len(LINES[-1]) + 1))
def test_a_torn_last_line_is_dropped_without_a_word(tmp_path: Path, cut: int):
    path, said = tmp_path / "metrics.jsonl", []
    path.write_bytes(b"\n".join(LINES[:-1]) + b"\n" + LINES[-1][:cut])
    assert _cut_back(path, 9, said.append) == (ROWS if cut == len(LINES[-1]) else ROWS[:-1])
    assert not said and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "line", [b'{"step": 3, "itm": 0.', b"\xff\xfe", b"{}", b"[]", b'{"step": "3"}', b'{"step": 3, "itm": "x"}', b"\0" * 9, b"[" * 5000]
)  # fmt: skip
def test_any_other_damaged_line_is_left_out_and_the_file_kept_as_it_was(tmp_path: Path, line: bytes):
    path, said = tmp_path / "metrics.jsonl", []
    for n in (1, 2):  # a second one takes no other's name
        path.write_bytes(data := b"\n".join([*LINES[:2], line, *LINES[3:]]) + b"\n")
        assert _cut_back(path, 4, said.append) == [ROWS[0], ROWS[1], ROWS[3]]
        assert (tmp_path / f"metrics.damaged-{n}.jsonl").read_bytes() == data
        assert said[-1].startswith(f"{path}, line 3: ") and f"kept as metrics.damaged-{n}.jsonl" in said[-1]
    assert len(said) == 2
    assert _cut_back(path, 9, said.append) == [ROWS[0], ROWS[1], ROWS[3]] and len(said) == 2
