"""Locks on output folders: an error while another process has them, released and cleaned up when it dies."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.utils.lock import LOCK, InUse, locked, partial_of, single_writer

posix = pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
HOLDS = "import sys; from pathlib import Path; from diptych.utils.lock import locked\n"
HOLDS += "with locked(Path(sys.argv[1]), sys.argv[2]): print('locked', flush=True); sys.stdin.readline()"


@pytest.fixture
def holder(tmp_path: Path):
    """Starts processes that lock a folder, or a file in it, until they receive a line."""
    started: list[subprocess.Popen[str]] = []

    def hold(folder: Path, file: str = "") -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", HOLDS, str(folder), file]
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate(timeout=60)


@posix
@pytest.mark.parametrize("file", ["", "words.txt"])
def test_a_folder_locked_by_another_process_raises_until_it_ends_or_is_killed(tmp_path: Path, holder, file: str):
    for end in (lambda process: process.communicate("\n", timeout=60), lambda process: process.kill()):
        process = holder(tmp_path / "run", file)
        message = rf"another process \(pid {process.pid} on .*\): let it end, or give another --out"
        with pytest.raises(InUse, match=message), locked(tmp_path / "run", file):
            pass
        end(process)
        process.wait(60)
        with locked(tmp_path / "run", file) as handle:
            assert handle
    assert not list((tmp_path / "run").iterdir())
    with locked(tmp_path / "other" / "run", file):
        pass
    assert not (tmp_path / "other").exists(), "nothing was written, so no folder remains"


@posix
def test_a_forked_worker_neither_inherits_a_lock_nor_releases_it(tmp_path: Path):
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            os.read(0, 0)
            os._exit(0 if not os.closerange(3, 64) else 1)  # closes its copy of the handle
        assert os.waitpid(child, 0)[1] == 0
        probe = subprocess.run(
            [sys.executable, "-c", HOLDS, str(tmp_path), ""], capture_output=True, text=True, input=""
        )
        assert "InUse" in probe.stderr and "locked" not in probe.stdout


def test_a_folder_can_be_locked_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with locked(tmp_path / "run") as handle:
        assert handle and (tmp_path / "run" / LOCK).exists()
    assert not (tmp_path / "run").exists()


def test_the_lock_is_reentrant_and_its_file_is_removed_at_the_end(tmp_path: Path):
    with locked(tmp_path) as first, locked(tmp_path) as again:
        assert first and not again and (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


@posix
def test_partial_files_of_dead_writers_are_removed_and_those_of_live_ones_are_not(tmp_path: Path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(60)
    (tmp_path / "parts").mkdir()
    removed = [tmp_path / "model.safetensors.partial", tmp_path / f"a.{dead.pid}.partial"]
    removed.append(tmp_path / "parts" / f"b.{dead.pid}.partial")
    stay = [tmp_path / f"report.html.{os.getppid()}.partial", tmp_path / "model.safetensors"]
    for path in (*removed, *stay):
        path.touch()
    with locked(tmp_path):
        assert [path.exists() for path in (*removed, *stay)] == [False] * 3 + [True] * 2


@posix
def test_locking_a_file_removes_only_its_own_partial_files(tmp_path: Path):
    (tmp_path / "x.pth.partial").touch()
    (tmp_path / "others.partial").touch()
    with locked(tmp_path, "x.pth"):
        assert {path.name for path in tmp_path.glob("*.partial")} == {"others.partial"}


def test_single_writer_locks_the_output_folder(tmp_path: Path):
    @single_writer
    def write(what: str, out: Path) -> bool:
        return (out / LOCK).exists()

    assert write("a", tmp_path / "one") and write("a", out=tmp_path / "two")


def test_the_partial_file_of_a_process_has_its_id_in_the_name(tmp_path: Path):
    assert str(os.getpid()) in partial_of(tmp_path / "a").name
