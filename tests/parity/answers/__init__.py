"""What of each paper's goldens can be recomputed, by the code that training runs: one `Answers` each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.parity.answers import (
    albef,
    beit3,
    blip,
    clip,
    coca,
    crossvit,
    mae,
    mixgen,
    scan,
    vilbert,
    vilt,
    vit,
    vlmo,
    vsepp,
)
from tests.parity.golden_case import Answers, Case

ANSWERS: Mapping[str, Callable[[Case], Answers]] = {
    "vit": vit.Answers,
    "vilt": vilt.Answers,
    "vlmo": vlmo.Answers,
    "vsepp": vsepp.Answers,
    "scan": scan.Answers,
    "vilbert": vilbert.Answers,
    "crossvit": crossvit.Answers,
    "mae": mae.Answers,
    "mixgen": mixgen.Answers,
    "beit3": beit3.Answers,
    "albef": albef.Answers,
    "blip": blip.Answers,
    "clip": clip.Answers,
    "open_clip": clip.Answers,
    "clip_resnet": clip.Answers,
    "coca": coca.Answers,
}
