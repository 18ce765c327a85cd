"""Recomputation for BLIP's tasks without a momentum model: captioning, VQA, NLVR2."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.batch import Batch, Image
from diptych.generation import BeamConfig, GenerationConfig, GenerationOutput, greedy
from diptych.modules.tokens import FusedTokens
from diptych.objectives.views import Views
from diptych.tasks.captioning import Captioning
from diptych.tasks.nlvr2 import NLVR2Joint
from diptych.tasks.open_vqa import OpenVQA
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import padded
from tests.parity.recompute.momentum import text_of
from tests.parity.recompute.open_vqa import OpenVQACase


class Search(NamedTuple):
    """Settings of a beam search that are in no config; the README of a golden may override them."""

    num_beams: int
    max_length: int
    min_length: int
    repetition_penalty: float = 1.0


SEARCHES = {"beam": Search(3, 14, 7), "beam_penalty": Search(3, 14, 5, 1.5), "beam5": Search(5, 18, 5)}
GREEDY = Search(1, 14, 7)
ANSWERING = Search(3, 10, 1)
CANDIDATES = 5  # answers of each question that are ranked, chosen by their first token


def search_from_readme(case: Case, search: Search, name: str) -> Search:
    """`search`, with the settings that the README states for out.NAME."""
    return Search(
        int(case.from_readme(name, r"(\d+) beams", str(search.num_beams))),
        int(case.from_readme(name, r"max_length (\d+)", str(search.max_length))),
        int(case.from_readme(name, r"min_length (\d+)", str(search.min_length))),
        float(case.from_readme(name, r"repetition_penalty ([\d.]+)", str(search.repetition_penalty))),
    )


def generation_config(case: Case, search: Search, name: str) -> GenerationConfig:
    ids = case.config["special_ids"]
    max_length = max(search.max_length, case.shapes[name][1])
    return GenerationConfig(ids["sep"], ids["pad"], max_length, search.min_length, search.repetition_penalty)


class CaptionRecomputation:
    def __init__(self, case: Case):
        assert isinstance(case.step, Captioning)
        self.case, self.model = case, case.step.model
        self.step = Captioning(self.model, case.config["prompt_length"], case.config["label_smoothing"])

    def table(self) -> Table:
        table: Table = {
            "image_embeds": lambda: padded(self.views.image),
            "lm_logits": lambda: Recomputed(
                self.model.next_token_logits(self.views.text_input, self.views.image), self.views.text_input.mask
            ),
            "loss_lm": lambda: Recomputed(self.loss),
            "greedy_ids": self.greedy,
        }
        for name, search in SEARCHES.items():
            table[f"{name}_ids"] = lambda name=name, search=search: Recomputed(self.generated(name, search).ids)
            table[f"{name}_scores"] = lambda name=name, search=search: Recomputed(self.generated(name, search).scores)
        return table

    @cached_property
    def batch(self) -> Batch:
        text = text_of(self.case, "caption")
        return Batch(0, 0, torch.arange(len(text)), image=Image.from_full(self.case.input("image")), text=text)

    @cached_property
    def views(self) -> Views:
        return self.step.views(self.batch)

    @cached_property
    def loss(self) -> Tensor:
        return self.step.losses(self.views, self.step.num_terms(self.batch))["caption"]

    @cached_property
    def prompt(self) -> Tensor:
        ids = self.case.input("prompt_ids")[:-1].clone()
        ids[0] = self.case.config["special_ids"]["bos_DEC"]
        return ids

    def generated(self, name: str, search: Search) -> GenerationOutput:
        image, search = Image.from_full(self.case.input("image")), search_from_readme(self.case, search, f"{name}_ids")
        return self.step.generate(
            image, self.prompt, generation_config(self.case, search, f"{name}_ids"), BeamConfig(search.num_beams)
        )

    def greedy(self) -> Recomputed:
        image = self.model.encode_image(Image.from_full(self.case.input("image")))
        prompt = self.prompt.expand(len(image), -1)
        search = search_from_readme(self.case, GREEDY, "greedy_ids")
        return Recomputed(greedy(self.model, image, prompt, generation_config(self.case, search, "greedy_ids")))


class NLVR2Recomputation:
    """`in.image` holds the left images, then the right ones."""

    def __init__(self, case: Case):
        assert isinstance(case.step, NLVR2Joint)
        self.case, self.step = case, case.step

    def table(self) -> Table:
        return {
            "text_states": lambda: padded(self.pair.text),
            "logits": lambda: Recomputed(self.logits),
            "loss": lambda: Recomputed(self.loss),
        }

    @cached_property
    def batch(self) -> Batch:
        text, images = text_of(self.case, "text"), self.case.input("image")
        left, right = (Image.from_full(half) for half in images.chunk(2))
        return Batch(0, 0, torch.arange(len(text)), image=left, image2=right, text=text)

    @cached_property
    def pair(self) -> FusedTokens:
        return self.step.pair(self.batch)

    @cached_property
    def logits(self) -> Tensor:
        return self.step.logits(self.pair)

    @cached_property
    def loss(self) -> Tensor:
        return self.step.losses(self.logits, self.case.input("labels"), self.step.num_terms(self.batch))["nlvr2"]


class VQARecomputation:
    def __init__(self, case: Case):
        assert isinstance(case.step, OpenVQA)
        self.case, self.step = case, case.step
        self.step.label_smoothing = case.config.get("label_smoothing", self.step.label_smoothing)
        self.shared = OpenVQACase(case, self.step)

    def table(self) -> Table:
        return self.shared.table() | {
            "loss": lambda: Recomputed(self.loss),
            "rank_ids": lambda: Recomputed(self.ranked),
            "generate_ids": lambda: Recomputed(self.generated.ids),
            "generate_scores": lambda: Recomputed(self.generated.scores),
        }

    @cached_property
    def loss(self) -> Tensor:
        return self.step.losses(self.shared.logits, self.shared.answers, self.step.num_terms(self.shared.batch))["vqa"]

    @property
    def ranked(self) -> Tensor:
        candidates = text_of(self.case, "cand")
        default = int(self.case.from_readme("rank_ids", r"k_test = (\d+)", str(CANDIDATES)))
        num_candidates = min(self.case.config.get("k_test", default), len(candidates))
        return self.step.rank(self.shared.question, candidates, num_candidates).candidates[:, 0]

    @cached_property
    def generated(self) -> GenerationOutput:
        begin = self.case.config["special_ids"]["bos_DEC"]
        search = search_from_readme(self.case, ANSWERING, "generate_ids")
        return self.step.generate(
            self.shared.batch, begin, generation_config(self.case, search, "generate_ids"), BeamConfig(search.num_beams)
        )
