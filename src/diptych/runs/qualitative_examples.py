"""Examples of an evaluation (examples.json), stored beside its scores so that every later report can show them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from diptych.data.images.decode import decode
from diptych.report import AnswerExample, CaptionExample, GroundingExample, QualitativeExample, RetrievalExample
from diptych.report.images import data_uri
from diptych.utils.io import DamagedFile, atomic_write, read_json

EXAMPLES_FILE = "examples.json"


def write_examples(folder: Path, examples: Sequence[QualitativeExample]) -> None:
    """Writes examples.json, with the images as thumbnails inside it."""
    with atomic_write(folder / EXAMPLES_FILE) as path:
        path.write_text(json.dumps([_to_row(example) for example in examples]))


def _to_row(example: QualitativeExample) -> dict[str, Any]:
    match example:
        case AnswerExample():
            return {
                "kind": "answer",
                "picture": _pack(example.image),
                "question": example.question,
                "answers": list(example.answers),
                "truth": example.truth,
                "score": example.score,
            }
        case CaptionExample():
            return {
                "kind": "caption",
                "picture": _pack(example.image),
                "caption": example.caption,
                "score": example.score,
                "references": list(example.references),
            }
        case GroundingExample():
            return {
                "kind": "grounding",
                "picture": _pack(example.image),
                "phrase": example.phrase,
                "box": list(example.box),
                "truth": list(example.truth),
                "probability": example.probability,
                "iou": example.iou,
            }
    results = [(_pack(item), score, correct) for item, score, correct in example.results]
    return {"kind": "retrieval", "query": _pack(example.query), "results": results}


def read_examples(path: Path) -> list[QualitativeExample]:
    """Examples as `write_examples` wrote them. Raises DamagedFile."""
    rows = read_json(path, [{"kind": str}])
    try:
        return [_to_example(row) for row in rows]
    except (KeyError, TypeError, ValueError, OSError) as error:  # OSError: an image that cannot be decoded
        raise DamagedFile(f"{path}: expected the examples of an evaluation ({error}); remove the file") from None


def _to_example(row: dict[str, Any]) -> QualitativeExample:
    kind = row.pop("kind")
    if kind == "answer":
        answers = [(answer, value) for answer, value in row.pop("answers")]
        return AnswerExample(_unpack(row.pop("picture")), answers=answers, **row)
    if kind == "caption":
        return CaptionExample(_unpack(row.pop("picture")), **row)
    if kind == "grounding":
        return GroundingExample(_unpack(row.pop("picture")), **row)
    results = [(_unpack(item), score, correct) for item, score, correct in row["results"]]
    return RetrievalExample(_unpack(row["query"]), results)


def _pack(item: Pillow.Image | str) -> Any:
    """JSON value of a text or an image."""
    return item if isinstance(item, str) else {"picture": data_uri(item)}


def _unpack(item: Any) -> Any:
    if isinstance(item, str):
        return item
    return decode(base64.b64decode(item["picture"].partition(",")[2]), EXAMPLES_FILE)
