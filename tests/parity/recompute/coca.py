"""Recomputation for CoCa: image and text latents, the decoder's logits, both losses, and generated captions."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from diptych.batch import Batch, Image, Text
from diptych.generation.beam_search import BeamConfig, beam_search
from diptych.generation.decoding import GenerationConfig
from diptych.generation.sampling import greedy
from diptych.models.coca.model import CoCa
from diptych.modules.heads import ITCHead
from diptych.modules.tokens import Tokens
from diptych.objectives.lm import LMLoss, without_prompt
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.views import Views
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import padded

MAX_LENGTH, MIN_LENGTH = 10, 4
"""Lengths of generated texts, which are in no config; the README of a golden may override them."""


def raw_logits(logits: Tensor) -> Tensor:
    """open_clip's beam search sums logits, not log-probabilities."""
    return logits


class Recomputation:
    def __init__(self, case: Case):
        assert isinstance(case.step, Pretraining) and isinstance(case.step.model, CoCa)
        self.case, self.step, self.model = case, case.step, case.step.model
        self.pad = self.model.text.pad_token_id

    def table(self) -> Table:
        return {
            "image_latent": lambda: Recomputed(self.contrast.image(self.views.image_pooled[0])),
            "text_latent": lambda: Recomputed(self.contrast.text(self.views.text_pooled[0])),
            "image_features": lambda: Recomputed(self.views.features("itc").image),
            "text_features": lambda: Recomputed(self.views.features("itc").text),
            "image_tokens": lambda: padded(self.views.image.select(name="queries")),
            "text_tokens": lambda: padded(self.views.text.select(name="words")),
            "logits": lambda: Recomputed(
                self.model.next_token_logits(self.text, self.views.image)[:, :-1], self.text.mask[:, :-1]
            ),
            "labels": lambda: Recomputed(torch.where(without_prompt(self.text), self.text.ids[:, 1:], self.pad)),
            "logit_scale": lambda: Recomputed(self.contrast.scale()),
            "contrastive_loss": lambda: Recomputed(self.step.weights["itc"] * self.losses["itc"]),
            "caption_loss": lambda: Recomputed(self.step.weights["caption"] * self.losses["caption"]),
            "greedy_ids": lambda: Recomputed(self.greedy()),
            "beam_ids": lambda: Recomputed(self.searched("beam_ids", 4, 1)),
            "group_beam_ids": lambda: Recomputed(self.searched("group_beam_ids", 6, 3)),
        }

    @property
    def contrast(self) -> ITCHead:
        head = self.step.heads["itc"]
        assert isinstance(head, ITCHead)
        return head

    @property
    def captioner(self) -> LMLoss:
        return next(objective for objective in self.step.objectives if isinstance(objective, LMLoss))

    @cached_property
    def text(self) -> Text:
        ids = self.case.input("text")
        return Text(ids, ids != self.pad)

    @cached_property
    def views(self) -> Views:
        image = Image.from_full(self.case.input("image"))
        return self.step.views(Batch(0, 0, torch.arange(len(image)), image=image, text=self.text))

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self.step.losses(self.views, self.step.num_terms(self.views.batch))

    def total(self) -> Tensor:
        return torch.stack([weight * self.losses[name] for name, weight in self.step.weights.items()]).sum()

    @property
    def prompt(self) -> Tensor:
        return self.text.ids[:, :1]

    @property
    def end(self) -> int:
        """The end token: from the golden, or the last id of the vocabulary, as in CLIP's tokenizer."""
        last = self.model.lm_head.out_features - 1
        return self.case.config.get("eos_id", int(self.case.from_readme("in.text", r"\bend (\d+)", str(last))))

    @property
    def image_tokens(self) -> Tokens:
        return self.views.image

    def greedy(self) -> Tensor:
        """Greedy decoding as in open_clip, which stops at padding too and ends unfinished texts with the end token."""
        max_length, min_length = self.lengths("greedy_ids")
        config = GenerationConfig(self.end, self.pad, max_length - 1, min_length)
        ids = greedy(self.model, self.image_tokens, self.prompt, config, use_cache=False)
        finished = ((ids == self.pad) | (ids == self.end)).cumsum(1) > 0
        after_end = torch.cat([torch.zeros_like(finished[:, :1]), finished[:, :-1]], 1)
        ids = ids.masked_fill(after_end, self.pad)[:, : int((~after_end).sum(1).max())]
        return ids if finished[:, -1].all() else torch.cat([ids, torch.where(finished[:, -1:], self.pad, self.end)], 1)

    def searched(self, name: str, beams: int, groups: int) -> Tensor:
        beams = int(self.case.from_readme(name, r"num_beams (\d+)", str(beams)))
        groups = int(self.case.from_readme(name, r"groups (\d+)", str(groups)))
        config = GenerationConfig(self.end, self.pad, *self.lengths(name))
        beam_config = BeamConfig(beams, groups, count_eos=True, score=raw_logits)
        return beam_search(self.model, self.image_tokens, self.prompt, config, beam_config, use_cache=False).ids

    def lengths(self, name: str) -> tuple[int, int]:
        """The maximum and the minimum length of a generated text."""
        max_length = self.case.from_readme(name, r"\bseq_len (\d+)", str(MAX_LENGTH))
        return int(max_length), int(self.case.from_readme(name, r"\bmin_seq_len (\d+)", str(MIN_LENGTH)))
