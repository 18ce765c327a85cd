"""Pickles of plain values and numbers, read without running any of them.

A pickle is a program: it may name any function of the machine and call it. Here its opcodes are carried out by hand, and the few
functions that numpy's own arrays name are recognised by their names and done here; nothing is ever imported or called.
"""

from __future__ import annotations

import pickletools
from collections.abc import Collection
from typing import Any

from diptych.data.plain_arrays import KNOWN, Named, NotPlain, begun, build, called, finished

MOST_OPCODES = 1_000_000
MOST_KEY = 2**60  # Python hashes integers modulo 2**61 - 1
_KEYS = (str, bytes, int, bool, type(None))
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
_MARK = Named("mark")


def read_plain(data: bytes, objects: Collection[str] = ()) -> Any:
    """What a pickle holds: None, numbers, strings, bytes, lists, tuples, dicts (see _pairs for their keys) and arrays of numbers;
    of `objects`, classes by their full names ("vocab.Vocabulary"), the fields as a dict. It takes memory in proportion to the
    pickle, however often that names one thing. Raises NotPlain.
    """
    machine = _Machine(dict.fromkeys(objects, "object") | KNOWN, len(data))
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MOST_OPCODES:
                raise NotPlain(f"more than {MOST_OPCODES} opcodes")
            if opcode.name == "STOP":
                (result,) = machine.stack
                return finished(result)
            machine.do(opcode.name, argument)
    except NotPlain:
        raise
    except Exception as error:
        raise NotPlain(f"broken ({type(error).__name__})") from None
    raise NotPlain("it has no end")


class _Machine:
    """The stack and the memory on which a pickle works. `known`: what it may name; `room`: bytes that its calls may make."""

    def __init__(self, known: dict[str, str], room: int) -> None:
        self.known, self.room = known, room
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
            place = len(self.memory) if argument is None else argument
            if not 0 <= place < MOST_OPCODES:
                raise NotPlain(f"it keeps something at a place beyond {MOST_OPCODES}")
            self.memory[place] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memory[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            full = argument.replace(" ", ".") if argument else ".".join([stack.pop(), stack.pop()][::-1])
            if full not in self.known:
                raise NotPlain(f"it names {full[:60]!r}, which could run code")
            stack.append(Named(self.known[full]))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(called(stack.pop(), arguments))
            if isinstance(stack[-1], bytes):  # of one text a thousand times the same
                self.room -= len(stack[-1])
                if self.room < 0:
                    raise NotPlain("it makes more bytes than it has")
        elif name == "NEWOBJ":
            arguments = stack.pop()
            stack.append(begun(stack.pop(), arguments))
        elif name == "BUILD":
            state = stack.pop()
            build(stack[-1], state)
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
    """A dict of keys and values in turn. Keys are strings, bytes, None, and integers below MOST_KEY: from there on, integers,
    and any floating-point number, may have one hash in their thousands, and a tuple of tuples takes for ever to hash.
    """
    for key in items[::2]:
        if type(key) not in _KEYS:
            raise NotPlain(f"it has a {type(key).__name__ if type(key) in (float, tuple) else 'value'} for a key")
        if type(key) is int and abs(key) >= MOST_KEY:
            raise NotPlain(f"it has an integer for a key that is not below 2**{MOST_KEY.bit_length() - 1}; number anew")
    return dict(zip(items[::2], items[1::2], strict=True))
