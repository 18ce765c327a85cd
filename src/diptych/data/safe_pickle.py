"""Arrays of numbers from .npz; and what pickles are carried out with (see plain_pickle): numpy's arrays, recognised by the names of what would make them, and
made here; and objects of which the fields alone are read.

What a pickle holds is put into no message unless its type is known: tuples of the same tuple, forty deep, fit in a hundred bytes,
and fill the memory as text.

The opcodes of a pickle that only move plain values, carried out for readers that judge all others themselves.

A pickle is a program that may name any function and call it. Nothing is imported or called here.

Pickles of plain values and numbers, read without running any of them.

A pickle is a program: it may name any function of the machine and call it. Here its opcodes are carried out by hand, and the few
functions that numpy's own arrays name are recognised by their names and done here; nothing is ever imported or called.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

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
        data = bytearray(member.read(size))
        if len(data) < size:
            raise ValueError(f"{entry.filename} ends after {len(data)} of {size} bytes")
        if member.read(1):
            raise ValueError(f"{entry.filename} goes on after the {size} bytes of {str(shape)[:80]} of {dtype}")
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


MOST_OPCODES = 1_000_000
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8",
}  # fmt: skip
_MARK = Named("mark")


def opcodes(pickle: bytes | io.BytesIO | mmap.mmap, error: type[ValueError]) -> Iterator[tuple[str, Any]]:
    """The name and the argument of each opcode before STOP. Raises `error` past MOST_OPCODES, ValueError for a broken pickle."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast("bytes | IO[bytes]", pickle))):
        if count > MOST_OPCODES:
            raise error(f"a pickle of more than {MOST_OPCODES} opcodes")
        if opcode.name == "STOP":
            return
        yield opcode.name, argument


class PickleStack:
    """The stack and the memo on which a pickle's opcodes work. `error` is raised for places of the memo beyond all use."""

    def __init__(self, error: type[ValueError]) -> None:
        self.error = error
        self.values: list[Any] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> bool:
        """Carries out an opcode that pushes a value, makes a tuple or a list, or uses the memo; False for any other."""
        values = self.values
        if name in _VALUES:
            values.append(argument)
        elif name == "MARK":
            values.append(_MARK)
        elif name in _CONSTANTS:
            values.append(_CONSTANTS[name])
        elif name in _EMPTY:
            values.append(_EMPTY[name]())
        elif name in _TUPLES:
            values[-_TUPLES[name] :] = [tuple(values[-_TUPLES[name] :])]
        elif name in ("TUPLE", "LIST"):
            values.append((tuple if name == "TUPLE" else list)(self.since_mark()))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            place = len(self.memo) if argument is None else int(argument)
            if not 0 <= place < MOST_OPCODES:  # places of one hash would take quadratic time
                raise self.error(f"it keeps something at a place beyond {MOST_OPCODES}")
            self.memo[place] = values[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            values.append(self.memo[int(argument)])
        else:
            return name in ("PROTO", "FRAME")
        return True

    def mark(self) -> int:
        """The place of the last mark."""
        return next(i for i in reversed(range(len(self.values))) if self.values[i] is _MARK)

    def since_mark(self) -> list[Any]:
        """The values above the last mark, taken off the stack with it."""
        at = self.mark()
        items = self.values[at + 1 :]
        del self.values[at:]
        return items

    def items(self, name: str) -> list[Any]:
        """What APPEND(S) or SETITEM(S) puts into the list or dict that is on top of the stack then, taken off the stack."""
        if name.endswith("S"):
            return self.since_mark()
        return [self.values.pop() for _ in range(1 if name == "APPEND" else 2)][::-1]

    def global_name(self, argument: str | None) -> tuple[Any, Any]:
        """The module and the name in it that GLOBAL or STACK_GLOBAL names; of the latter whatever stands on the stack."""
        if argument:
            module, _, name = argument.partition(" ")
            return module, name
        name = self.values.pop()
        return self.values.pop(), name


MOST_KEY = 2**60  # Python hashes integers modulo 2**61 - 1
_KEYS = (str, bytes, int, bool, type(None))


def read_plain(data: bytes, objects: Collection[str] = ()) -> Any:
    """What a pickle holds: None, numbers, strings, bytes, lists, tuples, dicts (see _pairs for their keys) and arrays of numbers;
    of `objects`, classes by their full names ("vocab.Vocabulary"), the fields as a dict. It takes memory in proportion to the
    pickle, however often that names one thing. Raises NotPlain.
    """
    machine = _Machine(dict.fromkeys(objects, "object") | KNOWN, len(data))
    try:
        for name, argument in opcodes(data, NotPlain):
            machine.do(name, argument)
        (result,) = machine.stack.values
        return finished(result)
    except NotPlain:
        raise
    except Exception as error:
        raise NotPlain(f"broken ({type(error).__name__})") from None


class _Machine:
    """Carries out opcodes. `known`: what a pickle may name; `room`: bytes that its calls may make."""

    def __init__(self, known: dict[str, str], room: int) -> None:
        self.known, self.room = known, room
        self.stack = PickleStack(NotPlain)

    def do(self, name: str, argument: Any) -> None:
        """One opcode. Raises NotPlain."""
        if self.stack.do(name, argument):
            return
        values = self.stack.values
        if name == "DICT":
            values.append(_pairs(self.stack.since_mark()))
        elif name in ("APPENDS", "APPEND", "SETITEMS", "SETITEM"):
            self._fill(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if (full := ".".join(map(str, self.stack.global_name(argument)))) not in self.known:
                raise NotPlain(f"it names {full[:60]!r}, which could run code")
            values.append(Named(self.known[full]))
        elif name == "REDUCE":
            arguments = values.pop()
            values.append(called(values.pop(), arguments))
            if isinstance(values[-1], bytes):  # of one text a thousand times the same
                self.room -= len(values[-1])
                if self.room < 0:
                    raise NotPlain("it makes more bytes than it has")
        elif name == "NEWOBJ":
            arguments = values.pop()
            values.append(begun(values.pop(), arguments))
        elif name == "BUILD":
            state = values.pop()
            build(values[-1], state)
        else:
            raise NotPlain(f"it uses {name}")

    def _fill(self, name: str) -> None:
        items, into = self.stack.items(name), self.stack.values[-1]
        if name.startswith("APPEND") and type(into) is list:
            into.extend(items)
        elif name.startswith("SETITEM") and type(into) is dict:
            into.update(_pairs(items))
        else:
            raise NotPlain("it fills something else than a list or a dict")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """A dict of keys and values in turn. Keys are strings, bytes, None, and integers below MOST_KEY: from there on, integers,
    and any floating-point number, may have one hash in their thousands, and a tuple of tuples takes for ever to hash.
    """
    for key in items[::2]:
        if type(key) not in _KEYS:
            raise NotPlain(f"it has a {type(key).__name__ if type(key) in (float, tuple) else 'value'} for a key")
        if type(key) is int and abs(key) >= MOST_KEY:
            raise NotPlain(f"it has an integer for a key that is not below 2**{MOST_KEY.bit_length() - 1}; number anew")
    return dict(zip(items[::2], items[1::2], strict=True))
