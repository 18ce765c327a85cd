"""Pickles of plain values and numbers, read without running any of them.

A pickle is a program: it may name any function of the machine and call it. Here its opcodes are carried out by hand, and the few
functions that numpy's own arrays name are recognised by their names and done here; nothing is ever imported or called.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from diptych.data.pickle_stack import PickleStack, opcodes
from diptych.data.plain_arrays import KNOWN, Named, NotPlain, begun, build, called, finished

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
