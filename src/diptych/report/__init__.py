"""One self-contained report.html per run folder, rendered from typed sections."""

from .metrics_log import read_curves
from .page import write_report
from .sections import (
    AnswerExample,
    CaptionExample,
    Curve,
    Facts,
    FilteringExample,
    Findings,
    GroundingExample,
    HeatMap,
    Histogram,
    NearDuplicateExample,
    QualitativeExample,
    RetrievalExample,
    Section,
    Table,
)

__all__ = [
    "AnswerExample",
    "CaptionExample",
    "Curve",
    "Facts",
    "FilteringExample",
    "Findings",
    "GroundingExample",
    "HeatMap",
    "Histogram",
    "NearDuplicateExample",
    "QualitativeExample",
    "RetrievalExample",
    "Section",
    "Table",
    "read_curves",
    "write_report",
]
