"""The pickle inside PyTorch's files, read without running any of it and without allocating what it announces.

A pickle is a program that may call any function. Here its opcodes are carried out on plain values, and calls go to
`called`, which knows the few names that saved states need; any other name ends the reading.
"""

from __future__ import annotations

import io
import mmap
from typing import Any

from diptych.data.pickle_stack import PickleStack, opcodes
from diptych.weights.torch_values import (
    Claim,
    Named,
    Storage,
    Uncomputed,
    UnsafePickle,
    called,
    expect,
    is_known,
    set_items,
    storage,
)


def unpickled(file: io.BytesIO | mmap.mmap, storages: dict[str, Storage] | None = None) -> Any:
    """The value of the next pickle of a file: plain values, dicts, `Claim`, `Named`, `Uncomputed`. Raises UnsafePickle.

    `file` may not be a buffered file: that allocates what it is to read. `storages` receives every storage that the pickle refers to, by its key.
    """
    machine = _Machine({} if storages is None else storages)
    for name, argument in opcodes(file, UnsafePickle):
        machine.do(name, argument)
    return machine.stack.values.pop()


class _Machine:
    """Carries out opcodes. `storages` receives what the pickle refers to."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack = PickleStack(UnsafePickle)

    def do(self, name: str, argument: Any) -> None:
        """One opcode. Raises UnsafePickle."""
        if self.stack.do(name, argument):
            return
        values = self.stack.values
        if name in ("EMPTY_SET", "FROZENSET"):
            values[len(values) if name == "EMPTY_SET" else self.stack.mark() :] = [Uncomputed("builtins.set")]
        elif name in ("POP", "POP_MARK", "ADDITEMS"):
            del values[-1 if name == "POP" else self.stack.mark() :]
        elif name in ("APPEND", "APPENDS"):
            items = self.stack.items(name)
            if not isinstance(values[-1], Uncomputed):  # of a class of its own that is a list
                expect(values[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.stack.items(name)
            if not isinstance(values[-1], Uncomputed):
                set_items(expect(values[-1], dict), items)
        else:
            self._call(name, argument)

    def _call(self, name: str, argument: Any) -> None:
        values = self.stack.values
        if name in ("GLOBAL", "STACK_GLOBAL"):
            module, named = self.stack.global_name(argument)
            if not is_known(expect(module, str), expect(named, str)):
                raise UnsafePickle(f"it names {f'{module}.{named}'[:80]!r}")
            values.append(Named(f"{module}.{named}"))
        elif name == "REDUCE":
            arguments = values.pop()
            values.append(called(expect(values.pop(), Named).name, expect(arguments, tuple)))
        elif name == "NEWOBJ":
            values.pop()
            values.append(Uncomputed(expect(values.pop(), Named).name))
        elif name == "BINPERSID":
            made = storage(expect(values.pop(), tuple))
            self.storages.setdefault(made.key, made)
            values.append(made)
        elif name == "BUILD":  # a state_dict's `_metadata`, an OrderedDict's attributes
            values.pop()
            if not isinstance(values[-1], dict | Claim | Uncomputed):
                raise UnsafePickle("it fills something else than a dict or a tensor")
        else:
            raise UnsafePickle(f"it uses the opcode {name}")
