"""Which errors are the user's to mend, and are told in one line; the rest are ours, and show where they happened."""

from __future__ import annotations

import os


class UsageError(Exception):
    """Arguments that cannot be understood; the message says which, and what would be."""


def expected(error: Exception) -> bool:
    """Whether `error` was raised to be read by a person. Named by class, so that no module is imported to ask."""
    told = {
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
    return bool(told & {cls.__name__ for cls in type(error).__mro__}) or isinstance(
        error, (ValueError, ImportError, OSError)
    )


def sentence(error: Exception) -> str:
    """What an expected error is told as; of the system's own errors, with the path and what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    from diptych.utils.io import remedy

    place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{place}{error.strerror}: {remedy(error.errno)}, then give the same command again"
