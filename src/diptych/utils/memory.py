"""The memory that this process may use, and how it is kept between steps."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of mallopt, from malloc.h
_NEVER = 2**31 - 1


def available_memory() -> float:
    """The memory that this process may use, in bytes: the machine's, or the limit of its container."""
    try:
        machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # not available on this system, as on Windows
        machine = 8e9
    with contextlib.suppress(OSError, ValueError):  # "max" if there is no limit
        machine = min(machine, float(_CGROUP_LIMIT.read_text()))
    return machine


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for its next tensors; returns whether the C library can.

    glibc returns every large block to the system at once, which clears it, page by page, before it is used again: a
    quarter of a bf16 training step on a CPU. Only for programs of our own: it is a setting of the whole process.
    """
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return False
    except (AttributeError, ValueError, OSError):  # another C library, or another system
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, _NEVER))
