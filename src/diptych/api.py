"""The Python API: a trained model for images and texts as people have them, and training and evaluation by one call.

`load` a run, then `VLM.caption("photos/")`, `VLM.score(["a.jpg", "b.jpg"], ["a dog on the beach"])` and others;
docs/python-api.md is the manual.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Batch, Image, Text
from diptych.checkpoints.huggingface.folder import CONFIG_FILE, WEIGHT_FILES, find_weights
from diptych.config.spelling import suggest_name
from diptych.config.tasks import Classification, Evaluation, check_settings_of_task, evaluation_of
from diptych.data.examples import MAX_TEXT_CHARS
from diptych.data.images.loading import with_images
from diptych.data.sources.base import Box, DataError
from diptych.data.sources.pairs import PREFIX, read_pairs
from diptych.data.sources.photos import ImageInput, Photos, open_photos
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.inference.embedders import input_embeddings
from diptych.inference.folder import IGNORED_WEIGHTS, write_config
from diptych.inference.image_processor import ImageProcessor, OnError
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError, is_saved
from diptych.inference.token_states import Features, features_of, joined, placed
from diptych.metrics.bootstrap import Scores
from diptych.modules.init import scale_init
from diptych.modules.tokens import Tokens
from diptych.runs import recipes
from diptych.runs.check_inputs import data_of, task_of
from diptych.runs.evaluate import evaluate as evaluate_run
from diptych.runs.finetune import finetune, named_run
from diptych.runs.import_checkpoint import load_hf_folder
from diptych.runs.load_model import load_model
from diptych.runs.pretrain import pretrain
from diptych.tasks.captioning import CaptionOptions, generate_captions
from diptych.tasks.classification import classifier_of
from diptych.tasks.common import encode_texts
from diptych.tasks.grounding import ground
from diptych.tasks.open_vqa import OpenVQA
from diptych.tasks.operations import check_operation, finetuned_task, why_unsupported
from diptych.tasks.pair_scores import (
    IMAGE_BATCH,
    SCORES,
    TEXT_BATCH,
    TextScorer,
    image_embedding,
    text_embedding,
)
from diptych.tasks.vqa import answer_ranker
from diptych.training.checkpoint import MODEL, save_weights
from diptych.training.distributed import pick_device
from diptych.training.signals import INTERRUPTED
from diptych.utils.io import atomic_write
from diptych.utils.lock import locked
from diptych.utils.rng import uniform

Images = ImageInput | Iterable[ImageInput] | Photos
"""One image or several: paths, folders, globs, PIL images, uint8 arrays (h, w, 3), tensors (3, h, w)."""
PROMPTS = Classification.prompts
"""The prompts of zero-shot classification, by default."""
BATCH = 32  # images or pairs at once in `features`, `caption`, `answer`, `classify` and `predict`


class Prediction(NamedTuple):
    """An answer or a class, and its probability."""

    text: str
    probability: float


class Region(NamedTuple):
    """A box x1, y1, x2, y2 in pixels of the upright image, and how likely a phrase refers to it (`VLM.ground`)."""

    box: Box
    score: float


@runtime_checkable
class ImageScorer(Protocol):
    """A function from images to their scores with texts, by method. See `VLM.scorer`."""

    def __call__(self, images: Images, on_error: OnError = None) -> dict[str, Float[Tensor, "images texts"]]: ...


class VLM:
    """A trained vision-language model with its text tokenizer and image processor. `load` makes one.

    Images are one or several of: paths, folders, globs, PIL images, uint8 arrays (h, w, 3), tensors (3, h, w). Results
    are in the order of the images; those of a folder are in natural order.

    Args:
        loaded: the model, on its device.
        dtype: None or torch.float32, or torch.bfloat16 for autocast.

    An image that cannot be read raises BadSample, whose message names it. To go on without such images, pass
    `on_error`, a function that is called with each, a `Skipped` (its index, name and reason): ``errors = []``, then
    ``model.caption("photos/", on_error=errors.append)``. Results stay in the order of the images: None in a list, NaN
    in a tensor, stands for an image that cannot be read.

    An operation that this model cannot do raises UnsupportedOperation, whose message says what it lacks and which
    models can.
    """

    def __init__(self, loaded: LoadedModel, dtype: torch.dtype | None = None):
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"dtype must be None, torch.float32, or torch.bfloat16 (autocast): got {dtype}")
        self.loaded, self.dtype = loaded, dtype or torch.float32

    def __repr__(self) -> str:
        shown = (
            "embed_images",
            "embed_texts",
            *SCORES,
            "caption",
            "answer",
            "classify",
            "zero_shot",
            "ground",
            "predict",
        )
        can = ", ".join(filter(self.can, shown))
        return f"VLM({type(self.model).__name__} on {self.device.type}; can: {can})"

    @property
    def model(self) -> nn.Module:
        """The model as an nn.Module, without heads."""
        return self.loaded.model

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return self.loaded.device

    @property
    def tokenizer(self) -> Tokenizer:
        """The text tokenizer: `encode` texts, `decode` ids. Raises RunError if the model reads no text."""
        return self.loaded.tokenizer

    @cached_property
    def image_processor(self) -> ImageProcessor:
        """The image processor: called with images, it returns the model's image input as one batch."""
        return ImageProcessor(self.loaded)

    def can(self, operation: str) -> bool:
        """Whether the model can do an operation: "caption", "answer", "itm" … (`diptych.tasks.operations.OPERATIONS`).

        Raises ValueError for an operation that does not exist.
        """
        return not any(why_unsupported(self.loaded, part) for part in SCORES.get(operation, (operation,)))

    def embed_images(self, images: Images, batch_size: int = 64, *, on_error: OnError = None) -> Float[Tensor, "n d"]:
        """Unit-norm embeddings of images, float32 on the CPU.

        For models trained with a contrastive loss they lie in the space of `embed_texts`: the dot product is the
        cosine. Those of models of images only (ViT, MAE) are the mean of their tokens.

        Args:
            on_error: called with each image that cannot be read, whose row is then NaN.

        Raises UnsupportedOperation, DataError, BadSample.
        """
        check_operation(self.loaded, "embed_images")
        photos = self.image_processor.open(images)
        with self._computing():
            encoded = self._encoded_images(photos, batch_size, on_error)
            parts = [(places, image_embedding(self.loaded, image)) for places, image in encoded]
        if parts:
            dim = parts[0][1].shape[1]
        elif self.can("embed_texts"):
            dim = self.embed_texts("").shape[1]
        else:
            dim = self.embed_images(np.zeros((32, 32, 3), np.uint8)).shape[1]
        return nn.functional.normalize(_scatter((len(photos), dim), parts), dim=-1)  # again: bf16's unit norm is rough

    def embed_texts(self, texts: str | Sequence[str], batch_size: int = 512) -> Float[Tensor, "n d"]:
        """Unit-norm embeddings of texts, float32 on the CPU. Raises UnsupportedOperation."""
        check_operation(self.loaded, "embed_texts")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: got {batch_size}")
        strings = _texts(texts)
        if not strings:
            return self.embed_texts("")[:0]
        with self._computing():
            vectors = [text_embedding(self.loaded, x) for x in encode_texts(self.loaded, strings, batch_size)]
        return nn.functional.normalize(torch.cat(vectors).float().cpu(), dim=-1)  # again: bf16's unit norm is rough

    def features(
        self, images: Images | None = None, texts: str | Sequence[str] | None = None, *, on_error: OnError = None
    ) -> Features:
        """The states of all tokens: of images, of texts, and of pairs after fusion.

        With images and texts, image i is fused with text i; a single image is paired with every text, and a single text
        with every image. Models without fusion give the states before it only.

        Args:
            on_error: called with each image that cannot be read. The states of its samples, those of their texts
                included, are then padding, and their pooled vectors NaN.

        Raises ValueError for another number of images than of texts, UnsupportedOperation, DataError (also if no image
        can be read), BadSample.
        """
        if images is None and texts is None:
            raise ValueError("features needs images, texts or both")
        photos = None if images is None else self.image_processor.open(images)
        strings = None if texts is None else _texts(texts)
        fuses = photos is not None and strings is not None and self.can("fuse")
        if photos is not None and strings is not None:
            rows, columns = _paired(len(photos), len(strings), "texts")
            strings = [strings[i] for i in columns]
        else:
            rows = list(range(len(photos or strings or ())))
        number = len(rows)
        if not number:
            raise ValueError("features needs at least one image or text, got none")
        text = None if strings is None else self._encode(strings)
        parts, readable = list[Features](), list[int]()
        with self._computing():
            batches: Iterable[tuple[list[int], Tokens | None]]
            if photos is None:
                batches = ((list(range(at, min(at + BATCH, number))), None) for at in range(0, number, BATCH))
            else:
                batches = self._encoded_images(photos, BATCH, on_error, rows)
            for places, image in batches:
                of_text = None if text is None else self.loaded.model.encode_text(text[torch.tensor(places)])
                parts.append(features_of(image, of_text, self.loaded.model.fuse(of_text, image) if fuses else None))
                readable += places
        if not parts:
            raise DataError(f"none of {number} images can be read, so that the shapes of features are unknown")
        return placed(joined(parts), readable, number)

    def score(
        self, images: Images, texts: str | Sequence[str], method: str = "itc", *, on_error: OnError = None
    ) -> Float[Tensor, "images texts"]:
        """The score of every image with every text, float32 on the CPU.

        Args:
            method: "itc": cosine of image and text embeddings; of VSE++ and SCAN their own similarity.
                "itm": probability that the pair matches, by the ITM head; of a run fine-tuned for retrieval the output
                of its ranking head. Every pair is fused, so this takes long for many.
                "both": what `diptych evaluate` ranks by if it re-ranks all pairs (`rerank_by` "product"): the log of
                the product of both probabilities, up to a constant.
            on_error: called with each image that cannot be read, whose scores are then NaN.

        Raises UnsupportedOperation, DataError, BadSample.
        """
        return self.scorer(texts, [method])(images, on_error)[method]

    def scorer(self, texts: str | Sequence[str], methods: Sequence[str]) -> ImageScorer:
        """A function of images, and `on_error`, that gives their scores with the texts by each method of `score`.

        Texts are encoded once, for all calls of the function; images once, for all methods.

        Raises as `score`.
        """
        for method in methods:
            if method not in SCORES:
                known = ", ".join(SCORES)
                raise ValueError(f"method must be one of {known}: got {method!r}{suggest_name(method, SCORES)}")
            for operation in SCORES[method]:
                check_operation(self.loaded, operation)
        strings = _texts(texts)
        with self._computing():
            score_images = TextScorer(self.loaded, list(encode_texts(self.loaded, strings, TEXT_BATCH)), methods)

        def score(images: Images, on_error: OnError = None) -> dict[str, Float[Tensor, "images texts"]]:
            photos = self.image_processor.open(images)
            shape = len(photos), len(strings)
            with self._computing():
                encoded = self._encoded_images(photos, IMAGE_BATCH, on_error) if strings else ()
                parts = [(places, score_images(image)) for places, image in encoded]
            return {method: _scatter(shape, [(places, part[method]) for places, part in parts]) for method in methods}

        return score

    @overload
    def caption(
        self,
        images: Images,
        prompt: str = "",
        num_beams: int = 3,
        top_p: float | None = None,
        num_captions: int = 1,
        max_length: int = 30,
        *,
        seed: int | Sequence[int] = 0,
    ) -> list[str] | list[list[str]]: ...

    @overload
    def caption(
        self,
        images: Images,
        prompt: str = "",
        num_beams: int = 3,
        top_p: float | None = None,
        num_captions: int = 1,
        max_length: int = 30,
        *,
        seed: int | Sequence[int] = 0,
        on_error: OnError,
    ) -> list[str | None] | list[list[str] | None]: ...

    def caption(
        self,
        images: Images,
        prompt: str = "",
        num_beams: int = 3,
        top_p: float | None = None,
        num_captions: int = 1,
        max_length: int = 30,
        *,
        seed: int | Sequence[int] = 0,
        on_error: OnError = None,
    ) -> list[Any]:
        """A generated caption of each image; with `num_captions` above 1, a list of captions of each.

        Args:
            prompt: text that every caption begins with; it is not repeated in the result.
            num_beams: beam size; 1: greedy search.
            top_p: sample from the most likely tokens of this total probability (nucleus sampling); None: beam search.
            num_captions: captions of each image, the likeliest first; with beam search at most `num_beams`.
            max_length: maximum number of tokens, start token, prompt and end token included.
            seed: of nucleus sampling; the same seed gives the same captions. One for each image: captions that do not
                depend on the image's place among the others.
            on_error: called with each image that cannot be read, in whose place is then None.

        Raises UnsupportedOperation, DataError, BadSample, and ValueError for an argument out of range.
        """
        check_operation(self.loaded, "caption")
        options = CaptionOptions(_texts(prompt)[0], num_beams, top_p, num_captions, max_length)
        photos = self.image_processor.open(images)
        captions: list[Any] = [None] * len(photos)
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(photos)
        if len(seeds) != len(photos):
            raise ValueError(
                f"expected one seed, or one for each image: got {len(photos)} images and {len(seeds)} seeds"
            )
        places = [0] * len(photos) if isinstance(seed, Sequence) else range(len(photos))
        longest = min(max_length, self.tokenizer.max_length)
        with self._computing():
            for indices, image in self._encoded_images(photos, BATCH, on_error):
                drawn = [
                    np.concatenate([uniform(seeds[i], k, [places[i]], "caption", longest) for i in indices])
                    for k in range(num_captions)
                ]
                draws = [torch.from_numpy(numbers).float() for numbers in drawn]
                texts = generate_captions(self.loaded.model, image, self.tokenizer, options, draws)
                for i, of_image in zip(indices, texts, strict=True):
                    captions[i] = of_image if num_captions > 1 else of_image[0]
        return captions

    @overload
    def answer(
        self, images: Images, questions: str | Sequence[str], candidates: Sequence[str] | None = None
    ) -> list[Prediction]: ...

    @overload
    def answer(
        self,
        images: Images,
        questions: str | Sequence[str],
        candidates: Sequence[str] | None = None,
        *,
        on_error: OnError,
    ) -> list[Prediction | None]: ...

    def answer(
        self,
        images: Images,
        questions: str | Sequence[str],
        candidates: Sequence[str] | None = None,
        *,
        on_error: OnError = None,
    ) -> list[Any]:
        """The answer to each question about its image, with its probability.

        Question i is about image i; a single image is asked every question, and a single question of every image.

        Args:
            candidates: answers to choose from. A model that classifies takes those among its own answers (`labels` in
                config.json), and gives the probability of each by itself; a model with an answer decoder takes any
                texts, and gives the probability among them. None: all answers of the run, else a generated answer with
                the probability of its tokens.
            on_error: called with each image that cannot be read; in the place of each of its answers is then None.

        Raises UnsupportedOperation, DataError, BadSample, and ValueError for another number of images than of questions
        and for an unknown candidate.
        """
        check_operation(self.loaded, "answer")
        photos, texts = self.image_processor.open(images), _texts(questions)
        rows, columns = _paired(len(photos), len(texts), "questions")
        predictions: list[Prediction | None] = [None] * len(rows)
        with self._computing():
            predict, size = self._answerer(None if candidates is None else _texts(candidates))
            for places, image in self.image_processor.batches(photos, size, on_error, rows):
                text = self._encode([texts[columns[place]] for place in places])
                batch = with_images(Batch(0, 0, torch.arange(len(text)), text=text), image)
                for place, prediction in zip(places, predict(batch.to(self.device)), strict=True):
                    predictions[place] = prediction
        return predictions

    @overload
    def classify(
        self,
        images: Images,
        top_k: int = 5,
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[str] = PROMPTS,
    ) -> list[list[Prediction]]: ...

    @overload
    def classify(
        self,
        images: Images,
        top_k: int = 5,
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[str] = PROMPTS,
        on_error: OnError,
    ) -> list[list[Prediction] | None]: ...

    def classify(
        self,
        images: Images,
        top_k: int = 5,
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[str] = PROMPTS,
        on_error: OnError = None,
    ) -> list[Any]:
        """The most probable classes of each image with their probabilities, at most `top_k`.

        Args:
            labels: zero-shot classification among these classes, by texts that name them, for models trained with a
                contrastive loss; None for the classes that a classifier was trained on.
            prompts: zero-shot: texts with ``{}`` for the class; the features of several are averaged.
            on_error: called with each image that cannot be read, in whose place is then None.

        Raises UnsupportedOperation, DataError, BadSample.
        """
        check_operation(self.loaded, "classify" if labels is None else "zero_shot")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1: got {top_k}")
        photos = self.image_processor.open(images)
        predictions: list[list[Prediction] | None] = [None] * len(photos)
        with self._computing():
            classifier = classifier_of(self.loaded, labels, prompts)
            for places, image in self.image_processor.batches(photos, BATCH, on_error):
                tops = classifier.top(image.to(self.device), top_k)
                for place, top in zip(places, tops, strict=True):
                    predictions[place] = [Prediction(classifier.classes[i], value) for i, value in top]
        return predictions

    @overload
    def predict(self, images: Images, texts: str | Sequence[str] | None = None) -> list[dict[str, Any]]: ...

    @overload
    def predict(
        self, images: Images, texts: str | Sequence[str] | None = None, *, on_error: OnError
    ) -> list[dict[str, Any] | None]: ...

    def predict(
        self, images: Images, texts: str | Sequence[str] | None = None, *, on_error: OnError = None
    ) -> list[Any]:
        """The output of the task that the model was fine-tuned for, for each image: the fields of a row of JSON.

        Args:
            texts: for tasks with texts, as questions: one for each image, or one for all, or several of one image.
            on_error: called with each image that cannot be read; in the place of each of its outputs is then None.

        Raises UnsupportedOperation, DataError, BadSample, and ValueError if texts are missing, or for another number of
        images than of texts.
        """
        task, predict = finetuned_task(self.loaded)
        photos, name = self.image_processor.open(images), task.text
        if bool(name) != (texts is not None):
            what = f"needs a {name} for each image" if name else "takes no texts"
            raise ValueError(f"texts: {task.task} {what}")
        strings = _texts(texts or "")
        rows, columns = _paired(len(photos), len(strings), f"{name}s")
        outputs: list[dict[str, Any] | None] = [None] * len(rows)
        with self._computing():
            for places, image in self.image_processor.batches(photos, BATCH, on_error, rows):
                text = self._encode([strings[columns[place]] for place in places]) if name else None
                labels = {}
                if task.pixels:
                    labels["size"] = torch.tensor([photos.size(rows[place]) for place in places])
                batch = with_images(Batch(0, 0, torch.arange(len(places)), text=text, labels=labels), image)
                for place, output in zip(places, predict(self.loaded, batch.to(self.device)), strict=True):
                    outputs[place] = output
        return outputs

    def ground(self, image: ImageInput, phrase: str) -> list[Region]:
        """The regions of an image and the score of each for a phrase, the best first.

        The score of a model fine-tuned on grounding is the probability that the phrase refers to the region. Other
        models that match images and texts give the regions, or fixed boxes, and a score above 0 that compares them: by
        the phrase's map (Grad-CAM; Li et al. 2021).

        Raises UnsupportedOperation, DataError, BadSample.
        """
        check_operation(self.loaded, "ground")
        with self._computing():
            return [Region(*pair) for pair in ground(self.loaded, image, _texts(phrase)[0])]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes config.json and model.safetensors, which `load` and all commands take; returns the folder.

        Of an imported model also the official weights that it does not use, which `diptych export` writes back.

        Raises RunError if the folder contains a model; InUse if another process writes there.
        """
        out = Path(folder)
        with locked(out):
            if any((out / name).exists() for name in ("run.json", CONFIG_FILE, MODEL)):
                raise RunError(f"{out} contains a model: give another folder")
            write_config(out, self.loaded.saved)
            if self.loaded.folder is not None and (unused := self.loaded.folder / IGNORED_WEIGHTS).is_file():
                with atomic_write(out / IGNORED_WEIGHTS) as path:
                    shutil.copyfile(unused, path)
            save_weights(out, self.loaded.module)
        return out

    def _computing(self) -> AbstractContextManager[None]:
        """Context of all computation; see `LoadedModel.computing`."""
        return self.loaded.computing(self.dtype == torch.bfloat16)

    def _encoded_images(
        self, photos: Photos, batch_size: int, on_error: OnError, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Tokens]]:
        """Image tokens of a batch at a time; see `ImageProcessor.batches`."""
        for places, image in self.image_processor.batches(photos, batch_size, on_error, indices):
            yield places, self.loaded.model.encode_image(image.to(self.device))

    def _encode(self, texts: list[str]) -> Text:
        return self.tokenizer.encode(texts).to(self.device)

    def _answerer(self, candidates: list[str] | None) -> tuple[Callable[[Batch], list[Prediction]], int]:
        """A function from a batch of questions to their answers, and how many questions to pass at once."""
        if candidates is not None and not candidates:
            raise ValueError("candidates: expected at least one answer, got an empty list")
        module = self.loaded.module
        answers: list[str] = list(self.loaded.saved.labels)
        if isinstance(module, OpenVQA):
            answers = self._distinct(candidates or answers)
            if not answers:
                return lambda batch: [Prediction(*pair) for pair in module.generate_each(batch, self.tokenizer)], BATCH
        among = None if candidates is None or isinstance(module, OpenVQA) else _answer_indices(candidates, answers)
        rank = answer_ranker(self.loaded, answers, among, top_k=1)

        def predict(batch: Batch) -> list[Prediction]:
            values, indices = (top[:, 0].tolist() for top in rank(batch))
            return [Prediction(answers[i], value) for i, value in zip(indices, values, strict=True)]

        return predict, BATCH

    def _distinct(self, texts: list[str]) -> list[str]:
        """The texts without those of the same tokens as an earlier one, which would share its probability."""
        first: dict[tuple[int, ...], str] = {}
        for text, ids in zip(texts, self.tokenizer.encode(texts).ids.tolist() if texts else [], strict=True):
            first.setdefault(tuple(ids), text)
        return list(first.values())


def load(source: str | os.PathLike[str], device: str = "auto", dtype: torch.dtype | None = None) -> VLM:
    """The trained model in a folder: a run, an imported checkpoint, or a Hugging Face folder (config.json and weights).

    A Hugging Face folder is read as `diptych import` reads it, and nothing is written.

    Args:
        device: "auto" prefers cuda, then mps, then cpu.
        dtype: None: float32. torch.bfloat16: autocast.

    Raises RunError, WeightsError, DataError, each with the folder and what was expected there.
    """
    folder, chosen = Path(source), pick_device(device)
    if is_saved(folder):
        return VLM(load_model(folder, chosen), dtype)
    if (folder / CONFIG_FILE).is_file() and find_weights(folder):
        return VLM(load_hf_folder(folder, chosen), dtype)
    expected = (
        f"expected a run folder ({CONFIG_FILE}, {MODEL}) or a Hugging Face folder ({CONFIG_FILE} and {WEIGHT_FILES[0]} or "
        f"{', '.join(WEIGHT_FILES[1:])})"
    )
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise RunError(f"{folder}: {what}; {expected}")
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise RunError(f"{folder}: {expected}, found {names}; convert other checkpoints with diptych import")


def create_model(name: str, **overrides: Any) -> nn.Module:
    """An untrained model, with the initial weights of its recipe.

    Its forward takes `diptych.batch.Image` (or `Regions`) and `Text`, or tensors: pixels (b, 3, h, w), and token ids
    (b, n) without padding.

    Args:
        name: a recipe (`list_models`), as "vilt.base"; or with the patch size and the side of square images in pixels,
            as "vilt_base_patch32_384".
        overrides: fields of the model's config, as `depth=6`.

    Raises RunError for an unknown name, ValueError for an unknown or invalid override, each with the nearest names.
    """
    run = recipes.model_recipe(name)
    config = replace(run, model=recipes.with_settings(run.model, overrides)).model
    model: nn.Module = config.build(input_embeddings(run))
    scale_init(model, run.init_scale)
    model.register_forward_pre_hook(_inputs_from_tensors, with_kwargs=True)
    return model


def train(
    recipe: str,
    data: str | os.PathLike[str] | Sequence[Any],
    out: str | os.PathLike[str],
    steps: int | None = None,
    **settings: Any,
) -> VLM:
    """Trains a recipe into a run folder, or resumes it there; returns the trained model.

    Args:
        recipe: a recipe (`list_models`), or "vqa", "retrieval" or "classification" with `init_from`.
        data: a folder, a file, tar shards or "scenes", as `--data`; or a sequence of pairs (image, caption or
            captions), divided 90/5/5 into train, val and test by image.
        out: the run folder.
        steps: optimizer steps; None: as in the recipe.
        settings: the settings that `diptych pretrain vilt.small --help` lists, as `batch_size=64`; those with a dot in
            their name as `**{"optimizer.learning_rate": 1e-3}`.

    Raises:
        DataError, RunError: the data or the settings cannot be trained on.
        ValueError: for an unknown setting, with the nearest.
        KeyboardInterrupt: after Ctrl-C, once the step is done and saved; the same call continues the run.
    """
    pairs = None if isinstance(data, str | os.PathLike) else read_pairs(data)
    values = {"data": str(data) if pairs is None else pairs.name, **settings} | (
        {} if steps is None else {"steps": steps}
    )
    if recipe in recipes.recipes():
        run = recipes.with_settings(recipes.recipe(recipe), values)
        with _raising_keyboard_interrupt():
            pretrain(run, Path(out), pairs)
    else:
        run = named_run(recipe, values)
        if pairs is not None:
            raise RunError(f"{recipe} is a fine-tuning recipe, whose data is a path: write the pairs to a table first")
        with _raising_keyboard_interrupt():
            finetune(run, Path(out))
    return load(out, run.training.device)


def evaluate(folder: str | os.PathLike[str], evaluation: Evaluation | str = "", **settings: Any) -> Scores:
    """The metrics of a run on a task, which are also written into the run's folder, as by `diptych evaluate`.

    A dict of numbers; its attribute `intervals` has the ends of the 95 % confidence interval of each metric that has
    one: ``scores = evaluate("runs/vqa")``, then ``scores["accuracy"]`` and ``scores.intervals["accuracy"]``.

    Args:
        evaluation: `Retrieval(rerank=32)`, `Captioning`, `VQA`, `Matching` or `Classification`; or the task's name; "":
            the run's own task.
        settings: fields of the evaluation, as `data="photos/"`, `split="test"`, `rerank=32`. Those that have no effect
            on this model are named in a printed line.

    Raises DataError, RunError, and ValueError for an unknown setting.
    """
    if isinstance(evaluation, str):
        evaluation = evaluation_of(evaluation or task_of(Path(folder)))
    check_settings_of_task(evaluation.task, settings)
    chosen = recipes.with_settings(evaluation, settings)
    if not chosen.data and data_of(Path(folder)).startswith(PREFIX):
        raise RunError(f"{folder} was trained on pairs passed from Python, which are not kept: give data, a path")
    explicit = {
        field.name for field in fields(chosen) if getattr(chosen, field.name) != field.default
    } | settings.keys()
    return evaluate_run(Path(folder), chosen, explicit)


def list_images(images: Images) -> list[str]:
    """The paths of the images that a folder, a glob or a list stands for, in the order of `VLM.embed_images`.

    Files that are no images are among them, as results have a place for each; an image that is no file has the path "".
    Raises DataError for a path that does not exist.
    """
    photos = open_photos(images)
    return [photos.path(i) for i in range(len(photos))]


@contextmanager
def _raising_keyboard_interrupt() -> Iterator[None]:
    """Context in which the end of training by a signal, a SystemExit for the command line, is a KeyboardInterrupt."""
    try:
        yield
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        raise KeyboardInterrupt from None


def _texts(texts: str | Sequence[str]) -> list[str]:
    """A list of texts, each cut to MAX_TEXT_CHARS. Raises ValueError for anything but strings of valid Unicode."""
    strings = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(strings):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}]: expected a string, got {type(text).__name__}")
        if not text.isascii() and text != text.encode(errors="ignore").decode():
            raise ValueError(f"texts[{i}]: not valid Unicode (a lone surrogate); decode it again from its source")
    return [text[:MAX_TEXT_CHARS] for text in strings]


def _scatter(shape: tuple[int, int], parts: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """The rows of all parts at their places, float32 on the CPU; NaN elsewhere."""
    rows = torch.full(shape, torch.nan)
    for places, values in parts:
        rows[places] = values.float().cpu()
    return rows


def _paired(images: int, texts: int, what: str) -> tuple[list[int], list[int]]:
    """The indices of images and of texts of each pair: one each, or one against all others. Raises ValueError."""
    if images != texts and 1 not in (images, texts):
        raise ValueError(f"expected as many {what} as images, or one of either: got {images} images and {texts} {what}")
    number = max(images, texts) if images and texts else 0
    return [i if images > 1 else 0 for i in range(number)], [i if texts > 1 else 0 for i in range(number)]


def _answer_indices(candidates: Sequence[str], answers: list[str]) -> list[int]:
    """The index of each candidate among a classifier's answers. Raises ValueError for an unknown one."""
    place = {answer: i for i, answer in enumerate(answers)}
    for candidate in candidates:
        if candidate not in place:
            raise ValueError(
                f"candidates: {candidate!r} is none of the model's {len(answers)} answers"
                f"{suggest_name(candidate, answers)}; a model with an answer decoder (BLIP, ALBEF) takes any text"
            )
    return [place[candidate] for candidate in dict.fromkeys(candidates)]


def _inputs_from_tensors(
    _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tensors among a model's inputs as images (4 dimensions) and texts (2 dimensions)."""

    def one(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return Image.from_full(x) if x.dim() == 4 else Text(x, torch.ones_like(x, dtype=torch.bool))

    return tuple(one(x) for x in arguments), {name: one(x) for name, x in named.items()}
