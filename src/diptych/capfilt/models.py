"""The models of CapFilt: the captioner, the filter, and image embeddings for near-duplicate search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.batch import Batch
from diptych.capfilt.shards import OpenShard
from diptych.config.capfilt import CapFilt
from diptych.config.data import ImageSettings
from diptych.data.images.loading import ImageLoader, image_loader, with_images
from diptych.data.loader import evaluation_loader
from diptych.data.regions.frozen_features import ExtractedFeatures, GridLoader
from diptych.data.sources.base import BadSample, Captioned
from diptych.inference.feature_extractors import frozen_cnn, memory_cache
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.modules.tokens import Tokens
from diptych.protocols import FusionEncoder
from diptych.tasks.captioning import CaptionOptions, generate_captions
from diptych.tasks.operations import why_unsupported
from diptych.tasks.pair_scores import CrossEncoder, dual_encoder_scorer
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
    for number, part in enumerate(evaluation_loader(dataset, config.batch_size, workers=config.workers)):
        batch = part.batch.to(device)
        if len(batch):
            yield batch.ids.tolist(), batch
        tick(min(config.batch_size, len(dataset) - number * config.batch_size))


class Captioner:
    """Generates captions of images with a trained run.

    Raises:
        RunError: it was not trained to.
        ValueError: the prompt leaves no room for a caption.
    """

    def __init__(self, loaded: LoadedModel, config: CapFilt):
        if why := why_unsupported(loaded, "caption"):
            raise RunError(f"--captioner {config.captioner}: {why}")
        self.loaded, self.config, self.tokenizer = loaded, config, loaded.tokenizer
        nucleus = config.decoding == "nucleus"
        self.options = CaptionOptions(
            config.prompt,
            num_beams=config.num_beams if config.decoding == "beam_search" else 1,
            top_p=config.top_p if nucleus else None,
            max_length=config.max_length,
            min_length=config.min_length,
            repetition_penalty=config.repetition_penalty if nucleus else 1.0,
        )
        self.options.encode_prompt(self.tokenizer)  # raises before the first shard

    def write(self, image: Tokens, shard: str, indices: Sequence[int]) -> list[str]:
        """A caption of each image. Random draws are keyed by (seed, shard name, index), so they are reproducible."""
        drawn = uniform(self.config.seed, 0, indices, f"caption of {shard}", self.options.max_length)
        draws = [torch.from_numpy(drawn).float()]
        captions = generate_captions(self.loaded.model, image, self.tokenizer, self.options, draws)
        return [caption for (caption,) in captions]


class Filter:
    """Scores image-text pairs with a trained run: by its ITM head, by cosine similarity (ITC), or by both.

    Raises RunError if it was trained for neither, or only for ITC while `min_cosine` is not set.
    """

    def __init__(self, loaded: LoadedModel, config: CapFilt):
        self.loaded, self.tokenizer = loaded, loaded.tokenizer
        has_itm = isinstance(loaded.model, FusionEncoder) and "itm" in loaded.losses
        self.itm_head = loaded.heads["itm"] if has_itm else None
        self.similarity = dual_encoder_scorer(loaded)
        if self.itm_head is None and self.similarity is None:
            raise RunError(
                f"the filter is a {type(loaded.model).__name__} that was not trained to match images and texts (its "
                f"objectives: {', '.join(loaded.saved.losses)}); give a run with the objective itm or itc"
            )
        if self.itm_head is None and config.min_cosine <= -1:
            raise RunError("the filter has no ITM head, only ITC; give --min_cosine, the smallest cosine that passes")

    def score(self, image: Tokens, texts: list[str], owner: Tensor) -> list[dict[str, float]]:
        """The ITM probability ("itm") and the cosine of each text with the image `owner` of the batch.

        `owner`: for each text, the index of its image in the batch.
        """
        if not texts:
            return []
        text = self.loaded.model.encode_text(self.tokenizer.encode(texts).to(self.loaded.device))
        index, owner = torch.arange(len(texts), device=self.loaded.device), owner.to(self.loaded.device)
        scores: dict[str, list[float]] = {}
        if self.itm_head is not None:
            head = self.itm_head
            encoder = CrossEncoder(self.loaded.model, lambda pooled: head(pooled).float().softmax(1)[:, 1], [text])
            scores["itm"] = encoder.score(image, owner, index).tolist()
        if self.similarity is not None:
            cosines = self.similarity.similarity(
                self.similarity.image_features(image), self.similarity.text_features(text)
            )
            scores["cosine"] = cosines.float()[owner, index].tolist()
        return [{name: values[i] for name, values in scores.items()} for i in range(len(texts))]


def cnn_loader() -> ImageLoader:
    """Loads feature maps of the frozen CNN. Raises ImportError without the extra `cnn`."""
    return GridLoader(ExtractedFeatures(frozen_cnn().extract, frozen_cnn().name, CNN_IMAGES, memory_cache()))


def cnn_embedding(batch: Batch) -> Float[Tensor, "b e"]:
    """Unit-norm image embeddings: the CNN's feature map averaged over its cells."""
    assert batch.image is not None
    return F.normalize(batch.image.pixels.float().mean((2, 3)), dim=-1)
