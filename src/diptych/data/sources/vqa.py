"""Questions about images from VQA v2's or GQA's JSON files, a table, or the built-in world."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from diptych.config.data import USUAL_LAYOUT, Columns, DataLayout
from diptych.config.tasks import VQA
from diptych.data.sources.base import DataError, Question, Questioned
from diptych.data.sources.captions import TABLES, by_name, choose, inside, tables_in
from diptych.data.sources.cells import answers as answers_in
from diptych.data.sources.cells import optional_text, text
from diptych.data.sources.division import Row, divide
from diptych.data.sources.formats import check_no_columns, check_split_columns, heading, table, unread
from diptych.data.sources.image_files import ImageFiles
from diptych.data.sources.paths import Folder, check_layout, data_in_json, need, read_rows, read_text
from diptych.data.sources.splits import known_split, named_split, requested_split

KNOWN = "*questions*.json and *annotations*.json (VQA v2), *questions*.json (GQA), or one .csv, .tsv, .jsonl with the columns"


class QuestionedFiles(ImageFiles):
    """Questions about images in files of a folder (see `base.Questioned`)."""

    def __init__(
        self,
        root: Path,
        split: str,
        files: Sequence[str],
        questions: Sequence[tuple[str, Question]],
        min_side: int | None = None,
        division: str = "",
    ):
        super().__init__(root, split, files, min_side, division)
        self.questions = questions

    def __len__(self) -> int:
        return len(self.questions)

    def question(self, index: int) -> Question:
        return self.questions[index][1]

    def where(self, index: int) -> str:
        where, question = self.questions[index]
        return f"{where} ({self.files[question.image]})"


def open_questions(
    spec: str, split: str, layout: DataLayout = USUAL_LAYOUT, *, seed: int = 0, min_side: int | None = None
) -> Questioned:
    """One split of a data set of questions about images.

    Args:
        spec: a folder with VQA v2's ``*questions*.json`` and ``*annotations*.json`` (with the split in their names) or
        a
            table (CSV, TSV, JSONL with image, question, answer); such a file itself, or a .json file with a list of a
            table's rows; or ``scenes``, as for captions.
        split: "train", "val", "test", "test-dev" or "test-std". Data without splits is divided as in
            `captions.open_captions`.
        layout: column names of a table, and the folder of its images.
        seed: keys the division.
        min_side: shorter side in pixels to which large JPEGs may be decoded.

    Raises:
        DataError: the data cannot be used; NoSplit: it has nothing in this split.
    """
    split = requested_split(split, spec, VQA.splits)
    check_layout(spec, layout)
    if spec.partition(":")[0] == "scenes":
        from diptych.data.synthetic import SceneQuestions, Scenes

        return SceneQuestions(Scenes.from_spec(spec, split, seed))
    path = Path(spec)
    file = _chosen(path, split, layout.columns) if path.is_dir() else path
    if file.suffix == ".tar":
        raise DataError(f"{spec}: questions are not read from tars; expected {KNOWN} image, question, answer")
    if not file.is_file():
        raise DataError(f"{file}: no such file or folder; check --data")
    folder = Folder.of(file, layout.images_root)
    if file.suffix not in (".json", *TABLES):
        raise DataError(f"{file}: {file.suffix or 'no suffix'} is none of .json, {', '.join(TABLES)}")
    content = data_in_json(read_text(file), file) if file.suffix == ".json" else None
    tabular = content is None or isinstance(content, list)
    if not tabular:
        check_no_columns(file, layout.columns)
    gqa = _is_gqa(content)
    json_rows = _gqa(file, folder, content) if gqa else _vqa(file, folder, content)
    rows = table(file, layout.columns, content) if tabular else json_rows
    divided = divide(file, rows, folder, split, seed, VQA.splits)
    notes = {} if tabular or gqa else _annotations(file, Folder.of(file))
    places: dict[str, int] = {}
    questions: list[tuple[str, Question]] = []
    for i, (image, row) in enumerate(divided.rows):
        json_fields = _of_gqa if gqa else partial(_of_vqa, notes=notes)
        id, words, answers, *kinds = _of_table(i, row, layout.columns) if tabular else json_fields(row)
        kind, *others = kinds or [""]
        place = places.setdefault(image, len(places))
        questions.append((row.where, Question(id, place, words, answers, kind, tuple(others))))
    _check_withheld(questions, split)
    division = divided.division
    if tabular:
        division += unread(divided.rows[0][1].content, layout.columns, ("question", "answer", "answers"))
    return QuestionedFiles(folder.root, split, list(places), questions, min_side, division)


def _check_withheld(questions: Sequence[tuple[str, Question]], split: str) -> None:
    """Raises DataError if only some questions of a split have answers: a split's answers are withheld as a whole."""
    without = next((where for where, question in questions if not question.answers), None)
    if without is not None and any(question.answers for _, question in questions):
        raise DataError(f"{without}: no answer, though other questions of {split} have one; add it or drop the row")


Fields = tuple[Any, ...]  # id, question, answers, types of the question


def _of_table(i: int, row: Row, columns: Columns) -> Fields:
    """Fields of a table's row, one per question (`cells.answers`). VizWiz has ``answers`` instead of ``answer``."""
    where, cells = row.where, row.content
    several = heading(cells, columns, "answer", where, needed=False) not in cells and "answers" in cells
    question = text(cells, heading(cells, columns, "question", where), where)
    key = "answers" if several else heading(cells, columns, "answer", where)
    return i, question, answers_in(cells, key, where)


def _of_vqa(row: Row, notes: Mapping[int, tuple[Any, ...]]) -> Fields:
    """Fields of a question of VQA v2's JSON, with its answers if they are public."""
    id = need(row.content, "question_id", int, row.where)
    if notes and id not in notes:
        raise DataError(f"{row.where}: question_id {id} has no annotation; add it or drop the row")
    return id, text(row.content, "question", row.where), *notes.get(id, ((), ""))


def _of_gqa(row: Row) -> Fields:
    """Fields of a question of GQA's JSON, with its one answer if it is public, and its structural and semantic type."""
    answers = (text(row.content, "answer", row.where),) if "answer" in row.content else ()
    types = need(row.content, "types", dict, row.where) if "types" in row.content else {}
    kinds = [optional_text(types, name, row.where) for name in ("structural", "semantic")]
    return row.content["id"], text(row.content, "question", row.where), answers, *kinds


def _is_gqa(content: Any) -> bool:
    """Whether a JSON file's content is an object of questions by id, as GQA's."""
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, dict) and "imageId" in first


def _gqa(path: Path, folder: Folder, content: Any) -> Iterable[Row]:
    """Rows of GQA's questions file, a JSON object of questions by id, whose images are ``images/ID.jpg``."""
    for id, question in content.items():
        where = f"{path}, question {id:.40}"
        if not isinstance(question, dict):
            raise DataError(f'{where}: expected an object with "question" and "imageId", got {question!r:.40}')
        if not re.fullmatch(r"\d{1,18}", id):
            raise DataError(f"{where}: expected a number as question id")
        image = need(question, "imageId", str, where)
        name = folder.find([f"images/{image}.jpg", f"{image}.jpg"], where)
        yield Row(where, name, [name], None, {**question, "id": int(id)})


def _vqa(path: Path, folder: Folder, content: Any) -> Iterable[Row]:
    """Rows of VQA v2's questions file."""
    subtype = optional_text(content, "data_subtype", str(path)) if isinstance(content, dict) else ""
    images, named = _numbered(folder, subtype), named_split(path)
    whole = known_split(subtype) if named is None else None  # "val2014" in a file that is named for no split
    rows = need(content, "questions", list, str(path))
    check_split_columns(path, rows)
    for i, row in enumerate(rows):
        where = f"{path}, questions[{i}]"
        number = need(row, "image_id", int, where)
        if number not in images:
            raise DataError(f"{where}: no image with number {number} under {folder.root}; add it or drop the row")
        own = need(row, "split", str, where) if "split" in row else whole
        yield Row(where, images[number], [images[number]], own, row)


def _annotations(questions: Path, folder: Folder) -> dict[int, tuple[Any, ...]]:
    """``question_id → (answers, answer_type, question_type)`` from the annotations file of a questions file; empty without one.

    It may be beside the questions or elsewhere in the data set's `folder`.
    """
    split = named_split(questions)
    named = [p for p in inside(folder.root, "*annotations*.json") if p.is_file() and named_split(p) == split]
    files = [p for p in named if p.parent.samefile(questions.parent)] or named
    if not files:
        return {}
    if len(files) > 1:
        raise DataError(f"{questions}: {files[0].name} and {files[1].name} may both annotate it; move one away")
    notes: dict[int, tuple[Any, ...]] = {}
    file = files[0]
    for i, row in enumerate(need(data_in_json(read_text(file), file), "annotations", list, str(file))):
        where = f"{file}, annotations[{i}]"
        need(row, "answers", list, where)
        id = need(row, "question_id", int, where)
        if id in notes:
            raise DataError(f"{where}: question_id {id} is annotated twice; keep one")
        kinds = [optional_text(row, name, where) for name in ("answer_type", "question_type")]
        notes[id] = (answers_in(row, "answers", where), *kinds)
    return notes


def _numbered(folder: Folder, subtype: str) -> dict[int, str]:
    """Image files by number, for COCO's file names: ``COCO_val2014_000000000042.jpg``, ``NYU_000000000003.jpg``.

    Where several have the same number, the one of the data's own `subtype` ("val2014") is used.
    """
    numbered: dict[int, str] = {}
    places = ["", "images"]
    if _plain(subtype):
        places += [subtype, f"images/{subtype}", f"Images/mscoco/{subtype}"]
    if folder.also:
        places = [*(f"{folder.also}/{place}" for place in places), *places]
    for place in dict.fromkeys(place.rstrip("/") for place in places):
        for name in folder.files(place):
            match = re.search(r"(?:^|_)(\d{1,18})\.(?:jpg|jpeg|png)$", name, re.IGNORECASE)
            if match and (int(match[1]) not in numbered or (subtype and f"_{subtype}_" in name)):
                numbered[int(match[1])] = folder.find([f"{place}/{name}" if place else name], str(folder.root))
    return numbered


def _plain(name: str) -> bool:
    return re.fullmatch(r"\w+", name) is not None


def _chosen(folder: Path, split: str, columns: Columns) -> Path:
    """The file in a folder with its questions. Raises DataError.

    Tables with neither questions nor answers, such as captions, are skipped; the error says so if nothing else is
    found.
    """
    tables = tables_in(folder)
    usable = [p for p in tables if _has_questions(p, columns)]
    skipped = "".join(f"; {p.name} has neither question nor answer" for p in tables if p not in usable)

    def kinds(_: Path, split: str) -> list[list[Path]]:
        """Files that may contain questions, by decreasing preference of their kind."""
        return [*by_name(inside(folder, "*questions*.json"), split), *by_name(usable, split)]

    known = (
        f"{KNOWN} {columns.image}, {columns.question}, {columns.answer}{skipped}; give --data a folder that has them"
    )
    return choose(folder, split, kinds, "questions", known)


def _has_questions(table: Path, columns: Columns) -> bool:
    """Whether a table's first row has a question or an answer; True for unreadable tables, whose error comes later."""
    try:
        names = {columns.question.lower(), columns.answer.lower(), "answers"}
        return all(names & {key.strip().lower() for key in row} for _, row in islice(read_rows(table), 1))
    except DataError:
        return True
