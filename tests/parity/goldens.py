"""Golden folders: a small one for each system in the repository, all others in the folder DIPTYCH_GOLDENS."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

GOLDEN_CASES = Path(__file__).parent / "golden"
INSIDE = (
    "vit",
    "vilt_pretrain",
    "vsepp",
    "scan",
    "vilbert_pretrain",
    "crossvit_dagger",
    "mae",
    "mixgen",
    "albef_pretrain",
    "open_clip",
    "coca",
    "beit3_caption",
    "blip_caption",
    "vlmo_pretrain",
)
OUTSIDE = (
    "vit", "vit_avgpool",
    "vilt_pretrain", "vilt_retrieval", "vilt_vqa", "vilt_nlvr2",
    "vsepp", "scan",
    "vilbert_pretrain", "vilbert_pretrain_feat", "vilbert_12in1", "vilbert_tasks",
    "crossvit", "crossvit_dagger",
    "mae",
    "mixgen",
    "clip", "open_clip", "coca",
    "beit3_vqa", "beit3_nlvr2", "beit3_retrieval", "beit3_caption", "beit3_imagenet",
    "albef_pretrain", "albef_retrieval", "albef_ve", "albef_vqa", "albef_nlvr2", "albef_nlvr2_ta",
    "blip_pretrain", "blip_retrieval", "blip_caption", "blip_vqa", "blip_nlvr2",
    "vlmo_pretrain", "vlmo_plus_pretrain", "vlmo_textmlm", "vlmo_retrieval", "vlmo_vqa", "vlmo_nlvr2",
)  # fmt: skip
"""Every golden case; a line for each system."""


def outside() -> Path | None:
    """The folder DIPTYCH_GOLDENS, if it is set."""
    folder = os.environ.get("DIPTYCH_GOLDENS")
    return Path(folder) if folder else None


@pytest.fixture(
    params=[*INSIDE, *(pytest.param(f"DIPTYCH_GOLDENS/{name}", marks=pytest.mark.slow) for name in OUTSIDE)]
)
def golden_folder(request: pytest.FixtureRequest) -> Path:
    """Every golden folder in turn; those in DIPTYCH_GOLDENS are skipped if it is not set."""
    parent, _, name = request.param.rpartition("/")
    if not parent:
        return GOLDEN_CASES / name
    root = outside()
    if root is None or not (root / name).is_dir():
        pytest.skip(f"set DIPTYCH_GOLDENS to the folder of golden cases to check {name}")
    return root / name


@pytest.fixture
def vit_folder() -> Path:
    return GOLDEN_CASES / "vit"


@pytest.fixture
def vilt_folder() -> Path:
    return GOLDEN_CASES / "vilt_pretrain"


@pytest.fixture(params=["vit", "vilt_pretrain"])
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a golden folder, which a test may change."""
    return Path(shutil.copytree(GOLDEN_CASES / request.param, tmp_path / request.param))
