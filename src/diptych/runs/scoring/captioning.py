"""Captioning: captions written by beam search, scored against the references by BLEU, ROUGE-L and CIDEr-D."""

from __future__ import annotations

from typing import Any

import torch

from diptych.data.loader import SkipCounter
from diptych.data.sources.base import Captioned
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.generation import BeamConfig, GenerationConfig, beam_search
from diptych.metrics.captions import CaptionScores, caption_scores
from diptych.objectives.definition import losses_that_train
from diptych.objectives.pretraining import Pretraining
from diptych.protocols import TextDecoder
from diptych.report import CaptionExample
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import MAX_EXAMPLES, EvaluatedModel, Result, draw_examples, evenly_spaced
from diptych.runs.scoring.gallery import Gallery, load_images, open_gallery, readable_gallery
from diptych.runs.tokenizer import tokenizer_of
from diptych.tasks.captioning import Captioning
from diptych.tasks.common import encode_images

BATCH = 32


def captioning(evaluated: EvaluatedModel) -> Result:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D, with captions and references as files in COCO's format.

    Raises:
        DataError: the data cannot be read.
        RunError: the run was not trained to write captions.
    """
    step, config = evaluated.module, evaluated.config
    losses = losses_that_train("captioning")
    trained = isinstance(step, Captioning) or (isinstance(step, Pretraining) and losses & set(step.weights))
    if not trained or not isinstance(evaluated.model, TextDecoder):
        raise RunError(
            "captioning needs a run that was trained to write captions: a pre-training run with the objective "
            f"{' or '.join(sorted(losses))}"
        )
    counter = SkipCounter(config.max_skipped)
    gallery = readable_gallery(open_gallery(config, evaluated.image_settings.shorter_side), counter)
    gallery, captions = generate_captions(evaluated, gallery, counter)
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


def generate_captions(evaluated: EvaluatedModel, gallery: Gallery, counter: SkipCounter) -> tuple[Gallery, list[str]]:
    """A caption of each image by beam search, and the gallery of the images that could be read."""
    tokenizer, config = tokenizer_of(evaluated.run), evaluated.config
    vocabulary = tokenizer.vocabulary
    generation = GenerationConfig(vocabulary.sep, vocabulary.pad, min(config.max_length, tokenizer.max_length))
    captions: list[str] = []
    image_ids: list[int] = []
    for batch in load_images(evaluated, gallery, BATCH, counter, "writing captions"):
        prompt = torch.full((len(batch), 1), vocabulary.cls, device=evaluated.device)
        image = encode_images(evaluated.model, batch)
        output = beam_search(evaluated.model, image, prompt, generation, BeamConfig(config.num_beams))
        captions += [_decode(tokenizer, row) for row in output.ids.tolist()]
        image_ids += batch.ids.tolist()
    return gallery.select(image_ids), captions


def _decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text before the end token."""
    end = tokenizer.vocabulary.sep
    return tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)


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
