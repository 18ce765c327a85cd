"""Captions, answers, scores and embeddings of many photographs: rows that are written as they come."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from diptych.api import VLM, load
from diptych.config.predict import AnswerQuestion, CaptionPhotos, Embed, PredictTask, ScoreTexts
from diptych.data.sources.base import DataError, Skipped, first_skipped
from diptych.data.sources.paths import read_text
from diptych.data.sources.photos import Photos, open_photos
from diptych.inference.image_processor import OnError
from diptych.inference.loaded_model import model_digest
from diptych.predict.embeddings import open_embeddings, part_file, rows_file
from diptych.predict.rows import PrintedRows, Row, RowWriter, left_to_do, open_rows, progress_bar, settings_file
from diptych.tasks.operations import check_operation, finetuned_task
from diptych.training.distributed import uses_bf16
from diptych.utils.feature_cache import digest

Config = CaptionPhotos | AnswerQuestion | ScoreTexts | PredictTask | Embed
CHANGEABLE = ("out", "batch_size", "device", "precision", "texts")  # settings that rows do not depend on
METHODS = ("itc", "itm")  # of scoring, in the order of a row's fields
PredictItems = Callable[[list[int], OnError], list[list[Row]]]
"""From the indices of items, and what is called with those that cannot be read, to the fields of the rows of each."""


@dataclass
class Summary:
    """Numbers of a command's items: all, those done earlier, those tried again; and those that could not be read."""

    number: int
    earlier: int = 0
    retried: int = 0  # items that had rows with an error
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (name, why)


def caption_photos(run: str, images: Sequence[str], config: CaptionPhotos) -> Summary:
    """Writes a row with the caption, or captions, of each photograph.

    Raises DataError, RunError, UnsupportedOperation and the errors of `api.load` and `rows.RowFile`.
    """
    photos, model = _photos(images, config), _load(run, config)
    check_operation(model.loaded, "caption")

    def predict(indices: list[int], on_error: OnError) -> list[list[Row]]:
        captions = model.caption(
            photos.select(indices),
            config.prompt,
            config.num_beams,
            config.top_p or None,
            config.num_captions,
            config.max_length,
            seed=[_seed(photos.path(i)) for i in indices],
            on_error=on_error,
        )
        name = "caption" if config.num_captions == 1 else "captions"
        return [[{name: of_image}] for of_image in captions]

    with open_rows(config.out, _settings("caption", model, config)) as rows:
        return _write_rows("captions", _paths(photos), predict, rows, config.batch_size)


def answer_question(run: str, images: Sequence[str], question: str, config: AnswerQuestion) -> Summary:
    """Writes a row with the answer to a question about each photograph, and its probability.

    Raises as `caption_photos`.
    """
    photos, model = _photos(images, config), _load(run, config)
    check_operation(model.loaded, "answer")
    candidates = _candidates(config.candidates)

    def predict(indices: list[int], on_error: OnError) -> list[list[Row]]:
        answers = model.answer(photos.select(indices), question, candidates, on_error=on_error)
        return [[{"answer": a.text, "probability": a.probability}] if a else [] for a in answers]

    settings = _settings("answer", model, config) | {"question": question, "candidates": candidates}
    with open_rows(config.out, settings) as rows:
        return _write_rows(
            "answers", _paths(photos), predict, rows, config.batch_size, constant=[{"question": question}]
        )


def score_texts(run: str, images: Sequence[str], texts: Sequence[str], config: ScoreTexts) -> Summary:
    """Writes a row with the scores of each text with each photograph: "itc", "itm" or both, as the model was trained.

    The texts are `texts`, or those of the file `config.texts`. Raises as `caption_photos`.
    """
    texts = read_lines(Path(config.texts)) if config.texts else texts
    photos, model = _photos(images, config), _load(run, config)
    check_operation(model.loaded, "score")
    methods = [method for method in METHODS if model.can(method)]
    score = model.scorer(texts, methods)

    def predict(indices: list[int], on_error: OnError) -> list[list[Row]]:
        scores = {method: values.tolist() for method, values in score(photos.select(indices), on_error).items()}
        return [[{m: scores[m][i][k] for m in methods} for k in range(len(texts))] for i in range(len(indices))]

    settings = _settings("score", model, config) | {"texts": list(texts)}
    with open_rows(config.out, settings, each=len(texts)) as rows:
        constant = [{"text": text} for text in texts]
        return _write_rows("scores", _paths(photos), predict, rows, config.batch_size, constant=constant)


def predict_task(run: str, images: Sequence[str], text: str | None, config: PredictTask) -> Summary:
    """Writes a row with the output of the run's own task for each photograph, and its text if the task has one.

    Raises as `caption_photos`.
    """
    photos, model = _photos(images, config), _load(run, config)
    name = finetuned_task(model.loaded)[0].text
    constant = {name: text} if name else {}

    def predict(indices: list[int], on_error: OnError) -> list[list[Row]]:
        return [[row] if row else [] for row in model.predict(photos.select(indices), text, on_error=on_error)]

    with open_rows(config.out, _settings("predict", model, config) | constant) as rows:
        return _write_rows("outputs", _paths(photos), predict, rows, config.batch_size, constant=[constant])


def embed(run: str, images: Sequence[str], config: Embed) -> Summary:
    """Writes the unit-norm embedding of each photograph, or of each text of `config.texts`.

    Raises as `caption_photos`.
    """
    key = "text" if config.texts else "image"
    photos = None if config.texts else _photos(images, config)
    names = read_lines(Path(config.texts)) if photos is None else _paths(photos)
    model = _load(run, config)
    check_operation(model.loaded, f"embed_{key}s")

    def predict(indices: list[int], on_error: OnError) -> list[list[Row]]:
        if photos is None:
            vectors = model.embed_texts([names[i] for i in indices])
        else:
            vectors = model.embed_images(photos.select(indices), config.batch_size, on_error=on_error)
        return [[{"vector": vector}] for vector in vectors.numpy()]

    with open_embeddings(config.out, _settings("embed", model, config), key) as embeddings:
        summary = _write_rows("embeddings", names, predict, embeddings, config.batch_size, key)
        embeddings.finish()
    return summary


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises DataError if there is none."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: expected one text a line, got an empty file")
    return lines


def _candidates(text: str) -> list[str] | None:
    """Candidate answers: the lines of a file, or parts of the text between commas; None if it is empty."""
    if not text:
        return None
    return (
        read_lines(Path(text)) if os.path.isfile(text) else [part.strip() for part in text.split(",") if part.strip()]
    )


def _photos(images: Sequence[str], config: Config) -> Photos:
    """The photographs, without the files that the command itself writes, which may be in the same folder.

    Raises DataError if there are no others.
    """
    photos = open_photos(list(images))
    if not config.out:
        return photos
    out = Path(config.out)
    tables = out, rows_file(out)
    own = {os.path.abspath(path) for path in (*tables, *map(settings_file, tables), part_file(out))}
    others = [i for i in range(len(photos)) if os.path.abspath(photos.path(i)) not in own]
    if not others:
        raise DataError(f"{images[0]}: expected photographs, got only files that this command writes (--out {out})")
    return photos.select(others)


def _paths(photos: Photos) -> list[str]:
    return [photos.path(i) for i in range(len(photos))]


def _load(run: str, config: Config) -> VLM:
    loaded = load(run, config.device).loaded
    bf16 = uses_bf16(loaded.device, config.precision, loaded.module)
    return VLM(loaded, torch.bfloat16 if bf16 else None)


def _settings(command: str, model: VLM, config: Config) -> Row:
    """What rows depend on: the command, a digest of the model, its precision and the options of the command."""
    options = {name: value for name, value in asdict(config).items() if name not in CHANGEABLE}
    precision = str(model.dtype).removeprefix("torch.")
    return {"command": command, "model": model_digest(model.loaded), "precision": precision} | options


def _seed(path: str) -> int:
    """Seed of the captions sampled for a photograph, so that they do not depend on its batch."""
    return int.from_bytes(digest(os.fsencode(path))[:8], "big") >> 1


def _write_rows(
    title: str,
    names: Sequence[str],
    predict: PredictItems,
    rows: RowWriter,
    batch_size: int,
    key: str = "image",
    constant: Sequence[Row] = ({},),
) -> Summary:
    """Writes the rows of all items that have none yet, or rows with an error, a batch at a time, with a progress bar.

    The rows are then in the order of the items.

    Args:
        names: the name of each item, which its rows begin with.
        constant: the fields of each of an item's rows that are the same for all items.

    Raises DataError if there is no item that can be read.
    """
    left = left_to_do(names, rows)
    retried = Counter(names[i] for i in left) & rows.failed
    summary = Summary(len(names), len(names) - len(left), retried.total())
    with progress_bar(title, len(names), summary.earlier, isinstance(rows, PrintedRows)) as advance:
        for start in range(0, len(left), batch_size):
            batch, skipped, new = left[start : start + batch_size], list[Skipped](), list[Row]()
            results = predict(batch, skipped.append)
            for one in skipped:
                summary.unreadable.append((names[batch[one.id]], one.why))
                results[one.id] = [{"error": one.why}] * len(constant)
            for i, result in zip(batch, results, strict=True):
                new += [{key: names[i]} | fixed | row for fixed, row in zip(constant, result, strict=True)]
            rows.write(new)
            advance(len(batch))
    rows.arrange(names)
    if len(summary.unreadable) == summary.number:
        raise DataError(f"none of {summary.number} images can be read (first: {first_skipped(summary.unreadable)})")
    return summary
