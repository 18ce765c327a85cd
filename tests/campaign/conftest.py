"""Campaigns: many seeded inputs, many kills. `make campaign` runs them; no other target does."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "jobs")]  # the table of readers, and the tiny runs
