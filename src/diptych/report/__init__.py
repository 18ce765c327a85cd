"""One self-contained report.html per run folder, assembled from typed sections."""

from .curves import curves
from .page import write_report
from .sections import (
    AlikeExample,
    AnswerExample,
    CaptionExample,
    Curve,
    Facts,
    Findings,
    HeatMap,
    Histogram,
    JudgedExample,
    RetrievalExample,
    Section,
    Table,
)

__all__ = [
    "AlikeExample",
    "AnswerExample",
    "CaptionExample",
    "Curve",
    "Facts",
    "Findings",
    "HeatMap",
    "Histogram",
    "JudgedExample",
    "RetrievalExample",
    "Section",
    "Table",
    "curves",
    "write_report",
]
