"""Image captioning: training by a causal language modelling loss (BLIP, CoCa), and generation of captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.batch import Batch, Image
from diptych.config import tasks as settings
from diptych.data.loader import SkipCounter
from diptych.data.sources.base import Captioned
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.generation import BeamConfig, GenerationConfig, GenerationOutput, beam_search, greedy, sample
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.metrics.captions import CaptionScores, caption_scores
from diptych.metrics.resampled_captions import resampled_captions
from diptych.models.configs import model_name
from diptych.modules.tokens import Tokens
from diptych.objectives.definition import losses_that_train
from diptych.objectives.lm import LMLoss
from diptych.objectives.random_choices import KeyedChoices
from diptych.objectives.views import Views
from diptych.protocols import CausalDecoder, ChanceLoss, ImageEncoder, TextDecoder
from diptych.report import CaptionExample
from diptych.tasks.common import encode_images, evaluation_rows, required
from diptych.tasks.definition import (
    MAX_EXAMPLES,
    Result,
    Task,
    draw_examples,
    evenly_spaced,
    seed_without_effect,
    trained_with,
)
from diptych.tasks.gallery import Gallery, GalleryImages, open_gallery, readable_gallery

BATCH = 32  # images captioned at once in evaluation


class ImageCaptioner(ImageEncoder, CausalDecoder, Protocol):
    """An image encoder with a causal text decoder."""


class Captioning(nn.Module):
    """A training step: cross entropy of each next token of the captions.

    The first `prompt` tokens of every caption are a prompt and have no loss (BLIP, section 5.2: [DEC] "a picture of",
    four tokens). `label_smoothing`: as in the official code; not in the paper.
    """

    def __init__(self, model: ImageCaptioner, prompt: int = 1, label_smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.objective = LMLoss("caption", label_smoothing=label_smoothing, num_prompt_tokens=prompt)
        self.weights = {"caption": 1.0}
        self.chance_losses: dict[str, ChanceLoss] = {}  # the unigram entropy depends on the data

    def views(self, batch: Batch) -> Views:
        """The lazily computed encodings of a batch."""
        return Views(self.model, nn.ModuleDict(), batch, KeyedChoices(batch))

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        required(batch.text, "caption")
        return self.objective.num_terms(self.views(batch))

    def losses(self, views: Views, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: total / counts[name] for name, total in self.objective.loss_sums(views).items()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.views(batch), counts)

    @torch.no_grad()
    def generate(
        self, image: Image, prompt: Int[Tensor, " n"], generation: GenerationConfig, beams: BeamConfig
    ) -> GenerationOutput:
        """A caption of each image, which begins with the prompt's tokens.

        BLIP's official code uses 3 beams and captions of 5 to 20 tokens, prompt included.
        """
        start = prompt.expand(len(image), -1)
        return beam_search(self.model, self.model.encode_image(image), start, generation, beams)


@dataclass(frozen=True)
class CaptionOptions:
    """How captions are generated: by beam search, greedily (1 beam), or by nucleus sampling (`top_p`).

    Args:
        prompt: text that every caption begins with, as in training (BLIP's captioner: "a picture of").
        num_beams: beam size; not used by nucleus sampling.
        top_p: nucleus sampling: probability mass of the tokens to sample from; None: beam search.
        num_captions: captions of each image; with beam search at most `num_beams`.
        max_length: maximum number of tokens of a caption, start token, prompt and end token included.
        min_length: minimum number of tokens, start token and prompt included.
        repetition_penalty: see `generation.GenerationConfig`.
    """

    prompt: str = ""
    num_beams: int = 3
    top_p: float | None = None
    num_captions: int = 1
    max_length: int = 30
    min_length: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], or None for beam search: got {self.top_p}")
        for name in ("num_beams", "num_captions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.top_p is None and self.num_captions > self.num_beams:
            raise ValueError(
                f"beam search finds num_beams = {self.num_beams} captions, fewer than num_captions = "
                f"{self.num_captions}: raise num_beams, or set top_p to sample captions"
            )

    def encode_prompt(self, tokenizer: Tokenizer) -> Int[Tensor, " n"]:
        """The start token and the prompt. Raises ValueError if they leave no room for a caption."""
        ids = tokenizer.encode([self.prompt]).ids[0, :-1]  # without the end token
        longest = min(self.max_length, tokenizer.max_length)
        if len(ids) >= longest:
            raise ValueError(
                f"the prompt of {len(ids)} tokens (start token included) fills max_length {longest}: shorten the "
                "prompt, or raise max_length"
            )
        return ids


def generate_captions(
    model: TextDecoder,
    image: Tokens,
    tokenizer: Tokenizer,
    options: CaptionOptions,
    draws: Sequence[Float[Tensor, "b longest"]] = (),
) -> list[list[str]]:
    """The captions of each image, without the prompt; with beam search the most likely first.

    Args:
        image: the encoded images.
        draws: for nucleus sampling, for each caption of an image random numbers in [0, 1) (see `generation.sample`).
    """
    vocabulary, device = tokenizer.vocabulary, image.mask.device
    prompt = options.encode_prompt(tokenizer).to(device)
    start = prompt.expand(len(image), -1)
    max_length = min(options.max_length, tokenizer.max_length)
    generation = GenerationConfig(
        vocabulary.sep, vocabulary.pad, max_length, options.min_length, options.repetition_penalty
    )
    if options.top_p is not None:
        sampled = [sample(model, image, start, generation, drawn.to(device), options.top_p) for drawn in draws]
        texts = [_decode(tokenizer, ids[:, len(prompt) :]) for ids in sampled]
        return [list(captions) for captions in zip(*texts, strict=True)]
    if options.num_beams == 1:
        ids = greedy(model, image, start, generation)
    else:
        beams = BeamConfig(options.num_beams, num_return_sequences=options.num_captions)
        ids = beam_search(model, image, start, generation, beams).ids
    captions = _decode(tokenizer, ids[:, len(prompt) :])
    return [captions[i : i + options.num_captions] for i in range(0, len(captions), options.num_captions)]


def _decode(tokenizer: Tokenizer, ids: Int[Tensor, "b n"]) -> list[str]:
    return [tokenizer.decode(row).strip() for row in ids.tolist()]


def evaluate(loaded: LoadedModel, config: settings.Captioning) -> Result:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D, with captions and references as files in COCO's format.

    Raises:
        DataError: the data cannot be read.
        RunError: the run was not trained to write captions.
    """
    if why := lacks(loaded):
        raise RunError(f"captioning: this {model_name(loaded.saved.model)} {why}")
    _ = loaded.tokenizer  # raises before images are read, if the vocabulary is unknown
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
    skipped, resampled = list(counter.skipped.values()), resampled_captions(captions, references)
    return Result(metrics, predictions, lambda: draw_examples(chosen, example), skipped, files, resampled)


def caption_gallery(
    loaded: LoadedModel, config: settings.Captioning, gallery: Gallery, counter: SkipCounter
) -> tuple[Gallery, list[str]]:
    """A caption of each image by beam search, and the gallery of the images that could be read."""
    options = CaptionOptions(num_beams=config.num_beams, max_length=config.max_length)

    def rows_of(batch: Batch) -> list[dict[str, Any]]:
        captions = generate_captions(loaded.model, encode_images(loaded.model, batch), loaded.tokenizer, options)
        return [{"image": i, "caption": text} for i, (text,) in zip(batch.ids.tolist(), captions, strict=True)]

    examples = GalleryImages(gallery.source, loaded.image_input)
    rows = evaluation_rows(loaded, examples, config, BATCH, counter, "writing captions", rows_of)
    return gallery.select([row["image"] for row in rows]), [row["caption"] for row in rows]


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


def lacks(loaded: LoadedModel) -> str:
    """What a model lacks to write captions."""
    if not isinstance(loaded.model, TextDecoder):
        return "has no text decoder"
    if loaded.losses & losses_that_train(settings.Captioning.task):
        return ""
    return f"was not trained to generate captions {trained_with(loaded)}"


TASK = Task(settings.Captioning, evaluate, lacks, unused=seed_without_effect)
