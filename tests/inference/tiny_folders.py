"""Changes to the files of a saved model for tests, as a person would make them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def edit_json(file: Path, path: str, value: Any) -> None:
    """Sets the value at a path ("run/model/dim") of a JSON file, and removes its digest."""
    record = json.loads(file.read_text(encoding="utf-8"))
    record.pop("digest", None)
    *above, last = path.split("/")
    part = record
    for name in above:
        part = part[name]
    part[last] = value
    file.write_text(json.dumps(record), encoding="utf-8")
