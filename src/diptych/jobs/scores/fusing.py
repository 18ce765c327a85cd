"""Every picture with every text by fusing each pair: what a model without contrast can do, for galleries of some hundreds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.data.tally import Tally
from diptych.jobs.folder import RunError
from diptych.jobs.reading import tokenizer_of
from diptych.jobs.scores import Subject
from diptych.jobs.scores.gallery import Gallery, read_pictures
from diptych.models.verbs import Fuses
from diptych.objectives.pretraining import Pretraining
from diptych.tasks.rerank import Scores
from diptych.tasks.retrieval import Retrieval, Summary, judged
from diptych.tasks.single import pictured

PICTURES, TEXTS = 8, 512  # scored at a time


@dataclass(frozen=True)
class Found:
    """The gallery as far as it could be read, its scores, and those `before` the best were ranked again, if they were."""

    gallery: Gallery
    scores: Scores
    before: Float[Tensor, "images texts"] | None = None


def pair_score(subject: Subject) -> Summary | None:
    """What makes a score of a pooled pair: a ranking head's output, or the log-odds of a match, if it was trained."""
    step = subject.module
    if isinstance(step, Retrieval):
        return step.rank
    if isinstance(step, Pretraining) and "itm" in step.weights and isinstance(subject.model, Fuses):
        return lambda pooled: (logits := step.heads["match"](pooled))[:, 1] - logits[:, 0]
    return None


def by_fusion(subject: Subject, gallery: Gallery, tally: Tally) -> Found:
    """Scores of all readable pictures and texts. Pictures stream through: only their scores are kept. Raises RunError."""
    score, model = pair_score(subject), subject.model
    if score is None:
        raise RunError(
            "retrieval needs a run that learned to contrast, to match or to rank: a pre-training run with itc, hinge or "
            "itm, or one of retrieval"
        )
    tokenizer, rows, seen = tokenizer_of(subject.run), [], []
    parts = [
        model.encode_text(tokenizer.encode(gallery.texts[at : at + TEXTS]).to(subject.device))
        for at in range(0, len(gallery.texts), TEXTS)
    ]
    for batch in read_pictures(subject, gallery, PICTURES, tally, "scoring pairs"):
        image, blocks = pictured(model, batch), []
        for text in parts:
            pair = torch.arange(len(batch) * len(text), device=subject.device)
            blocks.append(judged(model, score, text, image, pair % len(text), pair // len(text)))
        rows.append(torch.cat([block.view(len(batch), -1).cpu() for block in blocks], 1))
        seen += batch.ids.tolist()
    scores = torch.cat(rows).float()[:, gallery.texts_of(seen)]
    return Found(gallery.of(seen), Scores(scores, scores.T))
