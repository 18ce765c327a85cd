"""Visual question answering (VQA v2): by classifying over the training set's answers, or by a text decoder.

`ClosedVQA` classifies over the frequent answers; `OpenVQA` generates an answer, or ranks a list of them. Both are scored
by the official VQA accuracy of their most probable answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.batch import AnswerTargets, Batch, Text
from diptych.config import tasks as settings
from diptych.config.data import Layout
from diptych.config.run import Finetune
from diptych.data.examples import QuestionExamples
from diptych.data.loader import SkipCounter
from diptych.data.sources.ablations import AblatedQuestions
from diptych.data.sources.answers import answer_list, answer_prior
from diptych.data.sources.base import Questioned
from diptych.data.sources.division import say_division
from diptych.data.sources.vqa import open_questions
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.generation import BeamConfig, GenerationConfig, GenerationOutput, beam_search
from diptych.inference.embedders import image_input
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import ModelSettings, RunError
from diptych.inference.tokenizer import tokenizer_of
from diptych.metrics.bootstrap import Resampled, columns, means, means_of_rows
from diptych.metrics.vqa import BEST_OF_ANY, BEST_OF_LIST, AnswerList, best_accuracy, normalise_answer, vqa_accuracy
from diptych.models.blip.config import LABEL_SMOOTHING
from diptych.models.configs import BLIPConfig, ImageOnlyModel, has_answer_decoder, model_name, pooled_dim
from diptych.modules.attention import SharedContext
from diptych.modules.heads import PairClassifier
from diptych.modules.init import init_transformer
from diptych.modules.tokens import Tokens, packing
from diptych.objectives.cross_entropy import SoftTargets, soft_cross_entropy
from diptych.objectives.lm import without_prompt
from diptych.protocols import ChanceLoss, FusionEncoder, TextDecoder, pooled_pair
from diptych.report import AnswerExample
from diptych.tasks.common import encode_images, evaluation_rows, options_of, required, sample_counts
from diptych.tasks.definition import (
    MAX_EXAMPLES,
    FineTuning,
    Labels,
    Result,
    Task,
    draw_examples,
    evenly_spaced,
    seed_without_effect,
    trained_with,
)

BATCH = 64  # questions answered at once in evaluation
TOP_K = 3  # answers kept in predictions
CANDIDATES = 128  # answers that a decoder scores in full (ALBEF, BLIP)
MAX_ANSWER_LENGTH = 10  # tokens of a generated answer, start and end token included (BLIP's official code)


class ClosedVQA(nn.Module):
    """A training step: binary cross entropy with soft scores ``labels["targets"]`` (b, answers), summed over answers.

    Args:
        head: replaces ViLT's.
        name: of the loss.
        prior: each answer's mean score in training. ViLT's head is initialised to predict it, which it would otherwise
            need some hundred steps to learn, and the loss has a chance level.

    Raises ValueError for a prior with a head that has no `init_prior`.

    Source: ViLT, section 4.2. Differs: the official code initialises every answer's probability to a half.
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
                raise ValueError(
                    f"a {type(self.head).__name__} cannot be initialised to a prior; leave head or prior out"
                )
            probabilities = torch.tensor(prior, device="cpu").clamp(1e-6, 1 - 1e-6)
            self.head.init_prior(probabilities)
            entropy = F.binary_cross_entropy(probabilities, probabilities, reduction="sum").item()
            cause = "neither question nor image is used yet"
            self.chance_losses[name] = ChanceLoss(entropy, "predicting each answer's frequency", cause)

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, self.name, f"{self.name}/score")

    def logits(self, batch: Batch) -> Float[Tensor, "b answers"]:
        text = self.model.encode_text(required(batch.text, "question"))
        image = encode_images(self.model, batch)
        return self.head(pooled_pair(self.model, text, image)).float()

    def losses(self, logits: Tensor, targets: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        score = targets.gather(1, logits.argmax(1, keepdim=True)).sum()
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        name, metric = self.name, f"{self.name}/score"
        return {name: loss / counts[name], metric: score.detach() / counts[metric]}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.logits(batch), batch.labels["targets"], counts)


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
        return self.model.fuse(text, self.model.encode_image(required(batch.image, "image"))).text

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


def next_losses(logits: Float[Tensor, "b n v"], text: Text, label_smoothing: float = 0.0) -> Float[Tensor, "b after"]:
    """Cross entropy of every token after the first, zero at padding.

    The last column of the logits has no target but is passed along: slicing it off would copy all logits and their
    gradients.
    """
    targets = F.pad(text.ids[:, 1:].masked_fill(~without_prompt(text), -100), (0, 1), value=-100)
    rows = logits.float().flatten(0, 1)  # the vocabulary in the last dimension: twice as fast as (b, v, n)
    losses = F.cross_entropy(rows, targets.flatten(), reduction="none", label_smoothing=label_smoothing)
    return losses.view_as(targets)[:, :-1]


def evaluate(loaded: LoadedModel, config: settings.VQA) -> Result:
    """VQA accuracy over all questions and by question type, with its upper bounds, and a file for the leaderboard.

    Raises:
        DataError: the data cannot be read.
        RunError: the run is of another task, or has no answers to rank.
    """
    if lacks(loaded):
        raise RunError("vqa needs a run of `diptych finetune vqa`")
    answers = list(loaded.saved.labels)
    if not answers:
        raise RunError(
            "the run's decoder ranks a list of answers, and the run has none; import it again with --answers FILE"
        )
    rank = answer_ranker(loaded, answers)
    source = questions(config.data, config.split, config.layout, config.ablate, loaded.image_settings.shorter_side)
    say_division(source)
    examples = QuestionExamples(source, loaded.tokenizer, loaded.image_input, answers, normalise_answer)
    counter = SkipCounter(config.max_skipped)

    def rows_of(batch: Batch) -> list[dict[str, Any]]:
        top_values, top_indices = (top.tolist() for top in rank(batch))
        return [
            _prediction(source, index, [(answers[i], v) for i, v in zip(indices, values, strict=True)])
            for index, values, indices in zip(batch.ids.tolist(), top_values, top_indices, strict=True)
        ]

    rows = evaluation_rows(loaded, examples, config, BATCH, counter, "answering", rows_of)
    skipped = list(counter.skipped.values())
    # a leaderboard expects an answer to every question: a skipped one gets the most frequent answer of training
    answered = [(row["question_id"], row["answer"]) for row in rows]
    answered += [(source.question(sample.id).id, answers[0]) for sample in skipped]
    results = [{"question_id": number, "answer": answer} for number, answer in answered]
    accuracies, resampled = _accuracies(source, rows, answers)
    metrics = {"questions": len(rows), "skipped": counter.num_skipped} | accuracies
    predictions = [{name: value for name, value in row.items() if name != "index"} for row in rows]
    examples_of_rows = partial(draw_examples, _right_and_wrong(rows), partial(_example, source))
    files = {f"vqa_{config.split}_results.json": results}
    return Result(metrics, predictions, examples_of_rows, skipped, files, resampled)


def answer_ranker(
    loaded: LoadedModel, answers: Sequence[str], among: Sequence[int] | None = None, top_k: int = TOP_K
) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    """A function from a batch of questions to the top answers: probabilities (b, k) and indices in `answers` (b, k).

    A decoder ranks the CANDIDATES answers whose first token is likeliest; their probabilities are among each other.

    Args:
        answers: of a classifier all of its classes, in order; of a decoder any texts.
        among: of a classifier the indices of the classes to choose from; None: all.
    """
    module = loaded.module
    if isinstance(module, OpenVQA):
        candidates = loaded.tokenizer.encode(list(answers)).to(loaded.device)
        return partial(_rank_texts, module, candidates, min(top_k, len(answers)))
    assert isinstance(module, ClosedVQA)
    columns = torch.tensor(range(len(answers)) if among is None else among, device=loaded.device)
    return partial(_rank_classes, module, columns, min(top_k, len(columns)))


def predict(loaded: LoadedModel, batch: Batch) -> list[dict[str, Any]]:
    """The most probable answer to each question among those of training, with its probability.

    A model with an answer decoder that has no list of answers generates one.
    """
    answers = list(loaded.saved.labels)
    if not answers and isinstance(loaded.module, OpenVQA):
        # one at a time: a generated answer depends on the padding of its batch (`OpenVQA.generate`)
        image, text = required(batch.image, "image"), required(batch.text, "question")
        rows = [slice(i, i + 1) for i in range(len(batch))]
        single = [replace(batch, ids=batch.ids[row], image=image[row], text=text[row]) for row in rows]
        pairs = [loaded.module.generate_texts(one, loaded.tokenizer)[0] for one in single]
    else:
        values, indices = (top[:, 0].tolist() for top in answer_ranker(loaded, answers, top_k=1)(batch))
        pairs = [(answers[i], value) for i, value in zip(indices, values, strict=True)]
    return [{"answer": answer, "probability": probability} for answer, probability in pairs]


def _rank_texts(module: OpenVQA, candidates: Text, k: int, batch: Batch) -> tuple[Tensor, Tensor]:
    ranked = module.rank(module.encode_question(batch), candidates, min(CANDIDATES, len(candidates)))
    return ranked.probabilities[:, :k], ranked.candidates[:, :k]


def _rank_classes(module: ClosedVQA, columns: Tensor, k: int, batch: Batch) -> tuple[Tensor, Tensor]:
    values, places = module.logits(batch).sigmoid().index_select(1, columns).topk(k, 1)
    return values, columns[places]


def _prediction(source: Questioned, index: int, best: list[tuple[str, float]]) -> dict[str, Any]:
    """One prediction, with its score if the split's answers are public."""
    question, answer = source.question(index), best[0][0]
    row = {"index": index, "question_id": question.id, "question": question.text, "image": source.where(index)}
    row |= {"answer": answer, "probable": best}
    if question.answers:
        row |= {"truth": list(dict.fromkeys(question.answers)), "score": vqa_accuracy(answer, question.answers)}
    return row


def _accuracies(
    source: Questioned, rows: list[dict[str, Any]], answers: Sequence[str]
) -> tuple[dict[str, float], Resampled]:
    """The mean accuracy over all questions and by type, and its upper bounds: of any text, and of the run's `answers`.

    Then the same with photographs resampled. Empty if the split's answers are withheld.
    """
    answer_list, scores, photographs = AnswerList.of(answers), list[dict[str, float]](), list[int]()
    for row in rows:
        if "score" in row:
            question = source.question(row["index"])
            bounds = {BEST_OF_ANY: best_accuracy(question.answers)}
            bounds[BEST_OF_LIST] = best_accuracy(question.answers, answer_list)
            by_type = {f"accuracy, {question.kind}": row["score"]} if question.kind else {}
            scores.append({"accuracy": row["score"]} | bounds | by_type)
            photographs.append(question.image)
    values = columns(scores)
    return means(values), means_of_rows(photographs, values)


def _right_and_wrong(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The predictions to show: half right ones and half wrong ones, as far as there are."""
    right = [row for row in rows if row.get("score", -1) >= 0.5]
    wrong = [row for row in rows if 0 <= row.get("score", -1) < 0.5]
    chosen = evenly_spaced(right, MAX_EXAMPLES - min(len(wrong), MAX_EXAMPLES // 2))
    return [*chosen, *evenly_spaced(wrong, MAX_EXAMPLES - len(chosen))]


def _example(source: Questioned, row: dict[str, Any]) -> AnswerExample:
    image, truth = source.image(source.question(row["index"]).image), ", ".join(row["truth"])
    probable = [(answer, probability) for answer, probability in row["probable"]]
    return AnswerExample(image, row["question"], probable, truth, row["score"])


def build_module(
    model: Any, config: ModelSettings, labels: Labels, options: settings.VQAOptions
) -> ClosedVQA | OpenVQA:
    """The training step on a model: `OpenVQA` for one with an answer decoder, else `ClosedVQA`. Raises RunError."""
    if not isinstance(model, FusionEncoder) or isinstance(config.model, ImageOnlyModel):
        raise RunError(f"vqa needs a model that fuses text and image; a {model_name(config.model)} does not")
    if has_answer_decoder(config.model) and isinstance(model, AnswerDecoder):
        blip = isinstance(config.model, BLIPConfig)
        return OpenVQA(model, LABEL_SMOOTHING) if blip else OpenVQA(model, double_first_token=True)
    return ClosedVQA(model, pooled_dim(config.model), len(labels.names), prior=labels.prior)


def answers_of(run: Finetune) -> Labels:
    """The answers of the run's training data, and how often each is right."""
    options = options_of(run, settings.VQAOptions)
    source = open_questions(run.data, run.split, run.layout)
    answers = answer_list(source, normalise_answer, options.min_answer_count, options.max_answers)
    return Labels(tuple(answers), tuple(answer_prior(source, answers, normalise_answer)))


def training_examples(run: Finetune, split: str, labels: Labels, augment: bool) -> QuestionExamples:
    """Questions of a split with their images and the scores of all answers."""
    source = questions(
        run.data, split, run.layout, options_of(run, settings.VQAOptions).ablate, run.images.shorter_side
    )
    return QuestionExamples(source, tokenizer_of(run), image_input(run, augment), list(labels.names), normalise_answer)


def questions(data: str, split: str, layout: Layout, ablate: str, min_side: int) -> Questioned:
    """Questions of a split; with `ablate` "image" or "text" that part of each is hidden (baseline)."""
    source = open_questions(data, split, layout, min_side=min_side)
    return AblatedQuestions(source, ablate) if ablate else source


def check_no_decoder(run: Finetune) -> None:
    """Raises RunError for a model with an answer decoder, which can be evaluated only."""
    if has_answer_decoder(run.model):
        raise RunError(
            f"a {model_name(run.model)} with an answer decoder can be evaluated for vqa, but not fine-tuned: start "
            "from a pre-training run"
        )


def lacks(loaded: LoadedModel) -> str:
    """What a model lacks to answer questions."""
    return "" if isinstance(loaded.module, ClosedVQA | OpenVQA) else f"was not trained to answer {trained_with(loaded)}"


TASK = Task(
    settings.VQA,
    evaluate,
    lacks,
    FineTuning(build_module, training_examples, labels=answers_of, check=check_no_decoder),
    predict,
    seed_without_effect,
)
