"""Visual question answering as classification: which of the training set's answers? (VQA v2, closed)

Visual question answering in words: a decoder writes the answer, or ranks given ones (VQA v2, open).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.batch import AnswerTargets, Batch, Text
from diptych.generation import BeamConfig, GenerationConfig, GenerationOutput, beam_search
from diptych.modules.heads import PairClassifier
from diptych.modules.init import init_transformer
from diptych.modules.tokens import Tokens, packing
from diptych.objectives.cross_entropy import SoftTargets, soft_cross_entropy
from diptych.objectives.lm import without_prompt
from diptych.protocols import ChanceLoss, FusionEncoder, TextDecoder
from diptych.tasks.common import encode_images, required, sample_counts


class ClosedVQA(nn.Module):
    """A step: binary cross entropy with soft scores ``labels["targets"]`` (b, answers), summed over answers (ViLT, 4.2).

    `head`: in place of ViLT's. `name`: what its loss is called. `prior`: each answer's mean score in training. ViLT's head
    then begins by saying so, where it would need some hundred steps to learn it, and the loss has a floor. Raises ValueError
    for a prior and a head of another kind, which could not say so.
    Differs: the official code begins with a probability of a half for every answer.
    """

    def __init__(
        self,
        model: FusionEncoder,
        dim: int,
        num_answers: int,
        head: nn.Module | None = None,
        name: str = "vqa",
        prior: Sequence[float] | None = None,
    ):
        super().__init__()
        self.model = model
        self.head = (head or PairClassifier(dim, 2 * dim, num_answers)).apply(init_transformer)
        self.name, self.weights = name, {name: 1.0}
        self.chance_losses: dict[str, ChanceLoss] = {}
        if prior is not None:
            if not isinstance(self.head, PairClassifier):
                raise ValueError(f"a {type(self.head).__name__} cannot begin with a prior; leave prior or head out")
            known = torch.tensor(prior, device="cpu").clamp(1e-6, 1 - 1e-6)
            self.head.init_prior(known)
            alone = F.binary_cross_entropy(known, known, reduction="sum").item()
            self.chance_losses[name] = ChanceLoss(
                alone, "prior of the answers", "neither question nor picture is read yet"
            )

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, self.name, f"{self.name}/score")

    def logits(self, batch: Batch) -> Float[Tensor, "b answers"]:
        text = self.model.encode_text(required(batch.text, "question"))
        image = encode_images(self.model, batch)
        return self.head(self.model.fuse(text, image).pooled).float()

    def losses(self, logits: Tensor, targets: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        score = targets.gather(1, logits.argmax(1, keepdim=True)).sum()
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        name, metric = self.name, f"{self.name}/score"
        return {name: loss / counts[name], metric: score.detach() / counts[metric]}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.logits(batch), batch.labels["targets"], counts)


@runtime_checkable
class AnswerDecoder(FusionEncoder, TextDecoder, Protocol):
    """A model that fuses a question with an image, and writes about what it then knows."""


class RankedAnswers(NamedTuple):
    """The candidates that each question may mean, best first, and their probabilities among these."""

    candidates: Int[Tensor, "questions k"]
    probabilities: Float[Tensor, "questions k"]


class OpenVQA(nn.Module):
    """A step: the loss of each answer is summed over its pieces, weighted, and summed over the answers of a question
    (ALBEF, section 5; BLIP, section 5.3).

    `smoothing`: the targets' share that is spread over the vocabulary, in ranking too (the official BLIP: 0.1). `twice`:
    in ranking the first piece counts twice, in the choice of candidates and in their order (the official ALBEF; not in
    the paper).
    """

    def __init__(self, model: AnswerDecoder, label_smoothing: float = 0.0, twice: bool = False):
        super().__init__()
        self.model, self.label_smoothing, self.twice = model, label_smoothing, twice
        self.weights = {"vqa": 1.0}
        self.chance_losses: dict[str, ChanceLoss] = {}  # the answers' prior is a fact of the data

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "vqa")

    def question(self, batch: Batch) -> Tokens:
        """The questions' tokens, after they have met their images."""
        text = self.model.encode_text(required(batch.text, "question"))
        return self.model.fuse(text, self.model.encode_image(required(batch.image, "image"))).text

    def logits(self, question: Tokens, answers: AnswerTargets) -> Float[Tensor, "a n vocabulary"]:
        """Of the piece that follows each piece of the answers."""
        return self.model.next_token_logits(answers.text, question.index_samples(answers.question))

    def answer(self, batch: Batch) -> Float[Tensor, "a n vocabulary"]:
        """The logits of a batch, which a teacher of this kind says too (tasks.distilled)."""
        return self.logits(self.question(batch), required(batch.answers, "answers"))

    def each(
        self, logits: Float[Tensor, "a n vocabulary"], text: Text, soft: SoftTargets | None = None
    ) -> Float[Tensor, " a"]:
        """The loss of each answer."""
        hard = next_losses(logits, text, self.label_smoothing).sum(1)
        if soft is None:
            return hard
        taught = soft_cross_entropy(logits[:, :-1], soft.logits[:, :-1].float().softmax(-1))
        return (1 - soft.alpha) * hard + soft.alpha * (taught * without_prompt(text)).sum(1)

    def losses(
        self, logits: Tensor, answers: AnswerTargets, counts: dict[str, Tensor], soft: SoftTargets | None = None
    ) -> dict[str, Tensor]:
        return {"vqa": (answers.weights * self.each(logits, answers.text, soft)).sum() / counts["vqa"]}

    def forward(self, batch: Batch, counts: dict[str, Tensor], soft: SoftTargets | None = None) -> dict[str, Tensor]:
        return self.losses(self.answer(batch), required(batch.answers, "answers"), counts, soft)

    @torch.no_grad()
    def rank(self, question: Tokens, candidates: Text, k: int) -> RankedAnswers:
        """The `k` candidates whose first piece is likeliest, in the order of their whole likelihood."""
        q = len(question)
        begin = candidates[torch.zeros(q, dtype=torch.long)]
        begin = Text(begin.ids[:, :1], begin.mask[:, :1])
        first = self.model.next_token_logits(begin, question)[:, 0].float().softmax(1)[:, candidates.ids[:, 1]]
        first, chosen = first.topk(k, 1)
        text = candidates[chosen.flatten()]
        several = torch.arange(q, device=chosen.device).repeat_interleave(k)
        whole = -self.each(self.model.next_token_logits(text, question.index_samples(several)), text).view(q, k)
        probabilities, order = (whole + first.log() if self.twice else whole).softmax(1).sort(1, descending=True)
        return RankedAnswers(chosen.gather(1, order), probabilities)

    @torch.no_grad()
    def write(self, batch: Batch, begin: int, rules: GenerationConfig, beams: BeamConfig) -> GenerationOutput:
        """An answer to each question, `begin` in front; the official BLIP has 3 beams, 10 tokens at most.

        As there, the decoder reads the padding behind the questions too, so that a batch's longest question has a say in
        the answers to the others.
        """
        with packing(False):
            question = self.question(batch)
            every = Tokens.from_padded(question.to_padded(), torch.ones_like(question.mask), *question.layout.spans)
        return beam_search(self.model, every, torch.full((len(batch), 1), begin, device=batch.ids.device), rules, beams)


def next_losses(logits: Float[Tensor, "b n v"], text: Text, label_smoothing: float = 0.0) -> Float[Tensor, "b after"]:
    """Cross entropy of every token behind the first, nought where none is asked for.

    The last column scores nothing, and stays: to cut it off is a copy of all logits, and one of their gradients.
    """
    words = F.pad(text.ids[:, 1:].masked_fill(~without_prompt(text), -100), (0, 1), value=-100)
    rows = logits.float().flatten(0, 1)  # a word's scores side by side: twice as fast as (b, v, n)
    losses = F.cross_entropy(rows, words.flatten(), reduction="none", label_smoothing=label_smoothing)
    return losses.view_as(words)[:, :-1]
