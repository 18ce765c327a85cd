"""Every picture with every text by what needs no fusion: each side is read once. The best may then be fused and matched.

Every picture with every text by fusing each pair: what a model without contrast can do, for galleries of some hundreds.

Image-text retrieval: every picture of a gallery with every caption, read by recall both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from diptych.data.loader import SkipCounter
from diptych.metrics.recall import RecallAtK, recall
from diptych.modules.heads import ITCHead
from diptych.modules.tokens import Tokens
from diptych.objectives.pretraining import Pretraining
from diptych.protocols import DualEncoder, FusionEncoder, SimilarityModel
from diptych.report import RetrievalExample
from diptych.runs.qualitative_examples import Shown
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import SHOWN, EvaluatedModel, Result, draw_examples, evenly_spaced
from diptych.runs.scoring.gallery import Gallery, open_gallery, read_pictures, readable
from diptych.runs.tokenizer import tokenizer_of
from diptych.tasks.common import encode_images
from diptych.tasks.retrieval import FILL, ContrastRetrieval, Retrieval, Scores, Summary, candidates, score_pairs

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


def comparison(subject: EvaluatedModel) -> Comparison | None:
    """How a run compares without fusing: by the cosines of its contrast (of the first readout, where there are several) or
    by the model's own similarity, whichever was trained; None where neither was.
    """
    step, model = subject.module, subject.model
    weights = step.weights if isinstance(step, Pretraining) else {}
    if "triplet" in weights and isinstance(model, SimilarityModel):
        similarity = model.similarity
        return Comparison(_as_it_is, _as_it_is, lambda image, text: similarity(text, image))
    if not isinstance(model, DualEncoder) or not ("itc" in weights or isinstance(step, ContrastRetrieval)):
        return None
    head, readouts = step.get_submodule("heads.contrast"), model.pooled_features
    assert isinstance(head, ITCHead)
    return Comparison(
        lambda tokens: head.project_image(readouts(tokens)[0]),
        lambda tokens: head.project_text(readouts(tokens)[0]),
        _cosines,
        head.scale().item(),
    )


def _as_it_is(tokens: Tokens) -> Tokens:
    return tokens


def _cosines(image: Float[Tensor, "a e"], text: Float[Tensor, "b e"]) -> Float[Tensor, "a b"]:
    """In full precision: rounded ones would be equal, and equals rank last."""
    with torch.autocast(image.device.type, enabled=False):
        return image.float() @ text.float().T


def by_comparison(subject: EvaluatedModel, way: Comparison, gallery: Gallery, tally: SkipCounter) -> Found:
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
        tokens = encode_images(subject.model, batch)
        images.append(Read(tokens, way.image(tokens)))
        seen += batch.ids.tolist()
    gallery = gallery.of(seen)
    texts = []
    for at in track(range(0, len(gallery.texts), TEXTS), description="reading texts"):
        tokens = subject.model.encode_text(tokenizer.encode(gallery.texts[at : at + TEXTS]).to(device))
        texts.append(Read(tokens, way.text(tokens)))
    rows = track(images, description="comparing")
    alike = torch.cat([torch.cat([way.meet(i.kept, t.kept).float().cpu() for t in texts], 1) for i in rows])
    match, most = pair_score(subject), subject.asked.rerank
    if match is None or not most:
        return Found(gallery, Scores(alike, alike.T))
    beside = {"match": 0.0, "cosine": 1.0, "product": way.scale}[subject.asked.rerank_by]
    return Found(gallery, reranked(subject, match, alike, images, texts, most, beside), alike)


def reranked(
    subject: EvaluatedModel, match: Summary, alike: Float[Tensor, "a b"], images: list[Read], texts: list[Read], most: int,
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
                found = score_pairs(subject.model, match, text.tokens, image.tokens, which, shown)
                scores[top + shown.cpu(), left + which.cpu()] = found.cpu()
            left += len(text.tokens)
        top += len(image.tokens)
    scores = scores + beside * alike
    behind = min(FILL, scores[asked].min().item() - 1)
    return Scores(scores.masked_fill(~by_image, behind), scores.T.masked_fill(~by_text, behind))


FUSED_IMAGES = 8  # at a time, with every caption


@dataclass(frozen=True)
class Found:
    """The gallery as far as it could be read, its scores, and those `before` the best were ranked again, if they were."""

    gallery: Gallery
    scores: Scores
    before: Float[Tensor, "images texts"] | None = None


def pair_score(subject: EvaluatedModel) -> Summary | None:
    """What makes a score of a pooled pair: a ranking head's output, or the log-odds of a match, if it was trained."""
    step = subject.module
    if isinstance(step, Retrieval):
        return step.rank
    if isinstance(step, Pretraining) and "itm" in step.weights and isinstance(subject.model, FusionEncoder):
        return lambda pooled: (logits := step.heads["match"](pooled))[:, 1] - logits[:, 0]
    return None


def by_fusion(subject: EvaluatedModel, gallery: Gallery, tally: SkipCounter) -> Found:
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
    for batch in read_pictures(subject, gallery, FUSED_IMAGES, tally, "scoring pairs"):
        image, blocks = encode_images(model, batch), []
        for text in parts:
            pair = torch.arange(len(batch) * len(text), device=subject.device)
            blocks.append(score_pairs(model, score, text, image, pair % len(text), pair // len(text)))
        rows.append(torch.cat([block.view(len(batch), -1).cpu() for block in blocks], 1))
        seen += batch.ids.tolist()
    scores = torch.cat(rows).float()[:, gallery.texts_of(seen)]
    return Found(gallery.of(seen), Scores(scores, scores.T))


FIRST = 5  # candidates kept in predictions


def retrieval(subject: EvaluatedModel) -> Result:
    """Recall at 1, 5 and 10 both ways, beside chance and the gallery's size. A run that learned to contrast is scored by
    that, and by matching the best of it again where it learned that too; others by fusing all pairs. Raises DataError,
    RunError.
    """
    tally = SkipCounter(subject.asked.max_skipped)
    gallery, way = readable(open_gallery(subject.asked, subject.images.shorter_side), tally), comparison(subject)
    found = by_fusion(subject, gallery, tally) if way is None else by_comparison(subject, way, gallery, tally)
    tally.check()
    owner, metrics = found.gallery.owner, {}
    told = recall(found.scores.of_texts, owner, of_images=found.scores.of_images)
    metrics |= {"images": told.images, "texts": told.texts, "skipped": tally.bad} | _recalls(told)
    for k in told.text_to_image:
        metrics[f"image to text R@{k}, chance"] = told.chance_image_to_text[k]
        metrics[f"text to image R@{k}, chance"] = told.chance_text_to_image[k]
    if found.before is not None:
        metrics["candidates matched"] = subject.asked.rerank
        before = _recalls(recall(found.before, owner))
        metrics |= {f"{name}, before matching": value for name, value in before.items()}
    predictions, shown = _examples(found, 0 if subject.asked.shuffle_captions else SHOWN)
    return Result(metrics, predictions, shown, list(tally.listed.values()))


def _recalls(told: RecallAtK) -> dict[str, float]:
    both = {"image to text": told.image_to_text, "text to image": told.text_to_image}
    return {f"{way} R@{k}": value for way, values in both.items() for k, value in values.items()}


def _examples(found: Found, most: int) -> tuple[list[dict[str, object]], Callable[[], Sequence[Shown]]]:
    """For each text the pictures it finds first; what makes examples of `most` of them."""
    gallery, scores = found.gallery, found.scores.of_images
    source, owners = gallery.source, gallery.owners
    best = scores.topk(min(FIRST, scores.shape[1]), 1).indices.tolist()
    predictions = [
        {"text": text, "image": source.where(own), "retrieved": [source.where(i) for i in first]}
        for text, own, first in zip(gallery.texts, owners, best, strict=True)
    ]

    def example(at: int) -> RetrievalExample:
        results = [(source.image(i), float(scores[at, i]), i == owners[at]) for i in best[at]]
        return RetrievalExample(gallery.texts[at], results)

    return predictions, lambda: draw_examples(evenly_spaced(range(len(owners)), most), example)
