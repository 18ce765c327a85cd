"""Parameter groups of the optimizer: weight decay, and the learning rate of each parameter relative to the others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from torch import nn

from diptych.config.training import Optimizer
from diptych.modules.frozen_text import FrozenTextEncoder
from diptych.modules.position import RelativePositions
from diptych.training.distributed import is_sharded
from diptych.utils.name_patterns import matches

_NOT_DECAYED = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, RelativePositions)


def parameter_groups(module: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Groups of the trainable parameters, each with a `weight_decay` and a `multiplier` of the learning rate.

    Raises:
        ValueError: no parameter is trainable, or `part_rates` or `layer_decay` do not fit the module.
    """
    rule, factors = decayed(module), rate_factors(module, settings)
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, p in module.named_parameters():  # a tied parameter is listed once, under its first name
        if p.requires_grad:
            # fused kernels take either sharded or unsharded parameters, not both
            kind = (settings.decay_all or rule[name], factors[name], is_sharded(p))
            groups.setdefault(kind, []).append(p)
    if not groups:
        raise ValueError("nothing to train: no parameter requires a gradient")
    return [
        {"params": params, "weight_decay": settings.weight_decay if decay else 0.0, "multiplier": factor}
        for (decay, factor, _), params in groups.items()
    ]


def decayed(module: nn.Module) -> dict[str, bool]:
    """Whether weight decay applies to each trainable parameter: to all but biases, norms and scalars.

    As in ViLT (vilt_utils.set_schedule), class tokens, position and type embeddings are decayed; as in VLMo
    (vlmo_utils.set_schedule), relative positions count as biases.
    """
    return {
        f"{prefix}.{name}" if prefix else name: not (
            name.endswith("bias") or isinstance(m, _NOT_DECAYED) or p.dim() == 0
        )
        for prefix, m in module.named_modules()
        for name, p in m.named_parameters(recurse=False)
        if p.requires_grad
    }


def rate_factors(module: nn.Module, settings: Optimizer) -> dict[str, float]:
    """Learning rate of each parameter as a factor on the schedule's: `layer_decay` ** depth x `part_rates`.

    A pattern of `part_rates` matches a parameter's name, with or without the ``model.`` before it.

    Raises:
        ValueError: a pattern matches nothing, or the module has no blocks that `layer_decay` could count.
    """
    names = [name for name, _ in module.named_parameters()]
    factors = dict.fromkeys(names, 1.0)
    for pattern, factor in settings.parsed_part_rates():
        matched = [n for n in names if matches(n, pattern) or matches(n.removeprefix("model."), pattern)]
        if not matched:
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise ValueError(f"optimizer.part_rates: {pattern!r:.60} matches no parameter; they begin with {parts}")
        factors |= dict.fromkeys(matched, factor)
    if settings.layer_decay == 1:
        return factors
    depths = layer_depths(module)
    return {name: factor * settings.layer_decay ** depths[name] for name, factor in factors.items()}


def layer_depths(module: nn.Module) -> dict[str, int]:
    """Number of blocks between each parameter of a training step and the end of its stack, with its own block.

    The last block of a stack has depth 1, the first the number of blocks, and embeddings one more; all others (final
    norms, poolers, heads) have depth 0. A stack is an outermost ModuleList of modules with submodules: each of the
    towers and streams of a model has its own. Embeddings are modules with Embedding in their class's name, frozen text
    encoders with their projection, and tokens that are parameters of a module with a stack (class token, positions);
    where several stacks are equally near, the deepest counts.

    Source: BEiT (optim_factory.get_num_layer_for_vit).
    Differs: BEiT has one stack; here blocks of several stacks that follow each other (the text encoder and the fusion
        of ALBEF) are counted within their own.

    Raises:
        ValueError: the model has no stack.
    """
    has_model = isinstance(getattr(module, "model", None), nn.Module)
    root = "model" if has_model else ""
    model = module.get_submodule(root)
    depths = {name: 0 for name, _ in module.named_parameters()}
    stacks = dict(_stacks(model, root))
    if not stacks:
        raise ValueError("optimizer.layer_decay counts blocks, and this model has none: set it to 1")
    for path, stack in stacks.items():
        for index, block in enumerate(stack):
            depths |= {f"{path}.{index}.{name}": len(stack) - index for name, _ in block.named_parameters()}
    for path, part in _embeddings(model, root):
        if not any(path.startswith(f"{stack}.") for stack in stacks):
            below = [len(stack) for name, stack in stacks.items() if _nearest(path, stacks, name)]
            depths |= {_join(path, name): max(below) + 1 for name in part}
    return {name: depths[name] for name, _ in module.named_parameters()}


def _stacks(module: nn.Module, path: str) -> Iterator[tuple[str, nn.ModuleList]]:
    """The stacks of blocks below a module, by path."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            if any(any(True for _ in member.children()) and not _is_embedding(member) for member in child):
                yield _join(path, name), child
        else:
            yield from _stacks(child, _join(path, name))


def _embeddings(module: nn.Module, path: str) -> Iterator[tuple[str, list[str]]]:
    """Path of each embedding below a module and the names of its parameters; also modules with tokens of their own."""
    for name, child in module.named_modules():
        if _is_embedding(child):
            yield _join(path, name), [n for n, _ in child.named_parameters()]
        elif any(True for _ in _stacks(child, "")):
            yield _join(path, name), [n for n, _ in child.named_parameters(recurse=False)]


def _is_embedding(module: nn.Module) -> bool:
    return "Embedding" in type(module).__name__ or isinstance(module, FrozenTextEncoder)


def _nearest(path: str, stacks: dict[str, nn.ModuleList], stack: str) -> bool:
    """Whether a stack shares as many leading parts of its path with `path` as the nearest of `stacks` does."""
    return _shared(path, stack) == max(_shared(path, other) for other in stacks)


def _shared(a: str, b: str) -> int:
    """Number of leading parts that two dotted paths share."""
    pairs = zip(a.split("."), b.split("."), strict=False)  # the shorter path ends the comparison
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
