"""Published facts of a system: paper, model size, reported results, and where its weights can be downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CheckpointFile:
    """One published checkpoint file. Nothing is downloaded: `diptych import` reads it from a local path.

    `description`: its task and data; `url`: the page that links to it; `sha256` is empty if none is published; `note`:
    steps needed before the import.
    """

    file: str
    description: str
    url: str
    sha256: str = ""
    note: str = ""


@dataclass(frozen=True)
class Published:
    """One system as published.

    Args:
        title: title of the paper, authors, venue.
        code: address of the official code.
        model: module and class under diptych.models.
        parameters: parameter count of the official model, per task.
        results: reported results, per task, for comparison with ours. "Not verified here": quoted from memory, so check
            before citing. "As leaderboards list it": from public lists (wizwand.com), not from the paper itself.
        config_overrides: fields of the config at the published size that differ from its defaults.
        image_size: (height, width) in pixels that `diptych info` counts with.
        regions: number of image regions, for models that take regions instead of pixels.
        with_image_region: whether a region that covers the whole image precedes them.
        weights: the published checkpoint files.
        system: the name in `diptych import`, if it differs.
    """

    title: str
    code: str
    model: tuple[str, str]
    parameters: Mapping[str, int]
    results: Mapping[str, str]
    config_overrides: Mapping[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] = (224, 224)
    regions: int = 0
    with_image_region: bool = False
    weights: tuple[CheckpointFile, ...] = ()
    system: str = ""
