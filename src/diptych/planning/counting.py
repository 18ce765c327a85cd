"""Counts of a computation's operations, and placeholders with which they are counted without computing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import isfunction, unwrap
from mmap import mmap
from typing import Any

import torch
from torch import Tensor
from torch._decomp import global_decomposition_table
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


class Counter(TorchDispatchMode):
    """Context that counts FLOPs of matrix products and attention, and the bytes that all other operations move.

    Args:
        placeholders: Makes placeholders within, too: as `Placeholders` outside of this context would, in less time.

    Attributes:
        flops: As torch.utils.flop_counter counts them, with the attention kernel of CPUs, which that
            lacks; a multiply-add is two.
        bytes_moved: Read and written by operations other than matrix products, attention and views.
    """

    def __init__(self, placeholders: Placeholders | None = None) -> None:
        super().__init__()
        self.flops = self.bytes_moved = 0
        self._run = _run if placeholders is None else placeholders.run

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, and calls each operation through it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = self._run(func, args, kwargs)
        formula, moves_bytes = _accounting(func)
        if formula is not None:
            self.flops += formula(*_map(_shape, args), **_map(_shape, kwargs), out_shape=_map(_shape, output))
        elif moves_bytes:
            self.bytes_moved += sum(t.numel() * t.element_size() for t in _tensors(args, kwargs, output))
        return output


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


@cache
def _accounting(func: Any) -> tuple[Callable[..., int] | None, bool]:
    """The function that computes an operation's FLOPs from shapes, if it has any; whether it moves bytes."""
    formula = _CPU_ATTENTION.get(func.overloadpacket) or flop_registry.get(func.overloadpacket)
    moves_bytes = not _is_view(func) and not any(kind in func._schema.name for kind in _NOT_MOVING)
    return formula and unwrap(formula), moves_bytes  # of shapes: torch's wrapper, which takes tensors, is slow


def _attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * q[:-1].numel() * k[-2] * (q[-1] + v[-1])  # scores and context


def _attention_backward_flops(_: Any, q: torch.Size, k: torch.Size, v: torch.Size, *__: Any, **___: Any) -> int:
    return 2 * q[:-1].numel() * k[-2] * (3 * q[-1] + 2 * v[-1])  # scores again; gradients of q and k, of scores and v


_CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


_NOT_MOVING = ("mm", "attention", "conv", "detach", "empty")


@cache
def _is_view(func: Any) -> bool:
    """Whether an operation returns a view of an argument."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _tensors(*trees: Any) -> list[Tensor]:
    """The tensors in nested sequences and dictionaries."""
    tensors = []
    for tree in trees:
        if isinstance(tree, Tensor):
            tensors.append(tree)
        elif isinstance(tree, (list, tuple)):
            tensors += _tensors(*tree)
        elif isinstance(tree, dict):
            tensors += _tensors(*tree.values())
    return tensors


def _map(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Nested sequences and dictionaries with `function` applied to their tensors."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)([_map(function, part) for part in tree])
    if isinstance(tree, dict):
        return {name: _map(function, part) for name, part in tree.items()}
    return tree


class Placeholders(TorchDispatchMode):
    """Context in which large results are placeholders: of the right shape, strides and type, and never computed.

    A placeholder is a CPU tensor whose memory is reserved, and neither read nor written, so that it takes none. It
    counts as zero. An operation on placeholders gives placeholders, in the time of inferring their shape, or real
    values if they are few; all else is computed as usual. So masks, ids and lengths are real, and whatever depends on
    their values: the rows of packed tokens, the groups of attention, hard negatives (at equal similarities).

    A model that is built within has placeholders for its large weights. Weights that are loaded are real.
    """

    SMALL = 2**14  # elements of results that are computed
    READ = 2**16  # elements that are read for them at most; else they are zero

    def __init__(self) -> None:
        super().__init__()
        _keep_compiler_out()
        self._reserved: dict[int, StorageWeakRef] = {}  # storages of placeholders; a weak reference keeps its address
        self._results: dict[Any, Any] = {}  # on the meta device, by operation and arguments

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in Counter

    def is_placeholder(self, t: Tensor) -> bool:
        """Whether `t` is a placeholder, or a view of one."""
        return t.untyped_storage()._cdata in self._reserved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation, which may be a placeholder."""
        if _is_view(func):
            return func(*args, **kwargs)
        tensors = _tensors(args, kwargs)
        if not any(map(self.is_placeholder, tensors)):
            return self._create(func, args, kwargs)
        if func._schema.is_mutable:
            return self._change(func, args, kwargs)
        if func is aten.index.Tensor:
            args = (args[0], _indices(args[1]))
        try:
            shapes = self._shapes(func, args, kwargs)
        except RuntimeError:  # the shape depends on values, or the result is a number: raised again if it is an error
            return self._compute(func, args, kwargs)
        if sum(t.numel() for t in tensors) <= self.READ and all(t.numel() <= self.SMALL for t in _tensors(shapes)):
            return self._compute(func, args, kwargs)
        return _map(self._reserve, shapes)

    def _create(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation without placeholders; one if it is large and uninitialised, or random normal."""
        if func in _UNINITIALISED:
            shape = func(*args, **kwargs | {"device": _META})
            if shape.is_floating_point() and shape.numel() > self.SMALL:
                return self._reserve(shape)
        return func(*args, **kwargs)

    def _change(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The argument that an operation writes. A placeholder stays one unless it is replaced by real values."""
        names = {a.name: i for i, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write}
        written = [kwargs[name] if name in kwargs else args[i] for name, i in names.items()]
        if func is aten.copy_.default and not self.is_placeholder(args[1]) and _is_whole(args[0]):
            del self._reserved[args[0].untyped_storage()._cdata]
            return func(*args, **kwargs)
        for t in written:
            if self.is_placeholder(t):
                continue
            if not t.is_floating_point() or t.numel() <= self.SMALL:
                return self._compute(func, args, kwargs)
            self._mark(t)
        return written[0]

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The real result, from zeros in place of placeholders."""
        return func(*_map(self._value, args), **_map(self._value, kwargs))

    def _value(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t) if self.is_placeholder(t) else t

    def _shapes(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result on the meta device. Raises RuntimeError if it depends on values."""
        key = (func, _signature(args), _signature(tuple(kwargs.items())))
        if key not in self._results:
            kwargs = kwargs | {"device": _META} if "device" in kwargs else kwargs
            self._results[key] = func(*_map(_to_meta, args), **_map(_to_meta, kwargs))
        return self._results[key]

    def _reserve(self, shape: Tensor) -> Tensor:
        """A placeholder like `shape`; small results are zeros."""
        if shape.numel() <= self.SMALL:
            return torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype).zero_()
        # not of malloc, which writes to each block
        memory = torch.frombuffer(mmap(-1, shape.untyped_storage().nbytes()), dtype=shape.dtype)
        return self._mark(memory.as_strided(shape.shape, shape.stride()))

    def _mark(self, t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        self._reserved[storage._cdata] = StorageWeakRef(storage)
        return t


_META = torch.device("meta")
_UNINITIALISED = (aten.empty.memory_format, aten.empty_strided.default, aten.randn.default)


def _indices(indices: list[Tensor | None]) -> list[Tensor | None]:
    """The arguments of an indexing, with integers in place of masks: their number decides the shape of the result."""
    return [
        i
        for index in indices
        for i in ([index] if index is None or index.dtype != torch.bool else index.nonzero().unbind(1))
    ]


def _is_whole(t: Tensor) -> bool:
    """Whether a tensor takes all of its storage."""
    return t.numel() * t.element_size() == t.untyped_storage().nbytes()


def _signature(value: Any) -> Any:
    """All that decides the shape of an operation's result, as a key."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.stride()
    if isinstance(value, (list, tuple)):
        return tuple(_signature(part) for part in value)
    return type(value), value


def _shape(t: Tensor) -> torch.Size:
    return t.shape


@cache
def _keep_compiler_out() -> None:
    """Lets torch infer shapes without importing torch._dynamo, which takes a second.

    At its first call, torch wraps a function that its compiler must not enter, and caches the wrapper in an attribute
    of the function: here the function itself, since nothing is compiled.
    """
    for table in global_decomposition_table.values():
        for function in table.values():
            while cells := getattr(function, "__closure__", None):
                function = next((cell.cell_contents for cell in cells if isfunction(cell.cell_contents)), None)
                if function is not None:
                    vars(function).setdefault("__dynamo_disable", function)


def _to_meta(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
