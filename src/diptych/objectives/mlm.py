"""Masked language modelling: which words were hidden, given the rest of the text and the image?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.modules.tokens import FusedTokens, Tokens
from diptych.objectives.cross_entropy import SoftTargets, chunked_cross_entropy, distilled_loss, output_layer
from diptych.objectives.masked_views import masked_pair
from diptych.objectives.masking import BlockMasking, RegionMasking
from diptych.objectives.sampling import PairMasking, WordMasking
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, UnimodalTextEncoder


@dataclass(frozen=True)
class MLM:
    """Cross entropy at the hidden pieces only; the vocabulary is scored nowhere else (BERT; ViLT, 3.2).

    A momentum model, where there is one, softens the targets by its own guesses at the same text (ALBEF, eq. 7).
    """

    masking: WordMasking = field(default_factory=WordMasking)
    name: str = "mlm"
    weight: float = 1.0
    beside: RegionMasking | BlockMasking | None = None  # hidden at the same time, in the image that is shown
    text_only: bool = False  # text without its image (VLMo's stage before images; BEiT-3's unpaired text)

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = views.masked(self.masking).masked.sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        masked, lesson = views.masked(self.masking), views.teacher_output
        words = masked.original[masked.masked]
        if lesson is None:
            loss, right = chunked_cross_entropy(
                output_layer(views.heads["words"]), self.text(views).gather(masked.masked), words
            )
        else:  # the teacher's opinion of every word is asked for
            logits, soft = self.guesses(views), SoftTargets(self.guesses(lesson.views), lesson.alpha)
            loss = distilled_loss(F.cross_entropy(logits, words, reduction="sum"), logits, soft)
            right = (logits.argmax(1) == words).sum()
        return {self.name: loss, f"{self.name}/accuracy": right.float()}

    def guesses(self, views: Views) -> Float[Tensor, "hidden vocabulary"]:
        """Logits of the hidden pieces, sample after sample."""
        return views.head("words", self.text(views).gather(views.masked(self.masking).masked)).float()

    def text(self, views: Views) -> Tokens:
        """What the words are guessed from."""
        if not self.text_only:
            return self.pair(views).text
        model = views.model
        if not isinstance(model, UnimodalTextEncoder):
            raise ValueError(f"{type(model).__name__} cannot read text alone")
        masked = views.masked(self.masking).text
        return views.cached(("masked alone", self.masking), lambda: model.encode_unimodal(model.encode_text(masked)))

    def pair(self, views: Views) -> FusedTokens:
        """The text and the image that it is guessed with."""
        if self.beside is None:
            return views.masked_pair(self.masking)
        return masked_pair(views, PairMasking(self.masking, self.beside))

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """The unigram entropy of the corpus, where `statistics` counts it ("unigram_entropy", nats per piece)."""
        if "unigram_entropy" not in statistics:
            return None
        return ChanceLoss(
            statistics["unigram_entropy"],
            "unigram entropy of the captions",
            "only word frequencies are learned: the context is not read; check the learning rate, warm-up and that texts vary",
        )
