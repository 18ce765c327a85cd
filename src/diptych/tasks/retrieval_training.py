"""Training for image-text retrieval: contrast in the batch, or a ranking head over a pair and its negatives.

`ContrastRetrieval` trains separate encoders; `Retrieval` trains fusion encoders to score a pair above negative pairs,
which are captions of other images (ViLT) and other images (ViLBERT), drawn at random or from the nearest images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Batch, Image, Text
from diptych.checkpoints.mapping import strip_prefix
from diptych.checkpoints.strict import load_strict
from diptych.config.run import Finetune
from diptych.config.tasks import RetrievalOptions
from diptych.data.nearest_images import nearest_images
from diptych.data.ranking import HardNegatives, RankedExamples
from diptych.data.sources.captions import open_captions
from diptych.inference.embedders import comparable_features, image_input
from diptych.inference.feature_extractors import memory_cache
from diptych.inference.saved_model import ModelSettings, RunError
from diptych.inference.tokenizer import tokenizer_of
from diptych.models.configs import ImageOnlyModel, model_name, pooled_dim
from diptych.modules.attention import Context
from diptych.modules.heads import ITCHead, ITMHead, RankingHead
from diptych.modules.init import init_transformer
from diptych.modules.tokens import Tokens
from diptych.objectives.itc import ITCLoss
from diptych.objectives.random_choices import KeyedChoices
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool, DualEncoder, FusionEncoder, image_contexts
from diptych.tasks.common import encode_images, options_of, required, sample_counts
from diptych.tasks.definition import FineTuning, Labels
from diptych.tasks.pair_scores import score_matrix


class ContrastRetrieval(nn.Module):
    """A training step: ITC loss of the model's first ITC branch over the batch on all ranks.

    Source: VLMo, section 4.1; BEiT-3, table 10.
    """

    def __init__(self, model: DualEncoder, contrast: ITCHead):
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({"itc": contrast})
        self.objective = ITCLoss(name="retrieval")
        self.weights = {"retrieval": 1.0}
        self.chance_losses: dict[str, ChanceLoss] = {}  # ln(number of candidates), which depends on the batch

    def views(self, batch: Batch) -> Views:
        """The lazily computed encodings of a batch."""
        return Views(self.model, self.heads, batch, KeyedChoices(batch))

    def samples_compared(self, among: ComparisonPool) -> dict[str, int]:
        """See `protocols.ContrastiveStep`."""
        return {"retrieval": self.objective.samples_compared(among)}

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return self.objective.num_terms(self.views(batch))

    def losses(self, views: Views, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: total / counts[name] for name, total in self.objective.loss_sums(views).items()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.views(batch), counts)

    @torch.no_grad()
    def score_matrix(self, images: Image, texts: Text) -> Float[Tensor, "images texts"]:
        """The cosine of every image with every text."""
        contrast: ITCHead = self.heads["itc"]  # type: ignore[assignment]
        image = contrast.project_image(self.model.pooled_features(self.model.encode_image(images))[0])
        text = contrast.project_text(self.model.pooled_features(self.model.encode_text(texts))[0])
        return (image @ text.T).float()


class Retrieval(nn.Module):
    """A training step: cross entropy of each pair among itself and its `num_negatives` negative pairs.

    A negative pair is the image with a negative text, or the text with a negative image. The ranking head is
    initialised from the ITM head of pre-training by `init_from`, as in ViLT's official code.

    Source: ViLT, section 4.2, with 15 negative texts; ViLBERT, section 3.2, with a random text, a random image and a
    hard negative ("4-way multiple choice").
    """

    def __init__(self, model: FusionEncoder, dim: int, num_negatives: int = 15):
        super().__init__()
        self.model = model
        self.rank = RankingHead(dim)
        self.rank.apply(init_transformer)
        self.weights = {"retrieval": 1.0}
        self.chance_losses = {
            "retrieval": ChanceLoss(
                math.log(1 + num_negatives), "uniform over the pairs", "texts and images are not compared yet"
            )
        }

    @torch.no_grad()
    def init_from(self, match: ITMHead) -> None:
        """Copies the row of the ITM head that computes the logit of a match."""
        self.rank.linear.weight.copy_(match.linear.weight[1:])
        self.rank.linear.bias.copy_(match.linear.bias[1:])

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "retrieval", "retrieval/accuracy")

    def candidate_scores(self, batch: Batch) -> Float[Tensor, "b candidates"]:
        """The score of each pair, then of its image with its negative texts, then of its text with negative images."""
        image = image_contexts(self.model, encode_images(self.model, batch))
        text = self.model.encode_text(required(batch.text, "text"))
        if batch.negative_images is None:
            required(batch.negative_texts, "negative texts or images")
        scores = [self.score(image, text)]
        if batch.negative_texts is not None:
            texts = self.model.encode_text(batch.negative_texts)
            scores.append(self.score(image.index_samples(_repeated(batch, len(texts))), texts))
        if batch.negative_images is not None:
            images = self.model.encode_image(batch.negative_images)  # type: ignore[arg-type]
            images = image_contexts(self.model, images)
            num_images = len(batch.negative_images)
            scores.append(self.score(images, text.index_samples(_repeated(batch, num_images))))
        return torch.cat([part.view(len(batch), -1) for part in scores], 1)

    def score(self, image: Context, text: Tokens) -> Float[Tensor, " b"]:
        """The score of each image with the text of the same row."""
        fused = self.model.fuse(text, image)  # type: ignore[arg-type]  # shared if the model takes it
        return self.rank(fused.pooled).float()

    def losses(self, scores: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        first = scores.new_zeros(len(scores), dtype=torch.long)
        right = (scores.argmax(1) == 0).sum().float()
        return {
            "retrieval": F.cross_entropy(scores, first, reduction="sum") / counts["retrieval"],
            "retrieval/accuracy": right.detach() / counts["retrieval/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.candidate_scores(batch), counts)

    def score_matrix(self, images: Image, texts: Text, pairs: int = 256) -> Float[Tensor, "images texts"]:
        """The score of every image with every text."""
        return score_matrix(self.model, self.rank, images, texts, pairs)


def _repeated(batch: Batch, num_negatives: int) -> Tensor:
    """The index of the sample that each of `num_negatives` negatives belongs to."""
    samples = torch.arange(len(batch), device=batch.ids.device)
    return samples.repeat_interleave(num_negatives // len(batch))


def build_module(model: Any, config: ModelSettings, labels: Labels, options: RetrievalOptions) -> Retrieval:
    """The training step on a model. Raises RunError if it does not fuse texts with images."""
    if not isinstance(model, FusionEncoder) or isinstance(config.model, ImageOnlyModel):
        raise RunError(f"retrieval needs a model that fuses text and image; a {model_name(config.model)} does not")
    return Retrieval(model, pooled_dim(config.model), options.num_negatives)


def training_examples(run: Finetune, split: str, labels: Labels, augment: bool) -> RankedExamples:
    """Pairs of a split with negatives. In the run's own split hard negatives are of the nearest images, which are
    computed before training; in validation they are drawn from all images, as in ViLBERT's official code.
    """
    options = options_of(run, RetrievalOptions)
    source = open_captions(run.data, split, run.layout, min_side=run.images.shorter_side)
    nearest = np.empty((len(source), 0), dtype=np.int64)
    if options.hard_texts + options.hard_images and split == run.split:
        loader, features = comparable_features(run)
        nearest = nearest_images(source, loader, options.nearest_images, memory_cache(), features)
    hard = HardNegatives(nearest, options.hard_texts, options.hard_images)
    tokenizer, images = tokenizer_of(run), image_input(run, augment)
    return RankedExamples(source, tokenizer, images, options.negative_texts, options.negative_images, hard)


def init_ranking_head(module: Retrieval, weights: Mapping[str, Tensor]) -> None:
    """Initialises the ranking head from the ITM head of pre-training, if the weights have one."""
    if itm := strip_prefix(weights, "heads.itm."):
        head = ITMHead(module.rank.linear.in_features)
        load_strict(head, itm, "heads.itm")
        module.init_from(head)


FINE_TUNING = FineTuning(build_module, training_examples, initialize=init_ranking_head)
