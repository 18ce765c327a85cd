"""Cached features equal those that were computed; damaged, foreign and removed entries are absent."""

from __future__ import annotations

import os
import pickle
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import diptych.utils.feature_cache as cache_module
from diptych.utils import memory
from diptych.utils.feature_cache import Arrays, DiskCache, MemoryCache, default_folder, digest

HALF = {"grid": torch.arange(6).view(2, 3).half(), "classes": torch.tensor([0.5])}
DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
)


def numbered(i: int) -> Arrays:
    """An entry whose length and content depend on `i`."""
    return {"x": torch.full((i % 7 + 1, 5), float(i))}


def equal(arrays: Arrays | None, expected: Arrays) -> bool:
    return (
        arrays is not None
        and arrays.keys() == expected.keys()
        and all(arrays[k].dtype == x.dtype and torch.equal(arrays[k], x) for k, x in expected.items())
    )


def filled(folder: Path, entries: int) -> DiskCache:
    cache = DiskCache(folder)
    for i in range(entries):
        cache.put(digest(str(i)), numbered(i))
    return cache


def present(cache: DiskCache, entries: int) -> list[int]:
    """The numbers of the entries that are present, each with the right content."""
    stored = {i: arrays for i in range(entries) if (arrays := cache.get(digest(str(i)))) is not None}
    assert all(equal(arrays, numbered(i)) for i, arrays in stored.items())
    return list(stored)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def the_file(folder: Path, suffix: str) -> Path:
    (file,) = folder.glob(f"*.{suffix}")
    return file


def in_processes(*work: Callable[[], object]) -> None:
    """Runs each function in a forked process, all at once; a failed assertion there fails here."""
    workers = [get_context("fork").Process(target=function) for function in work]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * len(work)


def test_digests_distinguish_values_shapes_and_dtypes():
    x = torch.zeros(2, 3)
    parts = [(x,), (x.view(3, 2),), (x.int(),), (x[:, :2],), ("a", x), ("ab",), ("a", "b")]
    digests = [digest(*values) for values in parts]
    assert len(set(digests)) == len(parts) and all(len(key) == 20 for key in digests)
    assert digest(torch.ones(3, 2).T) == digest(torch.ones(2, 3))


def test_digests_of_any_dtype_layout_and_of_parameters():
    x = torch.arange(6.0).view(2, 3)
    keys = {dtype: digest(x.to(dtype)) for dtype in DTYPES}
    assert len(set(keys.values())) == len(DTYPES)
    assert digest(x.bfloat16()) == digest(x.bfloat16().clone()) != digest((x + 1).bfloat16())
    assert digest(torch.nn.Parameter(x)) == digest(x.clone().requires_grad_()) == digest(x)
    assert digest(torch.complex(x, x)) != digest(torch.complex(x, -x)) == digest(torch.complex(x, x).conj())
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(2.0)) and digest(torch.empty(0)) != digest(
        torch.empty(0, 2)
    )


def test_names_that_share_a_tensor_are_written_and_read(tmp_path: Path):
    x = torch.arange(6.0).view(2, 3)
    entries = {"whole": x, "same": x, "row": x[1], "half": x[:1], "turned": x.T, "trained": torch.nn.Parameter(x)}
    DiskCache(tmp_path).put(digest("a"), entries)
    assert equal(DiskCache(tmp_path).get(digest("a")), entries)


def test_another_cache_of_the_same_folder_finds_an_entry_at_once(tmp_path: Path):
    early = DiskCache(tmp_path / "new")
    assert early.get(digest("a")) is None and not (tmp_path / "new").exists()
    DiskCache(tmp_path / "new").put(digest("a"), HALF)
    assert equal(DiskCache(tmp_path / "new").get(digest("a")), HALF)
    early.refresh()
    assert equal(early.get(digest("a")), HALF) and len(early) == 1
    assert equal(pickle.loads(pickle.dumps(early)).get(digest("a")), HALF)


def test_a_missing_key_is_looked_up_again_after_a_while(tmp_path: Path):
    reader, deadline = DiskCache(tmp_path), time.monotonic() + 30
    assert reader.get(digest("0")) is None
    filled(tmp_path, 1)
    while reader.get(digest("0")) is None:
        assert time.monotonic() < deadline
    assert present(reader, 1) == [0]


def test_a_cache_may_be_used_after_it_was_closed(tmp_path: Path):
    cache = filled(tmp_path, 3)
    assert present(cache, 3) == [0, 1, 2]
    cache.close()
    cache.put(digest("3"), numbered(3))
    assert present(cache, 4) == present(DiskCache(tmp_path), 4) == [0, 1, 2, 3]


def test_a_key_of_another_length_raises(tmp_path: Path):
    with pytest.raises(ValueError, match="a key of 3 bytes; expected the 20 bytes of digest"):
        DiskCache(tmp_path).put(b"abc", HALF)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    values = torch.arange(1000)[: int(torch.tensor(shape).prod())].view(shape)
    return (values - 100).to(dtype).transpose(0, -1) if shape else torch.tensor(draw(st.integers(0, 1))).to(dtype)


@given(st.lists(st.dictionaries(st.text(min_size=1, max_size=5), tensors(), max_size=3), min_size=1, max_size=5))
@settings(max_examples=25)
def test_every_dtype_and_shape_is_read_back(entries: list[Arrays]):
    entries = [{name: x for name, x in entry.items() if name != "__metadata__"} for entry in entries]
    with tempfile.TemporaryDirectory() as folder:
        cache = DiskCache(Path(folder))
        for i, entry in enumerate(entries):
            cache.put(digest(str(i)), entry)
        for other in (cache, DiskCache(Path(folder))):
            assert all(equal(other.get(digest(str(i))), entry) for i, entry in enumerate(entries))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The two files of a shard of eight entries, by name."""
    folder = tmp_path_factory.mktemp("shard")
    filled(folder, 8).close()
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def damaged(shard: dict[str, bytes], suffix: str, damage: Callable[[bytes], bytes]) -> list[int]:
    """The entries that remain after one file was damaged, and after the others were written again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, data in shard.items():
            (folder / file).write_bytes(damage(data) if file.endswith(suffix) else data)
        cache = DiskCache(folder)
        left = present(cache, 8)
        for i in set(range(8)) - set(left):
            cache.put(digest(str(i)), numbered(i))
        assert present(cache, 8) == present(DiskCache(folder), 8) == list(range(8))
        return left


@pytest.mark.quick("data")
@pytest.mark.parametrize("suffix", ["index", "data"])
def test_a_truncated_shard_has_the_entries_before_the_cut(shard: dict[str, bytes], suffix: str):
    """At every byte of the index, and at every 29th of the data."""
    (length,) = (len(data) for name, data in shard.items() if name.endswith(suffix))
    counts = []
    for cut in range(0, length, 1 if suffix == "index" else 29):
        left = damaged(shard, suffix, lambda data, cut=cut: data[:cut])
        counts.append(len(left))
        assert left == list(range(len(left)))
    assert counts == sorted(counts) and set(counts) == set(range(8))


@given(st.sampled_from(["index", "data"]), st.integers(0, 2**16), st.integers(0, 7))
@settings(max_examples=40)
def test_a_flipped_bit_loses_at_most_one_entry(shard: dict[str, bytes], suffix: str, position: int, bit: int):
    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position % len(data)] ^= 1 << bit
        return bytes(changed)

    assert len(damaged(shard, suffix, flip)) == 7


def test_a_record_that_was_changed_is_not_read(shard: dict[str, bytes], tmp_path: Path):
    """With the key of another entry in its record, an entry would be the right bytes under the wrong key."""
    for file, data in shard.items():
        keyless = bytearray(data)
        if file.endswith("index"):
            keyless[:20] = digest("another")
        (tmp_path / file).write_bytes(bytes(keyless))
    cache = DiskCache(tmp_path)
    assert cache.get(digest("another")) is None and len(cache) == 7
    assert present(cache, 8) == list(range(1, 8))


def test_no_record_is_appended_to_a_torn_one(tmp_path: Path):
    """A full disk may leave part of a record: one that follows it would be at no multiple of the record's length."""
    cache = filled(tmp_path, 2)
    index = the_file(tmp_path, "index")
    with index.open("ab") as file:
        file.write(b"torn")
    cache.put(digest("2"), numbered(2))
    assert len(list(tmp_path.glob("*.index"))) == 2, "the writer has begun another shard"
    assert present(DiskCache(tmp_path), 3) == [0, 1, 2]


@given(st.sampled_from(["index", "data"]), st.binary(max_size=400), st.integers(0, 400))
@example("data", b"cos\nsystem\n(S'false'\ntR.", 0)
@example("index", b"\0" * 40 * 8, 0)
@settings(max_examples=25)
def test_foreign_bytes_are_never_an_entry(shard: dict[str, bytes], suffix: str, foreign: bytes, at: int):
    damaged(shard, suffix, lambda data: data[:at] + foreign + data[at + len(foreign) :])


def test_a_record_of_more_bytes_than_an_entry_may_have_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filled(tmp_path, 1)
    monkeypatch.setattr(cache_module, "_MAX_ENTRY", 8)
    assert DiskCache(tmp_path).get(digest("0")) is None
    DiskCache(tmp_path / "none").put(digest("0"), HALF)
    assert not (tmp_path / "none").exists(), "an entry that cannot be read is not written"


def test_an_index_is_read_only_up_to_the_records_that_a_shard_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filled(tmp_path, 5)
    monkeypatch.setattr(cache_module, "_MAX_RECORDS", 3)
    cache = DiskCache(tmp_path)
    assert present(cache, 5) == [0, 1, 2]
    for i in range(3, 8):
        cache.put(digest(str(i)), numbered(i))
    assert len(list(tmp_path.glob("*.index"))) == 3, "a full shard is followed by another"
    assert present(DiskCache(tmp_path), 8) == list(range(8))


@pytest.mark.parametrize("suffix", ["index", "data"])
def test_a_folder_in_place_of_a_file_is_absent(tmp_path: Path, suffix: str):
    filled(tmp_path, 2).close()
    file = the_file(tmp_path, suffix)
    file.unlink()
    file.mkdir()
    cache = DiskCache(tmp_path)
    assert present(cache, 2) == []
    cache.put(digest("0"), numbered(0))
    assert present(DiskCache(tmp_path), 2) == [0]


@pytest.mark.slow
def test_the_oldest_shards_are_removed_first_and_no_other_file_is_changed(tmp_path: Path):
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "notes.txt").write_text("mine" * 1000)
    (tmp_path / "mine.data").write_text("mine")
    theirs, bound = 4004, 30_000
    cache, reader = DiskCache(tmp_path, bound), DiskCache(tmp_path, bound)
    for i in range(500):
        cache.put(digest(str(i)), numbered(i))
        reader.refresh()
        assert size(tmp_path) - theirs <= bound
    left = present(cache, 500)
    assert 50 < len(left) < 250 and left == list(range(500 - len(left), 500))
    assert present(reader, 500) == present(DiskCache(tmp_path), 500) == left
    assert len(cache) == len(reader) == len(left), "locations of removed entries are forgotten"
    assert (tmp_path / "ab" / "notes.txt").exists() and (tmp_path / "mine.data").exists()


def test_an_entry_that_can_never_fit_is_not_written(tmp_path: Path):
    DiskCache(tmp_path / "tiny", max_bytes=10).put(digest("a"), HALF)
    assert not (tmp_path / "tiny").exists()


def test_files_of_version_0_1_are_not_read_and_are_removed_first(tmp_path: Path):
    old = [tmp_path / key[:2] / f"{key}.seen" for key in (digest(str(i)).hex() for i in range(20))]
    for file in old:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * 1000)
    cache = DiskCache(tmp_path, max_bytes=24_000)
    assert present(cache, 20) == []
    for i in range(40):
        cache.put(digest(str(i)), numbered(i))
    assert present(cache, 40) == list(range(40)) and 0 < sum(file.exists() for file in old) < 20
    for i in range(40, 400):
        cache.put(digest(str(i)), numbered(i))
    assert not any(file.exists() for file in old) and size(tmp_path) <= 24_000


def test_a_shard_can_be_read_while_it_is_open_and_is_absent_later(tmp_path: Path):
    reader = filled(tmp_path, 3)
    assert present(reader, 1) == [0]
    for file in tmp_path.iterdir():
        file.unlink()
    assert present(reader, 3) == [0, 1, 2]
    reader.refresh()
    assert present(reader, 3) == []
    reader.put(digest("3"), numbered(3))
    assert present(DiskCache(tmp_path), 4) == [3], "its writer has started another"


def test_entries_of_a_removed_shard_are_absent(tmp_path: Path):
    filled(tmp_path, 3).close()
    reader = DiskCache(tmp_path)
    reader.refresh()
    for file in tmp_path.iterdir():
        file.unlink()
    assert len(reader) == 3 and present(reader, 3) == []


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_module, "_MAX_OPEN", 2)
    monkeypatch.setattr(cache_module, "_MAX_RECORDS", 1)
    before, cache = len(os.listdir("/proc/self/fd")), filled(tmp_path, 10)
    assert present(cache, 10) == present(cache, 10) == list(range(10))
    assert len(os.listdir("/proc/self/fd")) == before + 2 + 2, "two for reading, and the shard being written"
    cache.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_cannot_be_written_gives_one_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    (tmp_path / "file").write_text("in the way")
    cache = MemoryCache(max_bytes=0, disk=DiskCache(tmp_path / "file"))
    for key in ("a", "a", "b"):
        assert equal(cache.get_or_compute(digest(key), lambda: HALF), HALF)
    reason = "cannot write cached features (File exists); they will be computed again in later runs"
    assert [str(w.message) for w in recwarn] == [f"{tmp_path / 'file'}: {reason}"]


def read_without_permission(folder: Path) -> None:
    if os.geteuid() == 0:
        os.setresuid(65534, 65534, 65534)  # root may write everywhere
    cache = DiskCache(folder)
    assert present(cache, 3) == [0, 1, 2]
    with pytest.warns(UserWarning, match="Permission denied") as warned:
        for i in (3, 4):
            cache.put(digest(str(i)), numbered(i))
    assert len(warned) == 1 and present(cache, 5) == [0, 1, 2]


def test_a_read_only_folder_is_read_with_one_warning():
    with tempfile.TemporaryDirectory() as folder:
        filled(Path(folder), 3).close()
        Path(folder).chmod(0o555)
        in_processes(lambda: read_without_permission(Path(folder)))
        Path(folder).chmod(0o755)


def write_to_a_full_disk(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with pytest.warns(UserWarning, match="File too large") as warned:
        cache = filled(folder, 20)
    written = present(cache, 20)
    assert len(warned) == 1 and 0 < len(written) < 20


def test_a_full_disk_gives_one_warning_and_keeps_earlier_entries(tmp_path: Path):
    in_processes(lambda: write_to_a_full_disk(tmp_path))
    left = present(DiskCache(tmp_path), 20)
    assert left and left == list(range(len(left)))


def read_and_write(folder: Path, seed: int, max_bytes: float = 8e9) -> None:
    cache, draw = DiskCache(folder, max_bytes), random.Random(seed)
    for _ in range(300):
        i = draw.randrange(100)
        cached = cache.get(digest(str(i)))
        assert cached is None or equal(cached, numbered(i))
        if cached is None:
            cache.put(digest(str(i)), numbered(i))
            assert equal(cache.get(digest(str(i))), numbered(i)) or max_bytes < 8e9


@pytest.mark.slow
@pytest.mark.parametrize("bound", [8e9, 20_000], ids=["unbounded", "evicting"])
def test_several_processes_read_and_write_at_once(tmp_path: Path, bound: float):
    in_processes(*(lambda seed=seed: read_and_write(tmp_path, seed, bound) for seed in range(4)))
    left = present(DiskCache(tmp_path), 100)
    assert len(left) > 90 if bound == 8e9 else left
    assert size(tmp_path) <= bound + 4 * bound / 16, "each process may exceed it by a shard"


def test_a_forked_process_does_not_write_to_its_parents_shard(tmp_path: Path):
    """Parent and child continue to read and write after the fork, as data workers do."""
    cache = filled(tmp_path, 4)
    assert present(cache, 4) == [0, 1, 2, 3]

    def child() -> None:
        for i in range(4, 40):
            cache.put(digest(str(i)), numbered(i))
            assert present(cache, 5) == [0, 1, 2, 3, 4]

    worker = get_context("fork").Process(target=child)
    worker.start()
    for i in range(40, 80):
        cache.put(digest(str(i)), numbered(i))
        assert set(present(cache, 4)) == {0, 1, 2, 3}
    worker.join(60)
    assert worker.exitcode == 0 and len(list(tmp_path.glob("*.index"))) == 2
    cache.refresh()
    assert present(cache, 80) == present(DiskCache(tmp_path), 80) == list(range(80))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_ended_loses_at_most_the_entry_that_it_was_writing(tmp_path: Path, how: signal.Signals):
    """The process sends the number of each entry through a pipe once it is written."""
    for trial in range(5):
        folder = tmp_path / str(trial)
        receiver, sender = get_context("fork").Pipe(duplex=False)

        def write(folder: Path = folder, sender=sender) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts with "&"
            cache = DiskCache(folder)
            for i in range(100_000):
                cache.put(digest(str(i)), numbered(i))
                sender.send(i)

        worker = get_context("fork").Process(target=write)
        worker.start()
        sender.close()
        written = [receiver.recv() for _ in range(20 + 37 * trial)]
        os.kill(worker.pid or 0, how)
        try:
            while True:
                written.append(receiver.recv())
        except EOFError:
            worker.join(60)
        left = present(DiskCache(folder), len(written) + 2)
        assert worker.exitcode and len(left) - len(written) in (0, 1) and left == list(range(len(left)))


def test_the_least_recently_used_are_evicted_first_and_too_large_entries_are_not_stored():
    cache, large = MemoryCache(max_bytes=48), {"x": torch.zeros(13)}  # three of 16 bytes; 52
    for name in ("a", "b", "c", "a"):
        cache.get_or_compute(digest(name), lambda: HALF)
    cache.put(digest("c"), HALF)  # written again: it takes no more space
    cache.put(digest("large"), large)
    cache.put(digest("d"), HALF)
    assert [name for name in "abcd" if cache.get(digest(name))] == ["a", "c", "d"]
    assert cache.get(digest("large")) is None


def computing(computed: list[str], name: str) -> Arrays:
    computed.append(name)
    return HALF


def test_entries_evicted_from_memory_are_read_from_disk_or_computed_again(tmp_path: Path):
    for disk, expected in ((None, ["a", "b", "a"]), (DiskCache(tmp_path), ["a", "b"])):
        computed, cache = [], MemoryCache(max_bytes=16, disk=disk)  # HALF is 16 bytes
        for name in ("a", "a", "b", "b", "a"):
            assert equal(cache.get_or_compute(digest(name), partial(computing, computed, name)), HALF)
        assert computed == expected


def test_the_default_bound_is_a_share_of_the_memory_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", tmp_path / "memory.max")
    assert memory.available_memory() > 1e8
    (tmp_path / "memory.max").write_text(f"{16 * 32}\n")
    cache = MemoryCache()
    for name in "abc":
        cache.put(digest(name), HALF)
    assert [name for name in "abc" if cache.get(digest(name))] == ["b", "c"], "32 bytes: two"


def test_the_default_for_a_system_of_unknown_memory_is_8_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", tmp_path / "memory.max")
    monkeypatch.delattr(memory.os, "sysconf", raising=False)  # as on Windows
    assert memory.available_memory() == 8e9


def test_the_default_folder_is_that_of_the_environment_or_the_user(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIPTYCH_CACHE", "here")
    assert default_folder() == Path("here")
    monkeypatch.delenv("DIPTYCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    assert default_folder() == Path("caches/diptych")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(cache_module.Path, "home", lambda: Path("home"))
    assert default_folder() == Path("home/.cache/diptych")


def test_a_user_without_a_home_folder_must_name_a_cache(monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("DIPTYCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache_module.Path, "home", homeless)
    with pytest.raises(ValueError, match="set DIPTYCH_CACHE"):
        default_folder()
