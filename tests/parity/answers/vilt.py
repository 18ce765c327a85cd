"""What of a ViLT golden can be recomputed: pre-training here, the downstream tasks beside it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.batch import Batch, Image, Matching, Text
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.objectives.itm import ITM
from diptych.objectives.mlm import MLM
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.sampling import FixedChoices, MaskedText
from diptych.objectives.views import Views
from diptych.objectives.wpa import WPA, TransportPlan
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval import Retrieval
from diptych.tasks.vqa import ClosedVQA
from tests.parity.answers.given import batch_of, on_canvas, on_grid, text_of
from tests.parity.answers.vilt_tasks import NLVR2Answers, RetrievalAnswers, VQAAnswers
from tests.parity.golden_case import Answer, Case, Table


class Answers:
    """One table of names for each kind of step."""

    def __init__(self, case: Case):
        self.case, self.step = case, case.step
        kind = next((kind for step, kind in KINDS.items() if isinstance(case.step, step)), None)
        if kind is None:
            raise LookupError("this checkpoint has no head")
        self.kind = kind(case)

    def table(self) -> Table:
        return self.kind.table()

    def total(self) -> Tensor:
        weights: dict[str, float] = self.case.step.weights  # type: ignore[assignment]
        return sum((weight * self.kind.losses[name] for name, weight in weights.items()), torch.tensor(0.0))


class PretrainingAnswers:
    """The three objectives over one set of views; and the views again with the patches that a cap has kept."""

    def __init__(self, case: Case):
        assert isinstance(case.step, Pretraining)
        self.case, self.step = case, case.step
        self.objectives = {type(objective): objective for objective in self.step.objectives}

    def table(self) -> Table:
        return {
            "text_embed": lambda: on_canvas(self.views.text),
            "visual_embed_cls": lambda: Answer(self.views.image.select(name="cls").first()),
            "visual_embed_grid": lambda: on_grid(self.views.image),
            "text_feats": lambda: on_canvas(self.views.pair.text),
            "image_cls": lambda: Answer(self.views.pair.image.select(name="cls").first()),
            "image_grid": lambda: on_grid(self.views.pair.image),
            "image_valid": lambda: self.valid(self.views.pair.image),
            "cls_feats": lambda: Answer(self.views.pair.pooled),
            "mlm_logits": self.mlm_logits,
            "mlm_loss": lambda: Answer(self.losses["mlm"]),
            "itm_logits": lambda: Answer(self.objective(ITM).logits(self.views)),
            "itm_loss": lambda: Answer(self.losses["itm"]),
            "wpa_cost": lambda: self.with_class_tokens(self.transport.cost),
            "wpa_T": lambda: self.with_class_tokens(self.transport.plan),
            "wpa_distance": lambda: Answer(self.transport.distance),
            "wpa_loss": lambda: Answer(self.step.weights["wpa"] * self.losses["wpa"]),
            "cap_text_feats": lambda: on_canvas(self.capped.text),
            "cap_cls_feats": lambda: Answer(self.capped.pooled),
        }

    def objective(self, kind: type) -> Any:
        if kind not in self.objectives:
            raise LookupError(f"this checkpoint has no head for {kind.__name__}")
        return self.objectives[kind]

    @cached_property
    def batch(self) -> Batch:
        if "itm_labels" not in self.case.inputs:
            return batch_of(self.case)
        matched = self.case.input("itm_labels") == 1
        shown = torch.where(matched[:, None, None, None], self.case.input("image"), self.case.input("false_image"))
        return batch_of(self.case, matching=Matching(Image.from_padded(shown), matched))

    @cached_property
    def draws(self) -> FixedChoices:
        if "mlm_ids" not in self.case.inputs:
            return FixedChoices()
        labels, text = self.case.input("mlm_labels"), text_of(self.case)
        hidden = labels >= 0
        masked = Text(self.case.input("mlm_ids"), text.mask)
        return FixedChoices(MaskedText(masked, hidden, torch.where(hidden, labels, 0)))

    @cached_property
    def views(self) -> Views:
        return self.step.views(self.batch, self.draws)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self.step.losses(self.views, self.step.num_terms(self.batch, self.draws))

    @cached_property
    def transport(self) -> TransportPlan:
        return self.objective(WPA).transport(self.views.matching_pair)

    @cached_property
    def capped(self) -> FusedTokens:
        kept = F.pad(self.case.input("cap_selected").flatten(1).bool(), (1, 0), value=True)  # and the class token
        most = self.case.config["max_image_len_cap_case"]
        return Views(self.step.model, self.step.heads, self.batch, FixedChoices(kept_patches=kept), most).pair

    def mlm_logits(self) -> Answer:
        text = self.views.masked_pair(self.objective(MLM).masking).text
        return Answer(self.views.head("words", text.to_padded()), text.mask)

    def valid(self, image: Tokens) -> Answer:
        return Answer(on_grid(image).real.long())  # type: ignore[union-attr]

    def with_class_tokens(self, inner: Tensor) -> Answer:
        """Both class tokens carry no mass: their row and column are zero."""
        return Answer(F.pad(inner, (1, 0, 1, 0)))


KINDS = {Pretraining: PretrainingAnswers, ClosedVQA: VQAAnswers, NLVR2: NLVR2Answers, Retrieval: RetrievalAnswers}
