"""The first pass over a unit: what the captioner writes, what the filter says of every text, and what each image looks like."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diptych.capfilt.models import CNN_PICTURES, Captioner, Filter, cnn_pictures, cnn_readout, read, readout
from diptych.capfilt.shards import Opened, Unit
from diptych.config.capfilt import CapFilt
from diptych.data.examples import LONGEST_TEXT, check_text
from diptych.data.sources.base import BadSample
from diptych.modules.tokens import Tokens
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import EvaluatedModel
from diptych.tasks.common import encode_images
from diptych.utils.io import NUMBER, DamagedFile, atomic_write, read_json_lines, shape_error

TEXTS = 512  # judged at a time
Row = dict[str, Any]
TEXT = {"text": str, "bad?": str, "match?": NUMBER, "cosine?": NUMBER}
ROW = {"key": str, "index": int, "where": str, "bad?": str}
TEXTED = {"texts": [TEXT], "synthetic": (TEXT, type(None))}
AGAIN = "remove the two files of this part from parts/, and the same command makes them anew"
Tick = Callable[[float], None]


@dataclass(frozen=True)
class Part:
    """What the first pass leaves of a unit: a row for each image, and a unit vector for each that can be read.

    The rows' file is written last: where it stands, all of the part does.
    """

    rows: Path
    features: Path

    @classmethod
    def of(cls, out: Path, unit: Unit) -> Part:
        return cls(out / "parts" / f"{unit.name}.jsonl", out / "parts" / f"{unit.name}.npy")

    @property
    def done(self) -> bool:
        return self.rows.is_file()

    def write(self, rows: list[Row], features: np.ndarray) -> None:
        with atomic_write(self.features) as path, path.open("wb") as file:
            np.save(file, features, allow_pickle=False)
        with atomic_write(self.rows) as path:
            path.write_text("".join(line(row) for row in rows), encoding="utf-8")

    def read(self, texts: bool = False) -> list[Row]:
        """The rows; `texts`: each image that can be read must have them. Raises DamagedFile."""
        rows = [row for _, row in read_json_lines(self.rows, ROW, AGAIN)]
        wrong = (
            f"{row['where']}: {why}" for row in rows if texts and "bad" not in row and (why := shape_error(row, TEXTED))
        )
        if why := next(wrong, ""):
            raise DamagedFile(f"{self.rows}: {why}; {AGAIN}")
        return rows

    def read_features(self) -> np.ndarray:
        """A unit vector for each row that can be read. Raises DamagedFile."""
        try:
            vectors = np.load(self.features, allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise DamagedFile(f"{self.features}: cannot be read ({error}); {AGAIN}") from None
        readable = sum("bad" not in row for row in self.read())
        if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != readable:
            held = f"{vectors.dtype} {vectors.shape}"
            raise DamagedFile(f"{self.features}: {held} where {readable} vectors of float32 are expected; {AGAIN}")
        if not np.isfinite(vectors).all():
            raise DamagedFile(f"{self.features}: holds numbers that are not finite; {AGAIN}")
        return vectors


def line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


class Scorer:
    """The runs at work on one unit after the other. `captioner` and `filter`: at least one of them."""

    def __init__(self, asked: CapFilt, captioner: Captioner | None, filter: Filter | None, device: torch.device):
        self.asked, self.captioner, self.filter, self.device = asked, captioner, filter, device
        self.looks = next(one.role for one in (filter, captioner) if one is not None)  # tells images apart
        sides = [one.role.images.shorter_side for one in (captioner, filter) if one is not None]
        self.least = max([*sides, CNN_PICTURES.shorter_side])

    def pairs(self, unit: Unit, part: Part, tick: Tick) -> None:
        """Writes all that is to be known of a unit's pairs; `tick` is told the share of the work that was done."""
        opened, passes, cnn = unit.open(self.least), self._passes(), self.asked.similarity == "cnn"
        ticked = per_image(tick, (len(passes) + cnn) * len(opened.images))
        features: dict[int, np.ndarray] = {}
        rows: dict[int, Row] = {}
        for role, writes, judges in passes:
            for indices, batch in read(opened, role.shows, self.asked, self.device, ticked):
                tokens = encode_images(role.model, batch)
                if role is self.looks and not cnn:
                    features.update(zip(indices, readout(role, tokens).cpu().numpy(), strict=True))
                written = writes.write(tokens, unit.name, indices) if writes else [None] * len(indices)
                for index, text in zip(indices, written, strict=True):
                    if index not in rows:
                        rows[index] = readable_texts(opened, index, text)
                if judges:
                    enter_scores(judges, tokens, [rows[index] for index in indices])
        if cnn:
            features = dict(self._seen(opened, ticked))
        for index in opened.images:
            if index not in features:
                rows[index] = {"bad": why_bad(opened, index)}
        self._write(part, opened, rows, features)

    def images(self, unit: Unit, part: Part, tick: Tick) -> None:
        """Writes what a unit's images look like, and no more: they are but compared with."""
        opened = unit.open(self.least)
        features = dict(self._seen(opened, per_image(tick, len(opened.images))))
        rows = {index: {} if index in features else {"bad": why_bad(opened, index)} for index in opened.images}
        self._write(part, opened, rows, features)

    def _passes(self) -> list[tuple[EvaluatedModel, Captioner | None, Filter | None]]:
        """The runs, one after the other, and what each does with the pictures. One that does both is shown them once."""
        writes, judges = self.captioner, self.filter
        if writes and judges and writes.role is judges.role:
            return [(writes.role, writes, judges)]
        return [*([(writes.role, writes, None)] if writes else []), *([(judges.role, None, judges)] if judges else [])]

    def _seen(self, opened: Opened, tick: Callable[[int], None]) -> Iterator[tuple[int, np.ndarray]]:
        cnn = self.asked.similarity == "cnn"
        shows = cnn_pictures() if cnn else self.looks.shows
        for indices, batch in read(opened, shows, self.asked, self.device, tick):
            found = cnn_readout(batch) if cnn else readout(self.looks, encode_images(self.looks.model, batch))
            yield from zip(indices, found.cpu().numpy(), strict=True)

    def _write(self, part: Part, opened: Opened, rows: dict[int, Row], features: dict[int, np.ndarray]) -> None:
        """Samples that lack a part stand behind the others."""
        told = [
            {"key": opened.key(index), "index": index, "where": opened.source.where(index)} | rows[index]
            for index in opened.images
        ]
        told += [{"key": "", "index": -1, "where": bad.where, "bad": bad.why} for bad in opened.bad]
        vectors = [features[index] for index in opened.images if index in features]
        if vectors and not np.isfinite(np.stack(vectors)).all():
            raise RunError(f"the run that tells images apart gives numbers that are not finite ({opened.unit.name})")
        part.write(told, np.stack(vectors).astype(np.float32) if vectors else np.zeros((0, 1), np.float32))


def per_image(tick: Tick, images: int) -> Callable[[int], None]:
    """Tells `tick` the share of so many images; where there are none, at once that all is done."""
    if not images:
        tick(1)
    return lambda n: tick(n / images)


def enter_scores(filter: Filter, tokens: Tokens, rows: list[Row]) -> None:
    """Enters the filter's scores beside every text of `rows` that can be read; `tokens`: their pictures."""
    asked = [(at, text) for at, row in enumerate(rows) for text in texts_of(row) if "bad" not in text]
    for first in range(0, len(asked), TEXTS):
        some = asked[first : first + TEXTS]
        scores = filter.judge(tokens, [t["text"] for _, t in some], torch.tensor([at for at, _ in some]))
        for (_, text), told in zip(some, scores, strict=True):
            text |= {name: round(value, 6) for name, value in told.items()}


def texts_of(row: Row) -> list[Row]:
    """All texts of an image: those it came with, and the one that was written."""
    return [*row["texts"], *([row["synthetic"]] if row["synthetic"] else [])]


def readable_texts(opened: Opened, index: int, written: str | None) -> Row:
    """An image's texts as far as a model could read them; one that it cannot has a reason beside it."""
    texts: list[Row] = []
    where = opened.source.where(index)
    for said in [*opened.source.captions(index), *([written] if written is not None else [])]:
        text = said[:LONGEST_TEXT].encode(errors="replace").decode()
        try:
            check_text(said, where)
            texts.append({"text": text})
        except BadSample as bad:
            texts.append({"text": text, "bad": bad.why})
    synthetic = texts.pop() if written is not None else None
    return {"texts": texts, "synthetic": synthetic}


def why_bad(opened: Opened, index: int) -> str:
    """Why a picture could not be read."""
    try:
        opened.source.image(index)
    except BadSample as bad:
        return bad.why
    return "could not be read once, then could"
