"""A failed write gives one line with the path, the system's reason and what to do; the previous file is unchanged."""

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
def test_an_error_of_the_system_is_reported_with_path_and_advice(tmp_path: Path, monkeypatch, code: int):
    path = tmp_path / "x.json"
    path.write_text("before")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(WriteError) as error, atomic_write(path) as partial:
        partial.write_text("after")
    message = str(error.value)
    assert str(path) in message and os.strerror(code) in message and "then give the same command again" in message
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
@pytest.mark.parametrize("kind", ["text", "safetensors", "torch"])
def test_a_limit_on_the_size_of_files_is_reported_for_every_writer(tmp_path: Path, kind: str):
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


def test_errors_of_other_files_are_not_reported_as_write_errors(tmp_path: Path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "x"):
        (tmp_path / "data" / "image.jpg").read_bytes()
    with pytest.raises(RuntimeError, match="out of memory"), atomic_write(tmp_path / "x"):
        raise RuntimeError("CUDA error: out of memory, code: 2")


@full
def test_a_log_row_that_cannot_be_written_is_reported_with_its_file(tmp_path: Path):
    with Log(tmp_path, 0, 2) as log:
        log.file.close()
        log.file = open("/dev/full", "a")  # noqa: SIM115
        with pytest.raises(WriteError, match=r"metrics\.jsonl cannot be written .*make room on the disk"):
            log.row({"step": 1, "itm": 0.5})
        log.file = open(os.devnull, "a")  # noqa: SIM115


ROWS = [{"step": n, "itm": 0.5, "mlm": None} for n in range(1, 6)]
LINES = [b'{"step": %d, "itm": 0.5, "mlm": null}' % n for n in range(1, 6)]


@pytest.mark.parametrize("cut", range(len(LINES[-1]) + 1))
def test_an_incomplete_last_line_is_dropped_silently(tmp_path: Path, cut: int):
    path, messages = tmp_path / "metrics.jsonl", []
    path.write_bytes(b"\n".join(LINES[:-1]) + b"\n" + LINES[-1][:cut])
    assert _cut_back(path, 9, messages.append) == (ROWS if cut == len(LINES[-1]) else ROWS[:-1])
    assert not messages and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 3, "itm": 0.',
        b"\xff\xfe",
        b"{}",
        b"[]",
        b'{"step": "3"}',
        b'{"step": 3, "itm": "x"}',
        b"\0" * 9,
        b"[" * 5000,
    ],
)
def test_any_other_damaged_line_is_dropped_and_the_original_file_is_kept(tmp_path: Path, line: bytes):
    path, messages = tmp_path / "metrics.jsonl", []
    for n in (1, 2):  # a second damaged file has its own name
        path.write_bytes(data := b"\n".join([*LINES[:2], line, *LINES[3:]]) + b"\n")
        assert _cut_back(path, 4, messages.append) == [ROWS[0], ROWS[1], ROWS[3]]
        assert (tmp_path / f"metrics.damaged-{n}.jsonl").read_bytes() == data
        assert messages[-1].startswith(f"{path}, line 3: ") and f"kept as metrics.damaged-{n}.jsonl" in messages[-1]
    assert len(messages) == 2
    assert _cut_back(path, 9, messages.append) == [ROWS[0], ROWS[1], ROWS[3]] and len(messages) == 2
