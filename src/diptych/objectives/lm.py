"""Language modeling (LM): next-token prediction of a text, given its image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from diptych.batch import Text
from diptych.config.objectives import LM
from diptych.modules.tokens import Tokens
from diptych.objectives.cross_entropy import chunked_cross_entropy
from diptych.objectives.definition import Definition, Needs
from diptych.objectives.views import Views
from diptych.protocols import CausalDecoder, ChanceLoss, EncodedTextDecoder


@dataclass(frozen=True)
class LMLoss:
    """Cross entropy of each next token of a text, given its image (BLIP, section 3.2; CoCa, section 3.2).

    `num_prompt_tokens`: number of leading tokens that are not predicted: the start token, and a prompt.
    `label_smoothing`: the share of each target that is spread over the whole vocabulary (the official BLIP: 0.1; not in
    the paper).
    """

    name: str = "lm"
    weight: float = 1.0
    label_smoothing: float = 0.0
    num_prompt_tokens: int = 1

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = without_prompt(views.text_input, self.num_prompt_tokens).sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        model, text = views.model, views.text_input
        if not isinstance(model, CausalDecoder):
            raise ValueError(f"{type(model).__name__} has no text decoder: the LM loss needs an autoregressive model")
        targets = without_prompt(text, self.num_prompt_tokens)
        rows = self.hidden_states(views, model).gather(F.pad(targets, (0, 1)))
        loss, correct = chunked_cross_entropy(
            model.get_output_embeddings(), rows, text.ids[:, 1:][targets], self.label_smoothing
        )
        return {self.name: loss, f"{self.name}/accuracy": correct.float()}

    def hidden_states(self, views: Views, model: CausalDecoder) -> Tokens:
        """The decoder's hidden states of each text, with its image as context."""
        if isinstance(model, EncodedTextDecoder):  # the contrastive loss encodes the same texts
            return model.decode_encoded(views.text, views.image)
        return model.decode_hidden_states(views.text_input, views.image_context)

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """The corpus's unigram entropy (`statistics["unigram_entropy"]`, nats per token); None without it."""
        if self.label_smoothing or "unigram_entropy" not in statistics:
            return None
        return ChanceLoss(
            statistics["unigram_entropy"],
            "unigram entropy of the captions",
            "only word frequencies are learned, neither the image nor earlier words are used: check the learning rate "
            "and warm-up",
        )


def without_prompt(text: Text, num_prompt_tokens: int = 1) -> Bool[Tensor, "b after"]:
    """The mask of tokens to predict, from the second token on: real ones that follow `num_prompt_tokens` tokens."""
    targets = text.mask[:, 1:].clone()
    targets[:, : num_prompt_tokens - 1] = False
    return targets


DEFINITION = Definition(
    LM,
    needs=lambda _: Needs((CausalDecoder,), causal=True),
    losses=lambda lm, _: [LMLoss(weight=lm.weight, label_smoothing=lm.label_smoothing)],
    trains="captioning",
)
