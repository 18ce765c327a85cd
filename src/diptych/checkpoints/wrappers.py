"""Removal of the keys and name prefixes that training adds around a model's weights: one rule for every import.

A file may nest several sets of weights ("model", "state_dict", "ema" …), and names may have prefixes: of data-parallel
and compiled modules ("module.", "_orig_mod.", also inside a name), or of the class that contains the model ("model.",
"net."). Every set is tried as it is, then without the parts that PyTorch's wrappers insert, then without each prefix
that all names share. The set that fits exactly is used. If several fit, trained weights are preferred to averages of
them (`reader.is_average`); two different sets of trained weights are an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from diptych.checkpoints.nested_state_dicts import StateInFile, is_average, preferred
from diptych.checkpoints.read import NonFinite, WeightsError
from diptych.utils.state_dict import listed

INSERTED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Parts of names that PyTorch's wrappers insert at any depth; no official name contains them."""

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
"""Usual attribute names of a wrapped model, used to choose the error to report; any shared prefix is tried."""

COUNTER = "n_averaged"  # a buffer of torch.optim.swa_utils.AveragedModel, whose other names begin with "module."
MAX_PREFIXES = 6
State = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Unwrapping:
    """A set of weights with some prefixes removed.

    `removed`: the parts that were removed from names. `unprefixed`: the names that lack a prefix of most other names.
    """

    source: StateInFile
    state: State
    removed: tuple[str, ...] = ()
    unprefixed: tuple[str, ...] = ()

    def __str__(self) -> str:
        source = f'from "{self.source.key_path}"' if self.source.key_path else ""
        removed = f'with names without "{".".join(self.removed)}."' if self.removed else ""
        return ", ".join(filter(None, (source, removed)))


def unwrap(
    file: Path,
    states: list[StateInFile],
    fit: Callable[[State], T],
    known: Callable[[State], bool] = lambda state: False,
) -> tuple[T, list[str]]:
    """The result of `fit` for the set of weights in a file that it accepts.

    Args:
        file: named in errors.
        states: all sets of weights in the file (`load_all_state_dicts`).
        fit: raises WeightsError for a set that does not fit.
        known: whether a set is of the right kind, though it may not fit; its error is then the one that is reported.

    Returns:
        The result, and one note for each thing that was removed or not read.

    Raises:
        WeightsError: no set fits, or several differing sets fit.
    """
    try:
        return _fit_first(states, fit, known)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None


def _fit_first(
    states: list[StateInFile], fit: Callable[[State], T], known: Callable[[State], bool]
) -> tuple[T, list[str]]:
    fits: list[Unwrapping] = []
    failed: list[tuple[Unwrapping, WeightsError]] = []
    results: list[T] = []
    for source in preferred(states):
        for candidate in unwrappings(source):
            try:
                if candidate.unprefixed:
                    raise WeightsError(
                        f"{listed(candidate.unprefixed)}: without the prefix "
                        f'"{candidate.removed[-1]}." that the other names have'
                    )
                result = fit(candidate.state)
            except NonFinite as error:
                if not fits:
                    raise WeightsError(_with_reading(error, candidate)) from None
                break
            except WeightsError as error:
                failed.append((candidate, error))
                continue
            fits.append(candidate)
            results = results or [result]
            break
    if not fits:
        candidate, error = max(failed, key=lambda pair: _likeness(pair[0], known))
        raise WeightsError(_with_reading(error, candidate))
    _check_unambiguous(fits)
    return results[0], _notes(fits)


def unwrappings(source: StateInFile) -> Iterator[Unwrapping]:
    """A set of weights as it is, and then with one prefix after the other removed."""
    yield Unwrapping(source, source.state)
    state, inserted = _without_inserted(source.state)
    removed = tuple(inserted)
    if removed:
        yield Unwrapping(source, state, removed)
    while len(removed) < MAX_PREFIXES and state:
        (prefix, count), *_ = Counter(name.partition(".")[0] for name in state).most_common(1)
        unprefixed = tuple(name for name in state if not name.startswith(f"{prefix}."))
        if unprefixed and (prefix not in WRAPPERS or 2 * count <= len(state)):
            return
        state = {name.partition(".")[2]: x for name, x in state.items() if name not in unprefixed}
        removed = (*removed, prefix)
        yield Unwrapping(source, state, removed, unprefixed)
        if unprefixed:
            return


def _without_inserted(state: State) -> tuple[State, list[str]]:
    """The state without the parts of names that PyTorch's wrappers insert, and the parts that were removed.

    The state is unchanged if two names would become equal.
    """
    names = {name: ".".join(part for part in name.split(".") if part not in INSERTED) for name in state}
    inserted = [part for part in INSERTED if any(part in name.split(".") for name in state)]
    averaged = COUNTER in state and all(name == COUNTER or name.startswith("module.") for name in state)
    inner = {new: state[name] for name, new in names.items() if new and not (averaged and name == COUNTER)}
    if len(inner) + averaged < len(state):
        return state, []
    return inner, inserted


def _likeness(candidate: Unwrapping, known: Callable[[State], bool]) -> tuple[bool, int, bool]:
    """A sort key: how much a candidate looks like the wanted weights, to choose the error that is reported."""
    wrappers = len(candidate.removed) if set(candidate.removed) <= set(WRAPPERS) else -1
    return known(candidate.state), wrappers, not candidate.unprefixed


def _with_reading(error: WeightsError, candidate: Unwrapping) -> str:
    return f"{error} (read {candidate})" if str(candidate) else str(error)


def _check_unambiguous(fits: list[Unwrapping]) -> None:
    """Raises WeightsError if another set of the same kind (trained, or averaged) fits too, with other values."""
    first = fits[0]
    others = [
        other.source.key_path or "the file's top"
        for other in fits[1:]
        if is_average(other.source.key_path) == is_average(first.source.key_path)
        and not _same(other.state, first.state)
    ]
    if others:
        both = listed([first.source.key_path or "the file's top", *others])
        raise WeightsError(
            f"several sets of weights fit, and differ: {both}; save the one to import as a file of its own"
        )


def _same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _notes(fits: list[Unwrapping]) -> list[str]:
    """Notes on the prefixes that were removed, on other sets that fit, and on keys that were not read."""
    first = fits[0]
    path = first.source.key_path
    average = " (an average of the trained weights, by its name)" if is_average(path) else ""
    notes = [f"weights read {first}{average}"] if str(first) else []
    keys = [*first.source.other_keys, *([COUNTER] if first.removed and COUNTER in first.source.state else [])]
    others = [other.source.key_path for other in fits[1:] if not _same(other.state, first.state)]
    if others:
        notes.append(
            f"not used, though it fits too: {listed(others)} (averages; to import one, save it as a file of its own)"
        )
    unread = [
        key for key in keys if not any(within == key or within.startswith(f"{key}.") for within in [*others, path])
    ]
    return [*notes, f"other keys of the file, not read: {listed(unread)}"] if unread else notes
