"""Of which image each sample is: where one image has several captions, each of them is right for it, and none is a negative.

So it is in the retrieval fine-tuning of ALBEF and BLIP (official code, `idx`): in contrast the truth is shared evenly among
all candidates of the image, in the batch and in the queue, and hard negatives are never drawn from them. It is the rule here
for pre-training too, wherever a batch tells identities (labels["image"]; data.examples.PairExamples does). Shared, and not
left out: the loss of every candidate alike stays ln of their number, and to find any of an image's captions is right.

Differs: the pre-training of ALBEF, BLIP, CLIP and VLMo, the hinge of VSE++ and SCAN, ViLBERT's contrast of regions, and the
retrieval of VLMo and BEiT-3, know samples by their place alone (official codes), so that an image's other captions are false
ones. Among millions of pairs that is rare; with five captions an image and few images it is not, and hard negatives choose
exactly those. A batch that tells no identities is judged as they do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diptych.objectives.gather import gathered
from diptych.objectives.views import Views


class Identities(NamedTuple):
    """Whose image each sample shows, on all ranks, rank by rank; this rank's own begin at `first`."""

    everyone: Int[Tensor, " all"]
    first: int
    own: Int[Tensor, " b"]

    def belong(self, in_rank: bool = False) -> Bool[Tensor, "b m"]:
        """Which samples, of all ranks or of this one, are of each own sample's image: itself, and others."""
        return self.own[:, None] == (self.own if in_rank else self.everyone)


def identities(views: Views) -> Identities:
    """Of the batch on all ranks, by labels["image"]; by place where the batch does not tell."""

    def make() -> Identities:
        batch = views.batch
        everyone, first = gathered(batch.labels.get("image", batch.ids))
        if "image" not in batch.labels:
            everyone = torch.arange(len(everyone), device=everyone.device)
        return Identities(everyone, first, everyone[first : first + len(batch)])

    return views.once(("identities",), make)
