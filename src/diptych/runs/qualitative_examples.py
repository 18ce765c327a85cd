"""Examples that an evaluation had to show, kept beside its scores, so that every later report shows them again."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from diptych.data.images.decode import decode
from diptych.report import AnswerExample, CaptionExample, RetrievalExample
from diptych.report.images import data_uri
from diptych.utils.io import DamagedFile, atomic_write, read_json

SHOWN_FILE = "shown.json"
Shown = AnswerExample | CaptionExample | RetrievalExample


def write_shown(folder: Path, examples: Sequence[Shown]) -> None:
    """Writes shown.json, pictures shrunk and within."""
    with atomic_write(folder / SHOWN_FILE) as path:
        path.write_text(json.dumps([_row(example) for example in examples]))


def _row(example: Shown) -> dict[str, Any]:
    match example:
        case AnswerExample():
            told = {"question": example.question, "answers": list(example.answers), "truth": example.truth}
            return {"kind": "answer", "picture": _held(example.image), **told, "score": example.score}
        case CaptionExample():
            told = {"caption": example.caption, "score": example.score, "references": list(example.references)}
            return {"kind": "caption", "picture": _held(example.image), **told}
    results = [(_held(item), score, right) for item, score, right in example.results]
    return {"kind": "retrieval", "query": _held(example.query), "results": results}


def read_shown(path: Path) -> list[Shown]:
    """What `write_shown` wrote. Raises DamagedFile."""
    rows = read_json(path, [{"kind": str}])
    try:
        return [_example(row) for row in rows]
    except (KeyError, TypeError, ValueError, OSError) as error:  # OSError: a picture that is none
        raise DamagedFile(f"{path}: not the examples that were written there ({error}); remove it") from None


def _example(row: dict[str, Any]) -> Shown:
    kind = row.pop("kind")
    if kind == "answer":
        answers = [(answer, value) for answer, value in row.pop("answers")]
        return AnswerExample(_freed(row.pop("picture")), answers=answers, **row)
    if kind == "caption":
        return CaptionExample(_freed(row.pop("picture")), **row)
    results = [(_freed(item), score, right) for item, score, right in row["results"]]
    return RetrievalExample(_freed(row["query"]), results)


def _held(item: Pillow.Image | str) -> Any:
    return item if isinstance(item, str) else {"picture": data_uri(item)}


def _freed(item: Any) -> Any:
    if isinstance(item, str):
        return item
    return decode(base64.b64decode(item["picture"].partition(",")[2]), SHOWN_FILE)
