"""The summary of CapFilt: joined lists of decisions, counts, and the HTML report."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image as Pillow

from diptych.capfilt.filter import OutputShard, Row, passes_filter
from diptych.capfilt.score import TEXT, json_line
from diptych.capfilt.shards import InputShard
from diptych.config.capfilt import CapFilt
from diptych.data.sources.base import BadSample, DataError
from diptych.report import (
    Facts,
    FilteringExample,
    Findings,
    Histogram,
    NearDuplicateExample,
    Section,
    Table,
    write_report,
)
from diptych.runs.report import continue_on_error
from diptych.tasks.definition import evenly_spaced
from diptych.utils.io import atomic_write, read_json_lines

DECISIONS = ("kept", "re-captioned", "dropped", "skipped")
DECISION = {"shard": str, "index": int, "where": str, "decision": str, "reason": str, "synthetic?": TEXT}
SIMILAR = {"shard": str, "index": int, "where": str, "kind": str, "of": str, "cosine": (int, float), "dropped": bool}
NUM_EXAMPLES = 8  # of each decision, in the report
BINS = 40
EDGES = {"itm": (0.0, 1.0), "cosine": (-1.0, 1.0)}


class DecisionCounts:
    """Counts of decisions, histograms of scores, and examples for the report, updated image by image."""

    def __init__(self) -> None:
        self.pairs: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.scores: dict[str, dict[str, list[int]]] = {}
        self.examples: dict[str, list[list[Row]]] = {decision: [] for decision in DECISIONS}

    def image(self, pairs: list[Row], config: CapFilt) -> None:
        """Counts the pairs of one image."""
        decisions = {pair["decision"] for pair in pairs}
        self.pairs.update(pair["decision"] for pair in pairs)
        self.images["in"] += 1
        self.images["out"] += bool(decisions & {"kept", "re-captioned"})
        synthetic = next((pair["synthetic"] for pair in pairs if "synthetic" in pair), None)
        if synthetic is not None:
            self._score("synthetic captions", synthetic)
            self.images["synthetic that pass"] += passes_filter(synthetic, config)[0]
        for pair in pairs:
            self._score("original captions", pair)
        for decision in decisions:
            self._example(self.examples[decision], pairs)

    def _score(self, series: str, text: Row) -> None:
        for name, (low, high) in EDGES.items():
            if name in text:
                counts = self.scores.setdefault(name, {}).setdefault(series, [0] * BINS)
                counts[min(max(int((text[name] - low) / (high - low) * BINS), 0), BINS - 1)] += 1

    @staticmethod
    def _example(examples: list[list[Row]], pairs: list[Row]) -> None:
        """Adds an example; of too many, every other one is removed, which keeps them spread over the data."""
        examples.append(pairs)
        if len(examples) > 64 * NUM_EXAMPLES:
            del examples[1::2]


def write_summary(
    config: CapFilt, out: Path, shards: Sequence[InputShard], against: Sequence[InputShard]
) -> dict[str, int]:
    """Writes decisions.jsonl, similar.jsonl, skipped.jsonl, summary.json and report.html; returns the counts.

    `against`: the shards of the test set. Raises DataError if no sample can be used.
    """
    count, outputs = DecisionCounts(), [OutputShard.of(out, shard) for shard in shards]
    _join(out / "decisions.jsonl", [output.decisions for output in outputs])
    _join(out / "similar.jsonl", [output.similar for output in outputs])
    with atomic_write(out / "skipped.jsonl") as path, path.open("w", encoding="utf-8") as skipped:
        for pairs in images(out / "decisions.jsonl"):
            count.image(pairs, config)
            skipped.writelines(json_line(pair) for pair in pairs if pair["decision"] == "skipped")
    similar = [row for _, row in read_json_lines(out / "similar.jsonl", SIMILAR)]
    if count.pairs.total() == count.pairs["skipped"]:
        raise DataError(
            f"{config.data}: none of {count.pairs.total()} samples can be used; {out / 'skipped.jsonl'} has the reasons"
        )
    counts = {decision: count.pairs[decision] for decision in DECISIONS}
    counts |= {f"images {name}": count.images[name] for name in ("in", "out", "synthetic that pass")}
    counts |= {f"{kind}s": sum(row["kind"] == kind for row in similar) for kind in ("duplicate", "leak")}
    with atomic_write(out / "summary.json") as path:
        path.write_text(json.dumps(counts, indent=1))
    by_name = {shard.name: shard for shard in (*shards, *against)}

    def report() -> Path:
        sections = list(_sections(config, out, by_name, count, counts, similar))
        return write_report(out / "report.html", f"Captions of {config.data}", sections)

    continue_on_error("report.html", report, None)
    return counts


def images(decisions: Path) -> Iterator[list[Row]]:
    """The pairs of each image of a decisions.jsonl, image by image."""
    pairs: list[Row] = []
    for _, row in read_json_lines(decisions, DECISION):
        if pairs and (row["index"] < 0 or (row["shard"], row["index"]) != (pairs[0]["shard"], pairs[0]["index"])):
            yield pairs
            pairs = []
        pairs.append(row)
    if pairs:
        yield pairs


def _join(into: Path, parts: Sequence[Path]) -> None:
    """Concatenates files."""
    with atomic_write(into) as path, path.open("wb") as joined:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined)


def _sections(
    config: CapFilt,
    out: Path,
    shards: dict[str, InputShard],
    count: DecisionCounts,
    counts: dict[str, int],
    similar: list[Row],
) -> Iterator[Section]:
    total = max(count.pairs.total(), 1)
    rows = [[name, f"{counts[name]:,}", f"{counts[name] / total:.1%}"] for name in DECISIONS]
    yield Table("Pairs", ("decision", "pairs", "share"), rows)
    image_rows = [[name.removeprefix("images "), f"{n:,}"] for name, n in counts.items() if name not in DECISIONS]
    yield Table("Images", ("kind", "images"), image_rows)
    for name, series in count.scores.items():
        low, high = EDGES[name]
        edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
        if name == "itm":
            yield Histogram("ITM probability", edges, series, config.min_itm)
        else:
            yield Histogram("Cosine similarity", edges, series, config.min_cosine if config.min_cosine > -1 else None)
    for decision in ("re-captioned", "dropped", "kept"):
        yield from _examples(shards, decision, evenly_spaced(count.examples[decision], NUM_EXAMPLES), config)
    for kind in ("leak", "duplicate"):
        located = [row for row in similar if row["kind"] == kind and "of_shard" in row]
        yield from _near_duplicates(shards, evenly_spaced(located, NUM_EXAMPLES))
    yield Findings(list(_findings(out, count, similar)))
    yield Facts({"command": " ".join(sys.argv), **asdict(config)})


def _examples(
    shards: dict[str, InputShard], decision: str, examples: Sequence[list[Row]], config: CapFilt
) -> Iterator[FilteringExample]:
    for pairs in examples:
        image = _image(shards[pairs[0]["shard"]], pairs[0]["index"])
        if image is not None:
            texts = [
                (pair["text"], f"original: {pair['decision']}; {pair['reason']}", pair["decision"] == "kept")
                for pair in pairs
            ]
            synthetic = next((pair["synthetic"] for pair in pairs if "synthetic" in pair), None)
            if synthetic is not None:
                passes, reason = passes_filter(synthetic, config)
                texts.append((synthetic["text"], f"synthetic: {reason}", passes))
            yield FilteringExample(image, decision, texts)


def _near_duplicates(shards: dict[str, InputShard], rows: Sequence[Row]) -> Iterator[NearDuplicateExample]:
    for row in rows:
        ends = ((row["shard"], row["index"], row["where"]), (row["of_shard"], row["of_index"], row["of"]))
        loaded = [(_image(shards[shard], index), name) for shard, index, name in ends]
        images = [(image, name) for image, name in loaded if image is not None]
        right = "the right image is of the test set" if row["kind"] == "leak" else "the right image came before"
        caption = f"{right}: cosine {row['cosine']:g}{', dropped' if row['dropped'] else ''}"
        if len(images) == len(ends):
            yield NearDuplicateExample(images, caption)


def _image(shard: InputShard, index: int) -> Pillow.Image | None:
    """An image of a shard; None if it cannot be read."""
    try:
        return shard.open().source.image(index)
    except BadSample:
        return None


def _findings(out: Path, count: DecisionCounts, similar: list[Row]) -> Iterator[tuple[str, str]]:
    if skipped := count.pairs["skipped"]:
        examples = [pair for pairs in count.examples["skipped"][:5] for pair in pairs]
        head = "; ".join(f"{pair['where']}: {pair['reason']}" for pair in examples[:5])
        yield "warning", f"{skipped} samples were skipped (skipped.jsonl lists them): {head}"
    for kind, other in (("duplicate", "an earlier one"), ("leak", "one of the test set")):
        rows = [row for row in similar if row["kind"] == kind]
        if rows:
            dropped = sum(row["dropped"] for row in rows)
            head = "; ".join(f"{row['where']} like {row['of']} ({row['cosine']:g})" for row in rows[:5])
            yield (
                "warning",
                f"{len(rows)} images are like {other}, {dropped} dropped for it (similar.jsonl lists them): {head}",
            )
    if not count.images["out"]:
        yield "error", "no image is left: no caption passed the filter"
