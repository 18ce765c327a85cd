"""Open-ended visual question answering: a decoder generates an answer or ranks a list of them (ALBEF, BLIP)."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.batch import AnswerTargets, Batch, Text
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.generation import BeamConfig, GenerationConfig, GenerationOutput, beam_search
from diptych.modules.attention import SharedContext
from diptych.modules.tokens import Tokens, packing
from diptych.objectives.cross_entropy import SoftTargets, soft_cross_entropy
from diptych.objectives.lm import without_prompt
from diptych.protocols import ChanceLoss, FusionEncoder, TextDecoder
from diptych.tasks.common import encode_images, required, sample_counts

MAX_ANSWER_LENGTH = 10  # tokens of a generated answer, start and end token included (BLIP's official code)


@runtime_checkable
class AnswerDecoder(FusionEncoder, TextDecoder, Protocol):
    """A fusion encoder with a text decoder that attends to the fused question."""


class RankedAnswers(NamedTuple):
    """The top candidates of each question, best first, and their probabilities among each other."""

    candidates: Int[Tensor, "questions k"]
    probabilities: Float[Tensor, "questions k"]


class OpenVQA(nn.Module):
    """A training step: the cross entropy of each answer's tokens, weighted and summed over the answers of a question.

    Args:
        label_smoothing: used in ranking too (BLIP's official code: 0.1).
        double_first_token: count the first token's log-probability twice when candidates are ordered, as it has chosen
            them already (ALBEF's official code; not in the paper).

    Source: ALBEF, section 5; BLIP, section 5.3.
    """

    def __init__(self, model: AnswerDecoder, label_smoothing: float = 0.0, double_first_token: bool = False):
        super().__init__()
        self.model, self.label_smoothing, self.double_first_token = model, label_smoothing, double_first_token
        self.weights = {"vqa": 1.0}
        self.chance_losses: dict[str, ChanceLoss] = {}  # the answers' prior depends on the data

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "vqa")

    def encode_question(self, batch: Batch) -> Tokens:
        """The questions' tokens, fused with their images."""
        text = self.model.encode_text(required(batch.text, "question"))
        return self.model.fuse(text, encode_images(self.model, batch)).text

    def logits(self, question: Tokens, answers: AnswerTargets) -> Float[Tensor, "a n vocab_size"]:
        """Logits of the token that follows each token of the answers."""
        context = SharedContext.of(question).index_samples(answers.question)
        return self.model.next_token_logits(answers.text, context)

    def batch_logits(self, batch: Batch) -> Float[Tensor, "a n vocab_size"]:
        """The logits of a batch; a momentum teacher computes them too (see `MomentumDistilled`)."""
        return self.logits(self.encode_question(batch), required(batch.answers, "answers"))

    def answer_losses(
        self, logits: Float[Tensor, "a n vocab_size"], text: Text, soft: SoftTargets | None = None
    ) -> Float[Tensor, " a"]:
        """The loss of each answer, summed over its tokens and mixed with that of the soft targets, if any."""
        hard = next_losses(logits, text, self.label_smoothing).sum(1)
        if soft is None:
            return hard
        distilled = soft_cross_entropy(logits[:, :-1], soft.logits[:, :-1].float().softmax(-1))
        return (1 - soft.alpha) * hard + soft.alpha * (distilled * without_prompt(text)).sum(1)

    def losses(
        self, logits: Tensor, answers: AnswerTargets, counts: dict[str, Tensor], soft: SoftTargets | None = None
    ) -> dict[str, Tensor]:
        return {"vqa": (answers.weights * self.answer_losses(logits, answers.text, soft)).sum() / counts["vqa"]}

    def forward(self, batch: Batch, counts: dict[str, Tensor], soft: SoftTargets | None = None) -> dict[str, Tensor]:
        return self.losses(self.batch_logits(batch), required(batch.answers, "answers"), counts, soft)

    @torch.no_grad()
    def rank(self, question: Tokens, candidates: Text, k: int) -> RankedAnswers:
        """The `k` candidates whose first token is likeliest, ordered by the likelihood of all their tokens.

        A question's keys and values are computed once for all its candidates.
        """
        q = len(question)
        start = candidates[torch.zeros(q, dtype=torch.long)]
        start, context = Text(start.ids[:, :1], start.mask[:, :1]), SharedContext.of(question)
        first_token = self.model.next_token_logits(start, context)[:, 0].float().softmax(1)  # (q, vocabulary)
        first, chosen = first_token[:, candidates.ids[:, 1]].topk(k, 1)  # (q, k)
        text = candidates[chosen.flatten()]  # q · k answers
        context = context.index_samples(context.owner.repeat_interleave(k))
        scores = -self.answer_losses(self.model.next_token_logits(text, context), text).view(q, k)
        if self.double_first_token:
            scores = scores + first.log()
        probabilities, order = scores.softmax(1).sort(1, descending=True)
        return RankedAnswers(chosen.gather(1, order), probabilities)

    @torch.no_grad()
    def generate(
        self, batch: Batch, start_id: int, generation: GenerationConfig, beams: BeamConfig
    ) -> GenerationOutput:
        """An answer to each question by beam search, beginning with `start_id`.

        Source: BLIP's official code, with 3 beams and at most 10 tokens. As there, the decoder attends to the padding
        of the questions too, so that an answer depends on the length of the batch's longest question.
        """
        with packing(False):
            question = self.encode_question(batch)
            no_padding = torch.ones_like(question.mask)
            context = Tokens.from_padded(question.to_padded(), no_padding, *question.layout.spans)
        prompt = torch.full((len(batch), 1), start_id, device=batch.ids.device)
        return beam_search(self.model, context, prompt, generation, beams)

    @torch.no_grad()
    def generate_texts(self, batch: Batch, tokenizer: Tokenizer) -> list[tuple[str, float]]:
        """A generated answer to each question, and the probability of its tokens, the end token included.

        Source: BLIP's official code, with 3 beams and at most 10 tokens. Differs: questions are padded to the longest
        of the batch, and the probability is computed without attention to that padding.
        """
        known = tokenizer.vocabulary
        generation = GenerationConfig(known.sep, known.pad, MAX_ANSWER_LENGTH)
        ids = self.generate(batch, known.cls, generation, BeamConfig(num_beams=3)).ids
        ended = (ids == known.sep).long().cumsum(1)
        text = Text(ids, ended - (ids == known.sep).long() == 0)  # up to the end token
        logits = self.model.next_token_logits(text, self.encode_question(batch))
        probabilities = (-next_losses(logits, text).sum(1)).exp().tolist()
        return [(tokenizer.decode(row).strip(), p) for row, p in zip(ids.tolist(), probabilities, strict=True)]

    def generate_each(self, batch: Batch, tokenizer: Tokenizer) -> list[tuple[str, float]]:
        """As `generate_texts`, but each answer depends on its own question and image only.

        Questions of equal length, which need no padding, are answered at once.
        """
        text = required(batch.text, "question")
        rows_of = defaultdict[int, list[int]](list)
        for row, length in enumerate(text.mask.sum(1).tolist()):
            rows_of[length].append(row)
        answers: list[tuple[str, float]] = [("", 0.0)] * len(batch)
        for length, rows in rows_of.items():
            index = torch.tensor(rows, device=batch.ids.device)
            question = Text(text.ids[index, :length], text.mask[index, :length])
            image = None if batch.image is None else batch.image[index]
            regions = None if batch.regions is None else batch.regions[index]
            same = Batch(batch.seed, batch.step, batch.ids[index], image=image, regions=regions, text=question)
            for row, answer in zip(rows, self.generate_texts(same, tokenizer), strict=True):
                answers[row] = answer
        return answers


def next_losses(logits: Float[Tensor, "b n v"], text: Text, label_smoothing: float = 0.0) -> Float[Tensor, "b after"]:
    """Cross entropy of every token after the first, zero at padding.

    The last column of the logits has no target but is passed along: slicing it off would copy all logits and their
    gradients.
    """
    targets = F.pad(text.ids[:, 1:].masked_fill(~without_prompt(text), -100), (0, 1), value=-100)
    rows = logits.float().flatten(0, 1)  # the vocabulary in the last dimension: twice as fast as (b, v, n)
    losses = F.cross_entropy(rows, targets.flatten(), reduction="none", label_smoothing=label_smoothing)
    return losses.view_as(targets)[:, :-1]
