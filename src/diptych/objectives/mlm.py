"""Masked language modeling (MLM): masked words, predicted from the rest of the text and the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.config.objectives import MLM, BlockMasking, NoImage, RegionMasking, TextOnlyMLM
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.objectives.cross_entropy import SoftTargets, chunked_cross_entropy, distilled_loss, output_layer
from diptych.objectives.definition import Definition, Needs, Setup
from diptych.objectives.masked_views import masked_pair
from diptych.objectives.pretraining import Objective
from diptych.objectives.random_choices import PairMasking, WordMasking
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, FusionEncoder, MaskedImageEncoder, UnimodalTextEncoder


@dataclass(frozen=True)
class MLMLoss:
    """Cross entropy at the masked tokens; vocabulary logits are computed at these only (BERT; ViLT, 3.2).

    With a momentum model, its predictions for the same text are mixed into the targets (ALBEF, equation 7).
    """

    masking: WordMasking = field(default_factory=WordMasking)
    name: str = "mlm"
    weight: float = 1.0
    image_masking: RegionMasking | BlockMasking | None = None  # masking of the image at the same time
    text_only: bool = False  # text without an image (VLMo's text-only stage; BEiT-3's unpaired text)

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = views.masked(self.masking).masked.sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        masked, teacher = views.masked(self.masking), views.teacher_output
        words = masked.original[masked.masked]
        if teacher is None:
            loss, correct = chunked_cross_entropy(
                output_layer(views.heads["mlm"]), self.text(views).gather(masked.masked), words
            )
        else:  # distillation needs the whole vocabulary's distribution
            logits, soft = self.logits(views), SoftTargets(self.logits(teacher.views), teacher.alpha)
            loss = distilled_loss(F.cross_entropy(logits, words, reduction="sum"), logits, soft)
            correct = (logits.argmax(1) == words).sum()
        return {self.name: loss, f"{self.name}/accuracy": correct.float()}

    def logits(self, views: Views) -> Float[Tensor, "masked vocabulary"]:
        """Vocabulary logits of the masked tokens, sample after sample."""
        return views.head("mlm", self.text(views).gather(views.masked(self.masking).masked)).float()

    def text(self, views: Views) -> Tokens:
        """The text tokens that words are predicted from."""
        if not self.text_only:
            return self.pair(views).text
        model = views.model
        if not isinstance(model, UnimodalTextEncoder):
            raise ValueError(
                f"{type(model).__name__} cannot encode text without an image (encode_unimodal): set text_only to False"
            )
        masked = views.masked(self.masking).text
        return views.cached(("masked alone", self.masking), lambda: model.encode_unimodal(model.encode_text(masked)))

    def pair(self, views: Views) -> FusedTokens:
        """The masked text fused with its image."""
        if self.image_masking is None:
            return views.masked_pair(self.masking)
        return masked_pair(views, PairMasking(self.masking, self.image_masking))

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """The corpus's unigram entropy (`statistics["unigram_entropy"]`, nats per token); None without it."""
        if "unigram_entropy" not in statistics:
            return None
        return ChanceLoss(
            statistics["unigram_entropy"],
            "unigram entropy of the captions",
            "only word frequencies are learned, the context is not used: check the learning rate, warm-up and that "
            "texts vary",
        )


def _needs(settings: MLM) -> Needs:
    if isinstance(settings.image, NoImage):
        return TEXT_ONLY
    if isinstance(settings.image, BlockMasking):
        return Needs((FusionEncoder, MaskedImageEncoder), "mlm", masks_patches=True, visual_tokenizer=True)
    return Needs((FusionEncoder,), "mlm", regions=isinstance(settings.image, RegionMasking))


def _losses(settings: MLM, setup: Setup) -> list[Objective]:
    image = settings.image
    return [
        MLMLoss(
            setup.word_masking(settings.rate, settings.whole_words),
            weight=settings.weight,
            image_masking=image if isinstance(image, RegionMasking | BlockMasking) else None,
            text_only=isinstance(image, NoImage),
        )
    ]


def _text_only_losses(settings: TextOnlyMLM, setup: Setup) -> list[Objective]:
    masking = setup.word_masking(settings.rate, settings.whole_words)
    return [MLMLoss(masking, "mlm_text_only", settings.weight, text_only=True)]


TEXT_ONLY = Needs((UnimodalTextEncoder,), "mlm", image=False)
DEFINITION = Definition(MLM, _needs, _losses)
TEXT_ONLY_DEFINITION = Definition(TextOnlyMLM, lambda _: TEXT_ONLY, _text_only_losses)
