"""What a trained model can do, from embedding images to answering questions, and what to say if it cannot.

One table: the name of each operation, what a model lacks for it, and which others can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diptych.config.tasks import Evaluation, GalleryEvaluation, Matching, Retrieval
from diptych.models.configs import ImageOnlyModel, model_name
from diptych.objectives.definition import losses_that_train
from diptych.protocols import DualEncoder, FusionEncoder, PartlySupported, TextDecoder, UnsupportedOperation
from diptych.runs.loaded_model import LoadedModel
from diptych.runs.scoring.retrieval import dual_encoder_scorer, pair_scorer
from diptych.tasks.classification import Classification
from diptych.tasks.vqa import ClosedVQA, OpenVQA


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
    return lacks and f"{operation}: this {model_name(loaded.settings.model)} {lacks}; {row.others}"


def check_operation(loaded: LoadedModel, operation: str) -> None:
    """Raises UnsupportedOperation if a model cannot do an operation."""
    if why := why_unsupported(loaded, operation):
        raise UnsupportedOperation(why)


def settings_without_effect(loaded: LoadedModel, evaluation: Evaluation) -> dict[str, str]:
    """The settings of an evaluation that change nothing, for this model and its other settings, each with the reason."""
    unused: dict[str, str] = {}
    if isinstance(evaluation, Retrieval):
        unused |= _unused_in_retrieval(loaded, evaluation)
    if isinstance(evaluation, GalleryEvaluation) and not isinstance(evaluation, Matching):
        unused |= {} if evaluation.shuffle_captions else {"seed": "only shuffle_captions is random in this evaluation"}
    elif not isinstance(evaluation, Matching):
        unused["seed"] = "nothing is random in this evaluation"
    return unused


def _unused_in_retrieval(loaded: LoadedModel, evaluation: Retrieval) -> dict[str, str]:
    """Settings of re-ranking that have no effect. `rerank` 0 is not among them where nothing could be re-ranked."""
    model = model_name(loaded.settings.model)
    if lacks := _lacks_pair_score(loaded):
        rerank_by = {"rerank_by": f"this {model} {lacks}"}
        return rerank_by | ({"rerank": rerank_by["rerank_by"]} if evaluation.rerank else {})
    if lacks := _lacks_similarity(loaded):
        return dict.fromkeys(("rerank", "rerank_by"), f"this {model} {lacks}, and all pairs are scored by fusion")
    return {} if evaluation.rerank else {"rerank_by": "rerank is 0"}


def _losses(loaded: LoadedModel) -> str:
    """What the model was trained with, in brackets."""
    return f"(trained with {', '.join(sorted(loaded.losses)) or 'no objective'})"


def _lacks_image_embedding(loaded: LoadedModel) -> str:
    return "" if isinstance(loaded.settings.model, ImageOnlyModel) else _lacks_embedding(loaded, "images")


def _lacks_text_embedding(loaded: LoadedModel) -> str:
    if isinstance(loaded.settings.model, ImageOnlyModel):
        return "has no text encoder"
    return _lacks_embedding(loaded, "texts")


def _lacks_embedding(loaded: LoadedModel, what: str) -> str:
    if dual_encoder_scorer(loaded) is None:
        return f"was not trained to embed {what} in a joint space of images and texts {_losses(loaded)}"
    return (
        ""
        if isinstance(loaded.model, DualEncoder)
        else f"compares regions with words, and has no vector of whole {what}"
    )


def _lacks_similarity(loaded: LoadedModel) -> str:
    return (
        "" if dual_encoder_scorer(loaded) else f"was not trained with a contrastive or triplet loss {_losses(loaded)}"
    )


def _lacks_pair_score(loaded: LoadedModel) -> str:
    return "" if pair_scorer(loaded) else f"has no trained ITM or ranking head {_losses(loaded)}"


def _lacks_either_score(loaded: LoadedModel) -> str:
    return (
        _lacks_similarity(loaded) and _lacks_pair_score(loaded) and f"has no trained score of pairs {_losses(loaded)}"
    )


_CAPTION_LOSSES = losses_that_train("captioning") | {"caption"}  # "caption": captioning as a task


def _lacks_caption_decoder(loaded: LoadedModel) -> str:
    if not isinstance(loaded.model, TextDecoder):
        return "has no text decoder"
    return "" if loaded.losses & _CAPTION_LOSSES else f"was not trained to generate captions {_losses(loaded)}"


def _lacks_answers(loaded: LoadedModel) -> str:
    return "" if isinstance(loaded.module, ClosedVQA | OpenVQA) else f"was not trained to answer {_losses(loaded)}"


def _lacks_classes(loaded: LoadedModel) -> str:
    return "" if isinstance(loaded.module, Classification) else f"has no trained image classifier {_losses(loaded)}"


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
        _lacks_either_score,
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
        _lacks_caption_decoder,
        "models trained with lm or masked_captions can: diptych pretrain blip.small, coca.small or "
        "beit3.small_captions, or import a BLIP for captioning",
    ),
    "answer": Operation(
        _lacks_answers, "runs of diptych finetune vqa can, and imported ViLT, ALBEF and BLIP for VQA"
    ),
    "classify": Operation(
        _lacks_classes, "runs of diptych finetune classification can, and imported ViTs with a classifier"
    ),
}  # fmt: skip
"""By name: what `VLM.can` answers, and what `UnsupportedOperation` says."""
