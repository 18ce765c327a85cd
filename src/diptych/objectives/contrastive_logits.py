"""Positive pairs and similarity logits of contrastive losses, over the batch of all ranks and the queue.

If an image has several captions, all of them are positives of it, and none is a negative. This is the rule of
ALBEF's and BLIP's retrieval fine-tuning (official code, `idx`): the contrastive target is shared evenly among all
positives, in the batch and in the queue, and hard negatives are never drawn from them. Here it applies to pre-training
too, wherever a batch has image ids (labels["image"], as `data.examples.PairExamples` gives). The target is shared, and
positives are not left out, so that the loss of equal logits stays ln of the number of candidates, and retrieving any
caption is correct.

Differs: the pre-training of ALBEF, BLIP, CLIP and VLMo, the triplet loss of VSE++ and SCAN, ViLBERT's contrast of
regions, and the retrieval of VLMo and BEiT-3 take only the pair at the same index as positive (official codes), so that
an image's other captions are false negatives. Among millions of pairs that is rare; with five captions an image and few
images it is not, and hard negatives select exactly those. Without image ids a batch is treated as in those codes.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.modules.heads import ITCHead
from diptych.objectives.gather import all_gather
from diptych.objectives.views import JointEmbeddings, TeacherOutput, Views


class PositivePairs(NamedTuple):
    """Image ids of the samples of all ranks (`all_ids`, rank by rank) and of this rank (`ids`, from index `first`)."""

    all_ids: Int[Tensor, " all"]
    first: int
    ids: Int[Tensor, " b"]

    def mask(self, local: bool = False) -> Bool[Tensor, "b m"]:
        """The mask of positives, itself included, of each sample of this rank among those of all ranks (or `local`)."""
        return self.ids[:, None] == (self.ids if local else self.all_ids)


def positive_pairs(views: Views) -> PositivePairs:
    """The global batch's positive pairs: by labels["image"], or by index if the batch has no image ids."""

    def make() -> PositivePairs:
        batch = views.batch
        all_ids, first = all_gather(batch.labels.get("image", batch.ids))
        if "image" not in batch.labels:
            all_ids = torch.arange(len(all_ids), device=all_ids.device)
        return PositivePairs(all_ids, first, all_ids[first : first + len(batch)])

    return views.cached(("identities",), make)


class ContrastLogits(NamedTuple):
    """Logits of this rank's images with candidate texts, and of its texts with candidate images.

    The first `num_in_batch` candidates are the global batch, rank by rank, this rank's own from column `first`; the
    others are from the queue. A candidate is a positive if its image id (`candidate_ids`) equals the sample's
    (`ids`).
    """

    to_text: Float[Tensor, "b m"]
    to_image: Float[Tensor, "b m"]
    first: int
    num_in_batch: int
    ids: Int[Tensor, " b"]
    candidate_ids: Int[Tensor, " m"]


def contrast_logits(views: Views, head: str, branch: int = 0) -> ContrastLogits:
    """Each sample's logits with its candidates: the samples of all ranks (by the teacher, if any) and the queue.

    Differs: the official ALBEF and BLIP take the teacher's features of the rank's own batch only, which is the same
    with one process; here the loss does not depend on how many ranks a batch is spread over.
    """
    return views.cached(
        ("contrasted", head, branch),
        lambda: _logits(views, views.features(head, branch), views.teacher_output, head, branch),
    )


def within_modality_logits(views: Views, head: str, branch: int = 0) -> ContrastLogits:
    """Each sample's logits with the samples of all ranks, by the student's features on both sides; no queue."""
    return _logits(views, views.features(head, branch), None, head, branch)


def teacher_logits(views: Views, head: str, branch: int = 0) -> ContrastLogits | None:
    """Logits as from `contrast_logits`, with the teacher's features and no gradient; None without a teacher."""
    if views.teacher is None:
        return None
    with torch.no_grad():
        return _logits(views, views.teacher.features(head, branch), views.teacher_output, head, branch)


def _logits(
    views: Views, query: JointEmbeddings, teacher: TeacherOutput | None, head: str, branch: int
) -> ContrastLogits:
    """Logits of `query` with the candidates: of the teacher's features and queue, or else of the student's features."""
    candidates = (views if teacher is None else teacher.views).features(head, branch)
    images, texts = all_gather(candidates.image)[0], all_gather(candidates.text)[0]
    candidate_ids, first, ids = positive_pairs(views)
    num_in_batch = len(images)
    image_candidates, text_candidates = [images], [texts]
    if teacher is not None and teacher.queued is not None:
        queued = teacher.queued
        image_candidates, text_candidates = [images, queued.image], [texts, queued.text]
        queued_ids = teacher.identities if "image" in views.batch.labels else None
        if queued_ids is None:
            queued_ids = candidate_ids.new_full((len(queued.image),), -1)
        candidate_ids = torch.cat([candidate_ids, queued_ids])
    contrast = cast(ITCHead, views.heads[head])
    scale = views.cached(("scale", head), contrast.scale)
    to_text, to_image = (
        contrast.logits(torch.cat([a @ b.T for b in candidates], 1), scale)  # joins the products: the queue is large
        for a, candidates in ((query.image, text_candidates), (query.text, image_candidates))
    )
    return ContrastLogits(to_text, to_image, first, num_in_batch, ids, candidate_ids)
