"""Which errors are the user's to mend, and are told in one line; the rest are ours, and show where they happened."""

from __future__ import annotations


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
