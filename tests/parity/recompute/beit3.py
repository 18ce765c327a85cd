"""Recomputation for BEiT-3: unimodal and fused tokens, and each task's head, loss and captions."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diptych.batch import Batch, Image, Text
from diptych.generation import GenerationConfig, fill_blanks
from diptych.models.beit3.model import BEiT3
from diptych.modules.tokens import FusedTokens, Tokens, packing
from diptych.objectives.masked_captions import MaskedCaptionLoss
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import FixedChoices, MaskedText
from diptych.objectives.views import Views
from diptych.tasks.classification import Classification
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.vqa import ClosedVQA
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import padded, with_label_smoothing


class Recomputation:
    """One table shared by all tasks, and one for each kind of step."""

    def __init__(self, case: Case):
        self.case = case
        self.step: Any = with_label_smoothing(case.step, case) if isinstance(case.step, Pretraining) else case.step
        self.model: BEiT3 = self.step.model

    def table(self) -> Table:
        shared: Table = {
            "vision": lambda: padded(self.model.transformer.encode_unimodal(self.model.encode_image(self.image))),
            "text": lambda: padded(self.model.transformer.encode_unimodal(self.model.encode_text(self.text))),
            "vl": lambda: joint(self.fused()),
            "vl_masked_image": lambda: joint(self.fused(self.case.input("vision_masked_position").bool())),
            "split": lambda: Recomputed(torch.tensor(self.model.encode_image(self.image).mask.shape[1])),
            "loss": lambda: Recomputed(self.total()),
        }
        own: dict[type, Table] = {
            ClosedVQA: {"logits": lambda: Recomputed(self.step.logits(self.batch))},
            NLVR2: {"logits": lambda: Recomputed(self.step.logits(self.step.pairs(self.batch)))},
            Classification: {"logits": lambda: Recomputed(self.model.classify(self.image))},
            Pretraining: self.pretraining(),
        }
        return shared | own.get(type(self.step), {})

    def pretraining(self) -> Table:
        return {
            "image_emb": lambda: Recomputed(self.views.features("itc").image),
            "text_emb": lambda: Recomputed(self.views.features("itc").text),
            "logits": lambda: Recomputed(self.views.head("mlm", self.captions.to_padded()), self.captions.mask),
            "greedy_ids": lambda: self.generated("greedy_ids", 1),
            "beam_ids": lambda: self.generated("beam_ids", 3),
            "masked_logits": lambda: Recomputed(self.views.head("mlm", self.captions.gather(self.hidden))),
        }

    @cached_property
    def image(self) -> Image:
        return Image.from_full(self.case.input("image"))

    @cached_property
    def text(self) -> Text:
        return Text(self.case.input("text_ids"), self.case.input("padding_mask") == 0)

    def fused(self, hidden: Tensor | None = None) -> FusedTokens:
        image = self.model.encode_image(self.image) if hidden is None else self.model.encode_masked(self.image, hidden)
        return self.model.fuse(self.model.encode_text(self.text), image)

    @cached_property
    def batch(self) -> Batch:
        second = Image.from_full(self.case.input("image2")) if "image2" in self.case.inputs else None
        labels = {"targets": "targets", "labels": "true"}
        targets = {ours: self.case.input(name) for name, ours in labels.items() if name in self.case.inputs}
        text = self.text if "text_ids" in self.case.inputs else None
        return Batch(0, 0, torch.arange(len(self.image)), image=self.image, text=text, image2=second, labels=targets)

    @cached_property
    def draws(self) -> FixedChoices:
        if "masked_ids" not in self.case.inputs:
            return FixedChoices()
        masked = Text(self.case.input("masked_ids"), self.text.mask)
        return FixedChoices(MaskedText(masked, self.hidden, self.text.ids))

    @property
    def hidden(self) -> Tensor:
        return self.case.input("masked_pos").bool()

    @cached_property
    def views(self) -> Views:
        return self.step.views(self.batch, self.draws)

    @cached_property
    def captions(self) -> Tokens:
        (objective,) = (o for o in self.step.objectives if isinstance(o, MaskedCaptionLoss))
        return objective.text(self.views)

    def generated(self, name: str, beams: int) -> Recomputed:
        special, max_length = self.case.config["special_ids"], self.case.shapes[name][1]
        config = GenerationConfig(special["eos"], special["pad"], max_length)
        beams = int(self.case.from_readme(name, r"(\d+) beam\(s\)", str(beams)))
        penalty = float(self.case.from_readme(name, r"length_penalty ([\d.]+)", "0.6"))
        prompt = torch.full((len(self.image), 1), special["cls"])
        with packing(False):
            image = self.model.encode_image(self.image)
        return Recomputed(fill_blanks(self.model, image, prompt, config, self.model.mask_token_id, beams, penalty))

    def total(self) -> Tensor:
        if isinstance(self.step, Pretraining):
            losses = self.step.losses(self.views, self.step.num_terms(self.batch, self.draws))
        else:
            losses = self.step(self.batch, self.step.num_terms(self.batch))
        (name,) = self.step.weights
        return losses[name]


def joint(pair: FusedTokens) -> Recomputed:
    both = Tokens.concat(pair.image, pair.text)
    return Recomputed(both.to_padded(), both.mask)
