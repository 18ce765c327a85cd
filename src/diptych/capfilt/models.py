"""The models of CapFilt: the captioner, the filter, and image embeddings for near-duplicate search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.batch import Batch
from diptych.capfilt.shards import OpenShard
from diptych.config.capfilt import CapFilt
from diptych.config.data import ImageSettings
from diptych.config.run import Evaluation
from diptych.data.images.loading import ImageLoader, image_loader, with_images
from diptych.data.loader import evaluation_loader
from diptych.data.regions.frozen_features import ExtractedFeatures, GridLoader
from diptych.data.sources.base import BadSample, Captioned
from diptych.generation import BeamConfig, GenerationConfig, beam_search, greedy, sample
from diptych.modules.heads import ITCHead
from diptych.modules.tokens import Tokens
from diptych.objectives.definition import losses_that_train
from diptych.protocols import DualEncoder, FusionEncoder, TextDecoder
from diptych.runs.evaluate import restored
from diptych.runs.feature_extractors import frozen_cnn, memory_cache
from diptych.runs.run_folder import RunError, read_run
from diptych.runs.scoring.base import EvaluatedModel
from diptych.runs.scoring.retrieval import dual_encoder_scorer
from diptych.runs.tokenizer import tokenizer_of
from diptych.tasks.retrieval import score_pairs
from diptych.utils.rng import uniform

CNN_IMAGES = ImageSettings(shorter_side=224, square=True)


@dataclass(frozen=True)
class ReadableImages:
    """A dataset of images, preprocessed as a run needs them. Unreadable ones are left out of their batch.

    The `ids` of a batch are indices into the source.
    """

    source: Captioned
    indices: Sequence[int]
    loader: ImageLoader

    def __len__(self) -> int:
        return len(self.indices)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> tuple[int, Any] | None:
        try:
            return self.indices[index], self.loader.load(self.source, self.indices[index], None)
        except BadSample:
            return None

    def collate(self, loaded: list[tuple[int, Any] | None], ids: Sequence[int], seed: int, step: int) -> Batch:
        readable = [sample for sample in loaded if sample is not None]
        batch = Batch(seed, step, torch.tensor([index for index, _ in readable], dtype=torch.long))
        return with_images(batch, self.loader.stack([image for _, image in readable])) if readable else batch


def read_batches(
    opened: OpenShard,
    images: ImageSettings | ImageLoader,
    config: CapFilt,
    device: torch.device,
    tick: Callable[[int], None],
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of the readable images, with their indices; `tick` is called with the number of images processed."""
    dataset = ReadableImages(opened.source, opened.images, image_loader(images))
    for number, loaded in enumerate(evaluation_loader(dataset, config.batch_size, workers=config.workers)):
        batch = loaded.batch.to(device)
        if len(batch):
            yield batch.ids.tolist(), batch
        tick(min(config.batch_size, len(dataset) - number * config.batch_size))


def load_model(folder: Path, config: CapFilt, device: torch.device) -> EvaluatedModel:
    """The trained model in a run folder, which must have a text tokenizer. Raises RunError."""
    run, facts = read_run(folder)
    tokenizer_of(run)
    module = restored(folder, run, facts).to(device).eval()
    return EvaluatedModel(run, facts, module, Evaluation(device=config.device, precision=config.precision), device)


class Captioner:
    """Generates captions of images with a trained run. Raises RunError if it was not trained to."""

    def __init__(self, evaluated: EvaluatedModel, config: CapFilt):
        module: Any = evaluated.module
        losses = losses_that_train("captioning") | {"caption"}  # "caption": captioning as a task
        if not isinstance(evaluated.model, TextDecoder) or not losses & set(module.weights):
            raise RunError(
                f"the captioner is a {type(evaluated.model).__name__} that was not trained to generate captions (its "
                f"objectives: {', '.join(module.weights)}); give a run with the objective lm or masked_captions"
            )
        self.evaluated, self.config, self.tokenizer = evaluated, config, tokenizer_of(evaluated.run)
        vocabulary = self.tokenizer.vocabulary
        self.prompt = self.tokenizer.encode([config.prompt]).ids[:, :-1].to(evaluated.device)  # without [SEP]
        max_length = min(config.max_length, self.tokenizer.max_length)
        if not self.prompt.shape[1] < max_length:
            raise RunError(
                f"the prompt of {self.prompt.shape[1]} tokens fills max_length {max_length}; give a larger --max_length"
            )
        repetition = config.repetition_penalty if config.decoding == "nucleus" else 1.0
        self.generation = GenerationConfig(vocabulary.sep, vocabulary.pad, max_length, config.min_length, repetition)

    def write(self, image: Tokens, shard: str, indices: Sequence[int]) -> list[str]:
        """A caption of each image. Random draws are keyed by (seed, shard name, index), so they are reproducible."""
        config, model, generation = self.config, self.evaluated.model, self.generation
        prompt = self.prompt.expand(len(image), -1)
        if config.decoding == "nucleus":
            drawn = uniform(config.seed, 0, indices, f"caption of {shard}", generation.max_length)
            draws = torch.from_numpy(drawn).float().to(self.evaluated.device)
            ids = sample(model, image, prompt, generation, draws, config.top_p)
        elif config.decoding == "beam_search":
            ids = beam_search(model, image, prompt, generation, BeamConfig(config.num_beams)).ids
        else:
            ids = greedy(model, image, prompt, generation)
        return [self.tokenizer.decode(row).strip() for row in ids[:, self.prompt.shape[1] :].tolist()]


class Filter:
    """Scores image-text pairs with a trained run: by its ITM head, by cosine similarity (ITC), or by both.

    Raises RunError if it was trained for neither, or only for ITC while `min_cosine` is not set.
    """

    def __init__(self, evaluated: EvaluatedModel, config: CapFilt):
        module: Any = evaluated.module
        self.evaluated, self.tokenizer = evaluated, tokenizer_of(evaluated.run)
        has_itm = isinstance(evaluated.model, FusionEncoder) and "itm" in module.weights
        self.itm_head = module.heads["itm"] if has_itm else None
        self.similarity = dual_encoder_scorer(evaluated)
        if self.itm_head is None and self.similarity is None:
            raise RunError(
                f"the filter is a {type(evaluated.model).__name__} that was not trained to match images and texts (its "
                f"objectives: {', '.join(module.weights)}); give a run with the objective itm or itc"
            )
        if self.itm_head is None and config.min_cosine <= -1:
            raise RunError("the filter has no ITM head, only ITC; give --min_cosine, the smallest cosine that passes")

    def score(self, image: Tokens, texts: list[str], owner: Tensor) -> list[dict[str, float]]:
        """The ITM probability ("itm") and the cosine of each text with the image `owner` of the batch.

        `owner`: for each text, the index of its image in the batch.
        """
        if not texts:
            return []
        text = self.evaluated.model.encode_text(self.tokenizer.encode(texts).to(self.evaluated.device))
        index, owner = torch.arange(len(texts), device=self.evaluated.device), owner.to(self.evaluated.device)
        scores: dict[str, list[float]] = {}
        if self.itm_head is not None:
            head = self.itm_head
            scores["itm"] = score_pairs(
                self.evaluated.model, lambda pooled: head(pooled).float().softmax(1)[:, 1], image, text, owner, index
            ).tolist()
        if self.similarity is not None:
            cosines = self.similarity.similarity(
                self.similarity.image_features(image), self.similarity.text_features(text)
            )
            scores["cosine"] = cosines.float()[owner, index].tolist()
        return [{name: values[i] for name, values in scores.items()} for i in range(len(texts))]


def image_embedding(evaluated: EvaluatedModel, image: Tokens) -> Float[Tensor, "b e"]:
    """Unit-norm image embeddings: projected as for ITC if trained, else the pooled features, else the mean token."""
    model, module = evaluated.model, evaluated.module
    if not isinstance(model, DualEncoder):
        return F.normalize(image.mean().float(), dim=-1)
    pooled = model.pooled_features(image)[0]
    heads: Any = getattr(module, "heads", {})
    weights: Any = module.weights
    head = next((part for name, part in heads.items() if name == "itc"), None)
    if isinstance(head, ITCHead) and ("itc" in weights or "retrieval" in weights):
        return head.project_image(pooled).float()
    return F.normalize(pooled.float(), dim=-1)


def cnn_loader() -> ImageLoader:
    """Loads feature maps of the frozen CNN. Raises ImportError without the extra `cnn`."""
    return GridLoader(ExtractedFeatures(frozen_cnn().extract, frozen_cnn().name, CNN_IMAGES, memory_cache()))


def cnn_embedding(batch: Batch) -> Float[Tensor, "b e"]:
    """Unit-norm image embeddings: the CNN's feature map averaged over its cells."""
    assert batch.image is not None
    return F.normalize(batch.image.pixels.float().mean((2, 3)), dim=-1)
