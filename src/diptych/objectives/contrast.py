"""What contrast compares: each side with its candidates of the other, in the batch, on other ranks, or in the queue."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.objectives.gather import gathered
from diptych.objectives.views import Features, Views


class Contrasted(NamedTuple):
    """Scaled cosines of this rank's images with candidate texts, and of its texts with candidate images.

    The batch's own candidates begin at column `first`. Where a sample's identity (`own`) equals a candidate's
    (`others`), the two belong together.
    """

    to_text: Float[Tensor, "b m"]
    to_image: Float[Tensor, "b m"]
    first: int
    own: Int[Tensor, " b"]
    others: Int[Tensor, " m"]


def contrasted(views: Views, head: str, readout: int = 0) -> Contrasted:
    """Each sample compared with what it is to be told from: the teacher's view of this rank's batch and the queue, or,
    without a teacher, the samples of all ranks.
    """
    return views.once(
        ("contrasted", head, readout), lambda: _compared(views, views.features(head, readout), head, readout)
    )


def among_themselves(views: Views, head: str, readout: int = 0) -> Contrasted:
    """This rank's batch compared with itself, all of it as the model that is trained sees it."""
    image, text = views.features(head, readout)
    own = views.batch.labels.get("image", torch.arange(len(image), device=image.device))
    scale = views.once(("scale", head), views.heads[head].scale)  # type: ignore[arg-type]
    return Contrasted(scale * image @ text.T, scale * text @ image.T, 0, own, own)


def taught(views: Views, head: str, readout: int = 0) -> Contrasted | None:
    """The same comparison by the teacher, by which nothing learns; None without one."""
    if views.teacher is None:
        return None
    with torch.no_grad():
        return _compared(views, views.teacher.features(head, readout), head, readout)


def _compared(views: Views, asking: Features, head: str, readout: int) -> Contrasted:
    candidates, first, own, others = _candidates(views, head, readout)
    scale = views.once(("scale", head), views.heads[head].scale)  # type: ignore[arg-type]
    to_text, to_image = scale * asking.image @ candidates.text.T, scale * asking.text @ candidates.image.T
    return Contrasted(to_text, to_image, first, own, others)


def _candidates(views: Views, head: str, readout: int) -> tuple[Features, int, Tensor, Tensor]:
    """Features to compare with; where this rank's own begin; identities of this rank's samples, and of those all.

    Pairs that share an image (labels["image"]) have one identity; otherwise each has its own.
    """
    given, lesson = views.batch.labels.get("image"), views.lesson
    if lesson is None:
        features = views.features(head, readout)
        (images, first), (texts, _) = gathered(features.image), gathered(features.text)
        everyone = torch.arange(len(images), device=images.device) if given is None else gathered(given)[0]
        return Features(images, texts), first, everyone[first : first + len(features.image)], everyone
    theirs, queued = lesson.views.features(head, readout), lesson.queued
    own = torch.arange(len(theirs.image), device=theirs.image.device) if given is None else given
    if queued is None:
        return theirs, 0, own, own
    known = lesson.identities if given is not None else None
    before = own.new_full((len(queued.image),), -1) if known is None else known
    both = Features(torch.cat([theirs.image, queued.image]), torch.cat([theirs.text, queued.text]))
    return both, 0, own, torch.cat([own, before])
