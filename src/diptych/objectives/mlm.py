"""Masked language modelling: which words were hidden, given the rest of the text and the image?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.modules.tokens import Pair, Tokens
from diptych.objectives.cross_entropy import Soft, scoring, softened, word_losses
from diptych.objectives.masked_views import hidden_pair
from diptych.objectives.masking import BlockMasking, RegionMasking
from diptych.objectives.sampling import Hiding, Masking
from diptych.objectives.views import Views
from diptych.protocols import Floor, ReadsAlone


@dataclass(frozen=True)
class MaskedWords:
    """Cross entropy at the hidden pieces only; the vocabulary is scored nowhere else (BERT; ViLT, 3.2).

    A momentum model, where there is one, softens the targets by its own guesses at the same text (ALBEF, eq. 7).
    """

    masking: Masking = field(default_factory=Masking)
    name: str = "mlm"
    weight: float = 1.0
    beside: RegionMasking | BlockMasking | None = None  # hidden at the same time, in the image that is shown
    alone: bool = False  # text without its image (VLMo's stage before images; BEiT-3's unpaired text)

    def counts(self, views: Views) -> dict[str, Tensor]:
        n = views.masked(self.masking).hidden.sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def totals(self, views: Views) -> dict[str, Tensor]:
        masked, lesson = views.masked(self.masking), views.lesson
        words = masked.original[masked.hidden]
        if lesson is None:
            loss, right = word_losses(scoring(views.heads["words"]), self.text(views).rows(masked.hidden), words)
        else:  # the teacher's opinion of every word is asked for
            logits, soft = self.guesses(views), Soft(self.guesses(lesson.views), lesson.alpha)
            loss = softened(F.cross_entropy(logits, words, reduction="sum"), logits, soft)
            right = (logits.argmax(1) == words).sum()
        return {self.name: loss, f"{self.name}/accuracy": right.float()}

    def guesses(self, views: Views) -> Float[Tensor, "hidden vocabulary"]:
        """Logits of the hidden pieces, sample after sample."""
        return views.head("words", self.text(views).rows(views.masked(self.masking).hidden)).float()

    def text(self, views: Views) -> Tokens:
        """What the words are guessed from."""
        if not self.alone:
            return self.pair(views).text
        model = views.model
        if not isinstance(model, ReadsAlone):
            raise ValueError(f"{type(model).__name__} cannot read text alone")
        masked = views.masked(self.masking).text
        return views.once(("masked alone", self.masking), lambda: model.alone(model.encode_text(masked)))

    def pair(self, views: Views) -> Pair:
        """The text and the image that it is guessed with."""
        if self.beside is None:
            return views.masked_pair(self.masking)
        return hidden_pair(views, Hiding(self.masking, self.beside))

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """The unigram entropy of the corpus, where `statistics` counts it ("unigram_entropy", nats per piece)."""
        if "unigram_entropy" not in statistics:
            return None
        return Floor(
            statistics["unigram_entropy"],
            "unigram entropy of the captions",
            "only word frequencies are learned: the context is not read; check the learning rate, warm-up and that texts vary",
        )
