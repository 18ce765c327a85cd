"""The pickle inside PyTorch's files, read without running its code and without allocating the sizes that it declares.

A pickle is a program that may call any function. Here its opcodes are interpreted on plain values, and calls go to
`evaluate_call`, which supports the few names that saved states need; any other name is an error.

A tensor becomes a `TensorRef` to a storage, which torch_file.py checks against the file before it reads anything.
A call that makes no tensor (``bytearray(4 << 30)``) is never computed: it becomes an `UnsupportedValue` with its name.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from diptych.utils.safe_pickle import PickleStack, opcodes

LARGEST_KEY = 2**60  # larger integer keys can be chosen to collide, which takes quadratic time


class UnsafePickle(ValueError):
    """A pickle names code, or does something that no saved state_dict does."""


@dataclass(frozen=True)
class GlobalName:
    """A class or a function by its qualified name; the object itself is never imported."""

    name: str


@dataclass(frozen=True)
class UnsupportedValue:
    """A placeholder for the result of a call of `name`, which is not computed."""

    name: str


@dataclass(frozen=True)
class Storage:
    """`numel` elements under a key of the file, from element `start` on; `dtype` None: untyped bytes."""

    key: str
    dtype: torch.dtype | None
    numel: int
    start: int = 0


@dataclass(frozen=True)
class TensorRef:
    """A tensor as the pickle declares it, not checked against the file yet."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_STORAGES: dict[str, torch.dtype | None] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
}
STORAGES = {
    f"{module}.{name}": dtype
    for module in ("torch", "torch.cuda", "torch.storage")
    for name, dtype in _STORAGES.items()
}
"""Qualified names of the storage classes, and their dtypes."""

DTYPES = {f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
OTHER_TENSORS = {
    f"torch._utils._rebuild_{name}": f"a {kind} tensor"
    for name, kind in {
        "sparse_tensor": "sparse", "qtensor": "quantized", "nested_tensor": "nested", "meta_tensor_no_storage": "meta",
        "wrapper_subclass": "wrapped", "device_tensor_from_numpy": "numpy", "device_tensor_from_cpu_tensor": "device",
    }.items()
}  # fmt: skip
"""Calls that make tensors which are not dense, and their kinds."""

_MAPPINGS = {"collections.OrderedDict", "collections.Counter", "collections.defaultdict"}
_BUILTINS = ("set", "frozenset", "complex", "bytearray", "bytes", "list", "dict", "int", "float")
_ARRAYS = ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
UNCOMPUTED = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in _ARRAYS),
    "torch.Size", "torch.device", "torch.serialization._get_layout", "_codecs.encode", "numpy.dtype", "numpy.ndarray",
    "argparse.Namespace",
}  # fmt: skip
"""Names that training loops save next to weights: allowed in a file, but their calls are never computed."""

_TENSORS = {f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3")}
_PARAMETERS = {f"torch._utils._rebuild_{name}" for name in ("parameter", "parameter_with_state")}
_TYPED = "torch._tensor._rebuild_from_type_v2"
_CLASSES = {"torch.Tensor", "torch.nn.parameter.Parameter"}
KNOWN = {*STORAGES, *DTYPES, *OTHER_TENSORS, *_MAPPINGS, *UNCOMPUTED, *_TENSORS, *_PARAMETERS, *_CLASSES, _TYPED}
PACKAGES = (
    "pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "yacs", "easydict", "sacred", "apex", "pathlib",
    "datetime", "typing",
)  # fmt: skip
"""Packages whose objects training loops save next to weights (callbacks, settings, paths)."""


def is_known(module: str, name: str) -> bool:
    """Whether a name is allowed in a file: saved states need it, or it is a class of PACKAGES (never called)."""
    if f"{module}.{name}" in KNOWN:
        return True
    return "." not in name and (module.partition(".")[0] in PACKAGES or module.startswith("torch.optim."))


def expect(value: Any, kind: type) -> Any:
    """`value`. Raises UnsafePickle unless it is an instance of `kind`."""
    if not isinstance(value, kind):
        raise UnsafePickle(f"expected a {kind.__name__}, got a {type(value).__name__}")
    return value


def set_items(into: dict[Any, Any], items: list[Any]) -> None:
    """Sets the items of a dict from [key, value, key, value …]. Raises UnsafePickle."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | bytes | None):
            continue  # not the name of a weight; nested tuples can take very long to hash
        if isinstance(key, int) and abs(key) > LARGEST_KEY:
            raise UnsafePickle("an integer key beyond 2**60")
        into[key] = value


def evaluate_call(name: str, arguments: tuple[Any, ...]) -> Any:
    """The result of a call that makes a dict or a tensor; for any other, an UnsupportedValue with its name."""
    if name in _MAPPINGS:
        return {} if name.endswith("defaultdict") else _mapping(arguments[0] if arguments else {})
    if name in _TENSORS:
        storage, offset, size, stride, *rest = arguments
        last = rest[2] if name.endswith("v3") else None
        dtype = DTYPES[expect(last, GlobalName).name] if last is not None else expect(storage, Storage).dtype
        if dtype is None:
            raise UnsafePickle("a tensor without a dtype")
        return TensorRef(expect(storage, Storage), dtype, offset, tuple(_plain(size)), tuple(stride))
    if name in _PARAMETERS:
        return arguments[0]
    if name == _TYPED:
        function, _, inner, _ = arguments
        return evaluate_call(expect(function, GlobalName).name, expect(inner, tuple))
    return UnsupportedValue(name)


def _plain(size: Any) -> Any:
    return size if isinstance(size, tuple) else ()


def _mapping(items: Any) -> dict[Any, Any]:
    """An OrderedDict or a Counter, made from a dict or from a list of pairs."""
    pairs: Iterable[Any] = items.items() if isinstance(items, dict) else expect(items, list)
    into: dict[Any, Any] = {}
    set_items(into, [x for pair in pairs for x in (pair if len(pair) == 2 else ())])
    return into


def parse_persistent_id(saved: tuple[Any, ...]) -> Storage:
    """The storage of a persistent id: ("storage", class, key, device, numel), in old files followed by a view."""
    kind, named, key, _, numel, *view = saved
    if kind != "storage" or not isinstance(named, GlobalName) or named.name not in STORAGES or type(numel) is not int:
        raise UnsafePickle("a persistent id that is not a storage")
    start = 0
    if view and view[0] is not None:
        _, start, numel = view[0]
    return Storage(str(key), STORAGES[named.name], numel, start)


def load_pickle(file: io.BytesIO | mmap.mmap, storages: dict[str, Storage] | None = None) -> Any:
    """The value of the next pickle of a file: plain values, dicts, TensorRef, GlobalName, UnsupportedValue.

    Args:
        file: not a buffered file, which would allocate the sizes that the pickle declares.
        storages: receives every storage that the pickle refers to, by its key.

    Raises:
        UnsafePickle: the pickle names code, or does something that no saved state_dict does.
    """
    machine = _Machine({} if storages is None else storages)
    for name, argument in opcodes(file, UnsafePickle):
        machine.do(name, argument)
    return machine.stack.values.pop()


class _Machine:
    """An interpreter of opcodes. `storages` receives the storages that the pickle refers to."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack = PickleStack(UnsafePickle)

    def do(self, name: str, argument: Any) -> None:
        """Executes one opcode. Raises UnsafePickle."""
        if self.stack.do(name, argument):
            return
        values = self.stack.values
        if name in ("EMPTY_SET", "FROZENSET"):
            values[len(values) if name == "EMPTY_SET" else self.stack.mark() :] = [UnsupportedValue("builtins.set")]
        elif name in ("POP", "POP_MARK", "ADDITEMS"):
            del values[-1 if name == "POP" else self.stack.mark() :]
        elif name in ("APPEND", "APPENDS"):
            items = self.stack.items(name)
            if not isinstance(values[-1], UnsupportedValue):  # an object of a subclass of list
                expect(values[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.stack.items(name)
            if not isinstance(values[-1], UnsupportedValue):
                set_items(expect(values[-1], dict), items)
        else:
            self._call(name, argument)

    def _call(self, name: str, argument: Any) -> None:
        values = self.stack.values
        if name in ("GLOBAL", "STACK_GLOBAL"):
            module, named = self.stack.global_name(argument)
            if not is_known(expect(module, str), expect(named, str)):
                raise UnsafePickle(f"it names {f'{module}.{named}'[:80]!r}")
            values.append(GlobalName(f"{module}.{named}"))
        elif name == "REDUCE":
            arguments = values.pop()
            values.append(evaluate_call(expect(values.pop(), GlobalName).name, expect(arguments, tuple)))
        elif name == "NEWOBJ":
            values.pop()
            values.append(UnsupportedValue(expect(values.pop(), GlobalName).name))
        elif name == "BINPERSID":
            made = parse_persistent_id(expect(values.pop(), tuple))
            self.storages.setdefault(made.key, made)
            values.append(made)
        elif name == "BUILD":  # a state_dict's `_metadata`, an OrderedDict's attributes
            values.pop()
            if not isinstance(values[-1], dict | TensorRef | UnsupportedValue):
                raise UnsafePickle("it sets attributes of something other than a dict or a tensor")
        else:
            raise UnsafePickle(f"it uses the opcode {name}")
