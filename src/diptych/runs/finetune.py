"""Fine-tuning: a task's head on a pre-trained model, or on a fresh one, which is the baseline it must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diptych.checkpoints.mapping import within
from diptych.checkpoints.positions import refit
from diptych.checkpoints.strict import load_strict
from diptych.config.run import Finetune, Pretrain
from diptych.data.examples import Examples, QuestionExamples
from diptych.data.ranking import RankedExamples
from diptych.data.sources.ablations import AblatedQuestions
from diptych.data.sources.answers import answer_list, answer_prior
from diptych.data.sources.base import Questioned
from diptych.data.sources.captions import open_captions
from diptych.data.sources.labelled import Labelled, LabelledExamples
from diptych.data.sources.splits import asked_split
from diptych.data.sources.vqa import OWN, open_questions
from diptych.metrics.vqa import normalise_answer
from diptych.models.blip.checkpoint import SMOOTHING
from diptych.models.common_recipes import sized
from diptych.models.configs import (
    BLIPConfig,
    ClassifierModel,
    ImageOnlyModel,
    Model,
    has_answer_decoder,
    model_name,
    pooled_dim,
)
from diptych.modules.heads import ITMHead
from diptych.modules.init import scale_init
from diptych.protocols import FusionEncoder
from diptych.runs.embedders import install_embedders, shown_images
from diptych.runs.feature_extractors import check_given
from diptych.runs.fitting import check_model
from diptych.runs.run_folder import RunError, read_run, read_weights
from diptych.runs.tokenizer import tokenizer_of
from diptych.runs.train import train
from diptych.runs.validate import check_out_is_apart
from diptych.tasks.classification import Classification
from diptych.tasks.retrieval import Retrieval
from diptych.tasks.vqa import AnswerDecoder, ClosedVQA, OpenVQA
from diptych.training.distributed import processes
from diptych.training.recovery import claimed
from diptych.utils.state_dict import named_weights
from diptych.utils.terminal import echo

TASKS = ("vqa", "retrieval", "classification")
Task = ClosedVQA | OpenVQA | Retrieval | Classification


def build(run: Finetune, facts: Mapping[str, Any]) -> Task:
    """The task's module with fresh weights, keyed by the run's seed. `facts`: of the data it learns from; VQA's are the
    "answers" and, where they are known, the "prior" of each, classification's the "classes". Raises RunError for a task
    that there is not, or that the model cannot do.
    """
    torch.manual_seed(run.training.seed)
    if run.task == "classification":
        classes = len(facts["classes"])
        return Classification(classifying(run.model, classes).build(), classes)  # type: ignore[arg-type]
    model: Any = run.model.build()
    scale_init(model, run.init_scale)
    if isinstance(run.model, ImageOnlyModel) or not isinstance(model, FusionEncoder):
        raise RunError(f"a {model_name(run.model)} does not fuse text and image, which {run.task} needs")
    install_embedders(model, run)  # type: ignore[arg-type]
    if run.task == "vqa" and has_answer_decoder(run.model) and isinstance(model, AnswerDecoder):
        return OpenVQA(model, SMOOTHING) if isinstance(run.model, BLIPConfig) else OpenVQA(model, twice=True)
    if run.task == "vqa":
        return ClosedVQA(model, pooled_dim(run.model), len(facts.get("answers", [])), prior=facts.get("prior"))
    if run.task == "retrieval":
        return Retrieval(model, pooled_dim(run.model), run.negative_texts)
    raise RunError(f"{run.task!r} is neither learned nor scored here; what is: {', '.join(TASKS)}")


def classifying(model: Model, num_classes: int) -> Model:
    """A model of images alone with a classifier of so many classes. Raises RunError for one that has no such part."""
    if not isinstance(model, ClassifierModel):
        raise RunError(f"a {model_name(model)} has no classifier; a ViT, a CrossViT and a BEiT3 have")
    return replace(model, num_classes=num_classes)


def questions(data: str, split: str, ablate: str, least: int) -> Questioned:
    """The questions of a split, a blindfold on where `blind` says "image" or "text"."""
    source = open_questions(data, split, least=least)
    return AblatedQuestions(source, ablate) if ablate else source


def examples(run: Finetune, split: str, answers: list[str], augment: bool) -> Examples:
    """What the run learns from, or is held out from it."""
    images, least = shown_images(run, augment), run.images.shorter_side
    if run.task == "classification":
        return LabelledExamples(Labelled(Path(run.data), split), images, mirrored=augment)
    tokenizer = tokenizer_of(run)
    if run.task == "vqa":
        source = questions(run.data, split, run.ablate, least)
        return QuestionExamples(source, tokenizer, images, answers, normalise_answer)
    return RankedExamples(open_captions(run.data, split, least=least), tokenizer, images, run.negative_texts)


def start(module: Task, folder: Path) -> None:
    """The pre-trained model, every weight of it, its positions resized where pictures are; retrieval's score begins as the
    matching head's. A classifier is of the classes that it learned: classification begins with a fresh one.
    """
    state, model = read_weights(folder), module.get_submodule("model")
    before = refit(model, within(state, "model."), getattr(read_run(folder)[0].model, "grid", None))
    if isinstance(module, Classification):
        known = {name: tensor for name, tensor in before.items() if not name.startswith("head.")}
        before = {name: tensor for name, tensor in named_weights(model).items() if name.startswith("head.")} | known
    load_strict(model, before, str(folder))
    match = within(state, "heads.match.")
    if isinstance(module, Retrieval) and match:
        head = ITMHead(module.rank.linear.in_features)
        load_strict(head, match, str(folder))
        module.init_from(head)


def finetune(run: Finetune, out: Path) -> None:
    """Trains, going on where `out` stands; writes run.json, metrics.jsonl, model.safetensors, report.html.

    Raises DataError, RunError, WeightsError, CheckpointError, InUse, NotWritten, Diverged.
    """
    if run.task == "vqa" and has_answer_decoder(run.model):
        raise RunError(
            f"a {model_name(run.model)} with a decoder is scored here, not taught: start from a pre-training run"
        )
    check_out_is_apart(run.data, out)
    run = replace(run, split=asked_split(run.split, run.data, OWN if run.task == "vqa" else ()))
    with processes(run.training.device) as group, claimed(out, group):
        if group.main:
            echo(f"reading {run.data} ({run.split})")
        answers: list[str] = []
        facts: dict[str, Any] = {}
        if run.task == "vqa":
            source = open_questions(run.data, run.split)
            answers = answer_list(source, normalise_answer, run.min_answer_count, run.max_answers)
            facts["prior"] = answer_prior(source, answers, normalise_answer)
        if run.task == "classification":
            facts["classes"] = Labelled(Path(run.data), run.split).classes
            run = replace(run, model=classifying(run.model, len(facts["classes"])))
        food = examples(run, run.split, answers, augment=True)
        facts |= {"examples": len(food), "answers": answers}
        module = build(run, facts)
        if run.init_from:
            start(module, Path(run.init_from))
        train(run, module, food, lambda: examples(run, "val", answers, augment=False), facts, out, group)


def inherited(folder: Path, run: Finetune, own: bool = False) -> Finetune:
    """The fine-tuning run with the model and the pictures of the run it starts from. `own`: it is a system's own recipe,
    which has pictures of its own, for that system alone. Raises RunError.
    """
    before, facts = read_run(folder)
    check_given(before, facts)
    check_model(folder, before)
    if own:
        return _own(folder, run, before)
    classifies = run.task == "classification"
    if not isinstance(before.model, ClassifierModel) if classifies else isinstance(before.model, ImageOnlyModel):
        need = "with a classifier of images" if classifies else "that reads text and image"
        raise RunError(f"{folder} holds a {model_name(before.model)}; {run.task} needs a model {need}")
    return replace(
        run, model=before.model, images=before.images, embedders=before.embedders, init_from=str(folder), recipe=before.recipe,
        init_scale=before.init_scale, vocabulary=before.vocabulary,
    )  # fmt: skip


def _own(folder: Path, run: Finetune, before: Pretrain | Finetune) -> Finetune:
    """Pictures of the recipe's size, in patches of the model, which has a position for each, and normalised as it learned to
    see them; frozen features stay as they are.
    """
    if type(before.model) is not type(run.model):
        kinds = model_name(run.model), model_name(before.model)
        raise RunError(f"{run.recipe} is for a {kinds[0]}, but {folder} holds a {kinds[1]}")
    run = replace(
        run, model=before.model, embedders=before.embedders, init_from=str(folder), vocabulary=before.vocabulary
    )
    if before.embedders.image != "own":
        return replace(run, images=before.images)
    seen = before.images
    return sized(replace(run, images=replace(run.images, patch_size=seen.patch_size, mean=seen.mean, std=seen.std)))
