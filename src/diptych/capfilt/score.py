"""The first pass of CapFilt over a shard: generated captions, scores of all texts, and image embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diptych.capfilt.models import CNN_IMAGES, Captioner, Filter, cnn_embedding, cnn_loader, read_batches
from diptych.capfilt.shards import InputShard, OpenShard
from diptych.config.capfilt import CapFilt
from diptych.data.examples import MAX_TEXT_CHARS, check_text
from diptych.data.sources.base import BadSample
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.modules.tokens import Tokens
from diptych.tasks.common import encode_images
from diptych.tasks.pair_scores import image_embedding
from diptych.utils.io import NUMBER, DamagedFile, atomic_write, read_json_lines, schema_error

TEXT_CHUNK = 512  # texts that are scored at a time
Row = dict[str, Any]
TEXT = {"text": str, "bad?": str, "match?": NUMBER, "cosine?": NUMBER}
ROW = {"key": str, "index": int, "where": str, "bad?": str}
TEXTED = {"texts": [TEXT], "synthetic": (TEXT, type(None))}
HOW_TO_REPAIR = "remove the two files of this shard from parts/, and the same command writes them again"
Tick = Callable[[float], None]


@dataclass(frozen=True)
class ScoredShard:
    """The files of a scored shard: a row for each image, and an embedding for each readable one.

    The rows are written last, so that if they exist both files are complete.
    """

    rows: Path
    features: Path

    @classmethod
    def of(cls, out: Path, shard: InputShard) -> ScoredShard:
        return cls(out / "parts" / f"{shard.name}.jsonl", out / "parts" / f"{shard.name}.npy")

    @property
    def done(self) -> bool:
        return self.rows.is_file()

    def write(self, rows: list[Row], features: np.ndarray) -> None:
        with atomic_write(self.features) as path, path.open("wb") as file:
            np.save(file, features, allow_pickle=False)
        with atomic_write(self.rows) as path:
            path.write_text("".join(json_line(row) for row in rows), encoding="utf-8")

    def read(self, texts: bool = False) -> list[Row]:
        """The rows; with `texts`, every readable image must have texts. Raises DamagedFile."""
        rows = [row for _, row in read_json_lines(self.rows, ROW, HOW_TO_REPAIR)]
        errors = (
            f"{row['where']}: {why}"
            for row in rows
            if texts and "bad" not in row and (why := schema_error(row, TEXTED))
        )
        if why := next(errors, ""):
            raise DamagedFile(f"{self.rows}: {why}; {HOW_TO_REPAIR}")
        return rows

    def read_features(self) -> np.ndarray:
        """The unit-norm embedding of each readable row. Raises DamagedFile."""
        try:
            vectors = np.load(self.features, allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise DamagedFile(f"{self.features}: cannot be read ({error}); {HOW_TO_REPAIR}") from None
        readable = sum("bad" not in row for row in self.read())
        if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != readable:
            actual = f"{vectors.dtype} {vectors.shape}"
            raise DamagedFile(f"{self.features}: expected {readable} vectors of float32, got {actual}; {HOW_TO_REPAIR}")
        if not np.isfinite(vectors).all():
            raise DamagedFile(f"{self.features}: contains NaN or infinity; {HOW_TO_REPAIR}")
        return vectors


def json_line(row: Row) -> str:
    """A row as a line of JSON."""
    return json.dumps(row, allow_nan=False) + "\n"


class Scorer:
    """Scores shards with a captioner, a filter or both; at least one must be given."""

    def __init__(self, config: CapFilt, captioner: Captioner | None, filter: Filter | None, device: torch.device):
        self.config, self.captioner, self.filter, self.device = config, captioner, filter, device
        self.embedder = next(
            one.loaded for one in (filter, captioner) if one is not None
        )  # its embeddings find near duplicates
        sides = [one.loaded.image_settings.shorter_side for one in (captioner, filter) if one is not None]
        self.min_side = max([*sides, CNN_IMAGES.shorter_side])

    @contextmanager
    def computing(self, bf16: bool) -> Iterator[None]:
        """Context of all computation of both models; see `LoadedModel.computing`."""
        with ExitStack() as stack:
            for loaded, _, _ in self._passes():
                stack.enter_context(loaded.computing(bf16))
            yield

    def score_pairs(self, shard: InputShard, part: ScoredShard, tick: Tick) -> None:
        """Writes captions, scores and embeddings of a shard. `tick` is called with the share of the work just done."""
        opened, passes, cnn = shard.open(self.min_side), self._passes(), self.config.similarity == "cnn"
        ticked = per_image(tick, (len(passes) + cnn) * len(opened.images))
        features: dict[int, np.ndarray] = {}
        rows: dict[int, Row] = {}
        for loaded, captioner, filter in passes:
            for indices, batch in read_batches(opened, loaded.image_input, self.config, self.device, ticked):
                tokens = encode_images(loaded.model, batch)
                if loaded is self.embedder and not cnn:
                    features.update(zip(indices, image_embedding(loaded, tokens).cpu().numpy(), strict=True))
                generated = captioner.write(tokens, shard.name, indices) if captioner else [None] * len(indices)
                for index, text in zip(indices, generated, strict=True):
                    if index not in rows:
                        rows[index] = check_texts(opened, index, text)
                if filter:
                    add_scores(filter, tokens, [rows[index] for index in indices])
        if cnn:
            features = dict(self._embeddings(opened, ticked))
        for index in opened.images:
            if index not in features:
                rows[index] = {"bad": why_bad(opened, index)}
        self._write(part, opened, rows, features)

    def embed_images(self, shard: InputShard, part: ScoredShard, tick: Tick) -> None:
        """Writes only the image embeddings of a shard: for a test set, which is only compared with."""
        opened = shard.open(self.min_side)
        features = dict(self._embeddings(opened, per_image(tick, len(opened.images))))
        rows = {index: {} if index in features else {"bad": why_bad(opened, index)} for index in opened.images}
        self._write(part, opened, rows, features)

    def _passes(self) -> list[tuple[LoadedModel, Captioner | None, Filter | None]]:
        """The runs to process the images with, in order. A run that is captioner and filter processes them once."""
        captioner, filter = self.captioner, self.filter
        if captioner and filter and captioner.loaded is filter.loaded:
            return [(captioner.loaded, captioner, filter)]
        passes: list[tuple[LoadedModel, Captioner | None, Filter | None]] = []
        if captioner:
            passes.append((captioner.loaded, captioner, None))
        if filter:
            passes.append((filter.loaded, None, filter))
        return passes

    def _embeddings(self, opened: OpenShard, tick: Callable[[int], None]) -> Iterator[tuple[int, np.ndarray]]:
        """The index and embedding of each readable image."""
        cnn = self.config.similarity == "cnn"
        loader = cnn_loader() if cnn else self.embedder.image_input
        for indices, batch in read_batches(opened, loader, self.config, self.device, tick):
            if cnn:
                embeddings = cnn_embedding(batch)
            else:
                embeddings = image_embedding(self.embedder, encode_images(self.embedder.model, batch))
            yield from zip(indices, embeddings.cpu().numpy(), strict=True)

    def _write(
        self, part: ScoredShard, opened: OpenShard, rows: dict[int, Row], features: dict[int, np.ndarray]
    ) -> None:
        """Writes the rows of all samples, incomplete ones last, and the embeddings."""
        row_list = [
            {"key": opened.key(index), "index": index, "where": opened.source.where(index)} | rows[index]
            for index in opened.images
        ]
        row_list += [{"key": "", "index": -1, "where": bad.where, "bad": bad.why} for bad in opened.bad]
        vectors = [features[index] for index in opened.images if index in features]
        if vectors and not np.isfinite(np.stack(vectors)).all():
            raise RunError(f"image embeddings of {opened.shard.name} contain NaN or infinity; check the run's weights")
        part.write(row_list, np.stack(vectors).astype(np.float32) if vectors else np.zeros((0, 1), np.float32))


def per_image(tick: Tick, images: int) -> Callable[[int], None]:
    """A callback that takes a number of images and calls `tick` with their share; without images, `tick(1)` now."""
    if not images:
        tick(1)
    return lambda n: tick(n / images)


def add_scores(filter: Filter, tokens: Tokens, rows: list[Row]) -> None:
    """Adds the filter's scores to every valid text of `rows`, in place; `tokens`: the images of the rows."""
    texts = [(at, text) for at, row in enumerate(rows) for text in texts_of(row) if "bad" not in text]
    for first in range(0, len(texts), TEXT_CHUNK):
        chunk = texts[first : first + TEXT_CHUNK]
        scores = filter.score(tokens, [text["text"] for _, text in chunk], torch.tensor([at for at, _ in chunk]))
        for (_, text), text_scores in zip(chunk, scores, strict=True):
            text |= {name: round(value, 6) for name, value in text_scores.items()}


def texts_of(row: Row) -> list[Row]:
    """All texts of an image: its captions and the generated one."""
    return [*row["texts"], *([row["synthetic"]] if row["synthetic"] else [])]


def check_texts(opened: OpenShard, index: int, generated: str | None) -> Row:
    """An image's captions and generated text, cut to MAX_TEXT_CHARS; an invalid one has the reason as "bad"."""
    texts: list[Row] = []
    where = opened.source.where(index)
    for original in [*opened.source.captions(index), *([generated] if generated is not None else [])]:
        text = original[:MAX_TEXT_CHARS].encode(errors="replace").decode()
        try:
            check_text(original, where)
            texts.append({"text": text})
        except BadSample as bad:
            texts.append({"text": text, "bad": bad.why})
    synthetic = texts.pop() if generated is not None else None
    return {"texts": texts, "synthetic": synthetic}


def why_bad(opened: OpenShard, index: int) -> str:
    """Why an image could not be read."""
    try:
        opened.source.image(index)
    except BadSample as bad:
        return bad.why
    return "could not be read once, then could"
