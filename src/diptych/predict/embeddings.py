"""Files of embeddings: float32 vectors in .npz, .npy or .safetensors, with a row for each image or text beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from diptych.inference.saved_model import RunError
from diptych.predict.rows import Row, RowFile, open_rows, refuse_unknown
from diptych.utils.io import DamagedFile, atomic_write, naming_write_errors

SUFFIXES = (".npz", ".npy", ".safetensors")
VECTORS = "vectors"  # name of the array in .npz and .safetensors
_ADVICE = "remove both to compute them again"
HEADER = 4  # bytes at the beginning of FILE.part: the dimension of its vectors, uint32


class EmbeddingFile:
    """Rows with a "vector" (float32, ``(d,)``): the vectors go to one file, the rows to ``FILE.jsonl`` beside it.

    There, "row" takes the vector's place: its index in the file, where vectors are in the order in which they were
    computed. Rows with an "error" have none. Until `finish`, the vectors are in ``FILE.part``. See `rows.RowFile` for
    what is continued and what is refused.

    Raises:
        RunError: vectors that ``FILE.jsonl`` lists are missing. DamagedFile: it does not list each once.
    """

    def __init__(self, path: Path, rows: RowFile):
        self.path, self.rows = path, rows
        self.part = part_file(path)
        self.number = len(self._names())
        if self.number and not self.part.exists() and not path.exists():
            raise RunError(f"{path} is missing, whose vectors {rows.path} lists: restore it, or remove {rows.path}")

    @property
    def done(self) -> Counter[str]:
        return self.rows.done

    @property
    def failed(self) -> Counter[str]:
        return self.rows.failed

    def write(self, rows: Sequence[Row]) -> None:
        vectors = [row["vector"] for row in rows if "vector" in row]
        if vectors:
            self._append(np.stack(vectors).astype("<f4"))
        numbered = []
        for row in rows:
            index = {"row": self.number} if "vector" in row else {}
            self.number += "vector" in row
            numbered.append({name: value for name, value in row.items() if name != "vector"} | index)
        self.rows.write(numbered)

    def arrange(self, names: Sequence[str]) -> None:
        """Arranges the rows as `RowFile.arrange` does; the vectors stay where they are."""
        self.rows.arrange(names)

    def finish(self) -> None:
        """Writes the vectors, if some were added, as an array ``(n, d)`` into their file.

        Raises WriteError, and DamagedFile if some are missing.
        """
        if not self.part.exists() or not self.number:
            return
        with self.part.open("rb") as file:
            dim = self._dimension(file)
            vectors = np.fromfile(file, "<f4", self.number * dim).reshape(self.number, dim)
        with atomic_write(self.path) as partial:
            _save(partial, self.path.suffix, vectors, f"{self.rows.key}s", self._names())
        self.part.unlink()

    def _names(self) -> list[str]:
        """The name of each vector, in their order. Raises DamagedFile unless the rows number them from 0, each once."""
        numbered = [(row.get("row"), row[self.rows.key]) for row, _ in self.rows.rows() if "error" not in row]
        names = {index: name for index, name in numbered if type(index) is int}
        if names.keys() != set(range(len(numbered))):
            raise DamagedFile(
                f'{self.rows.path}: expected each "row" from 0 to {len(numbered) - 1} once; restore it, or give another '
                "--out"
            )
        return [names[i] for i in range(len(numbered))]

    def _append(self, vectors: np.ndarray) -> None:
        with naming_write_errors(self.part):
            if not self.part.exists():
                known = load_vectors(self.path) if self.number else vectors[:0]
                with atomic_write(self.part) as partial:
                    partial.write_bytes(np.uint32(known.shape[1]).astype("<u4").tobytes() + known.tobytes())
            with self.part.open("r+b") as file:
                if (dim := self._dimension(file)) != vectors.shape[1]:
                    raise DamagedFile(
                        f"{self.part}: expected vectors of dimension {vectors.shape[1]}, got {dim}; remove it and "
                        f"{self.rows.path} to compute them again"
                    )
                end = HEADER + self.number * dim * vectors.itemsize
                file.truncate(end)  # vectors of rows whose write was interrupted
                file.seek(end)
                file.write(vectors.tobytes())

    def _dimension(self, file: BinaryIO) -> int:
        """The dimension of the vectors in ``FILE.part``, read up to the first. Raises DamagedFile if some are missing."""
        size = file.seek(0, 2)
        file.seek(0)
        dim = int.from_bytes(file.read(HEADER), "little")
        if not dim or size < HEADER + self.number * dim * 4:
            raise DamagedFile(f"{self.part}: fewer vectors than {self.rows.path} lists; {_ADVICE}")
        return dim


@contextmanager
def open_embeddings(out: str, settings: Mapping[str, Any], key: str) -> Iterator[EmbeddingFile]:
    """The embeddings of the file `out`, locked. Raises RunError, DamagedFile, InUse."""
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise RunError(f"--out must be a file of one of {', '.join(SUFFIXES)}: got {out!r}")
    beside = rows_file(path)
    refuse_unknown(path, beside)
    with open_rows(str(beside), settings, key) as rows:
        assert isinstance(rows, RowFile)
        yield EmbeddingFile(path, rows)


def rows_file(path: Path) -> Path:
    """The JSON Lines file beside a file of embeddings."""
    return path.with_name(f"{path.name}.jsonl")


def part_file(path: Path) -> Path:
    """The file with the vectors of a file of embeddings until it is complete."""
    return path.with_name(f"{path.name}.part")


def load_vectors(path: Path) -> np.ndarray:
    """The vectors ``(n, d)`` float32 in a file of embeddings. Raises DamagedFile."""
    vectors = None
    with suppress(OSError, ValueError, KeyError, SafetensorError):
        if path.suffix == ".safetensors":
            vectors = load_file(path)[VECTORS]
        else:
            content = np.load(path, allow_pickle=False)
            vectors = content[VECTORS] if path.suffix == ".npz" else content
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype != np.float32:
        raise DamagedFile(f"{path}: expected float32 vectors (n, d); restore the file, or give another --out")
    return vectors


def _save(path: Path, suffix: str, vectors: np.ndarray, names_key: str, names: list[str]) -> None:
    """Writes vectors to a file; .npz holds the names of the images or texts, too."""
    if suffix == ".safetensors":
        save_file({VECTORS: vectors}, path)
        return
    with path.open("wb") as file:  # numpy would add a suffix to a path
        if suffix == ".npz":
            arrays: dict[str, Any] = {VECTORS: vectors, names_key: np.array(names)}
            np.savez(file, **arrays)
        else:
            np.save(file, vectors)
