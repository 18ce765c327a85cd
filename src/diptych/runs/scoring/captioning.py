"""Captioning: what a run says of each picture, beside what people said."""

from __future__ import annotations

from typing import Any

import torch

from diptych.data.loader import SkipCounter
from diptych.data.sources.base import Captioned
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.generation import BeamConfig, GenerationConfig, beam_search
from diptych.metrics.captions import CaptionScores, caption_scores
from diptych.objectives.pretraining import Pretraining
from diptych.protocols import TextDecoder
from diptych.report import CaptionExample
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import SHOWN, EvaluatedModel, Result, draw_examples, evenly_spaced
from diptych.runs.scoring.gallery import Gallery, open_gallery, read_pictures, readable
from diptych.runs.tokenizer import tokenizer_of
from diptych.tasks.captioning import Captioning
from diptych.tasks.common import encode_images

BATCH = 32
LEARNED = {"lm", "masked_captions"}  # losses by which a model learns to write


def captioning(subject: EvaluatedModel) -> Result:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D, and captions and references in COCO's form. Raises DataError, RunError."""
    step, asked = subject.module, subject.asked
    learned = isinstance(step, Captioning) or (isinstance(step, Pretraining) and LEARNED & set(step.weights))
    if not learned or not isinstance(subject.model, TextDecoder):
        raise RunError("captioning needs a run that learned to write: a pre-training run with lm or captions")
    tally = SkipCounter(asked.max_skipped)
    gallery, captions = written(subject, readable(open_gallery(asked, subject.images.shorter_side), tally), tally)
    tally.check()
    references: list[list[str]] = [[] for _ in captions]
    for text, owner in zip(gallery.texts, gallery.owners, strict=True):
        references[owner].append(text)
    scores = caption_scores(captions, references)
    predictions = [
        {"image": gallery.source.where(i), "caption": said, "CIDEr-D": score, "references": true}
        for i, (said, score, true) in enumerate(zip(captions, scores.each, references, strict=True))
    ]

    def example(i: int) -> CaptionExample:
        return CaptionExample(gallery.source.image(i), captions[i], scores.each[i], references[i])

    chosen = evenly_spaced(range(len(captions)), 0 if asked.shuffle_captions else SHOWN)
    files = in_coco_s_form(asked.split, gallery.source, captions, references)
    metrics = {"images": len(captions), "references": len(gallery.texts), "skipped": tally.bad} | _named(
        scores, captions
    )
    return Result(metrics, predictions, lambda: draw_examples(chosen, example), list(tally.listed.values()), files)


def written(subject: EvaluatedModel, gallery: Gallery, tally: SkipCounter) -> tuple[Gallery, list[str]]:
    """The pictures that could be read, and a caption of each, by beam search."""
    tokenizer, asked, captions, seen = tokenizer_of(subject.run), subject.asked, [], []
    known = tokenizer.vocabulary
    rules = GenerationConfig(known.sep, known.pad, min(asked.max_length, tokenizer.max_length))
    for batch in read_pictures(subject, gallery, BATCH, tally, "writing captions"):
        prompt = torch.full((len(batch), 1), known.cls, device=subject.device)
        found = beam_search(
            subject.model, encode_images(subject.model, batch), prompt, rules, BeamConfig(asked.num_beams)
        )
        captions += [_text(tokenizer, row) for row in found.ids.tolist()]
        seen += batch.ids.tolist()
    return gallery.of(seen), captions


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """What is written before the end."""
    end = tokenizer.vocabulary.sep
    return tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)


def in_coco_s_form(split: str, source: Captioned, captions: list[str], references: list[list[str]]) -> dict[str, Any]:
    """What COCO's own scripts and servers read: the results, and the references that they are held against. An image's id is
    its place in the split as it was read: both files tell the same.
    """
    images = [{"id": i, "file_name": source.where(i)} for i in range(len(source))]
    notes = [(i, text) for i, texts in enumerate(references) for text in texts]
    annotations = [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(notes)]
    return {
        f"captions_{split}_results.json": [{"image_id": i, "caption": text} for i, text in enumerate(captions)],
        f"captions_{split}_references.json": {"type": "captions", "info": {}, "licenses": [], "images": images, "annotations": annotations},
    }  # fmt: skip


def _named(scores: CaptionScores, captions: list[str]) -> dict[str, float]:
    found = {f"BLEU-{n}": value for n, value in enumerate(scores.bleu, 1)}
    found |= {"ROUGE-L": scores.rouge_l, "CIDEr-D": scores.cider_d}
    return found | {"different captions": len(set(captions)) / len(captions)}
