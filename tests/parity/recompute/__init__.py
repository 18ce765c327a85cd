"""Recomputation of golden tensors by the code that training runs: one class for each system."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.parity.golden_case import Case, Recomputation
from tests.parity.recompute import (
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

RECOMPUTATIONS: Mapping[str, Callable[[Case], Recomputation]] = {
    "vit": vit.Recomputation,
    "vilt": vilt.Recomputation,
    "vlmo": vlmo.Recomputation,
    "vsepp": vsepp.Recomputation,
    "scan": scan.Recomputation,
    "vilbert": vilbert.Recomputation,
    "crossvit": crossvit.Recomputation,
    "mae": mae.Recomputation,
    "mixgen": mixgen.Recomputation,
    "beit3": beit3.Recomputation,
    "albef": albef.Recomputation,
    "blip": blip.Recomputation,
    "clip": clip.Recomputation,
    "open_clip": clip.Recomputation,
    "clip_resnet": clip.Recomputation,
    "coca": coca.Recomputation,
}
