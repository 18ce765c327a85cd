"""A process that keeps its freed memory has no page faults for tensors of sizes that it had before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from diptych.utils.memory import keep_freed_memory

assert not {keep} or keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(8)))  # a small tensor may take a part of the freed memory
"""


def on_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not on_glibc(), reason="a setting of glibc")
def test_large_tensors_reuse_freed_memory():
    """64 MiB of pages are 16,384 faults, or 32 where the system has huge pages."""
    counts = [
        int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (False, True)
    ]
    assert counts[0] >= 32 and counts[1] < counts[0] / 4, counts


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    from diptych.utils import memory

    def unknown(name: str) -> str:
        raise ValueError(name)

    monkeypatch.setattr(memory.os, "confstr", unknown)
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # calling it would raise
    assert memory.keep_freed_memory() is False
