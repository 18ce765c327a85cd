"""The second pass of CapFilt: decides on each caption by its scores, finds near duplicates, writes output shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diptych.capfilt.near_duplicates import DEFAULT_COSINE, FeatureIndex, Neighbour
from diptych.capfilt.score import ScoredShard, json_line
from diptych.capfilt.shards import InputShard, OpenShard
from diptych.config.capfilt import CapFilt
from diptych.data.sources.base import BadSample
from diptych.data.webdataset.writer import Sample, picture_file, sample_texts, write_shard
from diptych.utils.io import atomic_write

Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The texts that an image keeps, and a row for each of its pairs: kept, re-captioned, dropped or skipped."""

    texts: list[str]
    pairs: list[Row]


def passes_filter(text: Row, config: CapFilt) -> tuple[bool, str]:
    """Whether a text passes the filter, and the reason: each score must be over its threshold.

    Source: BLIP, section 3.3: a text is dropped if the ITM head predicts that it does not match.
    """
    if "bad" in text:
        return False, text["bad"]
    if not text.keys() & {"itm", "cosine"}:
        return True, "not scored"
    reasons = []
    for name, threshold in (("itm", config.min_itm), ("cosine", config.min_cosine)):
        if name in text and not text[name] > threshold:
            return False, f"{name} {text[name]:g} is not over {threshold:g}"
        if name in text and (name == "itm" or threshold > -1):
            reasons.append(f"{name} {text[name]:g} is over {threshold:g}")
    return True, ", ".join(reasons)


def decide(row: Row, config: CapFilt, duplicate: Row | None = None) -> Verdict:
    """The verdict on an image of the first pass.

    `duplicate`: the image that it is a near duplicate of, if that is a reason to drop it.
    """
    image = {name: row[name] for name in ("key", "index", "where")}
    if "bad" in row:
        return Verdict([], [image | {"decision": "skipped", "reason": row["bad"]}])
    if duplicate is not None:
        reason = f"the image is like {duplicate['of']} (cosine {duplicate['cosine']:g})"
        pairs = [
            image | {"caption": i, **text, "decision": "dropped", "reason": reason}
            for i, text in enumerate(row["texts"])
        ]
        return Verdict([], pairs)
    synthetic: Row | None = row["synthetic"]
    synthetic_passes = synthetic is not None and passes_filter(synthetic, config)[0]
    texts, pairs = [], []
    for place, text in enumerate(row["texts"]):
        passes, reason = passes_filter(text, config)
        decision = "kept" if passes else "re-captioned" if synthetic_passes else "dropped"
        pairs.append(image | {"caption": place, **text, "decision": decision, "reason": reason})
        if passes:
            texts.append(text["text"])
    added = synthetic_passes and (config.synthetic == "add" or len(texts) < len(pairs))
    if synthetic is not None:
        pairs = [pair | {"synthetic": synthetic} for pair in pairs]
        if added and synthetic["text"] not in texts:
            texts.append(synthetic["text"])
    return Verdict(texts, pairs)


@dataclass(frozen=True)
class FilteredShard:
    """The rows of a shard with their verdicts, and its near-duplicate images."""

    shard: InputShard
    rows: list[Row]
    verdicts: list[Verdict]
    similar: list[Row]


@dataclass(frozen=True)
class OutputShard:
    """The output files of an input shard. The tar is written last, so that if it exists all files are complete."""

    tar: Path
    decisions: Path
    similar: Path

    @classmethod
    def of(cls, out: Path, shard: InputShard) -> OutputShard:
        parts = out / "parts" / shard.name
        return cls(out / f"{shard.name}.tar", Path(f"{parts}.decisions.jsonl"), Path(f"{parts}.similar.jsonl"))

    @property
    def done(self) -> bool:
        return self.tar.is_file()

    def write(self, filtered: FilteredShard, opened: OpenShard) -> None:
        """Writes all files. Raises BadSample if an image has become unreadable since the first pass."""
        encoded = [encode_texts(row, verdict) for row, verdict in zip(filtered.rows, filtered.verdicts, strict=True)]
        pairs = [pair for verdict, _ in encoded for pair in verdict.pairs]
        for file, rows in ((self.decisions, pairs), (self.similar, filtered.similar)):
            with atomic_write(file) as path:
                path.write_text("".join(map(json_line, rows)), encoding="utf-8")
        with atomic_write(self.tar) as path:
            write_shard(
                path,
                (
                    Sample(row["key"], *picture_file(opened.source, row["index"]), data)
                    for row, (_, data) in zip(filtered.rows, encoded, strict=True)
                    if data
                ),
            )


def encode_texts(row: Row, verdict: Verdict) -> tuple[Verdict, bytes]:
    """A verdict and its JSON in the tar; empty if no text is left, or if the JSON would be too long to read."""
    if not verdict.texts:
        return verdict, b""
    try:
        return verdict, sample_texts(verdict.texts, {"capfilt": verdict.pairs}, row["where"])
    except BadSample as bad:
        return Verdict([], [pair | {"decision": "skipped", "reason": bad.why} for pair in verdict.pairs]), b""


class ShardFilter:
    """Filters shards in their order, which matters because duplicates depend on the images before.

    `scored`: the folder of the first pass. `against`: the shards of the test set.
    """

    def __init__(self, config: CapFilt, scored: Path, against: Sequence[InputShard], device: torch.device):
        self.config, self.scored = config, scored
        threshold = config.duplicate_cosine or DEFAULT_COSINE[config.similarity]
        self.train_index, self.test_index = FeatureIndex(threshold, device), FeatureIndex(threshold, device)
        self.train_images: list[Row] = []
        self.test_images: list[Row] = []
        for shard in against:
            part = ScoredShard.of(scored, shard)
            readable = [row for row in part.read() if "bad" not in row]
            places = range(len(self.test_images), len(self.test_images) + len(readable))
            self.test_index.add(part.read_features(), list(places))
            self.test_images += [image_reference(row["where"], shard, row) for row in readable]

    def filter(self, shard: InputShard) -> FilteredShard:
        """The verdicts on the images of the next shard."""
        part = ScoredShard.of(self.scored, shard)
        rows, vectors = part.read(texts=True), part.read_features()
        readable = [i for i, row in enumerate(rows) if "bad" not in row]
        verdicts = [decide(row, self.config) for row in rows]
        in_test = self.test_index.nearest(vectors) if self.test_index.indices else [None] * len(readable)
        leaks = _similar_rows("leak", in_test, self.test_images)
        keep = [bool(verdicts[i].texts) for i in readable]
        if self.config.leaks == "drop":
            keep = [kept and leak is None for kept, leak in zip(keep, leaks, strict=True)]
        places = list(range(len(self.train_images), len(self.train_images) + len(readable)))
        self.train_images += [image_reference(f"{shard.name}/{rows[i]['key']}", shard, rows[i]) for i in readable]
        earlier = self.train_index.find_and_add(vectors, places, keep)
        duplicates = _similar_rows("duplicate", earlier, self.train_images)
        similar = []
        for i, leak, duplicate in zip(readable, leaks, duplicates, strict=True):
            pairs = ((leak, self.config.leaks), (duplicate, self.config.duplicates))
            matches = [(match, action) for match, action in pairs if match]
            dropped = [match for match, action in matches if action == "drop"]
            if dropped:
                verdicts[i] = decide(rows[i], self.config, dropped[0])
            image: Row = {"shard": shard.name, **{name: rows[i][name] for name in ("index", "key", "where")}}
            similar += [image | match | {"dropped": match in dropped} for match, _ in matches]
        named = [replace(v, pairs=[{"shard": shard.name, **pair} for pair in v.pairs]) for v in verdicts]
        return FilteredShard(shard, rows, named, similar)


def _similar_rows(kind: str, neighbours: Sequence[Neighbour | None], images: list[Row]) -> list[Row | None]:
    """A row of similar.jsonl for each neighbour, which indexes `images`."""
    return [None if n is None else {"kind": kind, **images[n.index], "cosine": n.cosine} for n in neighbours]


def image_reference(name: str, shard: InputShard, row: Row) -> Row:
    """The name, shard and index of an image that others may be near duplicates of."""
    return {"of": name, "of_shard": shard.name, "of_index": row["index"]}
