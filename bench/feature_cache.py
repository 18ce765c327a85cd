"""The disk cache of features, compared with one file per entry as in 0.1.0: `python -m bench.feature_cache`

Entries of one half-precision tensor each. Seconds to write them all, and to open the folder and read one entry in a
new process; microseconds per read in random order; memory of the opened cache per entry; files on disk. The two
layouts take turns; medians over rounds. `--files` bounds how many entries the file layout gets: it is slower. The
page cache of the system is warm.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from zlib import crc32

import torch
from safetensors.torch import load, save

from diptych.utils.feature_cache import Arrays, DiskCache, digest

READS = 20_000


class FileCache:
    """One file per key, as in version 0.1.0: a checksum and safetensors, written to a temporary file and renamed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, key: bytes) -> Arrays | None:
        try:
            data = self._file(key).read_bytes()
        except OSError:
            return None
        return load(data[4:]) if data[:4] == crc32(data[4:]).to_bytes(4, "little") else None

    def put(self, key: bytes, arrays: Arrays) -> None:
        body = save({name: value.contiguous() for name, value in arrays.items()})
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_bytes(crc32(body).to_bytes(4, "little") + body)
        part.replace(file)

    def _file(self, key: bytes) -> Path:
        return self.folder / key.hex()[:2] / f"{key.hex()}.seen"


def key(i: int) -> bytes:
    return digest(f"entry {i}")


def resident() -> float:
    """The memory of this process now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def read(make: Callable[[Path], DiskCache | FileCache], folder: Path, entries: int, results: Connection) -> None:
    """Sends the seconds to open and read one entry, bytes of memory per entry, and seconds per read."""
    random.seed(0)
    before, began = resident(), time.perf_counter()
    cache = make(folder)
    assert cache.get(key(entries - 1)) is not None
    opened = time.perf_counter() - began
    memory = resident() - before
    keys = [key(random.randrange(entries)) for _ in range(READS)]
    began = time.perf_counter()
    assert all(cache.get(k) is not None for k in keys)
    results.send((opened, memory / entries, (time.perf_counter() - began) / READS))


def measure(make: Callable[[Path], DiskCache | FileCache], entries: int, numbers: int) -> tuple[float, ...]:
    """Seconds to write, then the values that `read` sends, then the number of files."""
    arrays = {"x": torch.arange(numbers).half()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache, began = make(folder), time.perf_counter()
        for i in range(entries):
            cache.put(key(i), arrays)
        written = time.perf_counter() - began
        del cache
        receiver, sender = get_context("spawn").Pipe(duplex=False)
        reader = get_context("spawn").Process(target=read, args=(make, folder, entries, sender))
        reader.start()
        sender.close()
        measured = receiver.recv()
        reader.join()
        files = sum(len(names) for _, _, names in os.walk(folder))
    return written, *measured, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=100_000, help="entries of the file layout, at most")
    parser.add_argument("--numbers", type=int, default=64, help="of an entry's tensor")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    layouts = {
        "shards": (DiskCache, options.entries),
        "one file an entry": (FileCache, min(options.entries, options.files)),
    }
    measured: dict[str, list[tuple[float, ...]]] = {name: [] for name in layouts}
    for _ in range(options.rounds):
        for name, (make, entries) in layouts.items():
            measured[name].append(measure(make, entries, options.numbers))
    for name, rows in measured.items():
        written, opened, memory, each, files = map(statistics.median, zip(*rows, strict=True))
        entries = layouts[name][1]
        print(
            f"{name}: {entries:,} entries in {files:,.0f} files; write {written:.1f} s "
            f"({1e6 * written / entries:.1f} µs an entry), open {opened:.2f} s, "
            f"{memory:.0f} bytes of memory an entry, get {1e6 * each:.1f} µs",
            flush=True,
        )


if __name__ == "__main__":
    main()
