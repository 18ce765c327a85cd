"""The nested sets of named tensors in a checkpoint file: the keys that lead to each, and which are trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diptych.checkpoints.torch_file import CorruptFile
from diptych.checkpoints.torch_pickle import OTHER_TENSORS, TensorRef, UnsupportedValue

MODALITY_PREFIXES = (
    "img_enc.",
    "txt_enc.",
)  # VSE++ and SCAN save a list of two states, image and text, without these prefixes
MAX_DEPTH = 4  # of nested dicts
MAX_STATES = 64
NOT_WEIGHTS = (
    "optim",
    "sched",
    "scaler",
    "loss",
    "rng",
    "config",
    "args",
    "metadata",
)
"""Parts of keys under which training loops save their own state; nothing below them is searched for weights."""


@dataclass(frozen=True)
class StateInFile:
    """One set of named tensors in a file.

    `key_path`: the keys that lead to it, joined by dots; "" at the top level. `other_keys`: keys at its level and at
    the levels above whose values are not tensors.
    """

    key_path: str
    state: dict[str, Tensor]
    other_keys: list[str] = field(default_factory=list)


AVERAGE_WORDS = ("ema", "swa", "teacher", "average", "averaged", "avg", "shadow", "polyak", "momentum")


def is_average(key_path: str) -> bool:
    """Whether the keys name a moving average of weights ("model_ema", "teacher") in key_path of the trained weights."""
    words = key_path.lower().replace(".", "_").replace("-", "_").split("_")
    return any(word in AVERAGE_WORDS or word.startswith("ema") or word.endswith("ema") for word in words)


def preferred(states: Iterable[StateInFile]) -> list[StateInFile]:
    """Sets of weights, trained ones before moving averages, and then by decreasing number of elements."""
    return sorted(states, key=lambda found: (is_average(found.key_path), -sum(x.numel() for x in found.state.values())))


def find_states(content: object) -> list[tuple[str, dict[str, Any], list[str]]]:
    """(key path, names to tensor references, other keys) of each mapping that contains tensors; each mapping once."""
    states: list[tuple[str, dict[str, Any], list[str]]] = []
    seen: set[int] = set()

    def visit(value: object, key_path: str, depth: int, other_keys: list[str]) -> None:
        named = _named(value)
        if named is None or id(value) in seen or depth > MAX_DEPTH:
            return
        seen.add(id(value))
        tensors = {name: x for name, x in named.items() if isinstance(name, str) and _is_tensor(x)}
        others = {name: x for name, x in named.items() if name not in tensors}
        other_keys = other_keys + [f"{key_path}{'.' if key_path else ''}{_key_text(name)}" for name in others]
        if tensors:
            states.append((key_path, tensors, other_keys))
        if len(states) > MAX_STATES:
            raise CorruptFile(f"more than {MAX_STATES} sets of weights; save the one to import alone")
        for name, inner in others.items():
            if isinstance(name, str) and not any(word in name.lower() for word in NOT_WEIGHTS):
                visit(inner, f"{key_path}.{name}" if key_path else name, depth + 1, other_keys)

    visit(content, "", 0, [])
    return states


def _key_text(key: object) -> str:
    return key[:60] if isinstance(key, str) else f"{type(key).__name__} key"


def _is_tensor(value: object) -> bool:
    return isinstance(value, TensorRef) or (isinstance(value, UnsupportedValue) and value.name in OTHER_TENSORS)


def _named(nested: object) -> Mapping | None:
    """A mapping as it is, and a list of two states (image, text) as one mapping; None for anything else."""
    if (
        isinstance(nested, list)
        and len(nested) == len(MODALITY_PREFIXES)
        and all(isinstance(side, Mapping) for side in nested)
    ):
        return {
            f"{prefix}{name}": x
            for prefix, side in zip(MODALITY_PREFIXES, nested, strict=True)
            for name, x in side.items()
        }
    return nested if isinstance(nested, Mapping) else None


def split_by_modality(state: dict[str, Tensor]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
    """The inverse of `_named`: a list of two states if all names are of one of the two modalities; else the state."""
    if not all(name.startswith(MODALITY_PREFIXES) for name in state):
        return state
    return [{name.removeprefix(p): x for name, x in state.items() if name.startswith(p)} for p in MODALITY_PREFIXES]
