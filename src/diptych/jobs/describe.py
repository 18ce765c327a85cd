"""What a recipe builds: parameters by part, floating-point operations and tokens of one sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diptych.inputs import Image, Text
from diptych.models.vilt import ViLT
from diptych.recipes.run import Pretrain

WORDS = 15  # a caption of usual length, with [CLS] and [SEP]


@dataclass(frozen=True)
class Description:
    """`parameters` by part of the figure; `flops` of one forward pass of one image (and `words` text tokens)."""

    parameters: dict[str, int]
    heads: dict[str, int]
    image_tokens: int
    words: int
    flops: int


def describe(run: Pretrain) -> Description:
    """Builds the model at full size on the meta device, where weights take no memory."""
    with torch.device("meta"):
        model = run.model.build().eval()
        heads = model.heads() if isinstance(model, ViLT) else nn.ModuleDict()
    parameters = {name: _count(part) for name, part in model.named_children()}
    return Description(
        parameters,
        {name: _count(head) for name, head in heads.items()},
        *_cost(run),
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def _cost(run: Pretrain) -> tuple[int, int, int]:
    """Image tokens, text tokens and FLOPs. Layers repeat, so two shallow models give every depth's count exactly."""
    counts = []
    for depth in (1, 2):
        model = replace(run.model, depth=depth).build().eval()
        rows, columns = run.model.grid
        side = run.model.patch
        image = Image.whole(torch.zeros(1, 3, rows * side, columns * side))
        with FlopCounterMode(display=False) as counter:
            tokens = model.encode_image(image)
            if isinstance(model, ViLT):
                words = min(WORDS, run.model.text_length)  # type: ignore[union-attr]
                text = Text(torch.zeros(1, words, dtype=torch.long), torch.ones(1, words, dtype=torch.bool))
                model.fuse(model.encode_text(text), tokens)
            else:
                words = 0
        counts.append(counter.get_total_flops())
    layer = counts[1] - counts[0]
    return tokens.real.shape[1], words, counts[0] + layer * (run.model.depth - 1)
