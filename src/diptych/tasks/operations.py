"""What a trained model can do, from embedding images to answering questions, and what to say if it cannot.

One table: the name of each operation, what a model lacks for it, and which others can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diptych.config.tasks import EVALUATIONS, FINETUNED, Evaluation
from diptych.inference.loaded_model import LoadedModel
from diptych.models.configs import ImageOnlyModel, model_name
from diptych.protocols import DualEncoder, FusionEncoder, PartlySupported, UnsupportedOperation
from diptych.tasks import captioning, classification, grounding, retrieval, vqa
from diptych.tasks.definition import Predict, tasks, trained_with
from diptych.tasks.pair_scores import dual_encoder_scorer, pair_scorer


@dataclass(frozen=True)
class Operation:
    """One operation of a trained model.

    Args:
        lacks: what a model lacks for it, as the end of a sentence that begins with the model; "" if nothing.
        others: which systems, recipes or commands can do it.
    """

    lacks: Callable[[LoadedModel], str]
    others: str


def why_unsupported(loaded: LoadedModel, operation: str) -> str:
    """One sentence on why a model cannot do an operation, and what can; "" if it can.

    Raises ValueError for an operation that does not exist.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}: got {operation!r}")
    row = OPERATIONS[operation]
    lacks = row.lacks(loaded)
    return lacks and f"{operation}: this {model_name(loaded.saved.model)} {lacks}; {row.others}"


def check_operation(loaded: LoadedModel, operation: str) -> None:
    """Raises UnsupportedOperation if a model cannot do an operation."""
    if why := why_unsupported(loaded, operation):
        raise UnsupportedOperation(why)


def finetuned_task(loaded: LoadedModel) -> tuple[type[Evaluation], Predict]:
    """The task that a model was fine-tuned for, by its settings, and the function that computes its outputs.

    Raises UnsupportedOperation if there is none.
    """
    check_operation(loaded, "predict")
    task = tasks()[loaded.saved.task]
    assert task.predict is not None
    return task.settings, task.predict


def _is_baseline(loaded: LoadedModel) -> str:
    """What a model was not trained with, if it is a baseline that is evaluated without it too; "" for others."""
    settings, options = EVALUATIONS.get(loaded.saved.task), loaded.saved.options
    condition = "" if settings is None or options is None else settings().of_run(options).condition
    return condition and f"was trained with {condition}: it can only be evaluated, to compare others with it"


def settings_without_effect(loaded: LoadedModel, evaluation: Evaluation) -> dict[str, str]:
    """The settings of an evaluation that change nothing for this model, each with the reason."""
    task = tasks().get(evaluation.task)
    return dict(task.unused(loaded, evaluation)) if task is not None else {}


def _lacks_image_embedding(loaded: LoadedModel) -> str:
    return "" if isinstance(loaded.saved.model, ImageOnlyModel) else _lacks_embedding(loaded, "images")


def _lacks_text_embedding(loaded: LoadedModel) -> str:
    if isinstance(loaded.saved.model, ImageOnlyModel):
        return "has no text encoder"
    return _lacks_embedding(loaded, "texts")


def _lacks_embedding(loaded: LoadedModel, what: str) -> str:
    if dual_encoder_scorer(loaded) is None:
        return f"was not trained to embed {what} in a joint space of images and texts {trained_with(loaded)}"
    return (
        ""
        if isinstance(loaded.model, DualEncoder)
        else f"compares regions with words, and has no vector of whole {what}"
    )


def _lacks_similarity(loaded: LoadedModel) -> str:
    return (
        ""
        if dual_encoder_scorer(loaded)
        else f"was not trained with a contrastive or triplet loss {trained_with(loaded)}"
    )


def _lacks_pair_score(loaded: LoadedModel) -> str:
    return "" if pair_scorer(loaded) else f"has no trained ITM or ranking head {trained_with(loaded)}"


def _lacks_prediction(loaded: LoadedModel) -> str:
    task = tasks().get(loaded.saved.task)
    if task is None or task.predict is None:
        return f"is a model for {loaded.saved.task}"
    return task.lacks(loaded) or _is_baseline(loaded)


def _lacks_fusion(loaded: LoadedModel) -> str:
    unsupported = loaded.model.unsupported() if isinstance(loaded.model, PartlySupported) else {}
    if not isinstance(loaded.model, FusionEncoder):
        return "encodes images and texts apart, without fusion"
    return "was built without fusion of a text with one image" if "fuse" in unsupported else ""


_CONTRASTIVE = "models trained with itc can: diptych pretrain clip.small, or import CLIP or a BLIP for retrieval"

OPERATIONS: dict[str, Operation] = {
    "embed_images": Operation(_lacks_image_embedding, f"image models, and {_CONTRASTIVE}"),
    "embed_texts": Operation(_lacks_text_embedding, _CONTRASTIVE),
    "features": Operation(lambda _: "", ""),
    "fuse": Operation(_lacks_fusion, "ViLT, ALBEF, VLMo, BLIP and BEiT-3 fuse them: diptych pretrain vilt.small"),
    "score": Operation(
        retrieval.lacks,
        "models trained with itc, itm or triplet can: diptych pretrain clip.small, albef.small or vilt.small",
    ),
    "itc": Operation(
        _lacks_similarity, f"{_CONTRASTIVE}; for its other score use method 'itm', if can('itm')"
    ),
    "itm": Operation(
        _lacks_pair_score,
        "models trained with itm can: diptych pretrain albef.small or vilt.small, or diptych finetune retrieval; for "
        "its other score use method 'itc', if can('itc')",
    ),
    "caption": Operation(
        captioning.lacks,
        "models trained with lm or masked_captions can: diptych pretrain blip.small, coca.small or "
        "beit3.small_captions, or import a BLIP for captioning",
    ),
    "answer": Operation(
        lambda loaded: vqa.lacks(loaded) or _is_baseline(loaded),
        "runs of diptych finetune vqa can, and imported ViLT, ALBEF and BLIP for VQA",
    ),
    "classify": Operation(
        classification.lacks, "runs of diptych finetune classification can, and imported ViTs with a classifier"
    ),
    "ground": Operation(
        lambda loaded: grounding.lacks(loaded) or _is_baseline(loaded),
        "runs of diptych finetune grounding can, and, by a map of the phrase, models trained with itm or itc: diptych "
        "pretrain albef.small or vilt.small",
    ),
    "predict": Operation(
        _lacks_prediction,
        f"models that diptych finetune trained for a task can ({', '.join(FINETUNED)}); of others use caption, score or "
        "embed",
    ),
}  # fmt: skip
"""By name: what `VLM.can` answers, and what `UnsupportedOperation` says."""
