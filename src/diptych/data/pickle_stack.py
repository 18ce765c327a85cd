"""The opcodes of a pickle that only move plain values, carried out for readers that judge all others themselves.

A pickle is a program that may name any function and call it. Nothing is imported or called here.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from collections.abc import Iterator
from typing import IO, Any, cast

from diptych.data.plain_arrays import Named

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
