"""What of a BLIP golden can be recomputed for the tasks without a momentum model: captions, VQA, NLVR2."""

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
from diptych.tasks.vqa import OpenVQA
from tests.parity.answers.given import on_canvas
from tests.parity.answers.momentum import text_of
from tests.parity.answers.open_vqa import OpenVQACase
from tests.parity.golden_case import Answer, Case, Table


class Search(NamedTuple):
    """How texts are searched in a golden where its README does not say otherwise; no config does."""

    num_beams: int
    max_length: int
    min_length: int
    repetition_penalty: float = 1.0


SEARCHES = {"beam": Search(3, 14, 7), "beam_penalty": Search(3, 14, 5, 1.5), "beam5": Search(5, 18, 5)}
GREEDY = Search(1, 14, 7)
ANSWERING = Search(3, 10, 1)
CANDIDATES = 5  # answers that each question may mean, by their first piece


def searched(case: Case, search: Search, name: str) -> Search:
    """As the README says of out.NAME."""
    return Search(
        int(case.said(name, r"(\d+) beams", str(search.num_beams))),
        int(case.said(name, r"max_length (\d+)", str(search.max_length))),
        int(case.said(name, r"min_length (\d+)", str(search.min_length))),
        float(case.said(name, r"repetition_penalty ([\d.]+)", str(search.repetition_penalty))),
    )


def rules_of(case: Case, search: Search, name: str) -> GenerationConfig:
    ids = case.config["special_ids"]
    longest = max(search.max_length, case.shapes[name][1])  # a golden of longer texts says so itself
    return GenerationConfig(ids["sep"], ids["pad"], longest, search.min_length, search.repetition_penalty)


class CaptionAnswers:
    def __init__(self, case: Case):
        assert isinstance(case.step, Captioning)
        self.case, self.model = case, case.step.model
        self.step = Captioning(self.model, case.config["prompt_length"], case.config["label_smoothing"])

    def table(self) -> Table:
        table: Table = {
            "image_embeds": lambda: on_canvas(self.views.image),
            "lm_logits": lambda: Answer(
                self.model.next_token_logits(self.views.text_input, self.views.image), self.views.text_input.mask
            ),
            "loss_lm": lambda: Answer(self.loss),
            "greedy_ids": self.greedy,
        }
        for name, search in SEARCHES.items():
            table[f"{name}_ids"] = lambda name=name, search=search: Answer(self.written(name, search).ids)
            table[f"{name}_scores"] = lambda name=name, search=search: Answer(self.written(name, search).scores)
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

    def written(self, name: str, search: Search) -> GenerationOutput:
        image, search = Image.from_full(self.case.input("image")), searched(self.case, search, f"{name}_ids")
        return self.step.write(
            image, self.prompt, rules_of(self.case, search, f"{name}_ids"), BeamConfig(search.num_beams)
        )

    def greedy(self) -> Answer:
        image = self.model.encode_image(Image.from_full(self.case.input("image")))
        prompt = self.prompt.expand(len(image), -1)
        search = searched(self.case, GREEDY, "greedy_ids")
        return Answer(greedy(self.model, image, prompt, rules_of(self.case, search, "greedy_ids")))


class NLVR2Answers:
    """`in.image` holds the left images, then the right ones."""

    def __init__(self, case: Case):
        assert isinstance(case.step, NLVR2Joint)
        self.case, self.step = case, case.step

    def table(self) -> Table:
        return {
            "text_states": lambda: on_canvas(self.pair.text),
            "logits": lambda: Answer(self.logits),
            "loss": lambda: Answer(self.loss),
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


class VQAAnswers:
    def __init__(self, case: Case):
        assert isinstance(case.step, OpenVQA)
        self.case, self.step = case, case.step
        self.step.label_smoothing = case.config.get("label_smoothing", self.step.label_smoothing)
        self.shared = OpenVQACase(case, self.step)

    def table(self) -> Table:
        return self.shared.table() | {
            "loss": lambda: Answer(self.loss),
            "rank_ids": lambda: Answer(self.ranked),
            "generate_ids": lambda: Answer(self.written.ids),
            "generate_scores": lambda: Answer(self.written.scores),
        }

    @cached_property
    def loss(self) -> Tensor:
        return self.step.losses(self.shared.logits, self.shared.answers, self.step.num_terms(self.shared.batch))["vqa"]

    @property
    def ranked(self) -> Tensor:
        candidates = text_of(self.case, "cand")
        told = int(self.case.said("rank_ids", r"k_test = (\d+)", str(CANDIDATES)))
        most = min(self.case.config.get("k_test", told), len(candidates))
        return self.step.rank(self.shared.question, candidates, most).candidates[:, 0]

    @cached_property
    def written(self) -> GenerationOutput:
        begin = self.case.config["special_ids"]["bos_DEC"]
        search = searched(self.case, ANSWERING, "generate_ids")
        return self.step.write(
            self.shared.batch, begin, rules_of(self.case, search, "generate_ids"), BeamConfig(search.num_beams)
        )
