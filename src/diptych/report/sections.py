"""What a report can show. Every string may come from an untrusted data set; the page escapes all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image


@dataclass(frozen=True)
class Curve:
    """One series over optimizer steps. `name` and `val/name` share one axis: training and held-out data.

    `floor` is the value a model without knowledge reaches, `floor_name` where it comes from ("ln 2").
    A value that isn't finite leaves a gap in the line and is marked on the step axis.
    """

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    floor: float | None = None
    floor_name: str = ""

    def __post_init__(self):
        if len(self.steps) != len(self.values):
            raise ValueError(f"curve {self.name!r}: {len(self.steps)} steps but {len(self.values)} values")


@dataclass(frozen=True)
class RetrievalExample:
    """A query and what it retrieved, best first: (picture or text, score, correct)."""

    query: Image.Image | str
    results: Sequence[tuple[Image.Image | str, float, bool]]


@dataclass(frozen=True)
class AnswerExample:
    """A question about a picture; `answers` are (answer, probability), best first; `score` is in [0, 1]."""

    picture: Image.Image
    question: str
    answers: Sequence[tuple[str, float]]
    truth: str
    score: float


@dataclass(frozen=True)
class CaptionExample:
    """A picture, what a model says of it, how near that is to the `references` (CIDEr-D), and these."""

    picture: Image.Image
    caption: str
    score: float
    references: Sequence[str]


@dataclass(frozen=True)
class HeatMap:
    """A transport plan of words to patches over the photograph.

    `plan` spans the whole picture: real patches only, no padding. `distance` is the transport cost of the pair.
    """

    picture: Image.Image
    words: Sequence[str]
    plan: Float[np.ndarray, "words rows columns"]
    distance: float
    title: str = ""

    def __post_init__(self):
        if self.plan.ndim != 3 or len(self.plan) != len(self.words) or 0 in self.plan.shape[1:]:
            raise ValueError(
                f"heat map {self.title!r}: the plan is {self.plan.shape}, expected ({len(self.words)} words, rows, columns)"
            )


@dataclass(frozen=True)
class Table:
    """Rows of text or numbers under named columns, e.g. the result beside its control and chance."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    caption: str = ""

    def __post_init__(self):
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}, row {number}: {len(row)} cells for {len(self.columns)} columns"
                )


@dataclass(frozen=True)
class Histogram:
    """How often values fell between two `edges`, for each series (two at most). `threshold`: what divides them."""

    title: str
    edges: Sequence[float]
    counts: Mapping[str, Sequence[int]]
    threshold: float | None = None

    def __post_init__(self):
        if len(self.counts) > 2:
            raise ValueError(f"histogram {self.title!r}: {len(self.counts)} series, where two can be told apart")
        for name, counts in self.counts.items():
            if len(counts) != len(self.edges) - 1:
                raise ValueError(f"histogram {self.title!r}: {len(counts)} counts of {name!r}, {len(self.edges)} edges")


@dataclass(frozen=True)
class JudgedExample:
    """A picture and what was decided about its captions: (text, what it is and what was said of it, whether it stays)."""

    picture: Image.Image
    decision: str
    texts: Sequence[tuple[str, str, bool]]


@dataclass(frozen=True)
class AlikeExample:
    """Pictures that are alike, each with what it is called, and what is to be said of them."""

    pictures: Sequence[tuple[Image.Image, str]]
    told: str


@dataclass(frozen=True)
class Facts:
    """How the run came about: command, versions, data, parameters, seeds, wall time, machine."""

    facts: Mapping[str, object]


@dataclass(frozen=True)
class Findings:
    """(severity, sentence) pairs: what the loss doctor says, which samples were skipped. Severity: error, warning, note."""

    findings: Sequence[tuple[str, str]]


Section = (
    Curve
    | RetrievalExample
    | CaptionExample
    | AnswerExample
    | JudgedExample
    | AlikeExample
    | HeatMap
    | Histogram
    | Table
    | Facts
    | Findings
)
