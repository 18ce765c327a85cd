"""Every picture with every text by what needs no fusion: each side is read once. The best may then be fused and matched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from diptych.data.tally import Tally
from diptych.heads import Contrast
from diptych.jobs.reading import tokenizer_of
from diptych.jobs.scores import Subject
from diptych.jobs.scores.fusing import Found, pair_score
from diptych.jobs.scores.gallery import Gallery, read_pictures
from diptych.models.verbs import Aligns, Compares
from diptych.objectives.pretraining import Pretraining
from diptych.tasks.contrast import ContrastRetrieval
from diptych.tasks.rerank import FILL, Scores, candidates
from diptych.tasks.retrieval import Summary, judged
from diptych.tasks.single import pictured
from diptych.tokens import Tokens

PICTURES, TEXTS = 64, 512  # read at a time; so many are compared, and fused, with each other at once


@dataclass(frozen=True)
class Comparison:
    """What is kept of either side's tokens, and how what was kept is compared. `scale`: of contrast, times a cosine the
    logarithm of a pair's probability among others, but for a constant.
    """

    image: Callable[[Tokens], Any]
    text: Callable[[Tokens], Any]
    meet: Callable[[Any, Any], Float[Tensor, "images texts"]]
    scale: float = 1.0


@dataclass(frozen=True)
class Read:
    """Some pictures, or texts, once read: their tokens, and what is compared of them."""

    tokens: Tokens
    kept: Any


def comparison(subject: Subject) -> Comparison | None:
    """How a run compares without fusing: by the cosines of its contrast (of the first readout, where there are several) or
    by the model's own similarity, whichever was trained; None where neither was.
    """
    step, model = subject.module, subject.model
    weights = step.weights if isinstance(step, Pretraining) else {}
    if "hinge" in weights and isinstance(model, Compares):
        similarity = model.similarity
        return Comparison(_as_it_is, _as_it_is, lambda image, text: similarity(text, image))
    if not isinstance(model, Aligns) or not ("itc" in weights or isinstance(step, ContrastRetrieval)):
        return None
    head, readouts = step.get_submodule("heads.contrast"), model.unimodal
    assert isinstance(head, Contrast)
    return Comparison(
        lambda tokens: head.of_image(readouts(tokens)[0]),
        lambda tokens: head.of_text(readouts(tokens)[0]),
        _cosines,
        head.scale().item(),
    )


def _as_it_is(tokens: Tokens) -> Tokens:
    return tokens


def _cosines(image: Float[Tensor, "a e"], text: Float[Tensor, "b e"]) -> Float[Tensor, "a b"]:
    """In full precision: rounded ones would be equal, and equals rank last."""
    with torch.autocast(image.device.type, enabled=False):
        return image.float() @ text.float().T


def by_comparison(subject: Subject, way: Comparison, gallery: Gallery, tally: Tally) -> Found:
    """Scores of all readable pictures and texts. Where the run can match, the best `candidates` of each picture and of each
    text are ranked anew, and all others stand behind them (ALBEF, appendix; `tasks.rerank`): by the log-odds of a match, or
    by these and the cosine (BLIP's official code), or by the product of what match and contrast find probable.

    The product is not of the papers. A match learned among hard negatives, drawn as contrast finds them probable, is a
    ratio to these; and one learned from few data alone ranks worse than contrast, where the product does not.

    Tokens of both sides are kept: about 2 MB a picture of 577 tokens of width 768.
    """
    tokenizer, device = tokenizer_of(subject.run), subject.device
    images, seen = [], []
    for batch in read_pictures(subject, gallery, PICTURES, tally, "reading pictures"):
        tokens = pictured(subject.model, batch)
        images.append(Read(tokens, way.image(tokens)))
        seen += batch.ids.tolist()
    gallery = gallery.of(seen)
    texts = []
    for at in track(range(0, len(gallery.texts), TEXTS), description="reading texts"):
        tokens = subject.model.encode_text(tokenizer.encode(gallery.texts[at : at + TEXTS]).to(device))
        texts.append(Read(tokens, way.text(tokens)))
    rows = track(images, description="comparing")
    alike = torch.cat([torch.cat([way.meet(i.kept, t.kept).float().cpu() for t in texts], 1) for i in rows])
    match, most = pair_score(subject), subject.asked.candidates
    if match is None or not most:
        return Found(gallery, Scores(alike, alike.T))
    beside = {"match": 0.0, "cosine": 1.0, "product": way.scale}[subject.asked.ranked_by]
    return Found(gallery, reranked(subject, match, alike, images, texts, most, beside), alike)


def reranked(
    subject: Subject, match: Summary, alike: Float[Tensor, "a b"], images: list[Read], texts: list[Read], most: int,
    beside: float = 0.0,
) -> Scores:  # fmt: skip
    """The scores of fused pairs, of each picture's and each text's `most` best by `alike`, plus `beside` times that; the
    others stand behind them all.
    """
    by_image, by_text = torch.zeros_like(alike, dtype=torch.bool), torch.zeros_like(alike.T, dtype=torch.bool)
    by_image[candidates(alike, most)] = True
    by_text[candidates(alike.T, most)] = True
    asked, scores = by_image | by_text.T, torch.full_like(alike, FILL)
    top = 0
    for image in track(images, description="matching the best"):
        left = 0
        for text in texts:
            block = asked[top : top + len(image.tokens), left : left + len(text.tokens)]
            shown, which = (x.to(subject.device) for x in block.nonzero(as_tuple=True))
            if len(shown):
                found = judged(subject.model, match, text.tokens, image.tokens, which, shown)
                scores[top + shown.cpu(), left + which.cpu()] = found.cpu()
            left += len(text.tokens)
        top += len(image.tokens)
    scores = scores + beside * alike
    behind = min(FILL, scores[asked].min().item() - 1)
    return Scores(scores.masked_fill(~by_image, behind), scores.T.masked_fill(~by_text, behind))
