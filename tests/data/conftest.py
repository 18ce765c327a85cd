from __future__ import annotations

import sys
from pathlib import Path
from typing import runtime_checkable

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests here share tiny_data.py

from tiny_data import write_karpathy

from diptych.data.sources.base import Captioned, Questioned

for protocol in (Captioned, Questioned):  # the type checks of the tests ask `isinstance`
    runtime_checkable(protocol)


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    """A folder of twelve pictures with a Karpathy JSON."""
    write_karpathy(tmp_path)
    return tmp_path
