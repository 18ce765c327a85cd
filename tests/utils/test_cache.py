"""What was seen is found again, by other processes too; what is broken, foreign or too much is made anew."""

from __future__ import annotations

import os
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

import diptych.utils.cache as store_module
from diptych.utils.cache import Remembered, Store, default_folder, digest

HALF = {"grid": torch.arange(6).view(2, 3).half(), "classes": torch.tensor([0.5])}


def same(found: dict[str, torch.Tensor] | None) -> bool:
    return found is not None and found.keys() == HALF.keys() and all(torch.equal(found[k], HALF[k]) for k in HALF)


def only_file(folder: Path) -> Path:
    (file,) = [x for x in folder.rglob("*") if x.is_file()]
    return file


def test_names_tell_values_shapes_and_types_apart():
    x = torch.zeros(2, 3)
    named = [
        digest(x),
        digest(x.view(3, 2)),
        digest(x.int()),
        digest(x[:, :2]),
        digest("a", x),
        digest("ab"),
        digest("a", "b"),
    ]
    assert len(set(named)) == 7 and all(len(name) == 20 for name in named)
    assert digest(torch.ones(3, 2).T) == digest(torch.ones(2, 3))


def test_what_was_put_is_found_in_another_store(tmp_path: Path):
    assert Store(tmp_path / "new").get(digest("a")) is None
    Store(tmp_path / "new").put(digest("a"), HALF)
    assert same(Store(tmp_path / "new").get(digest("a")))
    assert only_file(tmp_path).suffix == ".seen", "nothing half written is left"


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "pickle", "swollen", "a folder"])
def test_a_file_that_is_broken_or_another_s_is_made_again(harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store(tmp_path)
    store.put(digest("a"), HALF)
    file = only_file(tmp_path)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    changed = {"cut": data[:-3], "flipped": data, "empty": b"", "pickle": b"cos\nsystem\n(S'false'\ntR."}.get(harm)
    if changed is not None:
        file.write_bytes(bytes(changed))
    elif harm == "swollen":
        monkeypatch.setattr("diptych.utils.cache._MOST_ENTRY", 8)
        assert store.get(digest("a")) is None
        monkeypatch.undo()
        return
    else:
        file.unlink()
        file.mkdir()
    assert store.get(digest("a")) is None
    made = []
    if harm == "a folder":
        with pytest.warns(UserWarning, match="nothing is kept there"):
            Remembered(store=store).of(digest("a"), lambda: made.append(1) or HALF)
        return
    assert same(Remembered(store=store).of(digest("a"), lambda: made.append(1) or HALF))
    assert made == [1] and same(Store(tmp_path).get(digest("a")))


def test_the_oldest_make_room_and_nothing_else_in_the_folder_is_touched(tmp_path: Path):
    store = Store(tmp_path)
    for i in range(8):
        store.put(digest(str(i)), HALF)
        os.utime(store._file(digest(str(i))), (i, i))
    each = store._file(digest("0")).stat().st_size
    (tmp_path / "ab").mkdir(exist_ok=True)
    (tmp_path / "ab" / "notes.txt").write_text("mine" * 1000)
    small = Store(tmp_path, most_bytes=8.5 * each)
    small.put(digest("new"), HALF)
    there = [name for name in [*map(str, range(8)), "new"] if small.get(digest(name))]
    assert there == ["3", "4", "5", "6", "7", "new"]
    assert (tmp_path / "ab" / "notes.txt").exists()
    tiny = Store(tmp_path / "tiny", most_bytes=10)
    tiny.put(digest("a"), HALF)
    assert not (tmp_path / "tiny").exists(), "what can never fit is not written"


def test_where_nothing_can_be_written_it_is_said_once(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    (tmp_path / "file").write_text("in the way")
    remembered = Remembered(most_bytes=0, store=Store(tmp_path / "file"))
    assert same(remembered.of(digest("a"), lambda: HALF)) and same(remembered.of(digest("a"), lambda: HALF))
    assert [str(w.message) for w in recwarn] == [f"{tmp_path / 'file'}: nothing is kept there (Not a directory)"]


def test_memory_has_an_end(tmp_path: Path):
    made, remembered = [], Remembered(most_bytes=16)  # HALF is 16 bytes
    for name in ("a", "a", "b", "b", "a"):
        remembered.of(digest(name), lambda name=name: made.append(name) or HALF)
    assert made == ["a", "b", "a"]


def test_what_was_not_asked_for_longest_goes_first_and_what_can_never_fit_is_not_kept():
    remembered, whole = Remembered(most_bytes=48), {"x": torch.zeros(13)}  # three of 16 bytes; 52
    for name in ("a", "b", "c", "a"):
        remembered.of(digest(name), lambda: HALF)
    remembered.put(digest("c"), HALF)  # anew: it takes no more room
    remembered.put(digest("whole"), whole)
    remembered.put(digest("d"), HALF)
    assert [name for name in "abcd" if remembered.get(digest(name))] == ["a", "c", "d"]
    assert remembered.get(digest("whole")) is None


def test_by_itself_it_takes_a_share_of_what_the_process_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "_GIVEN", tmp_path / "memory.max")
    assert store_module.memory() > 1e8
    (tmp_path / "memory.max").write_text(f"{16 * 32}\n")
    remembered = Remembered()
    for name in "abc":
        remembered.put(digest(name), HALF)
    assert [name for name in "abc" if remembered.get(digest(name))] == ["b", "c"], "32 bytes: two"


def test_a_system_that_does_not_tell_its_memory_is_taken_for_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store_module, "_GIVEN", tmp_path / "memory.max")
    monkeypatch.delattr(store_module.os, "sysconf", raising=False)  # as on Windows
    assert store_module.memory() == 8e9


def write(folder: Path) -> None:
    store = Store(folder)
    for i in range(50):
        found = store.get(digest(str(i)))
        assert found is None or same(found)
        store.put(digest(str(i)), HALF)


def test_several_processes_at_once(tmp_path: Path):
    workers = [get_context("fork").Process(target=write, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert all(same(Store(tmp_path).get(digest(str(i)))) for i in range(50))


def test_where_things_are_kept_can_be_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIPTYCH_CACHE", "here")
    assert default_folder() == Path("here")
    monkeypatch.delenv("DIPTYCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    assert default_folder() == Path("caches/diptych")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(store_module.Path, "home", lambda: Path("home"))
    assert default_folder() == Path("home/.cache/diptych")


def test_a_user_without_a_home_folder_must_name_a_cache(monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("DIPTYCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(store_module.Path, "home", homeless)
    with pytest.raises(ValueError, match="set DIPTYCH_CACHE"):
        default_folder()
