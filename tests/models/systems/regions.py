"""VSE++ and SCAN: the battery's patches are their regions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from diptych.batch import Batch, Regions
from diptych.models.scan.config import SCANConfig
from diptych.models.scan.model import SCAN
from diptych.models.vsepp.config import VSEppConfig
from diptych.models.vsepp.model import VSEpp
from diptych.modules.text_encoders import BertText
from diptych.modules.tokens import Tokens
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import RandomChoices
from diptych.objectives.triplet import TripletLoss
from diptych.objectives.views import Views
from tests.models.systems.common import PATCH, TABLES, TEXT_LENGTH, VOCABULARY, Forward, Job, System, encode_text

FEATURES = 3 * PATCH * PATCH


def regional(batch: Batch) -> Batch:
    """The batch with regions in place of images, with as many as the images had patches."""
    assert batch.image is not None
    pixels = rearrange(batch.image.pixels, "b c (i p) (j q) -> b i j (c p q)", p=PATCH, q=PATCH)
    rows, columns = (batch.image.sizes // PATCH)[:, :, None].unbind(1)
    cells = torch.ones(pixels.shape[1:3]).nonzero()
    real = (cells[:, 0] < rows) & (cells[:, 1] < columns)
    boxes = pixels.new_zeros(len(batch), len(cells), 5)
    return replace(batch, image=None, regions=Regions(pixels.flatten(1, 2), boxes, real))


class OnRegions(Pretraining):
    """The step on a batch with regions in place of images."""

    def views(self, batch: Batch, draws: RandomChoices | None = None) -> Views:
        return super().views(regional(batch), draws)


def encode_regions(model, batch: Batch) -> list[Tokens | Tensor]:
    return [model.encode_image(regional(batch).regions)]


def own_similarity(model, batch: Batch) -> list[Tokens | Tensor]:
    """The scores of each image with its own text."""
    image, text = encode_regions(model, batch)[0], encode_text(model, batch)[0]
    return [model.similarity(image, text).diag()]


def call_on_regions(model, batch: Batch) -> list[Tokens | Tensor]:
    """The similarity of each image with its own text."""
    return [model(regional(batch).regions, batch.text).diag()]


COMPARED = Forward(call_on_regions, own_similarity)


def triplet(hardest: bool) -> Job:
    """The triplet loss. Its initial value depends on the images; equal similarities cost the margin for every negative."""
    negatives = 1 if hardest else 7
    return Job(
        lambda m: OnRegions(m, nn.ModuleDict(), [TripletLoss(hardest_only=hardest)]),
        chance={},
        prior={"triplet": 2 * negatives * 0.2},
        exempt={r"text\.word\.weight\[\d+\]": "words that are not in the batch"},
        apart=False,
    )


def with_bert() -> VSEpp:
    """A BERT as text encoder, in place of the GRU."""
    return VSEpp(VSEppConfig(**SIZES), text=BertText(32, VOCABULARY, TEXT_LENGTH, 16, 1, 2, 32, dropout=0.0))


def full_with_bert() -> VSEpp:
    return VSEpp(VSEppConfig(), text=BertText(1024))


METHODS = {"encode_image": encode_regions, "encode_text": encode_text, "similarity": own_similarity}
SIZES: dict[str, Any] = {"feature_dim": FEATURES, "dim": 32, "vocab_size": VOCABULARY, "word_dim": 16}
SYSTEMS = {
    "vsepp": System(
        small=lambda: VSEpp(VSEppConfig(**SIZES)),
        full=lambda: VSEpp(VSEppConfig()),
        methods=METHODS,
        forward=COMPARED,
        jobs={"hardest": triplet(True), "all": triplet(False)},
        least=9e6,
    ),
    "vsepp, order": System(
        small=lambda: VSEpp(VSEppConfig(**SIZES, measure="order")),
        full=lambda: VSEpp(VSEppConfig(measure="order")),
        methods=METHODS,
        forward=COMPARED,
        jobs={"all": triplet(False)},
        least=9e6,
    ),
    "vsepp, BERT": System(
        small=with_bert,
        full=full_with_bert,
        methods=METHODS,
        forward=COMPARED,
        jobs={"all": replace(triplet(False), exempt=TABLES)},
    ),
    "scan": System(
        small=lambda: SCAN(SCANConfig(**SIZES)),
        full=lambda: SCAN(SCANConfig()),
        methods=METHODS,
        forward=COMPARED,
        jobs={"hardest": triplet(True), "all": triplet(False)},
        least=12e6,
    ),
    "scan, regions ask": System(
        small=lambda: SCAN(SCANConfig(**SIZES, direction="image", aggregate="mean", lambda_softmax=4.0)),
        full=lambda: SCAN(SCANConfig(direction="image", aggregate="mean", lambda_softmax=4.0)),
        methods=METHODS,
        forward=COMPARED,
        jobs={"hardest": triplet(True)},
        least=12e6,
    ),
}
