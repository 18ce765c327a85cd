"""Imports of the libraries that Diptych is compared with. The extra `bench` installs them; none is a dependency.

They are imported by these functions, not at the top of a file, so that without one of them only its rows are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

HF, OPEN_CLIP, TORCHVISION = "Hugging Face", "open_clip", "torchvision"
BF16_WEIGHTS = ", bf16 weights"  # ends the name of a peer whose weights, norms and residuals are bf16, without autocast
PACKAGES = {HF: "transformers", OPEN_CLIP: "open_clip_torch", TORCHVISION: "torchvision"}
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

Candidate = Callable[[int], Any]
"""One run of the work, by the number of the round; returns what is compared."""


def transformers() -> Any:
    """Hugging Face's transformers. Raises ImportError. It imports torchvision where that is installed."""
    if installed_version(PACKAGES[TORCHVISION]):
        torchvision()
    return import_module("transformers")


def open_clip() -> Any:
    """open_clip, which needs torchvision. Raises ImportError."""
    torchvision()
    return import_module("open_clip")


@cache
def torchvision() -> Any:
    """torchvision. Raises ImportError.

    A torchvision that was built for another PyTorch fails at import, as its compiled operators are missing; its
    transforms need none of them, so the two that it registers are defined without an implementation.
    """
    try:
        return import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise ImportError(f"torchvision cannot be imported: {error}") from error
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in OPERATORS:
        library.define(operator)
    _kept.append(library)
    return import_module("torchvision")


_kept: list[Any] = []  # a Library takes its operators with it when it is deleted


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions(peer: str) -> str:
    """The packages of a peer, by the beginning of its name, with their versions; "" for code of this folder."""
    named = [package for name, package in PACKAGES.items() if peer.startswith(name)]
    return ", ".join(f"{package} {installed_version(package) or 'not installed'}" for package in named)


def unless_missing(build: Callable[[], Candidate]) -> Candidate | str:
    """The candidate of a peer, or why there is none: its package cannot be imported."""
    try:
        return build()
    except ImportError as error:
        return str(error)
