"""Visual question answering: by classifying over the training set's answers, or by a text decoder.

`ClosedVQA` classifies over the frequent answers; `OpenVQA` (open_vqa.py) generates an answer, or ranks a list of them.
Both are scored by the official VQA accuracy of their most probable answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Batch, Text
from diptych.config import tasks as settings
from diptych.config.data import DataLayout
from diptych.config.run import Finetune
from diptych.config.training import steps_of
from diptych.data.examples import QuestionExamples
from diptych.data.loader import SkipCounter
from diptych.data.sources.ablations import AblatedQuestions
from diptych.data.sources.answers import answer_file, answer_list, answer_prior
from diptych.data.sources.base import Questioned
from diptych.data.sources.division import say_division
from diptych.data.sources.vqa import open_questions
from diptych.inference.embedders import image_input
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import ModelSettings, RunError
from diptych.inference.tokenizer import tokenizer_of
from diptych.metrics.bootstrap import Resampled, columns, means, means_of_rows
from diptych.metrics.vqa import BEST_OF_ANY, BEST_OF_LIST, AnswerList, best_accuracy, normalise_answer, vqa_accuracy
from diptych.models.answer_decoders import decoder_weights, with_answer_decoder
from diptych.models.blip.config import LABEL_SMOOTHING
from diptych.models.configs import BLIPConfig, ImageOnlyModel, has_answer_decoder, model_name, pooled_dim
from diptych.modules.heads import PairClassifier
from diptych.modules.init import init_transformer
from diptych.protocols import ChanceLoss, FusionEncoder, pooled_pair
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
from diptych.tasks.momentum_distillation import MomentumDistilled
from diptych.tasks.open_vqa import AnswerDecoder, OpenVQA
from diptych.utils.state_dict import listed
from diptych.utils.terminal import echo

BATCH = 64  # questions answered at once in evaluation
TOP_K = 3  # answers kept in predictions
CANDIDATES = 128  # answers that a decoder scores in full (ALBEF, BLIP)


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


Answered = list[tuple[str, float]]
"""The answers to a question with their probabilities, the best first."""


def evaluate(loaded: LoadedModel, config: settings.VQA) -> Result:
    """VQA accuracy over all questions and by question type, with its upper bounds, and a file for the leaderboard.

    Of an answer decoder: of the ranked answers, and of the generated ones ("free accuracy").

    Raises:
        DataError: the data cannot be read.
        RunError: the run is of another task, or has no answers to rank.
    """
    if lacks(loaded):
        raise RunError("vqa needs a run of `diptych finetune vqa`")
    answers = _answers_to_rank(loaded, config)
    generates = isinstance(loaded.module, OpenVQA) and config.score != "ranked"
    rank = answer_ranker(loaded, answers) if answers else None
    source = questions(config.data, config.split, config.layout, config.ablate, loaded.image_settings.shorter_side)
    say_division(source)
    examples = QuestionExamples(source, loaded.tokenizer, loaded.image_input, answers, normalise_answer)
    counter = SkipCounter(config.max_skipped)

    def rows_of(batch: Batch) -> list[dict[str, Any]]:
        ranked = _ranked(rank, answers, batch) if rank else []
        generated = _generated(loaded, batch) if generates else []
        return [
            _prediction(source, index, (ranked or generated)[i], generated[i] if ranked and generated else None)
            for i, index in enumerate(batch.ids.tolist())
        ]

    rows = evaluation_rows(loaded, examples, config, BATCH, counter, "answering", rows_of)
    skipped = list(counter.skipped.values())
    # a leaderboard expects an answer to every question: a skipped one gets the most frequent answer of training
    usual = answers[0] if answers else ""
    answered = [(row["question_id"], row["answer"]) for row in rows]
    answered += [(source.question(sample.id).id, usual) for sample in skipped]
    results = [{"question_id": number, "answer": answer} for number, answer in answered]
    accuracies, resampled = _accuracies(source, rows, answers)
    metrics = {"questions": len(rows), "skipped": counter.num_skipped} | accuracies
    predictions = [{name: value for name, value in row.items() if name != "index"} for row in rows]
    examples_of_rows = partial(draw_examples, _right_and_wrong(rows), partial(_example, source))
    files = {f"vqa_{config.split}_results.json": results}
    return Result(metrics, predictions, examples_of_rows, skipped, files, resampled)


def _answers_to_rank(loaded: LoadedModel, config: settings.VQA) -> list[str]:
    """The answers to choose from: the run's, or the file's of the settings; none if a decoder only generates.

    Raises RunError: a classifier cannot take others, or there are none to rank.
    """
    is_open = isinstance(loaded.module, OpenVQA)
    if not is_open and (config.candidates or config.score == "free"):
        raise RunError(
            "the run classifies over its own answers: give neither candidates nor score free, or use a run with an "
            "answer decoder (diptych finetune vqa --answers open)"
        )
    if is_open and config.score == "free":
        return []
    answers = list(loaded.saved.labels)
    if config.candidates:
        answers = list(dict.fromkeys(filter(None, map(normalise_answer, answer_file(Path(config.candidates))))))
    if not answers and config.score == "ranked":
        raise RunError("the run has no list of answers to rank; give --candidates FILE, a JSON list, or --score free")
    return answers


def _ranked(rank: Callable[[Batch], tuple[Tensor, Tensor]], answers: list[str], batch: Batch) -> list[Answered]:
    top_values, top_indices = (top.tolist() for top in rank(batch))
    rows = zip(top_indices, top_values, strict=True)
    return [[(answers[i], value) for i, value in zip(indices, values, strict=True)] for indices, values in rows]


def _generated(loaded: LoadedModel, batch: Batch) -> list[Answered]:
    module: Any = loaded.module
    return [[pair] for pair in module.generate_each(batch, loaded.tokenizer)]


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
        pairs = loaded.module.generate_each(batch, loaded.tokenizer)
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


def _prediction(source: Questioned, index: int, best: Answered, generated: Answered | None) -> dict[str, Any]:
    """One prediction, with its score if the split's answers are public."""
    question, answer = source.question(index), best[0][0]
    row = {"index": index, "question_id": question.id, "question": question.text, "image": source.where(index)}
    row |= {"answer": answer, "probable": best}
    if question.answers:
        row |= {"truth": list(dict.fromkeys(question.answers)), "score": vqa_accuracy(answer, question.answers)}
    if generated is not None:
        row["free answer"] = generated[0][0]
        if question.answers:
            row["free score"] = vqa_accuracy(generated[0][0], question.answers)
    return row


def _accuracies(
    source: Questioned, rows: list[dict[str, Any]], answers: Sequence[str]
) -> tuple[dict[str, float], Resampled]:
    """The mean accuracy over all questions and by type, and its upper bounds: of any text, and of `answers`, if any.

    Then the same with photographs resampled. Empty if the split's answers are withheld.
    """
    answer_list = AnswerList.of(answers) if answers else None
    scores, photographs = list[dict[str, float]](), list[int]()
    for row in rows:
        if "score" in row:
            question = source.question(row["index"])
            one = {BEST_OF_ANY: best_accuracy(question.answers)}
            if answer_list is not None:
                one[BEST_OF_LIST] = best_accuracy(question.answers, answer_list)
            for name, score in (("accuracy", "score"), ("free accuracy", "free score")):
                if score in row:
                    one |= {f"{name}, {kind}" if kind else name: row[score] for kind in ("", *question.kinds)}
            scores.append(one)
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


def prepare(run: Finetune) -> Finetune:
    """The run with an answer decoder in its model, if its answers are open.

    Raises RunError: the model can have none, or has one and its answers are closed; or closed answers have a teacher.
    """
    options = options_of(run, settings.VQAOptions)
    if options.answers == "open":
        # there is no new head to learn faster than the rest: the decoder is initialised from pre-training
        optimizer = run.training.optimizer
        rates = tuple(rate for rate in optimizer.part_rates if not rate.startswith("head="))
        training = replace(run.training, optimizer=replace(optimizer, part_rates=rates))
        try:
            return replace(run, model=with_answer_decoder(run.model), training=training)
        except ValueError as error:
            raise RunError(f"open answers need a decoder: {error}; leave out --answers open") from None
    if has_answer_decoder(run.model):
        raise RunError(
            f"this {model_name(run.model)} has an answer decoder, which closed answers do not use: give --answers open"
        )
    if options.momentum:
        raise RunError(
            "--momentum is for open answers, whose decoder a teacher distils: give --answers open, or leave it out"
        )
    return run


def added_weights(model: nn.Module, pretrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Initial weights of the answer decoder from those of a pre-training run; says which remain random."""
    weights, random = decoder_weights(model, pretrained)
    if weights:
        remain = f"; random: {listed(random)}" if random else ""
        echo(f"the answer decoder's {len(weights)} weights start from the pre-trained model{remain}")
    return weights


def with_teacher(module: nn.Module, run: Finetune) -> nn.Module:
    """The training step with its momentum teacher, if the run has one (ALBEF, section 5)."""
    options = options_of(run, settings.VQAOptions)
    if not options.momentum or not isinstance(module, OpenVQA):
        return module
    warmup = steps_of(options.alpha_warmup, run.training.steps)
    return MomentumDistilled(module, options.momentum, options.alpha, warmup)


def answers_of(run: Finetune) -> Labels:
    """The answers of the run's training data, and how often each is right."""
    options = options_of(run, settings.VQAOptions)
    source = open_questions(run.data, run.split, run.layout)
    answers = answer_list(source, normalise_answer, options.min_answer_count, options.max_answers)
    return Labels(tuple(answers), tuple(answer_prior(source, answers, normalise_answer)))


def training_examples(run: Finetune, split: str, labels: Labels, augment: bool) -> QuestionExamples:
    """Questions of a split with their images and the scores of all answers; with open answers also these themselves."""
    options = options_of(run, settings.VQAOptions)
    source = questions(run.data, split, run.layout, options.ablate, run.images.shorter_side)
    images, decoded = image_input(run, augment), options.answers == "open"
    return QuestionExamples(source, tokenizer_of(run), images, list(labels.names), normalise_answer, decoded)


def questions(data: str, split: str, layout: DataLayout, ablate: str, min_side: int) -> Questioned:
    """Questions of a split; with `ablate` "image" or "text" that part of each is hidden (baseline)."""
    source = open_questions(data, split, layout, min_side=min_side)
    return AblatedQuestions(source, ablate) if ablate else source


def lacks(loaded: LoadedModel) -> str:
    """What a model lacks to answer questions."""
    return "" if isinstance(loaded.module, ClosedVQA | OpenVQA) else f"was not trained to answer {trained_with(loaded)}"


TASK = Task(
    settings.VQA,
    evaluate,
    lacks,
    FineTuning(
        build_module,
        training_examples,
        labels=answers_of,
        prepare=prepare,
        added_weights=added_weights,
        with_teacher=with_teacher,
    ),
    predict,
    seed_without_effect,
)
