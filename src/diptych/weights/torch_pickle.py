"""The pickle inside PyTorch's files, read without running any of it and without allocating what it announces.

A pickle is a program that may call any function. Here its opcodes are carried out on plain values, and calls go to
`called`, which knows the few names that saved states need; any other name ends the reading.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from typing import IO, Any, cast

from diptych.weights.torch_values import (
    KNOWN,
    Claim,
    Named,
    Storage,
    Uncomputed,
    UnsafePickle,
    called,
    expect,
    set_items,
)
from diptych.weights.torch_values import storage as storage_of

MOST_OPCODES = 1_000_000

_MARK = Named("mark")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip


def unpickled(file: io.BytesIO | mmap.mmap, storages: dict[str, Storage] | None = None) -> Any:
    """The value of the next pickle of a file: plain values, dicts, `Claim`, `Named`, `Uncomputed`. Raises UnsafePickle.

    A buffered file won't do as `file`: it allocates what it is asked to read. `storages` receives every storage that the pickle refers to, by its key.
    """
    machine = _Machine({} if storages is None else storages)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", file))):
        if count > MOST_OPCODES:
            raise UnsafePickle(f"a pickle of more than {MOST_OPCODES} opcodes")
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.do(opcode.name, argument)
    raise UnsafePickle("a pickle without an end")


class _Machine:
    """The stack and the memo on which a pickle's opcodes work."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _VALUES:
            stack.append(argument)
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_SET", "FROZENSET"):
            stack[len(stack) if name == "EMPTY_SET" else self._mark() :] = [Uncomputed("builtins.set")]
        elif name in ("POP", "POP_MARK", "ADDITEMS"):
            del stack[-1 if name == "POP" else self._mark() :]
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("TUPLE", "LIST"):
            stack.append((tuple if name == "TUPLE" else list)(self._since_mark()))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if argument is None else int(argument)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name in ("APPEND", "APPENDS"):
            items = self._since_mark() if name == "APPENDS" else [stack.pop()]
            expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            set_items(expect(stack[-1], dict), items)
        else:
            self._call(name, argument)

    def _call(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ") if argument else [stack.pop(), stack.pop()][::-1]
            if (full := ".".join(parts)) not in KNOWN:
                raise UnsafePickle(f"it names {full[:80]!r}")
            stack.append(Named(full))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(called(expect(stack.pop(), Named).name, expect(arguments, tuple)))
        elif name == "NEWOBJ":
            stack.pop()
            stack.append(Uncomputed(expect(stack.pop(), Named).name))
        elif name == "BINPERSID":
            storage = storage_of(expect(stack.pop(), tuple))
            self.storages.setdefault(storage.key, storage)
            stack.append(storage)
        elif name == "BUILD":  # a state_dict's `_metadata`, an OrderedDict's attributes
            stack.pop()
            if not isinstance(stack[-1], dict | Claim | Uncomputed):
                raise UnsafePickle("it fills something else than a dict or a tensor")
        else:
            raise UnsafePickle(f"it uses the opcode {name}")

    def _mark(self) -> int:
        """Where the last mark stands."""
        return next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)

    def _since_mark(self) -> list[Any]:
        at = self._mark()
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items
