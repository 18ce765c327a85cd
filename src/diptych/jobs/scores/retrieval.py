"""Image-text retrieval: every picture of a gallery with every caption, read by recall both ways."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from diptych.data.examples import LONGEST_TEXT, check_text
from diptych.data.loader import sweep
from diptych.data.source import BadSample, Captioned, DataError
from diptych.data.tally import Skipped, Tally
from diptych.jobs.folder import RunError
from diptych.jobs.reading import tokenizer_of
from diptych.jobs.scores import SHOWN, Scored, Subject, spread
from diptych.jobs.scores.gallery import Pictures, open_gallery
from diptych.metrics.recall import recall
from diptych.objectives.pretraining import Pretraining
from diptych.report import RetrievalExample
from diptych.tasks.retrieval import Retrieval, score_matrix

PICTURES, TEXTS = 8, 512  # scored at a time
FIRST = 5  # candidates kept in predictions

Summary = Callable[[Tensor], Tensor]


def retrieval(subject: Subject) -> Scored:
    """Recall at 1, 5 and 10 both ways, beside chance and the gallery's size. Raises DataError, RunError."""
    source = open_gallery(subject.asked, subject.images.shorter)
    tally = Tally(subject.asked.max_skipped)
    texts, owners = readable_texts(source, tally)
    scores, seen = score(subject, source, texts, tally)
    tally.check()
    row = {image: place for place, image in enumerate(seen)}
    columns = [i for i, owner in enumerate(owners) if owner in row]
    texts, owner = [texts[i] for i in columns], torch.tensor([row[owners[i]] for i in columns], dtype=torch.long)
    with_text = owner.unique()  # a picture without a readable caption has nothing to find
    scores, seen = scores[with_text][:, columns], [seen[i] for i in with_text.tolist()]
    owner = torch.searchsorted(with_text, owner)

    found = recall(scores, owner)
    metrics: dict[str, float] = {"images": found.images, "texts": found.texts, "skipped": tally.bad}
    for k in found.text_to_image:
        metrics[f"image to text R@{k}"] = found.image_to_text[k]
        metrics[f"image to text R@{k}, chance"] = found.chance_image_to_text[k]
        metrics[f"text to image R@{k}"] = found.text_to_image[k]
        metrics[f"text to image R@{k}, chance"] = found.chance_text_to_image[k]
    best = scores.topk(min(FIRST, len(seen)), 0).indices.T.tolist()
    predictions = [
        {"text": text, "image": source.where(seen[own]), "retrieved": [source.where(seen[i]) for i in first]}
        for text, own, first in zip(texts, owner.tolist(), best, strict=True)
    ]
    shown = [
        RetrievalExample(
            texts[at], [(source.image(seen[i]), float(scores[i, at]), i == int(owner[at])) for i in best[at]]
        )
        for at in spread(range(len(texts)), 0 if subject.asked.control else SHOWN)
    ]
    return Scored(metrics, predictions, shown, list(tally.listed.values()))


def summary(subject: Subject) -> Summary:
    """What makes a score of a pooled pair: a ranking head's output, or the log-odds of a match. Raises RunError."""
    module = subject.module
    if isinstance(module, Retrieval):
        return module.rank
    if isinstance(module, Pretraining) and "match" in module.heads:
        return lambda pooled: (logits := module.heads["match"](pooled))[:, 1] - logits[:, 0]
    raise RunError("retrieval needs a run with a matching or a ranking head: a pre-training run, or one of retrieval")


def readable_texts(source: Captioned, tally: Tally) -> tuple[list[str], list[int]]:
    """All captions that can be read, and the picture each belongs to."""
    texts, owners = [], []
    for image in range(len(source)):
        for text in source.captions(image):
            try:
                check_text(text, source.where(image))
            except BadSample as bad:
                tally.add(0, [Skipped(-1 - image, bad.where, bad.why)])  # below zero: the picture may be bad as well
                continue
            tally.add(1, [])
            texts.append(text[:LONGEST_TEXT])
            owners.append(image)
    if not texts:
        raise DataError(f"{source.name} ({source.split}): no caption can be read")
    return texts, owners


def score(
    subject: Subject, source: Captioned, texts: list[str], tally: Tally
) -> tuple[Float[Tensor, "images texts"], list[int]]:
    """Scores of every readable picture with every text, and which pictures these are. Pictures stream through: only
    their scores are kept.
    """
    head, module, tokenizer = summary(subject), subject.module, tokenizer_of(subject.run)
    parts = [tokenizer.encode(texts[at : at + TEXTS]) for at in range(0, len(texts), TEXTS)]
    food, rows, seen = Pictures(source, subject.images), [], []
    batches = sweep(food, PICTURES, workers=subject.asked.workers)
    for loaded in track(batches, description="scoring pairs", total=-(-len(food) // PICTURES)):
        tally.add(len(loaded.batch), loaded.skipped)
        image = loaded.batch.to(subject.device).image
        assert image is not None
        rows.append(
            torch.cat([score_matrix(module.model, head, part.to(subject.device), image).cpu() for part in parts], 1)  # type: ignore[arg-type]
        )
        seen += loaded.batch.ids.tolist()
    return torch.cat(rows).float(), seen
