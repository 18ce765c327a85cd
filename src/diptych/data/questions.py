"""Opening images with questions: VQA v2's JSON files, a table, or the built-in world."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image as Pillow

from diptych.data.cells import answers as answers_in
from diptych.data.cells import optional_text, text
from diptych.data.files import SPLITS, TABLES, choose, load, read_bytes
from diptych.data.folder import Folder, need, parse_json, read_rows, read_text
from diptych.data.formats import Columns, named_split, table_rows
from diptych.data.source import DataError, NoSplit, Question, Questioned

KNOWN = "*questions*.json and *annotations*.json (VQA v2), or one .csv, .tsv, .jsonl with the columns"


class QuestionedFiles:
    """Questions about images that lie as files in a folder (see `source.Questioned`)."""

    def __init__(
        self,
        name: str,
        split: str,
        root: Path,
        files: Sequence[str],
        questions: Sequence[tuple[str, Question]],
        least: int | None = None,
    ):
        self.name, self.split, self.root, self.least = name, split, root, least
        self.files, self.questions = files, questions

    def __len__(self) -> int:
        return len(self.questions)

    def question(self, index: int) -> Question:
        return self.questions[index][1]

    def image(self, index: int) -> Pillow.Image:
        return load(self.root / self.files[index], self.least)

    def file(self, index: int) -> bytes:
        """The file of picture `index` as it lies. Raises BadSample."""
        return read_bytes(self.root / self.files[index])

    def stem(self, index: int) -> str:
        """Its name without its ending: how others name what they say of the picture."""
        return Path(self.files[index]).stem

    def where(self, index: int) -> str:
        where, question = self.questions[index]
        return f"{where} ({self.files[question.image]})"


def open_questions(
    spec: str, split: str, *, columns: Columns | None = None, seed: int = 0, least: int | None = None
) -> Questioned:
    """One split ("train", "val", "test") of the questions that `spec` names. Raises DataError.

    `spec` is a folder that holds VQA v2's ``*questions*.json`` and ``*annotations*.json`` (whose names speak of the
    split) or a table (CSV, TSV, JSONL with image, question, answer); such a file itself; or ``scenes``, as for
    captions. `least` is the shorter side to which large JPEGs may be decoded.
    """
    if spec.partition(":")[0] == "scenes":
        from diptych.data.scenes import SceneQuestions, Scenes

        return SceneQuestions(Scenes.named(spec, split, seed))
    if split not in SPLITS:
        raise DataError(f"split {split!r} is none of {', '.join(SPLITS)}")
    path = Path(spec)
    file = _chosen(path, split, columns or Columns()) if path.is_dir() else path
    if file.suffix == ".tar":
        raise DataError(f"{spec}: questions are not read from tars; it takes {KNOWN} image, question, answer")
    if not file.is_file():
        raise DataError(f"{file}: no such file or folder; check --data")
    folder = Folder(file.parent)
    if file.suffix in TABLES:
        found = _table(file, folder, split, columns or Columns(), seed)
    elif file.suffix == ".json":
        found = _vqa(file, folder)
    else:
        raise DataError(f"{file}: {file.suffix or 'no suffix'} is none of .json, {', '.join(TABLES)}")
    places: dict[str, int] = {}
    questions = [
        (where, Question(id, places.setdefault(image, len(places)), text, answers, kind))
        for where, id, image, text, answers, kind in found
    ]
    if not questions:
        raise NoSplit(f"{file}: nothing in split {split!r}; name another split or correct the file")
    _check_withheld(questions, split)
    return QuestionedFiles(folder.root.name, split, folder.root, list(places), questions, least)


def _check_withheld(questions: Sequence[tuple[str, Question]], split: str) -> None:
    """Raises DataError where some questions of a split have answers and others none: a split's answers are withheld as a whole."""
    without = next((where for where, question in questions if not question.answers), None)
    if without is not None and any(question.answers for _, question in questions):
        raise DataError(f"{without}: no answer, where other questions of {split} have one; add it or drop the row")


Row = tuple[str, int, str, str, tuple[str, ...], str]  # where, id, image file, question, answers, kind


def _table(path: Path, folder: Folder, split: str, columns: Columns, seed: int) -> Iterator[Row]:
    """A row per question; what its answer may be: `cells.answers`."""
    for i, (where, row) in enumerate(table_rows(path, split, columns, seed)):
        name = need(row, columns.image, str, where)
        file = folder.find([name, f"images/{name}"], where)
        yield where, i, file, text(row, columns.question, where), answers_in(row, columns.answer, where), ""


def _vqa(path: Path, folder: Folder) -> Iterator[Row]:
    """VQA v2: questions, and the annotations file that lies beside them where the split's answers are public."""
    content = parse_json(read_text(path), path)
    subtype = optional_text(content, "data_subtype", str(path)) if isinstance(content, dict) else ""
    images = _numbered(folder, subtype)
    notes = _annotations(path)
    for i, row in enumerate(need(content, "questions", list, str(path))):
        where = f"{path}, questions[{i}]"
        id = need(row, "question_id", int, where)
        number = need(row, "image_id", int, where)
        if number not in images:
            raise DataError(f"{where}: no image numbered {number} under {folder.root}; add it or drop the row")
        if notes and id not in notes:
            raise DataError(f"{where}: question_id {id} has no annotation; add it or drop the row")
        answers, kind = notes.get(id, ((), ""))
        yield where, id, images[number], text(row, "question", where), answers, kind


def _annotations(questions: Path) -> dict[int, tuple[tuple[str, ...], str]]:
    """``question_id → (answers, answer_type)`` from the annotations beside a questions file; empty without them."""
    split = named_split(questions)
    found = [p for p in sorted(questions.parent.glob("*annotations*.json")) if named_split(p) == split]
    if not found:
        return {}
    if len(found) > 1:
        raise DataError(f"{questions}: both {found[0].name} and {found[1].name} may annotate it; move one away")
    notes: dict[int, tuple[tuple[str, ...], str]] = {}
    for i, row in enumerate(need(parse_json(read_text(found[0]), found[0]), "annotations", list, str(found[0]))):
        where = f"{found[0]}, annotations[{i}]"
        need(row, "answers", list, where)
        id = need(row, "question_id", int, where)
        if id in notes:
            raise DataError(f"{where}: question_id {id} is annotated twice; keep one")
        notes[id] = (answers_in(row, "answers", where), optional_text(row, "answer_type", where))
    return notes


def _numbered(folder: Folder, subtype: str) -> dict[int, str]:
    """Number → file, for images named as COCO does: ``COCO_val2014_000000000042.jpg``, ``NYU_000000000003.jpg``.

    Where several have one number, that of the data's own `subtype` ("val2014") counts.
    """
    numbered: dict[int, str] = {}
    places = dict.fromkeys(["", "images", subtype, f"images/{subtype}"] if _plain(subtype) else ["", "images"])
    for place in places:
        for name in folder.files(place):
            match = re.search(r"(?:^|_)(\d{1,18})\.(?:jpg|jpeg|png)$", name, re.IGNORECASE)
            if match and (int(match[1]) not in numbered or (subtype and f"_{subtype}_" in name)):
                numbered[int(match[1])] = folder.find([f"{place}/{name}" if place else name], str(folder.root))
    return numbered


def _plain(name: str) -> bool:
    return re.fullmatch(r"\w+", name) is not None


def _chosen(folder: Path, split: str, columns: Columns) -> Path:
    """The file in a folder that holds its questions. A table with neither questions nor answers, such as one of captions, is
    passed over, which is told where nothing else is found. Raises DataError.
    """
    tables = sorted(p for p in folder.iterdir() if p.suffix in TABLES)
    asking = [p for p in tables if _asks(p, columns)]
    passed = "".join(f"; {p.name} has neither question nor answer" for p in tables if p not in asking)

    def kinds(_: Path, split: str) -> list[list[Path]]:
        """Files that may hold questions, best kind first."""
        return [
            [p for p in sorted(folder.glob("*questions*.json")) if named_split(p) == split],
            [p for p in asking if named_split(p) == split],
            [p for p in asking if named_split(p) is None],
        ]

    known = f"{KNOWN} {columns.image}, {columns.question}, {columns.answer}{passed}; give --data a folder that has them"
    return choose(folder, split, kinds, "questions", known)


def _asks(table: Path, columns: Columns) -> bool:
    """Whether a table's first row has a question or an answer; also where that cannot be read, which is told when it is."""
    try:
        return all({columns.question, columns.answer} & set(row) for _, row in islice(read_rows(table), 1))
    except DataError:
        return True
