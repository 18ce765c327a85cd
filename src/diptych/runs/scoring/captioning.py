"""Captioning: captions written by beam search, scored against the references by BLEU, ROUGE-L and CIDEr-D."""

from __future__ import annotations

from typing import Any

from diptych.config import tasks as settings
from diptych.data.loader import SkipCounter
from diptych.data.sources.base import Captioned
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.metrics.captions import CaptionScores, caption_scores
from diptych.report import CaptionExample
from diptych.runs.operations import why_unsupported
from diptych.runs.scoring.base import MAX_EXAMPLES, Result, draw_examples, evenly_spaced
from diptych.runs.scoring.gallery import Gallery, load_images, open_gallery, readable_gallery
from diptych.tasks.captioning import CaptionOptions, generate_captions
from diptych.tasks.common import encode_images

BATCH = 32


def captioning(loaded: LoadedModel, config: settings.Captioning) -> Result:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D, with captions and references as files in COCO's format.

    Raises:
        DataError: the data cannot be read.
        RunError: the run was not trained to write captions.
    """
    if why := why_unsupported(loaded, "caption"):
        raise RunError(why)
    counter = SkipCounter(config.max_skipped)
    gallery = readable_gallery(open_gallery(config, loaded.image_settings.shorter_side), counter)
    gallery, captions = caption_gallery(loaded, config, gallery, counter)
    counter.check()
    references: list[list[str]] = [[] for _ in captions]
    for text, image in zip(gallery.texts, gallery.image_of_text, strict=True):
        references[image].append(text)
    scores = caption_scores(captions, references)
    predictions = [
        {"image": gallery.source.where(i), "caption": caption, "CIDEr-D": score, "references": texts}
        for i, (caption, score, texts) in enumerate(zip(captions, scores.each, references, strict=True))
    ]

    def example(i: int) -> CaptionExample:
        return CaptionExample(gallery.source.image(i), captions[i], scores.each[i], references[i])

    chosen = evenly_spaced(range(len(captions)), 0 if config.shuffle_captions else MAX_EXAMPLES)
    files = coco_files(config.split, gallery.source, captions, references)
    counts = {"images": len(captions), "references": len(gallery.texts), "skipped": counter.num_skipped}
    metrics = counts | _named_scores(scores, captions)
    return Result(metrics, predictions, lambda: draw_examples(chosen, example), list(counter.skipped.values()), files)


def caption_gallery(
    loaded: LoadedModel, config: settings.Captioning, gallery: Gallery, counter: SkipCounter
) -> tuple[Gallery, list[str]]:
    """A caption of each image by beam search, and the gallery of the images that could be read."""
    options = CaptionOptions(num_beams=config.num_beams, max_length=config.max_length)
    captions: list[str] = []
    image_ids: list[int] = []
    for batch in load_images(loaded, gallery, BATCH, config.workers, counter, "writing captions"):
        image = encode_images(loaded.model, batch)
        captions += [text for (text,) in generate_captions(loaded.model, image, loaded.tokenizer, options)]
        image_ids += batch.ids.tolist()
    return gallery.select(image_ids), captions


def coco_files(split: str, source: Captioned, captions: list[str], references: list[list[str]]) -> dict[str, Any]:
    """Results and references in the JSON formats of COCO's caption evaluation (pycocotools, test server), by file name.

    An image's id, the same in both files, is its index among the images that could be read.
    """
    images = [{"id": i, "file_name": source.where(i)} for i in range(len(source))]
    pairs = [(i, text) for i, texts in enumerate(references) for text in texts]
    annotations = [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(pairs)]
    results = [{"image_id": i, "caption": text} for i, text in enumerate(captions)]
    ground_truth = {"type": "captions", "info": {}, "licenses": [], "images": images, "annotations": annotations}
    return {f"captions_{split}_results.json": results, f"captions_{split}_references.json": ground_truth}


def _named_scores(scores: CaptionScores, captions: list[str]) -> dict[str, float]:
    """The corpus scores by metric name, and the share of captions that differ from one another."""
    named = {f"BLEU-{n}": value for n, value in enumerate(scores.bleu, 1)}
    named |= {"ROUGE-L": scores.rouge_l, "CIDEr-D": scores.cider_d}
    return named | {"different captions": len(set(captions)) / len(captions)}
