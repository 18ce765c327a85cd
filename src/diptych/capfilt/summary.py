"""What became of all pairs, put together: the lists, the counts and the page."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image as Pillow

from diptych.capfilt.filter import Row, Shard, passes_filter
from diptych.capfilt.score import TEXT, line
from diptych.capfilt.shards import Unit
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
from diptych.runs.report import report_errors
from diptych.runs.scoring.base import evenly_spaced
from diptych.utils.io import atomic_write, read_json_lines

DECISIONS = ("kept", "re-captioned", "dropped", "skipped")
DECISION = {"shard": str, "index": int, "where": str, "decision": str, "reason": str, "synthetic?": TEXT}
SIMILAR = {"shard": str, "index": int, "where": str, "kind": str, "of": str, "cosine": (int, float), "dropped": bool}
SHOWN = 8  # examples of each decision
BINS = 40
EDGES = {"match": (0.0, 1.0), "cosine": (-1.0, 1.0)}


class Count:
    """What is counted of the decisions as they go by, and the examples that are shown."""

    def __init__(self) -> None:
        self.pairs: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.scores: dict[str, dict[str, list[int]]] = {}
        self.examples: dict[str, list[list[Row]]] = {decision: [] for decision in DECISIONS}

    def image(self, pairs: list[Row], asked: CapFilt) -> None:
        """All pairs that one image came in."""
        decisions = {pair["decision"] for pair in pairs}
        self.pairs.update(pair["decision"] for pair in pairs)
        self.images["in"] += 1
        self.images["out"] += bool(decisions & {"kept", "re-captioned"})
        synthetic = next((pair["synthetic"] for pair in pairs if "synthetic" in pair), None)
        if synthetic is not None:
            self._score("synthetic captions", synthetic)
            self.images["synthetic that pass"] += passes_filter(synthetic, asked)[0]
        for pair in pairs:
            self._score("captions as they came", pair)
        for decision in decisions:
            self._example(self.examples[decision], pairs)

    def _score(self, series: str, text: Row) -> None:
        for name, (low, high) in EDGES.items():
            if name in text:
                counts = self.scores.setdefault(name, {}).setdefault(series, [0] * BINS)
                counts[min(max(int((text[name] - low) / (high - low) * BINS), 0), BINS - 1)] += 1

    @staticmethod
    def _example(kept: list[list[Row]], pairs: list[Row]) -> None:
        """Examples from all over the data in bounded room: where there are too many, every other one is let go."""
        kept.append(pairs)
        if len(kept) > 64 * SHOWN:
            del kept[1::2]


def finish(asked: CapFilt, out: Path, units: Sequence[Unit], against: Sequence[Unit]) -> dict[str, int]:
    """Writes decisions.jsonl, similar.jsonl, skipped.jsonl, summary.json and report.html; the counts. `against`: the units of the
    test set. Raises DataError.
    """
    count, shards = Count(), [Shard.of(out, unit) for unit in units]
    _join(out / "decisions.jsonl", [shard.decisions for shard in shards])
    _join(out / "similar.jsonl", [shard.similar for shard in shards])
    with atomic_write(out / "skipped.jsonl") as path, path.open("w", encoding="utf-8") as skipped:
        for pairs in images(out / "decisions.jsonl"):
            count.image(pairs, asked)
            skipped.writelines(line(pair) for pair in pairs if pair["decision"] == "skipped")
    similar = [row for _, row in read_json_lines(out / "similar.jsonl", SIMILAR)]
    if count.pairs.total() == count.pairs["skipped"]:
        raise DataError(
            f"{asked.data}: no sample of {count.pairs.total()} can be used; {out / 'skipped.jsonl'} says why"
        )
    told = {decision: count.pairs[decision] for decision in DECISIONS}
    told |= {f"images {name}": count.images[name] for name in ("in", "out", "synthetic that pass")}
    told |= {f"{kind}s": sum(row["kind"] == kind for row in similar) for kind in ("duplicate", "leak")}
    with atomic_write(out / "summary.json") as path:
        path.write_text(json.dumps(told, indent=1))
    where = {unit.name: unit for unit in (*units, *against)}

    def page() -> Path:
        sections = list(_sections(asked, out, where, count, told, similar))
        return write_report(out / "report.html", f"Captions of {asked.data}", sections)

    report_errors("report.html", page, None)
    return told


def images(decisions: Path) -> Iterator[list[Row]]:
    """The pairs of one image after the other."""
    held: list[Row] = []
    for _, row in read_json_lines(decisions, DECISION):
        if held and (row["index"] < 0 or (row["shard"], row["index"]) != (held[0]["shard"], held[0]["index"])):
            yield held
            held = []
        held.append(row)
    if held:
        yield held


def _join(into: Path, parts: Sequence[Path]) -> None:
    with atomic_write(into) as path, path.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole)


def _sections(
    asked: CapFilt, out: Path, where: dict[str, Unit], count: Count, told: dict[str, int], similar: list[Row]
) -> Iterator[Section]:
    rows = [[name, f"{n:,}", f"{n / max(count.pairs.total(), 1):.1%}"] for name, n in told.items() if name in DECISIONS]
    yield Table("Pairs", ("decision", "pairs", "share"), rows)
    yield Table(
        "Images", ("what", "images"), [[n.removeprefix("images "), f"{told[n]:,}"] for n in list(told)[len(rows) :]]
    )
    for name, series in count.scores.items():
        low, high = EDGES[name]
        edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
        over = asked.min_itm if name == "match" else asked.min_cosine if asked.min_cosine > -1 else None
        title = "Probability of a match" if name == "match" else "Cosine of the contrast"
        yield Histogram(title, edges, series, over)
    for decision in ("re-captioned", "dropped", "kept"):
        yield from _examples(where, decision, evenly_spaced(count.examples[decision], SHOWN), asked)
    for kind in ("leak", "duplicate"):
        yield from _alike(
            where, evenly_spaced([row for row in similar if row["kind"] == kind and "of_shard" in row], SHOWN)
        )
    yield Findings(list(_findings(out, count, similar)))
    yield Facts({"command": " ".join(sys.argv), **asdict(asked)})


def _examples(
    units: dict[str, Unit], decision: str, chosen: Sequence[list[Row]], asked: CapFilt
) -> Iterator[FilteringExample]:
    for pairs in chosen:
        picture = _picture(units[pairs[0]["shard"]], pairs[0]["index"])
        if picture is not None:
            texts = [
                (pair["text"], f"as it came: {pair['decision']}; {pair['reason']}", pair["decision"] == "kept")
                for pair in pairs
            ]
            synthetic = next((pair["synthetic"] for pair in pairs if "synthetic" in pair), None)
            if synthetic is not None:
                stays, reason = passes_filter(synthetic, asked)
                texts.append((synthetic["text"], f"synthetic: {reason}", stays))
            yield FilteringExample(picture, decision, texts)


def _alike(units: dict[str, Unit], chosen: Sequence[Row]) -> Iterator[NearDuplicateExample]:
    for row in chosen:
        ends = ((row["shard"], row["index"], row["where"]), (row["of_shard"], row["of_index"], row["of"]))
        found = [(_picture(units[shard], index), called) for shard, index, called in ends]
        pictures = [(picture, called) for picture, called in found if picture is not None]
        what = "the right one is of the test set" if row["kind"] == "leak" else "the right one came before"
        told = f"{what}: cosine {row['cosine']:g}{', dropped' if row['dropped'] else ''}"
        if len(pictures) == len(ends):
            yield NearDuplicateExample(pictures, told)


def _picture(unit: Unit, index: int) -> Pillow.Image | None:
    try:
        return unit.open().source.image(index)
    except BadSample:
        return None


def _findings(out: Path, count: Count, similar: list[Row]) -> Iterator[tuple[str, str]]:
    if skipped := count.pairs["skipped"]:
        examples = [pair for pairs in count.examples["skipped"][:5] for pair in pairs]
        head = "; ".join(f"{pair['where']}: {pair['reason']}" for pair in examples[:5])
        yield "warning", f"{skipped} samples were skipped (skipped.jsonl lists them): {head}"
    for kind, what in (("duplicate", "an earlier one"), ("leak", "one of the test set")):
        found = [row for row in similar if row["kind"] == kind]
        if found:
            dropped = sum(row["dropped"] for row in found)
            head = "; ".join(f"{row['where']} like {row['of']} ({row['cosine']:g})" for row in found[:5])
            yield (
                "warning",
                f"{len(found)} images are like {what}, {dropped} dropped for it (similar.jsonl lists them): {head}",
            )
    if not count.images["out"]:
        yield "error", "nothing stays: no caption passed"
