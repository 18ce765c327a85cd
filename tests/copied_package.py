"""A copy of the package, to which tests add what a page of the documents says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_package(folder: Path) -> Path:
    """Copies the package into a folder; returns the copy, `folder`/diptych."""
    return shutil.copytree(ROOT / "src" / "diptych", folder / "diptych", ignore=shutil.ignore_patterns("__pycache__"))


def run_copy(folder: Path, command: str) -> str:
    """What a command of the copy in `folder` prints; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "diptych", *command.split()]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout
