"""CapFilt small enough for a test: an untrained BLIP as captioner and filter, and generated tars."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from diptych.config.data import ImageSettings
from diptych.config.objectives import ITC, ITM, LM, Objectives
from diptych.config.run import Pretrain
from diptych.config.training import Training
from diptych.models.configs import BLIPConfig
from diptych.runs.build import build
from tests.runs.tiny_runs import write_model

TINY = Pretrain(
    recipe="tiny",
    data="scenes:24",
    model=BLIPConfig(
        image_dim=16, image_depth=1, image_num_heads=2, image_mlp_dim=32, patch_size=16, grid=(3, 3), dim=16, depth=1, num_heads=2,
        mlp_dim=32, vocab_size=116, text_length=24, bos_token_id=114, enc_token_id=115, embed_dim=8, dropout=0.0,
    ),
    objectives=Objectives(itm=ITM(), itc=ITC(), lm=LM()),
    images=ImageSettings(shorter_side=48, patch_size=16, square=True),
    training=Training(steps=1, batch_size=4),
)  # fmt: skip


def saved(out: Path, run: Pretrain = TINY) -> str:
    """An untrained run's folder, with weights so large that scores of texts differ."""
    module = build(run)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(4 if p.dim() > 1 else 1)
    return str(write_model(out, run, module))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]


def files(out: Path) -> dict[str, bytes]:
    """All output files except the page, which contains its command."""
    return {
        p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "report.html"
    }


def write_tar(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, to in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, to
            tar.addfile(info)


def image_bytes(seed: int) -> bytes:
    out, noise = io.BytesIO(), np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Pillow.fromarray(noise).resize((64, 48)).save(out, "JPEG")
    return out.getvalue()
