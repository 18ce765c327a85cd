"""What of a BLIP golden can be recomputed: pre-training and retrieval here, the other tasks beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diptych.inputs import Batch, Image
from diptych.models.blip import BLIP
from diptych.objectives.draws import Given
from diptych.objectives.hard import HardMatching
from diptych.objectives.lm import NextWords
from diptych.objectives.momentum import Momentum
from diptych.objectives.views import Views
from diptych.tasks.captioning import Captioning
from diptych.tasks.nlvr2_at_once import NLVR2AtOnce
from diptych.tasks.open_vqa import OpenVQA
from diptych.tasks.rerank import Reranking, Scores
from diptych.weights.answers.blip_tasks import CaptionAnswers, NLVR2Answers, Table, VQAAnswers, text_of
from diptych.weights.answers.given import on_canvas
from diptych.weights.golden import Answer, Case


class Answers:
    """One table of names for each kind of step."""

    def __init__(self, case: Case):
        self.kind = KINDS[type(case.step)](case)

    def find(self, name: str) -> Callable[[], Answer]:
        table = self.kind.table()
        if name not in table:
            raise LookupError("no one knows how")
        return table[name]

    def total(self) -> Tensor:
        return self.kind.loss


class MomentumAnswers:
    """The step of a momentum model comes first, as in training."""

    def __init__(self, case: Case):
        assert isinstance(case.step, Momentum)
        self.case, self.step = case, case.step
        self.step.follow()
        self.model: BLIP = self.step.student.model  # type: ignore[assignment]
        self.objectives = {type(objective): objective for objective in self.step.student.objectives}

    def table(self) -> Table:
        features = {
            "": lambda: self.views.features("contrast"),
            "_m": lambda: self.views.lesson.views.features("contrast"),  # type: ignore[union-attr]
        }
        table: Table = {
            "image_embeds": lambda: on_canvas(self.views.image),
            "text_embeds": lambda: on_canvas(self.model.alone(self.views.text)),
            "fusion_embeds": lambda: on_canvas(self.views.pair.text),
            "itm_logits": lambda: Answer(self.objective(HardMatching).logits(self.views)),
            "lm_logits": lambda: Answer(self.objective(NextWords).logits(self.views), self.views.given_text.real),
            "image_queue_after": lambda: Answer(self.remembered[0].T),
            "queue_ptr_after": lambda: Answer(self.remembered[1]),
            "pos_embed_resized": self.positions,
            "eval_score_i2t": lambda: Answer(self.scores.of_texts),
            "eval_score_t2i": lambda: Answer(self.scores.of_images),
        }
        for mark, of in features.items():
            table[f"image_feat{mark}"] = lambda of=of: Answer(of().image)
            table[f"text_feat{mark}"] = lambda of=of: Answer(of().text)
        for official, name in {"ita": "itc", "itm": "itm", "lm": "lm"}.items():
            table[f"loss_{official}"] = lambda name=name: Answer(self.losses[name])
            table[f"loss_{official}_alpha0"] = lambda name=name: Answer(self.unsoftened[name])
        return table

    def objective(self, kind: type) -> Any:
        if kind not in self.objectives:
            raise LookupError(f"this checkpoint is not trained by {kind.__name__}")
        return self.objectives[kind]

    @cached_property
    def batch(self) -> Batch:
        text = text_of(self.case, "text")
        labels = {"image": self.case.input("idx")} if "idx" in self.case.inputs else {}
        return Batch(
            0, 0, torch.arange(len(text)), image=Image.whole(self.case.input("image")), text=text, labels=labels
        )

    def views_of(self, alpha: float) -> Views:
        draws = Given(negative_images=self.case.input("itm_neg_image"), negative_texts=self.case.input("itm_neg_text"))
        return self.step.views(self.batch, draws, alpha)

    @cached_property
    def views(self) -> Views:
        return self.views_of(self.case.input("alpha").item())

    def losses_of(self, views: Views) -> dict[str, Tensor]:
        return self.step.student.losses(views, self.step.counts(self.batch, views.draws))

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self.losses_of(self.views)

    @cached_property
    def unsoftened(self) -> dict[str, Tensor]:
        return self.losses_of(self.views_of(0.0))

    @property
    def loss(self) -> Tensor:
        return torch.stack([weight * self.losses[name] for name, weight in self.step.weights.items()]).sum()

    @cached_property
    def remembered(self) -> tuple[Tensor, Tensor]:
        """The queue of images after this batch, and its place; what reads it as it was comes first."""
        assert self.step.queue is not None and self.losses and self.unsoftened
        self.step.remember(self.views)
        return self.step.queue.image, self.step.queue.place

    @cached_property
    def scores(self) -> Scores:
        heads: Any = self.step.student.heads
        most = self.case.config["k_test"]
        rerank = Reranking(self.model, heads["contrast"], heads["match"], most, cosine=True)
        return rerank(text_of(self.case, "eval_text"), Image.whole(self.case.input("eval_image")))

    def positions(self) -> Answer:
        """On a grid half as large again."""
        patches = self.model.image.patches
        rows, columns = (side * 3 // 2 for side in patches.grid)
        cells = patches.positions(torch.tensor([[rows, columns]]), rows, columns)
        return Answer(torch.cat([patches.position[:, :1], cells], 1))


KINDS = {Captioning: CaptionAnswers, OpenVQA: VQAAnswers, NLVR2AtOnce: NLVR2Answers, Momentum: MomentumAnswers}
