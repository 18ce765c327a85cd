from __future__ import annotations

from pathlib import Path
from typing import runtime_checkable

import pytest

from diptych.data.sources.base import Captioned, Questioned
from tests.data.tiny_data import write_karpathy

for protocol in (Captioned, Questioned):  # the type checks of the tests call `isinstance`
    runtime_checkable(protocol)


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    """A folder of twelve images with a Karpathy JSON."""
    write_karpathy(tmp_path)
    return tmp_path
