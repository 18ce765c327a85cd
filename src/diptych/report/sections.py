"""Typed sections of a report. Every string may come from an untrusted data set; the page escapes all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image


@dataclass(frozen=True)
class Curve:
    """A metric over optimizer steps. `name` (training) and `val/name` (held-out data) are drawn on the same axes.

    A value that is not finite leaves a gap in the line and a mark on the step axis.

    Args:
        name: metric name as logged, for example `itm` or `val/itm`.
        steps: optimizer steps, ascending.
        values: one value for each step.
        chance: chance level of the metric (the loss of a model that predicts only the label prior), if there is one.
        chance_name: how the chance level is derived, for example "ln 2".
    """

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    chance: float | None = None
    chance_name: str = ""

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ValueError(f"curve {self.name!r}: {len(self.steps)} steps but {len(self.values)} values")


@dataclass(frozen=True)
class RetrievalExample:
    """A query and its top results, best first: (image or text, score, whether it is a true match)."""

    query: Image.Image | str
    results: Sequence[tuple[Image.Image | str, float, bool]]

    @property
    def retrieves_text(self) -> bool:
        """Whether all results are texts."""
        return all(isinstance(item, str) for item, _, _ in self.results)


@dataclass(frozen=True)
class AnswerExample:
    """A question about an image; `answers` are (answer, probability), best first; `score` is in [0, 1]."""

    image: Image.Image
    question: str
    answers: Sequence[tuple[str, float]]
    truth: str
    score: float

    @property
    def correct(self) -> bool:
        """Whether the score is at least 0.5."""
        return self.score >= 0.5


@dataclass(frozen=True)
class GroundingExample:
    """A phrase with its predicted and its true box: x1, y1, x2, y2 as shares of the image's width and height.

    `probability`: of the predicted box; None if it was chosen by another score.
    """

    image: Image.Image
    phrase: str
    box: Sequence[float]
    truth: Sequence[float]
    probability: float | None
    iou: float

    @property
    def correct(self) -> bool:
        """Whether the IoU of the two boxes is above 0.5."""
        return self.iou > 0.5


@dataclass(frozen=True)
class CaptionExample:
    """An image with its generated caption, the caption's CIDEr-D as `score`, and the reference captions."""

    image: Image.Image
    caption: str
    score: float
    references: Sequence[str]


@dataclass(frozen=True)
class FilteringExample:
    """A decision of caption filtering (CapFilt) on an image; `captions` are (text, source and reason, whether kept)."""

    image: Image.Image
    decision: str
    captions: Sequence[tuple[str, str, bool]]


@dataclass(frozen=True)
class NearDuplicateExample:
    """Near-duplicate images, each with the name of its sample, and a description of the match."""

    images: Sequence[tuple[Image.Image, str]]
    description: str


@dataclass(frozen=True)
class HeatMap:
    """An optimal-transport plan from text tokens to image patches, with the transport distance of the pair.

    `plan` covers the whole image: real patches only, no padding.
    """

    image: Image.Image
    tokens: Sequence[str]
    plan: Float[np.ndarray, "tokens rows columns"]
    distance: float
    title: str = ""

    def __post_init__(self) -> None:
        if self.plan.ndim != 3 or len(self.plan) != len(self.tokens) or 0 in self.plan.shape[1:]:
            expected = f"({len(self.tokens)} tokens, rows, columns)"
            raise ValueError(f"heat map {self.title!r}: the plan is {self.plan.shape}, expected {expected}")


@dataclass(frozen=True)
class Table:
    """Rows of text or numbers under named columns, for example a result beside its control and the chance level."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    caption: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                where = f"table {self.title!r}, row {number}"
                raise ValueError(f"{where}: {len(row)} cells for {len(self.columns)} columns")


@dataclass(frozen=True)
class Histogram:
    """Counts of values between neighbouring `edges` for each named series (two at most), and a decision threshold."""

    title: str
    edges: Sequence[float]
    counts: Mapping[str, Sequence[int]]
    threshold: float | None = None

    def __post_init__(self) -> None:
        if len(self.counts) > 2:
            raise ValueError(f"histogram {self.title!r}: {len(self.counts)} series, expected at most 2")
        for name, counts in self.counts.items():
            if len(counts) != len(self.edges) - 1:
                raise ValueError(
                    f"histogram {self.title!r}: {len(counts)} counts of {name!r}, expected {len(self.edges) - 1}"
                )


@dataclass(frozen=True)
class Facts:
    """Named facts of a run: command, versions, data, settings, number of parameters, seeds, wall time, machine."""

    facts: Mapping[str, object]


@dataclass(frozen=True)
class Findings:
    """(severity, sentence) pairs of the training diagnostics and skipped samples. Severity: error, warning or note."""

    findings: Sequence[tuple[str, str]]


QualitativeExample = AnswerExample | CaptionExample | GroundingExample | RetrievalExample
"""An example of an evaluation."""

Section = (
    Curve
    | RetrievalExample
    | CaptionExample
    | AnswerExample
    | GroundingExample
    | FilteringExample
    | NearDuplicateExample
    | HeatMap
    | Histogram
    | Table
    | Facts
    | Findings
)
