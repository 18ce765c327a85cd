"""A toy step and a toy stream for the tests of the loop; run as a script, it trains (see `main`)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from diptych.batch import Batch, Text
from diptych.config.training import Optimizer, Training
from diptych.data.loader import Loaded, Skipped
from diptych.protocols import ChanceLoss
from diptych.training.distributed import processes
from diptych.training.loop import fit
from diptych.utils.rng import random_words, uniform

LENGTH, VOCABULARY = 6, 11


class Toy(nn.Module):
    """Two losses over words: one with as many terms as masked words, which differ between parts of a batch."""

    def __init__(self, dropout: float = 0.0, unused: bool = False, nan_at: int = -1, depth: int = 0):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(VOCABULARY, 16)
        self.norm = nn.LayerNorm(16)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(16, 16)
        self.out = nn.Linear(16, VOCABULARY, bias=False)
        self.out.weight = self.words.weight  # tied
        self.heads = nn.ModuleDict({"itm": nn.Linear(16, 2)})
        self.spare = nn.Linear(2, 2) if unused else None
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(depth))
        self.weights = {"mlm": 1.0, "itm": 0.5}
        self.chance_losses = {"itm": ChanceLoss(0.6931, "matching prior", "no image in sight")}
        self.nan_at = nan_at

    def num_terms(self, batch: Batch) -> dict[str, torch.Tensor]:
        b = torch.tensor(float(len(batch)))
        return {"mlm": self.hidden_words(batch).sum().float(), "itm": b, "itm/accuracy": b}

    def hidden_words(self, batch: Batch) -> torch.Tensor:
        return torch.from_numpy(uniform(batch.seed, batch.step, batch.ids.numpy(), "mask", LENGTH) < 0.3)

    def forward(self, batch: Batch, counts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert batch.text is not None
        x = self.hidden(self.dropout(self.norm(self.words(batch.text.ids)).tanh()))
        for block in self.blocks:
            x = x + block(x)
        mask = self.hidden_words(batch)
        mlm = nn.functional.cross_entropy(self.out(x)[mask], batch.text.ids[mask], reduction="sum")
        logits, target = self.heads["itm"](x.mean(1)), batch.text.ids[:, 0] % 2
        itm = nn.functional.cross_entropy(logits, target, reduction="sum")
        if batch.step == self.nan_at:
            itm = itm * float("nan")
        totals = {"mlm": mlm, "itm": itm, "itm/accuracy": (logits.argmax(1) == target).sum().float()}
        return {name: total / counts[name].clamp(min=1e-9) for name, total in totals.items()}


def micro(ids: list[int], seed: int, step: int) -> Loaded:
    """Words that depend on the sample; sample ids divisible by 97 represent unreadable files."""
    tokens = torch.from_numpy((random_words(seed, 0, ids, "toy", LENGTH) % VOCABULARY).astype("int64"))
    batch = Batch(seed, step, torch.tensor(ids), text=Text(tokens, torch.ones_like(tokens, dtype=torch.bool)))
    return Loaded(batch, tuple(Skipped(i, f"toy:{i}", "unreadable") for i in ids if i % 97 == 0))


def stream(settings: Training, rank: int = 0, world: int = 1, kill_at: int = -1, interrupt_at: int = -1):
    """Yields batches like a loader. At step `kill_at` the process is killed; at `interrupt_at` it gets a Ctrl-C."""

    def steps(start: int):
        for step in range(start, settings.steps):
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)
            ids = torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size).view(
                world, settings.grad_accum, -1
            )
            yield [micro(part.tolist(), settings.seed, step) for part in ids[rank]]

    return steps


def settings(**changes) -> Training:
    every = dict(log_every=3, evaluate_every=8, checkpoint_every=4)
    plain = dict(steps=20, batch_size=16, device="cpu", precision="fp32", max_skipped=0.1)
    return Training(**(every | plain | {"optimizer": Optimizer(learning_rate=1e-2)} | changes))  # type: ignore[arg-type]


def run(out: Path, toy: Toy, training: Training, kill_at: int = -1, interrupt_at: int = -1, **more) -> Path:
    def evaluate(step: int) -> dict[str, float]:
        assert not toy.training
        return {"val/first": toy.hidden.weight[0, 0].item()}

    with processes("cpu") as group:
        made = stream(training, group.rank, group.world, kill_at, interrupt_at)
        return fit(toy, made, training, out, evaluate=evaluate, group=group, **more)


if __name__ == "__main__":  # toy.py OUT DROPOUT KILL_AT INTERRUPT_AT
    torch.set_num_threads(1)
    kill, interrupt = int(sys.argv[3]), int(sys.argv[4])
    run(Path(sys.argv[1]), Toy(dropout=float(sys.argv[2])), settings(), kill, interrupt)
