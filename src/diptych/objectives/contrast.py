"""Of which image each sample is: where one image has several captions, each of them is right for it, and none is a negative.

So it is in the retrieval fine-tuning of ALBEF and BLIP (official code, `idx`): in contrast the truth is shared evenly among
all candidates of the image, in the batch and in the queue, and hard negatives are never drawn from them. It is the rule here
for pre-training too, wherever a batch tells identities (labels["image"]; data.examples.PairExamples does). Shared, and not
left out: the loss of every candidate alike stays ln of their number, and to find any of an image's captions is right.

Differs: the pre-training of ALBEF, BLIP, CLIP and VLMo, the hinge of VSE++ and SCAN, ViLBERT's contrast of regions, and the
retrieval of VLMo and BEiT-3, know samples by their place alone (official codes), so that an image's other captions are false
ones. Among millions of pairs that is rare; with five captions an image and few images it is not, and hard negatives choose
exactly those. A batch that tells no identities is judged as they do.

What contrast compares: each side with its candidates of the other, of the batch on all ranks and of the queue.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.modules.heads import ITCHead
from diptych.objectives.gather import all_gather
from diptych.objectives.views import Features, TeacherOutput, Views


class PositivePairs(NamedTuple):
    """Whose image each sample shows, on all ranks, rank by rank; this rank's own begin at `first`."""

    everyone: Int[Tensor, " all"]
    first: int
    own: Int[Tensor, " b"]

    def mask(self, local: bool = False) -> Bool[Tensor, "b m"]:
        """Which samples, of all ranks or of this one, are of each own sample's image: itself, and others."""
        return self.own[:, None] == (self.own if local else self.everyone)


def positive_pairs(views: Views) -> PositivePairs:
    """Of the batch on all ranks, by labels["image"]; by place where the batch does not tell."""

    def make() -> PositivePairs:
        batch = views.batch
        everyone, first = all_gather(batch.labels.get("image", batch.ids))
        if "image" not in batch.labels:
            everyone = torch.arange(len(everyone), device=everyone.device)
        return PositivePairs(everyone, first, everyone[first : first + len(batch)])

    return views.cached(("identities",), make)


class ContrastLogits(NamedTuple):
    """What a Contrast head says of this rank's images with candidate texts, and of its texts with candidate images.

    The first `present` candidates are the batch of all ranks, rank by rank, this rank's own from column `first`; those
    behind were queued. Where a sample's identity (`own`) equals a candidate's (`others`), the two belong together.
    """

    to_text: Float[Tensor, "b m"]
    to_image: Float[Tensor, "b m"]
    first: int
    present: int
    own: Int[Tensor, " b"]
    others: Int[Tensor, " m"]


def contrast_logits(views: Views, head: str, readout: int = 0) -> ContrastLogits:
    """Each sample compared with what it is to be told from: the samples of all ranks, as the teacher sees them where there
    is one, and the queue.

    Differs: the official ALBEF and BLIP compare with the teacher's view of the own rank's batch alone, which in one process
    is the same; so a batch here gives one loss over however many ranks it is spread.
    """
    return views.cached(
        ("contrasted", head, readout),
        lambda: _compared(views, views.features(head, readout), views.teacher_output, head, readout),
    )


def within_modality_logits(views: Views, head: str, readout: int = 0) -> ContrastLogits:
    """The batch of all ranks compared with itself, all of it as the model that is trained sees it."""
    return _compared(views, views.features(head, readout), None, head, readout)


def teacher_logits(views: Views, head: str, readout: int = 0) -> ContrastLogits | None:
    """The comparison of `contrasted` by the teacher, by which nothing learns; None without one."""
    if views.teacher is None:
        return None
    with torch.no_grad():
        return _compared(views, views.teacher.features(head, readout), views.teacher_output, head, readout)


def _compared(views: Views, asking: Features, lesson: TeacherOutput | None, head: str, readout: int) -> ContrastLogits:
    seen = views if lesson is None else lesson.views
    features = seen.features(head, readout)
    images, texts = all_gather(features.image)[0], all_gather(features.text)[0]
    others, first, own = positive_pairs(views)
    present = len(images)
    if lesson is not None and lesson.queued is not None:
        images, texts = torch.cat([images, lesson.queued.image]), torch.cat([texts, lesson.queued.text])
        known = lesson.identities if "image" in views.batch.labels else None
        others = torch.cat([others, others.new_full((len(images) - present,), -1) if known is None else known])
    contrast = cast(ITCHead, views.heads[head])
    scale = views.cached(("scale", head), contrast.scale)
    to_text, to_image = (contrast.logits(a @ b.T, scale) for a, b in ((asking.image, texts), (asking.text, images)))
    return ContrastLogits(to_text, to_image, first, present, own, others)
