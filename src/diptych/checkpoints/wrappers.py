"""What training wraps around a model's weights, taken off where the rest fits: one rule for every import.

A file may nest several sets of weights ("model", "state_dict", "ema" …), and each name may carry prefixes: of data-parallel
and compiled modules ("module.", "_orig_mod.", also inside a name), or of the class that held the model ("model.", "net.").
Every set is tried as it stands, then without what PyTorch's own wrappers insert, then without each prefix that all names
share. The set that fits exactly is taken. Where several fit, trained weights go before averages of them (`states.is_average`);
of two different sets of trained weights none is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from diptych.checkpoints.read import NonFinite, WeightsError
from diptych.checkpoints.reader import StateInFile, is_average, preferred
from diptych.utils.state_dict import listed

INSERTED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Parts of names that PyTorch's wrappers insert wherever they stand; no official name has them."""

WRAPPERS = (
    *INSERTED,
    "model",
    "net",
    "network",
    "backbone",
    "base_model",
    "ema",
    "ema_model",
    "student",
    "teacher",
    "online",
)
"""Prefixes by which classes that hold a model are known, for messages; any prefix that all names share is tried."""

COUNTER = "n_averaged"  # torch.optim.swa_utils.AveragedModel's, beside "module."
MOST_PREFIXES = 6
State = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Unwrapping:
    """One reading of a set of weights. `removed`: the parts that were taken out of names; `outside`: the names that lack a
    prefix which most have.
    """

    held: StateInFile
    state: State
    removed: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = f'from "{self.held.place}"' if self.held.place else ""
        removed = f'with names without "{".".join(self.removed)}."' if self.removed else ""
        return ", ".join(filter(None, (place, removed)))


def unwrap(
    file: Path, held: list[StateInFile], fit: Callable[[State], T], known: Callable[[State], bool] = lambda state: False
) -> tuple[T, list[str]]:
    """What `fit` makes of the one set of weights in a file that it accepts, and what was left out on the way, a sentence
    each.

    Args:
        file: named in errors.
        held: all sets of weights in it (`read_states`).
        fit: raises WeightsError for a set that does not fit.
        known: whether a set is of the right kind, though it may not fit; its error is then the one that is reported.

    Raises WeightsError.
    """
    try:
        return _fitting(held, fit, known)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None


def _fitting(held: list[StateInFile], fit: Callable[[State], T], known: Callable[[State], bool]) -> tuple[T, list[str]]:
    fits: list[Unwrapping] = []
    failed: list[tuple[Unwrapping, WeightsError]] = []
    results: list[T] = []
    for one in preferred(held):
        for way in unwrappings(one):
            try:
                if way.outside:
                    raise WeightsError(
                        f'{listed(way.outside)}: without the prefix "{way.removed[-1]}." that the other names have'
                    )
                result = fit(way.state)
            except NonFinite as error:
                if not fits:
                    raise WeightsError(_told(error, way)) from None
                break
            except WeightsError as error:
                failed.append((way, error))
                continue
            fits.append(way)
            results = results or [result]
            break
    if not fits:
        way, error = max(failed, key=lambda pair: _likeness(pair[0], known))
        raise WeightsError(_told(error, way))
    _refuse_two(fits)
    return results[0], _sentences(fits)


def unwrappings(held: StateInFile) -> Iterator[Unwrapping]:
    """A set of weights as it stands, and without what wraps its names, one wrapper after the other."""
    yield Unwrapping(held, held.state)
    state, inserted = _without_inserted(held.state)
    removed = tuple(inserted)
    if removed:
        yield Unwrapping(held, state, removed)
    while len(removed) < MOST_PREFIXES and state:
        (prefix, count), *_ = Counter(name.partition(".")[0] for name in state).most_common(1)
        outside = tuple(name for name in state if not name.startswith(f"{prefix}."))
        if outside and (prefix not in WRAPPERS or 2 * count <= len(state)):
            return
        state = {name.partition(".")[2]: x for name, x in state.items() if name not in outside}
        removed = (*removed, prefix)
        yield Unwrapping(held, state, removed, outside)
        if outside:
            return


def _without_inserted(state: State) -> tuple[State, list[str]]:
    """The state without the parts of names that PyTorch's wrappers insert, and which those were.

    Where two names would become one, it is left as it is.
    """
    names = {name: ".".join(part for part in name.split(".") if part not in INSERTED) for name in state}
    found = [part for part in INSERTED if any(part in name.split(".") for name in state)]
    averaged = COUNTER in state and all(name == COUNTER or name.startswith("module.") for name in state)
    inner = {new: state[name] for name, new in names.items() if new and not (averaged and name == COUNTER)}
    if len(inner) + averaged < len(state):
        return state, []
    return inner, found


def _likeness(way: Unwrapping, known: Callable[[State], bool]) -> tuple[bool, int, bool]:
    """How much a reading looks like the weights that are wanted, for choosing whose error to tell."""
    wrappers = len(way.removed) if set(way.removed) <= set(WRAPPERS) else -1
    return known(way.state), wrappers, not way.outside


def _told(error: WeightsError, way: Unwrapping) -> str:
    return f"{error} (read {way})" if str(way) else str(error)


def _refuse_two(fits: list[Unwrapping]) -> None:
    """Raises WeightsError where the first set that fits is not the only one of its kind and the others differ from it."""
    first = fits[0]
    rivals = [
        way.held.place or "the file's top"
        for way in fits[1:]
        if is_average(way.held.place) == is_average(first.held.place) and not _same(way.state, first.state)
    ]
    if rivals:
        both = listed([first.held.place or "the file's top", *rivals])
        raise WeightsError(
            f"several sets of weights fit, and differ: {both}; save the one to import as a file of its own"
        )


def _same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _sentences(fits: list[Unwrapping]) -> list[str]:
    """What was taken off, what else the file holds, and what else would have fitted."""
    way = fits[0]
    average = " (an average of the trained weights, by its name)" if is_average(way.held.place) else ""
    told = [f"weights read {way}{average}"] if str(way) else []
    beside = [*way.held.beside, *([COUNTER] if way.removed and COUNTER in way.held.state else [])]
    others = [other.held.place for other in fits[1:] if not _same(other.state, way.state)]
    if others:
        told.append(
            f"not taken, though it fits too: {listed(others)} (averages; to import one, save it as a file of its own)"
        )
    unread = [place for place in beside if not any(o == place or o.startswith(f"{place}.") for o in others)]
    unread = [place for place in unread if place != way.held.place and not way.held.place.startswith(f"{place}.")]
    return [*told, f"beside the weights, not read: {listed(unread)}"] if unread else told
