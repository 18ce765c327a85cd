"""What of a CoCa golden can be recomputed: both latents, the captioner's logits, both losses, and captions written."""

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
from diptych.objectives.lm import LM, without_prompt
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.views import Views
from tests.parity.answers.given import on_canvas
from tests.parity.golden_case import Answer, Case, Table

LONGEST, SHORTEST = 10, 4
"""Of generated texts, where a golden's README does not say otherwise; no config does."""


def unscored(logits: Tensor) -> Tensor:
    """open_clip's beams sum the logits as they are."""
    return logits


class Answers:
    def __init__(self, case: Case):
        assert isinstance(case.step, Pretraining) and isinstance(case.step.model, CoCa)
        self.case, self.step, self.model = case, case.step, case.step.model
        self.pad = self.model.text.pad_token_id

    def table(self) -> Table:
        return {
            "image_latent": lambda: Answer(self.contrast.image(self.views.image_readouts[0])),
            "text_latent": lambda: Answer(self.contrast.text(self.views.text_readouts[0])),
            "image_features": lambda: Answer(self.views.features("contrast").image),
            "text_features": lambda: Answer(self.views.features("contrast").text),
            "image_tokens": lambda: on_canvas(self.views.image.select(name="queries")),
            "text_tokens": lambda: on_canvas(self.views.text.select(name="words")),
            "logits": lambda: Answer(
                self.model.next_token_logits(self.text, self.views.image)[:, :-1], self.text.mask[:, :-1]
            ),
            "labels": lambda: Answer(torch.where(without_prompt(self.text), self.text.ids[:, 1:], self.pad)),
            "logit_scale": lambda: Answer(self.contrast.scale()),
            "contrastive_loss": lambda: Answer(self.step.weights["itc"] * self.losses["itc"]),
            "caption_loss": lambda: Answer(self.step.weights["caption"] * self.losses["caption"]),
            "greedy_ids": lambda: Answer(self.greedy()),
            "beam_ids": lambda: Answer(self.searched("beam_ids", 4, 1)),
            "group_beam_ids": lambda: Answer(self.searched("group_beam_ids", 6, 3)),
        }

    @property
    def contrast(self) -> ITCHead:
        head = self.step.heads["contrast"]
        assert isinstance(head, ITCHead)
        return head

    @property
    def captioner(self) -> LM:
        return next(objective for objective in self.step.objectives if isinstance(objective, LM))

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
        """The id that ends a text: as the golden tells it, else the vocabulary's last, as CLIP's tokenizer has it."""
        last = self.model.vocabulary.out_features - 1
        return self.case.config.get("eos_id", int(self.case.said("in.text", r"\bend (\d+)", str(last))))

    @property
    def seen(self) -> Tokens:
        return self.views.image

    def greedy(self) -> Tensor:
        """open_clip's stops at a pad too, and what has not ended is cut off by the end."""
        longest, shortest = self.lengths("greedy_ids")
        rules = GenerationConfig(self.end, self.pad, longest - 1, shortest)
        ids = greedy(self.model, self.seen, self.prompt, rules, remember=False)
        over = ((ids == self.pad) | (ids == self.end)).cumsum(1) > 0
        behind = torch.cat([torch.zeros_like(over[:, :1]), over[:, :-1]], 1)
        ids = ids.masked_fill(behind, self.pad)[:, : int((~behind).sum(1).max())]
        return ids if over[:, -1].all() else torch.cat([ids, torch.where(over[:, -1:], self.pad, self.end)], 1)

    def searched(self, name: str, beams: int, groups: int) -> Tensor:
        beams = int(self.case.said(name, r"num_beams (\d+)", str(beams)))
        groups = int(self.case.said(name, r"groups (\d+)", str(groups)))
        rules = GenerationConfig(self.end, self.pad, *self.lengths(name))
        found = BeamConfig(beams, groups, count_eos=True, score=unscored)
        return beam_search(self.model, self.seen, self.prompt, rules, found, remember=False).ids

    def lengths(self, name: str) -> tuple[int, int]:
        """The longest that a text may be, and the shortest."""
        longest = self.case.said(name, r"\bseq_len (\d+)", str(LONGEST))
        return int(longest), int(self.case.said(name, r"\bmin_seq_len (\d+)", str(SHORTEST)))
