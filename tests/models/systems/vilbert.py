"""ViLBERT, 12-in-1 and VisualBERT: the battery's patches are their regions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diptych.batch import Batch, Image, Matching, Regions
from diptych.config.objectives import RegionMasking
from diptych.models.vilbert.config import ViLBERTConfig
from diptych.models.vilbert.model import ViLBERT
from diptych.models.visualbert.config import VisualBERTConfig
from diptych.models.visualbert.model import VisualBERT
from diptych.modules.heads import GroundingHead, RankingHead, SimpleClassifier
from diptych.modules.tokens import Tokens
from diptych.objectives.itm import ITMLoss
from diptych.objectives.masked_regions import MaskedRegionLoss, class_target
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import PairMasking, RandomChoices, WordMasking
from diptych.objectives.views import Views
from diptych.tasks.common import binary_cross_entropy
from diptych.tasks.entailment import Entailment
from diptych.tasks.grounding import Grounding
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.vcr import MultipleChoice
from diptych.tasks.vqa import ClosedVQA
from tests.models.systems.common import (
    ANSWERS,
    GRID,
    LN2,
    MASK,
    ONE_OF_EIGHT,
    PATCH,
    TABLES,
    TEXT_LENGTH,
    VOCABULARY,
    Forward,
    Job,
    System,
)

FEATURES, REGION_CLASSES, TASKS, OPTIONS = 3 * PATCH * PATCH, 7, 3, 2
HIDING = PairMasking(WordMasking(VOCABULARY, MASK), RegionMasking(rate=0.3))


def as_regions(image: Image) -> Regions:
    """Patches as regions of one of seven classes, after a region of the whole image; the same numbers per image."""
    pixels = rearrange(image.pixels, "b c (i p) (j q) -> b i j (c p q)", p=PATCH, q=PATCH)
    rows, columns = (image.sizes // PATCH)[:, :, None].unbind(1)
    i, j = torch.ones(pixels.shape[1:3]).nonzero().unbind(1)
    real = (i < rows) & (j < columns)
    box = torch.stack([j, i, j + 1, i + 1, torch.ones_like(i)], 1) / max(GRID)
    features = pixels.flatten(1, 2)
    classes = F.one_hot(features[:, :, :REGION_CLASSES].argmax(2), REGION_CLASSES).float()
    return Regions(features, box.expand(len(image), -1, -1), real, classes).with_whole_image()


def regional(batch: Batch, tasks: bool = False) -> Batch:
    """The batch with regions in place of images, labels of the tasks that use them, and, with `tasks`, texts that name
    the task.
    """
    assert batch.image and batch.text and batch.matching and isinstance(batch.image2, Image)
    regions, n = as_regions(batch.image), torch.arange(len(batch))
    target = 1 + batch.ids % (regions.mask.sum(1) - 1)
    overlap = torch.zeros(regions.mask.shape)
    overlap[n, regions.mask.int().cumsum(1).eq(target[:, None] + 1).int().argmax(1)] = 1.0
    labels = {"choice": batch.ids % OPTIONS == 0, "entailment": batch.ids % 3, "regions": overlap}
    return replace(
        batch,
        image=None,
        regions=regions,
        text=replace(batch.text, task=batch.ids % TASKS) if tasks else batch.text,
        matching=Matching(as_regions(batch.matching.image), batch.matching.matched),
        image2=as_regions(batch.image2),
        labels=batch.labels | labels,
    )


class OnRegions(Pretraining):
    """The step on a batch with regions in place of images."""

    def views(self, batch: Batch, draws: RandomChoices | None = None) -> Views:
        return super().views(regional(batch), draws)


class TaskOnRegions(nn.Module):
    """A task on a batch with regions in place of images."""

    def __init__(self, step: Any, tasks: bool):
        super().__init__()
        self.step, self.tasks = step, tasks
        self.weights, self.chance_losses = step.weights, step.chance_losses

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return self.step.num_terms(batch)

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.step(regional(batch, self.tasks), counts)


def on_regions(step: Callable[[Any], nn.Module], tasks: bool = False) -> Callable[[Any], nn.Module]:
    return lambda model: TaskOnRegions(step(model), tasks)


def pretraining(model: ViLBERT) -> Pretraining:
    words = MLMLoss(HIDING.words, image_masking=HIDING.image)
    matching = ITMLoss(masking=HIDING)
    return OnRegions(model, model.pretraining_heads(), [words, MaskedRegionLoss(HIDING, class_target), matching])


def one_stream(model: VisualBERT) -> Pretraining:
    return OnRegions(model, model.pretraining_heads(), [MLMLoss(HIDING.words), ITMLoss()])


def vqa(model: Any) -> nn.Module:
    return ClosedVQA(model, 32, ANSWERS, SimpleClassifier(32, 64, ANSWERS))


def methods(tasks: bool) -> dict[str, Callable[[Any, Batch], list[Tokens | Tensor]]]:
    def text(model, batch: Batch) -> list[Tokens | Tensor]:
        return [model.encode_text(regional(batch, tasks).text)]

    def image(model, batch: Batch) -> list[Tokens | Tensor]:
        return [model.encode_image(regional(batch).regions)]

    def fuse(model, batch: Batch) -> list[Tokens | Tensor]:
        pair = model.fuse(text(model, batch)[0], image(model, batch)[0])
        return [pair.text, pair.image, pair.pooled]

    return {"encode_text": text, "encode_image": image, "fuse": fuse}


def fused(tasks: bool) -> Forward:
    def call(model, batch: Batch) -> list[Tokens | Tensor]:
        pair = model(regional(batch).regions, regional(batch, tasks).text)
        return [pair.text, pair.image, pair.pooled]

    return Forward(call, methods(tasks)["fuse"])


SIZES: dict[str, Any] = {
    "dim": 32,
    "depth": 3,
    "num_heads": 4,
    "mlp_dim": 64,
    "image_dim": 24,
    "image_depth": 2,
    "image_num_heads": 2,
    "image_mlp_dim": 32,
    "coattention_dim": 32,
    "coattention_num_heads": 4,
    "schedule": ((1, 0), (2, 1)),
    "feature_dim": FEATURES,
    "num_region_targets": REGION_CLASSES,
    "vocab_size": VOCABULARY,
    "text_length": TEXT_LENGTH,
    "dropout": 0.0,
}
KEYS = {r"attention\.key\.bias": "raises a query's scores alike, which softmax does not see"}
UNREAD = TABLES | KEYS
TIED = {
    pattern: why for pattern, why in TABLES.items() if r"\.word\." not in pattern
}  # words are scored by their embeddings
TEXT_IS_NOT_ASKED = {
    pattern: "only regions are scored, after the last co-attention layer"
    for pattern in (r"streams\.text\.2\.", r"streams\.meetings\.1\.text\.", r"streams\.pooler\.")
}
ALL_ALIKE = {r"head\.linear\.bias": "raises every option alike, which cross entropy does not see"}
SYSTEMS = {
    "vilbert": System(
        small=lambda: ViLBERT(ViLBERTConfig(**SIZES)),
        full=lambda: ViLBERT(ViLBERTConfig()),
        methods=methods(False),
        forward=fused(False),
        jobs={
            "pretraining": Job(
                pretraining,
                {"mlm": math.log(VOCABULARY), "masked_regions": math.log(REGION_CLASSES), "itm": LN2},
                exempt=TIED | KEYS,
            ),
            "vqa": Job(on_regions(vqa), {"vqa": ANSWERS * LN2}, {"vqa": ONE_OF_EIGHT}, UNREAD),
            "nlvr2": Job(
                on_regions(lambda m: NLVR2(m, 32, SimpleClassifier(64, 64, 2), binary_cross_entropy)),
                {"nlvr2": LN2},
                exempt=UNREAD,
            ),
            "choice": Job(
                on_regions(lambda m: MultipleChoice(m, RankingHead(32), OPTIONS)),
                {"choice": LN2},
                exempt=UNREAD | ALL_ALIKE,
            ),
            "entailment": Job(
                on_regions(lambda m: Entailment(m, nn.Linear(32, 3), binary_cross_entropy)),
                {"entailment": LN2},
                {"entailment": LN2},
                UNREAD,
            ),
            "grounding": Job(
                on_regions(lambda m: Grounding(m, GroundingHead(24))),
                {},
                {"grounding": 2.0},
                UNREAD | TEXT_IS_NOT_ASKED,
            ),
        },
    ),
    "12-in-1": System(
        small=lambda: ViLBERT(ViLBERTConfig(**SIZES, num_tasks=TASKS + 1)),
        full=lambda: ViLBERT(ViLBERTConfig(num_tasks=20)),
        methods=methods(True),
        forward=fused(True),
        jobs={
            "vqa": Job(
                on_regions(vqa, tasks=True),
                {"vqa": ANSWERS * LN2},
                {"vqa": ONE_OF_EIGHT},
                UNREAD | {r"model\.task\.weight\[3\]": "no text of the batch is for it"},
            )
        },
    ),
    "visualbert": System(
        small=lambda: VisualBERT(
            VisualBERTConfig(
                32, 2, 4, 64, feature_dim=FEATURES, vocab_size=VOCABULARY, text_length=TEXT_LENGTH, dropout=0.0
            )
        ),
        full=lambda: VisualBERT(VisualBERTConfig()),
        methods=methods(False),
        forward=fused(False),
        jobs={
            "pretraining": Job(one_stream, {"mlm": math.log(VOCABULARY), "itm": LN2}, exempt=TIED),
            "grounding": Job(
                on_regions(lambda m: Grounding(m, GroundingHead(32))),
                {},
                {"grounding": 2.0},
                TABLES | {r"transformer\.pooler\.": "only regions are scored"},
            ),
        },
    ),
}
