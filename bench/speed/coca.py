"""CoCa ViT-B/32: a training step of both losses, beside open_clip with its own loss. The weights are ours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.speed import peers
from bench.speed.harness import Work, compare_steps, training_step
from bench.speed.inputs import CLIP, texts
from diptych.batch import Batch, Image
from diptych.checkpoints.adapter import State
from diptych.models.coca.checkpoint import build, names
from diptych.models.coca.config import CoCaConfig

SIZE, COLUMNS = 8, 76
WIDE, CUT = f"{peers.OPEN_CLIP}, {COLUMNS} columns", f"{peers.OPEN_CLIP}, cut to the longest text"
WEIGHTS = {"itc": 1.0, "caption": 2.0}
ARGUMENTS = {name: getattr(CoCaConfig(), name) for name in CoCaConfig.__dataclass_fields__}


class Peer(nn.Module):
    """open_clip's model and loss for texts of this many columns."""

    def __init__(self, official: State, columns: int):
        super().__init__()
        open_clip = peers.open_clip()
        self.model: Any = open_clip.create_model("coca_ViT-B-32")
        self.model.load_state_dict(official)
        with torch.no_grad():  # the [CLS] is the last column, and has the last position in ours
            self.model.text.positional_embedding[columns] = self.model.text.positional_embedding[-1]
        self.loss = open_clip.CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=1.0)

    def forward(self, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        contrast, caption = self.loss(**self.model(pixels, ids))
        return {"itc": contrast, "caption": caption}


def step(precision: str) -> Work:
    """open_clip has 76 columns of text, or as few as give the same losses: those of the longest text, and one pad, as
    its [CLS] attends to the pad that follows a text.
    """
    torch.manual_seed(0)
    ours = build(ARGUMENTS, "pretraining", {}).train()
    official = names(ARGUMENTS, "pretraining").to_official(ours.state_dict())
    text, pixels = texts(SIZE, CLIP), torch.randn(SIZE, 3, 224, 224)
    batch = Batch(0, 0, torch.arange(SIZE), Image.from_full(pixels), text)

    def candidate(columns: int) -> peers.Candidate:
        peer = Peer(official, columns).train()
        ids = F.pad(text.ids, (0, columns - text.ids.shape[1]))
        return training_step(peer, lambda _: peer(pixels, ids), WEIGHTS, precision)

    longest = text.ids.shape[1] + 1
    others = {
        WIDE: peers.unless_missing(lambda: candidate(COLUMNS)),
        CUT: peers.unless_missing(lambda: candidate(longest)),
    }
    run = training_step(ours, lambda _: ours(batch), WEIGHTS, precision)
    return Work(run, others, compare_steps(precision, 1e-5))
