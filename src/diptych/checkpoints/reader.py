"""The sets of named tensors that a checkpoint file nests: which keys lead to each, and which hold trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diptych.checkpoints.torch_file import Broken
from diptych.checkpoints.torch_pickle import OTHER_TENSORS, Claim, UnsupportedValue

SIDES = ("img_enc.", "txt_enc.")  # VSE++ and SCAN keep a list of two states, image's and text's, without these prefixes
DEEPEST = 4  # nests within nests
MOST_STATES = 64
NO_WEIGHTS = (
    "optim",
    "sched",
    "scaler",
    "loss",
    "rng",
    "config",
    "args",
    "metadata",
)  # of training state, not of models


@dataclass(frozen=True)
class StateInFile:
    """One set of named tensors in a file. `place`: the keys that lead to it, with dots between; "" at the top.

    `beside`: keys that stand beside it or beside its nests and hold something else, each with its kind.
    """

    place: str
    state: dict[str, Tensor]
    beside: list[str] = field(default_factory=list)


AVERAGE_WORDS = ("ema", "swa", "teacher", "average", "averaged", "avg", "shadow", "polyak", "momentum")


def is_average(place: str) -> bool:
    """Whether a nest's keys name a moving average of weights ("model_ema", "teacher"), not the weights that were trained."""
    words = place.lower().replace(".", "_").replace("-", "_").split("_")
    return any(word in AVERAGE_WORDS or word.startswith("ema") or word.endswith("ema") for word in words)


def preferred(states: Iterable[StateInFile]) -> list[StateInFile]:
    """Trained weights before averages of them, otherwise those of the more numbers first."""
    return sorted(states, key=lambda held: (is_average(held.place), -sum(x.numel() for x in held.state.values())))


def find_states(content: object) -> list[tuple[str, dict[str, Any], list[str]]]:
    """(place, names to claims on tensors, what stands beside) of each mapping that holds tensors, each mapping once."""
    found: list[tuple[str, dict[str, Any], list[str]]] = []
    seen: set[int] = set()

    def visit(value: object, place: str, depth: int, beside: list[str]) -> None:
        named = _named(value)
        if named is None or id(value) in seen or depth > DEEPEST:
            return
        seen.add(id(value))
        tensors = {name: x for name, x in named.items() if isinstance(name, str) and _is_tensor(x)}
        others = {name: x for name, x in named.items() if name not in tensors}
        beside = beside + [f"{place}{'.' if place else ''}{_shown(name)}" for name in others]
        if tensors:
            found.append((place, tensors, beside))
        if len(found) > MOST_STATES:
            raise Broken(f"more than {MOST_STATES} sets of weights; save the one to import alone")
        for name, inner in others.items():
            if isinstance(name, str) and not any(word in name.lower() for word in NO_WEIGHTS):
                visit(inner, f"{place}.{name}" if place else name, depth + 1, beside)

    visit(content, "", 0, [])
    return found


def _shown(key: object) -> str:
    return key[:60] if isinstance(key, str) else f"{type(key).__name__} key"


def _is_tensor(value: object) -> bool:
    return isinstance(value, Claim) or (isinstance(value, UnsupportedValue) and value.name in OTHER_TENSORS)


def _named(nested: object) -> Mapping | None:
    """A state, or the two that stand side by side as one; None where it is neither."""
    if isinstance(nested, list) and len(nested) == len(SIDES) and all(isinstance(side, Mapping) for side in nested):
        return {f"{prefix}{name}": x for prefix, side in zip(SIDES, nested, strict=True) for name, x in side.items()}
    return nested if isinstance(nested, Mapping) else None


def as_two_sides(state: dict[str, Tensor]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
    """What `_named` undoes: the two states, where all names are of one of the sides; else the state as it is."""
    if not all(name.startswith(SIDES) for name in state):
        return state
    return [{name.removeprefix(p): x for name, x in state.items() if name.startswith(p)} for p in SIDES]
