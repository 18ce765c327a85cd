"""A tiny ALBEF with a teacher and a queue, trained on generated pairs; run under torchrun, it trains with FSDP2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from diptych.batch import Batch, Image, Text
from diptych.config.training import Training
from diptych.data.loader import Loaded
from diptych.models.albef.config import ALBEFConfig
from diptych.models.albef.model import ALBEF
from diptych.objectives.itc import ITCLoss
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.momentum import MomentumDistillation, Queue
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import WordMasking
from diptych.training.distributed import processes
from diptych.training.loop import fit
from diptych.utils.rng import random_words, uniform
from tests.training.toy import settings

WORDS, LENGTH, STEPS, STOP = 40, 7, 5, 2
KEEP_BEST = {"keep_best": "itc", "evaluate_every": 1, "checkpoint_every": 3}


def module() -> MomentumDistillation:
    torch.manual_seed(0)
    model = ALBEF(ALBEFConfig(
        image_dim=16, image_depth=2, image_num_heads=2, image_mlp_dim=16, patch_size=4, grid=(2, 2), dim=16, text_depth=1,
        fusion_depth=1, num_heads=2, mlp_dim=16, vocab_size=WORDS, text_length=9, embed_dim=8, dropout=0.0,
    ))  # fmt: skip
    losses = [ITCLoss(), MLMLoss(WordMasking(WORDS, 4, whole_words=False)), HardNegativeITMLoss()]
    return MomentumDistillation(Pretraining(model, model.pretraining_heads(), losses), Queue(24, 8), momentum=0.9)


def micro(ids: list[int], seed: int, step: int) -> Loaded:
    pixels = torch.from_numpy(uniform(seed, 0, ids, "pixels", 3 * 64)).float().view(-1, 3, 8, 8)
    tokens = torch.from_numpy((random_words(seed, 0, ids, "words", LENGTH) % (WORDS - 5)).astype("int64")) + 5
    real = torch.arange(LENGTH) < torch.tensor([3 + i % 5 for i in ids])[:, None]
    return Loaded(Batch(seed, step, torch.tensor(ids), image=Image.from_full(pixels), text=Text(tokens * real, real)))


def training(**changes: object) -> Training:
    return settings(
        **(
            {
                "steps": STEPS,
                "batch_size": 8,
                "log_every": 1,
                "checkpoint_every": 2,
                "evaluate_every": 0,
                "activation_checkpointing": True,
            }
            | changes
        )
    )


def train(out: Path, cfg: Training, stopped: bool = False, rank: int = 0, world: int = 1, **more: object) -> None:
    def stream(start: int) -> Iterator[list[Loaded]]:
        for step in range(start, cfg.steps):
            if stopped and step == STOP:
                raise InterruptedError
            ids = torch.arange(step * cfg.batch_size, (step + 1) * cfg.batch_size).view(world, cfg.grad_accum, -1)
            yield [micro(part.tolist(), cfg.seed, step) for part in ids[rank]]

    with suppress(InterruptedError):
        fit(module(), stream, cfg, out, **more)  # type: ignore[arg-type]


def validation(step: int) -> dict[str, float]:
    """Values whose best is at step 2, which neither a checkpoint nor the last weights have."""
    return {"val/itc": abs(step - 2.0)}


def divided(out: Path) -> None:
    """An uninterrupted run, an interrupted one, and its continuation; and runs that keep the best weights."""
    with processes("cpu") as group:
        for name, stopped in (("whole", False), ("stopped", True), ("went-on", True), ("went-on", False)):
            cfg = training(parallel="fsdp")
            train(out / name, cfg, stopped, group.rank, group.world, group=group)
        for parallel in ("ddp", "fsdp"):
            cfg = training(parallel=parallel, **KEEP_BEST)
            train(out / f"best-{parallel}", cfg, False, group.rank, group.world, evaluate=validation, group=group)


if __name__ == "__main__":  # teacher.py OUT
    torch.set_num_threads(1)
    divided(Path(sys.argv[1]))
