"""Errors of the command line: which of them are the user's to fix, and their one-line messages."""

from __future__ import annotations

import os
from collections.abc import Iterable

from diptych.config.spelling import OTHER_NAMES, bare, nearest_names


class UsageError(Exception):
    """Command-line arguments that are missing or invalid; the message says which, and what is valid."""


USER_ERRORS = frozenset(
    {
        "UsageError",
        "DataError",
        "BadSample",
        "RunError",
        "WeightsError",
        "CheckpointError",
        "Diverged",
        "InUse",
        "DamagedFile",
    }
)
"""Exceptions whose message is meant for the user. By class name, so that no module is imported for the check."""


def is_user_error(error: Exception) -> bool:
    """Whether `error` is the user's to fix and prints as one line; any other is a bug and prints its traceback."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(USER_ERRORS & names) or isinstance(error, (ValueError, ImportError, OSError))


def error_message(error: Exception) -> str:
    """The message of a user error. An error of the operating system gets its path and what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    from diptych.utils.io import remedy

    place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{place}{error.strerror}: {remedy(error.errno)}, then give the same command again"


def find_misspelt(flag: str, args: Iterable[str]) -> str:
    """The flag among `args` that probably stands for `flag`; ``""`` if none does."""
    flags = [word.partition("=")[0] for word in args if word.startswith("--")]
    same = [word for word in flags if bare(word) in OTHER_NAMES.get(bare(flag), "").split()]
    return next(iter(same or nearest_names(flag, flags)), "")
