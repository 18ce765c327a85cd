"""From what was said of a sample to what becomes of it: pure functions of plain values.

The second pass: every image beside all before it and beside the test set, its verdict, and the shard that it stays in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diptych.capfilt.near_duplicates import USUAL, FeatureIndex, Neighbour
from diptych.capfilt.score import Part, line
from diptych.capfilt.shards import Opened, Unit
from diptych.config.capfilt import CapFilt
from diptych.data.sources.base import BadSample
from diptych.data.webdataset.writer import Sample, picture_file, sample_texts, write_shard
from diptych.utils.io import atomic_write

Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The texts that stay with an image, and a row for each pair that it came in: kept, re-captioned, dropped, or skipped."""

    texts: list[str]
    pairs: list[Row]


def passes_filter(text: Row, asked: CapFilt) -> tuple[bool, str]:
    """Whether a text stays, and why: its scores must be over their thresholds (BLIP, section 3.3: it is dropped where the
    matching head calls it unmatched)."""
    if "bad" in text:
        return False, text["bad"]
    if not text.keys() & {"match", "cosine"}:
        return True, "not judged"
    reasons = []
    for name, over in (("match", asked.min_itm), ("cosine", asked.min_cosine)):
        if name in text and not text[name] > over:
            return False, f"{name} {text[name]:g} is not over {over:g}"
        if name in text and (name == "match" or over > -1):
            reasons.append(f"{name} {text[name]:g} is over {over:g}")
    return True, ", ".join(reasons)


def decide(row: Row, asked: CapFilt, alike: Row | None = None) -> Verdict:
    """`row`: an image of the first pass. `alike`: the image that it repeats, where that is a reason to drop it."""
    told = {name: row[name] for name in ("key", "index", "where")}
    if "bad" in row:
        return Verdict([], [told | {"decision": "skipped", "reason": row["bad"]}])
    if alike is not None:
        reason = f"the image is like {alike['of']} (cosine {alike['cosine']:g})"
        pairs = [
            told | {"caption": i, **text, "decision": "dropped", "reason": reason}
            for i, text in enumerate(row["texts"])
        ]
        return Verdict([], pairs)
    synthetic: Row | None = row["synthetic"]
    fits = synthetic is not None and passes_filter(synthetic, asked)[0]
    texts, pairs = [], []
    for place, text in enumerate(row["texts"]):
        stays, reason = passes_filter(text, asked)
        decision = "kept" if stays else "re-captioned" if fits else "dropped"
        pairs.append(told | {"caption": place, **text, "decision": decision, "reason": reason})
        if stays:
            texts.append(text["text"])
    added = fits and (asked.synthetic == "beside" or len(texts) < len(pairs))
    if synthetic is not None:
        pairs = [pair | {"synthetic": synthetic} for pair in pairs]
        if added and synthetic["text"] not in texts:
            texts.append(synthetic["text"])
    return Verdict(texts, pairs)


@dataclass(frozen=True)
class DecidedUnit:
    """A unit's rows with their verdicts, and those of its images that are like others."""

    unit: Unit
    rows: list[Row]
    verdicts: list[Verdict]
    similar: list[Row]


@dataclass(frozen=True)
class Shard:
    """What comes out of a unit. The tar is written last: where it stands, all of it does."""

    tar: Path
    decisions: Path
    similar: Path

    @classmethod
    def of(cls, out: Path, unit: Unit) -> Shard:
        parts = out / "parts"
        return cls(
            out / f"{unit.name}.tar", parts / f"{unit.name}.decisions.jsonl", parts / f"{unit.name}.similar.jsonl"
        )

    @property
    def done(self) -> bool:
        return self.tar.is_file()

    def write(self, kept: DecidedUnit, opened: Opened) -> None:
        """Raises BadSample where a picture has become unreadable since the first pass."""
        told = [tell(row, verdict) for row, verdict in zip(kept.rows, kept.verdicts, strict=True)]
        pairs = [pair for verdict, _ in told for pair in verdict.pairs]
        for place, rows in ((self.decisions, pairs), (self.similar, kept.similar)):
            with atomic_write(place) as path:
                path.write_text("".join(map(line, rows)), encoding="utf-8")
        with atomic_write(self.tar) as path:
            write_shard(
                path,
                (
                    Sample(row["key"], *picture_file(opened.source, row["index"]), data)
                    for row, (_, data) in zip(kept.rows, told, strict=True)
                    if data
                ),
            )


def tell(row: Row, verdict: Verdict) -> tuple[Verdict, bytes]:
    """A verdict and what the shard tells of it: nothing where no text stays, or where that would be too long to be read."""
    if not verdict.texts:
        return verdict, b""
    try:
        return verdict, sample_texts(verdict.texts, {"bootstrap": verdict.pairs}, row["where"])
    except BadSample as bad:
        return Verdict([], [pair | {"decision": "skipped", "reason": bad.why} for pair in verdict.pairs]), b""


class Decider:
    """Goes through all units in their order, since what is a duplicate hangs on what came before."""

    def __init__(self, asked: CapFilt, scored: Path, against: Sequence[Unit], device: torch.device):
        """`scored`: where the first pass left its parts."""
        self.asked, self.scored = asked, scored
        over = asked.duplicate_cosine or USUAL[asked.similarity]
        self.seen, self.tests = FeatureIndex(over, device), FeatureIndex(over, device)
        self.known: list[Row] = []
        self.known_tests: list[Row] = []
        for unit in against:
            part = Part.of(scored, unit)
            readable = [row for row in part.read() if "bad" not in row]
            places = range(len(self.known_tests), len(self.known_tests) + len(readable))
            self.tests.add(part.read_features(), list(places))
            self.known_tests += [known_as(row["where"], unit, row) for row in readable]

    def sort(self, unit: Unit) -> DecidedUnit:
        part = Part.of(self.scored, unit)
        rows, vectors = part.read(texts=True), part.read_features()
        readable = [i for i, row in enumerate(rows) if "bad" not in row]
        verdicts = [decide(row, self.asked) for row in rows]
        leaks = self._told(
            "leak", self.tests.nearest(vectors) if self.tests.places else [None] * len(readable), self.known_tests
        )
        stay = [bool(verdicts[i].texts) for i in readable]
        if self.asked.leaks == "drop":
            stay = [here and leak is None for here, leak in zip(stay, leaks, strict=True)]
        places = list(range(len(self.known), len(self.known) + len(readable)))
        self.known += [known_as(f"{unit.name}/{rows[i]['key']}", unit, rows[i]) for i in readable]
        twins = self._told("duplicate", self.seen.among(vectors, places, stay), self.known)
        similar = []
        for i, leak, twin in zip(readable, leaks, twins, strict=True):
            found = [(one, drop) for one, drop in ((leak, self.asked.leaks), (twin, self.asked.duplicates)) if one]
            dropped = [one for one, drop in found if drop == "drop"]
            if dropped:
                verdicts[i] = decide(rows[i], self.asked, dropped[0])
            own: Row = {"shard": unit.name, **{name: rows[i][name] for name in ("index", "key", "where")}}
            similar += [own | one | {"dropped": one in dropped} for one, _ in found]
        named = [replace(v, pairs=[{"shard": unit.name, **pair} for pair in v.pairs]) for v in verdicts]
        return DecidedUnit(unit, rows, named, similar)

    def _told(self, kind: str, twins: Sequence[Neighbour | None], known: list[Row]) -> list[Row | None]:
        return [None if t is None else {"kind": kind, **known[t.of], "cosine": t.cosine} for t in twins]


def known_as(name: str, unit: Unit, row: Row) -> Row:
    """What is told of the image that another is like: its name, and where its picture is found."""
    return {"of": name, "of_shard": unit.name, "of_index": row["index"]}
