"""What of each paper's goldens can be recomputed, by the code that training runs: one `Answers` each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diptych.weights.answers import crossvit, scan, vilt, vit, vsepp
from diptych.weights.golden import Answers, Case

ANSWERS: Mapping[str, Callable[[Case], Answers]] = {
    "vit": vit.Answers,
    "vilt": vilt.Answers,
    "vsepp": vsepp.Answers,
    "scan": scan.Answers,
    "crossvit": crossvit.Answers,
}
