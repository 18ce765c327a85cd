"""What is told of a system: its paper, its model at the published size, its numbers, and where its weights lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Weights:
    """One published file. Nothing is ever fetched: `diptych import` reads it from where the user has put it.

    `sha256` is empty where its publishers state none. `note`: what must be done to it first.
    """

    file: str
    what: str
    where: str
    sha256: str = ""
    note: str = ""


@dataclass(frozen=True)
class Published:
    """One system. `model`: module and class under diptych.models, `arguments` those of the published size where they differ
    from its defaults. `pixels`: the image size that `describe` counts with, rows and columns; `regions`: how many it has
    instead. `system`: as `diptych import` calls it, where that is another name.
    """

    title: str
    code: str
    model: tuple[str, str]
    parameters: Mapping[str, int]  # of the official model, per job
    results: Mapping[str, str]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] = (224, 224)
    regions: int = 0
    whole: bool = False  # whether a region for the whole image stands in front of them
    weights: tuple[Weights, ...] = ()
    system: str = ""
