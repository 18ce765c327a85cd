"""Arrays of numbers from .npz; and what pickles are carried out with (see plain_pickle): numpy's arrays, recognised by the names of what would make them, and
made here; and objects of which the fields alone are read.

What a pickle holds is put into no message unless its type is known: tuples of the same tuple, forty deep, fit in a hundred bytes,
and fill the memory as text.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_ARRAYS = {
    f"numpy.{core}.{name}": kind
    for core in ("core", "_core")
    for name, kind in (
        ("multiarray._reconstruct", "array"),
        ("multiarray.scalar", "scalar"),
        ("numeric._frombuffer", "frombuffer"),
    )
}
KNOWN = _ARRAYS | {"numpy.ndarray": "ndarray", "numpy.dtype": "dtype", "_codecs.encode": "encode"}
KNOWN |= {f"{module}.bytes": "bytes" for module in ("builtins", "__builtin__")}
"""What a pickle may name, and what that is here."""


class NotPlain(ValueError):
    """A pickle that holds anything else than plain values and arrays of numbers."""


@dataclass
class Made:
    """An array, a type of numbers or an object, on its way: `value` is what it will be, of an object its fields."""

    kind: str
    value: Any = None


@dataclass(frozen=True)
class Named:
    """A function or a class that a pickle names; never the thing itself."""

    kind: str


def called(named: Any, arguments: Any) -> Any:
    """What one of the known functions gives. Raises NotPlain."""
    kind = named.kind if isinstance(named, Named) else ""
    if kind == "array" and arguments[0] == Named("ndarray"):
        return Made("array")
    if kind == "dtype":
        return Made("dtype", _numbers(arguments[0]))
    if kind == "scalar":
        return _array(arguments[1], arguments[0], (), False)[()]
    if kind == "frombuffer":
        data, dtype, shape, order = arguments
        return _array(data, dtype, shape, order == "F")
    if kind == "encode" and arguments[1:] == ("latin1",):  # bytes, before pickles had them
        return arguments[0].encode("latin1")
    if kind == "bytes" and arguments == ():
        return b""
    raise NotPlain("it calls something else than numpy's arrays do")


def begun(named: Any, arguments: Any) -> Made:
    """An object without its fields. Raises NotPlain."""
    if named != Named("object") or arguments != ():
        raise NotPlain("it makes something else than an object without arguments")
    return Made("object")


def build(made: Any, state: Any) -> None:
    """Fills what was begun, with the `state` that a pickle gives it. Raises NotPlain."""
    if isinstance(made, Made) and made.kind == "dtype":
        if state[1] not in ("<", ">", "=", "|"):
            raise NotPlain("numbers of an unknown order of bytes")
        made.value = np.dtype(f"{state[1]}{made.value.str[1:]}")
    elif isinstance(made, Made) and made.kind == "array" and made.value is None:
        _, shape, dtype, fortran, data = state
        made.value = _array(data, dtype, shape, bool(fortran))
    elif isinstance(made, Made) and made.kind == "object" and made.value is None and type(state) is dict:
        made.value = state
    else:
        raise NotPlain("it builds something else than an array or an object")


def finished(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Arrays and objects' fields in the place of what they were made by, as deep as published files go: in dicts. `done`: the dicts
    that were finished, by their ids, since a pickle may name one a thousand times.
    """
    done = {} if done is None else done
    if isinstance(value, dict):
        if id(value) not in done:
            done[id(value)] = {key: finished(x, done) for key, x in value.items()}
        return done[id(value)]
    if isinstance(value, Named) or (isinstance(value, Made) and value.kind == "dtype"):
        raise NotPlain("it holds a function or a type")
    return finished(value.value, done) if isinstance(value, Made) else value


def read_npz(file: Path, most: int, leave_out: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of plain values in an .npz that unpacks to no more than `most` bytes, but for those to `leave_out`; members that are no
    arrays are passed over. Each array's header is compared with its member's size before memory is set aside. Raises NotPlain.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > most:
                raise NotPlain(f"unpacks to {unpacked} bytes, more than {most}")
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name in leave_out:
                    continue
                if (array := _read_npy(archive, entry)) is not None:
                    arrays[name] = array
    except NotPlain:
        raise
    except (
        Exception
    ) as error:  # zipfile, zlib and numpy's parser of headers raise anything; some say nothing, hence the kind
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise NotPlain(f"not an .npz of plain numbers ({why})") from None
    return arrays


def _read_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray | None:
    """One array of an .npz; None for a member that is none. Raises ValueError, and what zipfile raises."""
    form, whole = np.lib.format, entry.file_size
    with archive.open(entry) as member:
        start = member.read(8)  # numpy's magic, and the two numbers of the format's version
        if start[:6] != b"\x93NUMPY":
            return None
        read = {1: form.read_array_header_1_0, 2: form.read_array_header_2_0}.get(start[6])
        if read is None:
            raise ValueError(f"{entry.filename}: version {start[6]} of numpy's format, where 1 and 2 are read")
        shape, fortran, dtype = read(member)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds Python objects, which can run code")
        size = math.prod(shape) * dtype.itemsize
        if size > whole or any(side < 0 for side in shape):
            raise ValueError(f"{entry.filename} announces {str(shape)[:80]} of {dtype}, more than its {whole} bytes")
        data = member.read(size)
    if len(data) < size:
        raise ValueError(f"{entry.filename} ends after {len(data)} of {size} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, fortran: bool) -> np.ndarray:
    if not isinstance(dtype, Made) or dtype.kind != "dtype" or not isinstance(data, bytes | bytearray):
        raise NotPlain("an array of something else than numbers")
    if any(type(side) is not int or side < 0 for side in shape) or math.prod(shape) * dtype.value.itemsize != len(data):
        raise NotPlain(f"an array of {len(data)} bytes that do not fill its shape")
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if fortran else "C")


def _numbers(name: Any) -> np.dtype:
    if not isinstance(name, str) or name not in {f"{kind}{n}" for kind in "fiu" for n in (1, 2, 4, 8)} - {"f1"}:
        raise NotPlain(f"an array of {name[:20] if isinstance(name, str) else type(name).__name__!r}")
    return np.dtype(name)
