"""Image-text retrieval: every picture of a gallery with every caption, read by recall both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diptych.data.tally import Tally
from diptych.jobs.scores import SHOWN, Scored, Subject, drawn, spread
from diptych.jobs.scores.comparing import by_comparison, comparison
from diptych.jobs.scores.fusing import Found, by_fusion
from diptych.jobs.scores.gallery import open_gallery, readable
from diptych.jobs.shown import Shown
from diptych.metrics.recall import Recall, recall
from diptych.report import RetrievalExample

FIRST = 5  # candidates kept in predictions


def retrieval(subject: Subject) -> Scored:
    """Recall at 1, 5 and 10 both ways, beside chance and the gallery's size. A run that learned to contrast is scored by
    that, and by matching the best of it again where it learned that too; others by fusing all pairs. Raises DataError,
    RunError.
    """
    tally = Tally(subject.asked.max_skipped)
    gallery, way = readable(open_gallery(subject.asked, subject.images.shorter), tally), comparison(subject)
    found = by_fusion(subject, gallery, tally) if way is None else by_comparison(subject, way, gallery, tally)
    tally.check()
    owner, metrics = found.gallery.owner, {}
    told = recall(found.scores.of_texts, owner, of_images=found.scores.of_images)
    metrics |= {"images": told.images, "texts": told.texts, "skipped": tally.bad} | _recalls(told)
    for k in told.text_to_image:
        metrics[f"image to text R@{k}, chance"] = told.chance_image_to_text[k]
        metrics[f"text to image R@{k}, chance"] = told.chance_text_to_image[k]
    if found.before is not None:
        metrics["candidates matched"] = subject.asked.candidates
        before = _recalls(recall(found.before, owner))
        metrics |= {f"{name}, before matching": value for name, value in before.items()}
    predictions, shown = _examples(found, 0 if subject.asked.control else SHOWN)
    return Scored(metrics, predictions, shown, list(tally.listed.values()))


def _recalls(told: Recall) -> dict[str, float]:
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

    return predictions, lambda: drawn(spread(range(len(owners)), most), example)
