"""Pickles of plain values and numbers, read without running any of them.

A pickle is a program: it may name any function of the machine and call it. Here its opcodes are carried out by hand, and the few
functions that numpy's own arrays name are recognised by their names and done here; nothing is ever imported or called.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_OPCODES = 1_000_000
_ARRAYS = {
    f"numpy.{core}.{name}": kind
    for core in ("core", "_core")
    for name, kind in (
        ("multiarray._reconstruct", "array"),
        ("multiarray.scalar", "scalar"),
        ("numeric._frombuffer", "frombuffer"),
    )
}
_KNOWN = _ARRAYS | {"numpy.ndarray": "ndarray", "numpy.dtype": "dtype", "_codecs.encode": "encode"}
_KNOWN |= {f"{module}.bytes": "bytes" for module in ("builtins", "__builtin__")}
_PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = ("PROTO", "FRAME")
_VALUES = {
    f"{size}{kind}{width}"
    for size in ("", "SHORT_", "BIN", "SHORT_BIN", "LONG_BIN")
    for kind in ("UNICODE", "STRING", "BYTES", "INT", "FLOAT", "LONG")
    for width in ("", "1", "2", "4", "8")
} | {"BYTEARRAY8"}


class NotPlain(ValueError):
    """A pickle that holds anything else than plain values and arrays of numbers."""


@dataclass
class _Made:
    """An array or a type of numbers, on its way: `value` is what it will be."""

    kind: str
    value: Any = None


@dataclass(frozen=True)
class _Named:
    """A function that a pickle names; never the function itself."""

    kind: str


_MARK = _Named("mark")


def read_plain(data: bytes) -> Any:
    """What a pickle holds: None, numbers, strings, bytes, lists, tuples, dicts and arrays of numbers. Raises NotPlain."""
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MOST_OPCODES:
                raise NotPlain(f"more than {MOST_OPCODES} opcodes")
            if opcode.name == "STOP":
                (result,) = machine.stack
                return _finished(result)
            machine.do(opcode.name, argument)
    except NotPlain:
        raise
    except Exception as error:
        raise NotPlain(f"broken ({type(error).__name__})") from None
    raise NotPlain("it has no end")


class _Machine:
    """The stack and the memory on which a pickle works."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """One opcode. Raises NotPlain."""
        stack = self.stack
        if name in _NOTHING:
            return
        if name == "MARK":
            stack.append(_MARK)
        elif name in _PLAIN:
            stack.append(_PLAIN[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self._since_mark()
            stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else _pairs(items))
        elif name in ("APPENDS", "APPEND", "SETITEMS", "SETITEM"):
            self._fill(name)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memory[len(self.memory) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memory[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            full = argument.replace(" ", ".") if argument else ".".join([stack.pop(), stack.pop()][::-1])
            if full not in _KNOWN:
                raise NotPlain(f"it names {full[:60]!r}, which could run code")
            stack.append(_Named(_KNOWN[full]))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_called(stack.pop(), arguments))
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        elif name in _VALUES:
            stack.append(argument)
        else:
            raise NotPlain(f"it uses {name}")

    def _since_mark(self) -> list[Any]:
        at = next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _fill(self, name: str) -> None:
        if name.endswith("S"):
            items = self._since_mark()
        else:
            items = [self.stack.pop() for _ in range(1 if name == "APPEND" else 2)][::-1]
        if name.startswith("APPEND") and type(self.stack[-1]) is list:
            self.stack[-1].extend(items)
        elif name.startswith("SETITEM") and type(self.stack[-1]) is dict:
            self.stack[-1].update(_pairs(items))
        else:
            raise NotPlain("it fills something else than a list or a dict")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _called(named: Any, arguments: Any) -> Any:
    """What one of the known functions gives. Raises NotPlain."""
    kind = named.kind if isinstance(named, _Named) else ""
    if kind == "array" and arguments[0] == _Named("ndarray"):
        return _Made("array")
    if kind == "dtype":
        return _Made("dtype", _numbers(arguments[0]))
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


def _build(made: Any, state: Any) -> None:
    if isinstance(made, _Made) and made.kind == "dtype":
        made.value = np.dtype(f"{state[1]}{made.value.str[1:]}")
    elif isinstance(made, _Made) and made.value is None:
        _, shape, dtype, fortran, data = state
        made.value = _array(data, dtype, shape, bool(fortran))
    else:
        raise NotPlain("it builds something else than an array")


def _array(data: Any, dtype: Any, shape: Any, fortran: bool) -> np.ndarray:
    if not isinstance(dtype, _Made) or dtype.kind != "dtype" or not isinstance(data, bytes | bytearray):
        raise NotPlain("an array of something else than numbers")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.value.itemsize != len(data):
        raise NotPlain(f"an array of {len(data)} bytes in the shape {shape}")
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if fortran else "C")


def _numbers(name: Any) -> np.dtype:
    if not isinstance(name, str) or name not in {f"{kind}{n}" for kind in "fiu" for n in (1, 2, 4, 8)} - {"f1"}:
        raise NotPlain(f"an array of {str(name)[:20]!r}")
    return np.dtype(name)


def _finished(value: Any) -> Any:
    """Arrays in the place of what they were made by, one and two floors down: as deep as published files go."""
    if isinstance(value, dict):
        return {key: _finished(x) for key, x in value.items()}
    if isinstance(value, _Named) or (isinstance(value, _Made) and value.kind == "dtype"):
        raise NotPlain("it holds a function or a type")
    return value.value if isinstance(value, _Made) else value
