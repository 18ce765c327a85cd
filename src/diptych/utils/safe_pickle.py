"""Safe reading of pickles of plain values and of .npz files, without running any code from them.

A pickle is a program that may name any function and call it. Here its opcodes are interpreted by hand: those that move
plain values are executed, numpy's arrays are recognised by the names of the functions that would construct them, and of
allowed classes only the fields are read. Nothing is imported or called.

Error messages never contain values of unknown type: nested tuples of the same tuple, forty deep, fit in a hundred bytes
and would fill the memory as text.
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
"""Global names that a pickle may contain, and the kind of each."""


class NotPlain(ValueError):
    """A file that contains anything other than plain values and arrays of numbers."""


@dataclass
class Made:
    """An array, a dtype or an object under construction;

    `value` is the result, for an object the dict of its fields.
    """

    kind: str
    value: Any = None


@dataclass(frozen=True)
class Named:
    """Stands for a function or class that a pickle names; never the thing itself."""

    kind: str


def call(named: Any, arguments: Any) -> Any:
    """Result of calling one of the known functions. Raises NotPlain."""
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
    raise NotPlain("it calls a function other than those of numpy's arrays")


def new_object(named: Any, arguments: Any) -> Made:
    """An object of an allowed class, without its fields yet. Raises NotPlain."""
    if named != Named("object") or arguments != ():
        raise NotPlain("it constructs something other than an object without arguments")
    return Made("object")


def build(made: Any, state: Any) -> None:
    """Sets the `state` of an array, dtype or object under construction. Raises NotPlain."""
    if isinstance(made, Made) and made.kind == "dtype":
        if state[1] not in ("<", ">", "=", "|"):
            raise NotPlain("a dtype of unknown byte order")
        made.value = np.dtype(f"{state[1]}{made.value.str[1:]}")
    elif isinstance(made, Made) and made.kind == "array" and made.value is None:
        _, shape, dtype, fortran, data = state
        made.value = _array(data, dtype, shape, bool(fortran))
    elif isinstance(made, Made) and made.kind == "object" and made.value is None and type(state) is dict:
        made.value = state
    else:
        raise NotPlain("it builds something other than an array or an object")


def resolve(value: Any, done: dict[int, Any] | None = None) -> Any:
    """The value with constructed arrays and fields instead of `Made`, as deep within dicts as published files go.

    `done`: finished dicts by id, because a pickle may refer to one a thousand times. Raises NotPlain.
    """
    done = {} if done is None else done
    if isinstance(value, dict):
        if id(value) not in done:
            done[id(value)] = {key: resolve(x, done) for key, x in value.items()}
        return done[id(value)]
    if isinstance(value, Named) or (isinstance(value, Made) and value.kind == "dtype"):
        raise NotPlain("it contains a function or a type")
    return resolve(value.value, done) if isinstance(value, Made) else value


def read_npz(file: Path, max_bytes: int, leave_out: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Arrays of plain values in an .npz of at most `max_bytes` bytes unpacked, except those named in `leave_out`.

    Members that are not arrays are skipped. Each array's header is checked against its member's size before memory is
    allocated. Raises NotPlain.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > max_bytes:
                raise NotPlain(f"unpacks to {unpacked} bytes, more than {max_bytes}")
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name in leave_out:
                    continue
                if (array := _read_npy(archive, entry)) is not None:
                    arrays[name] = array
    except NotPlain:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header parser raise any type, some without a message
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise NotPlain(f"not an .npz of plain numbers ({why})") from None
    return arrays


def _read_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray | None:
    """One array of an .npz; None for a member that is not an array. Raises ValueError, and what zipfile raises."""
    form, whole = np.lib.format, entry.file_size
    with archive.open(entry) as member:
        start = member.read(8)  # numpy's magic string and the format's major and minor version
        if start[:6] != b"\x93NUMPY":
            return None
        read = {1: form.read_array_header_1_0, 2: form.read_array_header_2_0}.get(start[6])
        if read is None:
            raise ValueError(f"{entry.filename}: expected version 1 or 2 of numpy's format, got {start[6]}")
        shape, fortran, dtype = read(member)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} contains Python objects, which can run code")
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
        raise NotPlain("an array of something other than numbers")
    if any(type(side) is not int or side < 0 for side in shape) or math.prod(shape) * dtype.value.itemsize != len(data):
        raise NotPlain(f"an array whose {len(data)} bytes do not match its shape")
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if fortran else "C")


def _numbers(name: Any) -> np.dtype:
    if not isinstance(name, str) or name not in {f"{kind}{n}" for kind in "fiu" for n in (1, 2, 4, 8)} - {"f1"}:
        raise NotPlain(f"an array of {name[:20] if isinstance(name, str) else type(name).__name__!r}")
    return np.dtype(name)


MAX_OPCODES = 1_000_000
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_MARK = Named("mark")


def opcodes(
    pickle: bytes | io.BytesIO | mmap.mmap, error: type[ValueError], limit: int = MAX_OPCODES
) -> Iterator[tuple[str, Any]]:
    """Name and argument of each opcode before STOP.

    Raises `error` after `limit` opcodes, ValueError for a broken pickle.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast("bytes | IO[bytes]", pickle))):
        if count > limit:
            raise error(f"a pickle of more than {limit} opcodes")
        if opcode.name == "STOP":
            return
        yield opcode.name, argument


class PickleStack:
    """The stack and memo of a pickle machine. Raises `error` for memo indices from `limit` on."""

    def __init__(self, error: type[ValueError], limit: int = MAX_OPCODES) -> None:
        self.error, self.limit = error, limit
        self.values: list[Any] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> bool:
        """Executes an opcode that pushes a value, makes a tuple or list, or uses the memo; False for any other."""
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
            index = len(self.memo) if argument is None else int(argument)
            if not 0 <= index < self.limit:  # colliding hashes would take quadratic time
                raise self.error(f"it uses a memo index beyond {self.limit}")
            self.memo[index] = values[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            values.append(self.memo[int(argument)])
        else:
            return name in ("PROTO", "FRAME")
        return True

    def mark(self) -> int:
        """Index of the last mark."""
        return next(i for i in reversed(range(len(self.values))) if self.values[i] is _MARK)

    def since_mark(self) -> list[Any]:
        """Pops the last mark and the values above it; returns the values."""
        at = self.mark()
        items = self.values[at + 1 :]
        del self.values[at:]
        return items

    def items(self, name: str) -> list[Any]:
        """Pops the operands of APPEND(S) or SETITEM(S), which go into the list or dict then on top of the stack."""
        if name.endswith("S"):
            return self.since_mark()
        return [self.values.pop() for _ in range(1 if name == "APPEND" else 2)][::-1]

    def global_name(self, argument: str | None) -> tuple[Any, Any]:
        """Module and name of GLOBAL or STACK_GLOBAL; for the latter they are popped and may be of any type."""
        if argument:
            module, _, name = argument.partition(" ")
            return module, name
        name = self.values.pop()
        return self.values.pop(), name


MAX_KEY = 2**60  # Python hashes integers modulo 2**61 - 1
_KEYS = (str, bytes, int, bool, type(None))


def read_plain(data: bytes, objects: Collection[str] = (), max_opcodes: int = MAX_OPCODES) -> Any:
    """Contents of a pickle: None, numbers, strings, bytes, lists, tuples, dicts (see _pairs), arrays of numbers.

    Objects of the classes `objects`, given by full names ("vocab.Vocabulary"), become dicts of their fields. Memory is
    proportional to the pickle's size, however often it refers to one value; the time is bounded by `max_opcodes`.
    Raises NotPlain.
    """
    machine = _Machine(dict.fromkeys(objects, "object") | KNOWN, len(data), max_opcodes)
    try:
        for name, argument in opcodes(data, NotPlain, max_opcodes):
            machine.do(name, argument)
        (result,) = machine.stack.values
        return resolve(result)
    except NotPlain:
        raise
    except Exception as error:
        raise NotPlain(f"broken ({type(error).__name__})") from None


class _Machine:
    """Executes opcodes. `known`: names that a pickle may contain; `room`: bytes that its calls may create."""

    def __init__(self, known: dict[str, str], room: int, max_opcodes: int) -> None:
        self.known, self.room = known, room
        self.stack = PickleStack(NotPlain, max_opcodes)

    def do(self, name: str, argument: Any) -> None:
        """Executes one opcode. Raises NotPlain."""
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
            values.append(call(values.pop(), arguments))
            if isinstance(values[-1], bytes):  # calls may encode one text a thousand times
                self.room -= len(values[-1])
                if self.room < 0:
                    raise NotPlain("its calls create more bytes than it contains")
        elif name == "NEWOBJ":
            arguments = values.pop()
            values.append(new_object(values.pop(), arguments))
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
            raise NotPlain("it adds items to something other than a list or a dict")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """Dict from alternating keys and values, with keys of safe types only. Raises NotPlain.

    Keys may be strings, bytes, None and integers below MOST_KEY: thousands of larger integers or floats could share one
    hash, and a nested tuple can take for ever to hash.
    """
    for key in items[::2]:
        if type(key) not in _KEYS:
            raise NotPlain(f"it has a {type(key).__name__ if type(key) in (float, tuple) else 'value'} as a key")
        if type(key) is int and abs(key) >= MAX_KEY:
            raise NotPlain(f"it has an integer key that is not below 2**{MAX_KEY.bit_length() - 1}; renumber")
    return dict(zip(items[::2], items[1::2], strict=True))
