"""Which model can be asked for which losses: what it cannot learn is refused before its first step."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych import protocols as verbs
from diptych.config.run import Objectives, Pretrain
from diptych.config.training import Training
from diptych.modules.embeddings import PatchEmbedding, PatchEmbeddingWithoutPosition
from diptych.protocols import ComparisonPool, ContrastiveStep, student_of
from diptych.runs.embedders import reads_regions
from diptych.runs.run_folder import RunError

PATCHES = ("wpa", "grid_distillation", "class_distillation")
"""The losses that read an image's patches, and would not know what to do with regions."""

FEWEST = 2
"""Samples that a loss needs which compares them: one, and another."""

NEEDS: tuple[tuple[str, type, str], ...] = (
    ("itc", verbs.DualEncoder, "contrast"),
    ("itm", verbs.FusionEncoder, "match"),
    ("wpa", verbs.FusionEncoder, ""),
    ("wpa", verbs.PatchEncoder, ""),
    ("grid_distillation", verbs.PatchEncoder, "grid"),
    ("class_distillation", verbs.PatchEncoder, "classes"),
    ("lm", verbs.CausalDecoder, ""),
    ("masked_captions", verbs.CausalFusionEncoder, "captions"),
    ("masked_regions", verbs.FusionEncoder, "regions"),
    ("mim", verbs.MaskedAutoencoder, ""),
    ("triplet", verbs.SimilarityModel, ""),
    ("masked_codes", verbs.MaskedImageEncoder, "codes"),
    ("masked_codes_image_only", verbs.MaskedImageEncoder, "codes"),
    ("mlm_text_only", verbs.UnimodalTextEncoder, "words"),
    ("vqkd", verbs.VectorQuantizer, ""),
)
"""A loss, the verbs it needs, and the head; masked words need more (`_needs`)."""


def check_verbs(run: Pretrain, model: Any) -> None:
    """Raises RunError where the model, as it was built, lacks a verb that one of the run's losses needs."""
    name, lacks = type(model).__name__, model.unsupported() if isinstance(model, verbs.PartlySupported) else {}
    for loss, verb, _ in _needs(run.objectives):
        asked = _verbs(verb)
        if why := next((lacks[v] for v in asked if v in lacks), ""):
            raise RunError(f"{why}, or set objectives.{loss} to 0")
        if missing := ", ".join(sorted(v for v in asked if not hasattr(model, v))):
            raise RunError(f"a {name} cannot learn {loss}: it has no {missing}; set objectives.{loss} to 0")
        if loss in PATCHES and (reads_regions(run) or isinstance(model, verbs.VectorQuantizer)):
            raise RunError(f"{loss} is learned of patches, which this {name} is not shown; set objectives.{loss} to 0")
    words, patches = getattr(model, "dim", 0), getattr(model, "image_dim", 0)
    if run.objectives.wpa and patches not in (0, words):
        raise RunError(f"this {name} has words of {words} numbers and patches of {patches}; set objectives.wpa to 0")
    if run.mixgen and reads_regions(run):
        raise RunError(f"mixgen blends pictures, and this {name} is shown regions; set mixgen to 0")
    if run.objectives.itm and run.objectives.hard_negatives and not run.objectives.itc:
        raise RunError(
            "hard negatives are what contrast finds alike: give objectives.itc a weight, or set hard_negatives False"
        )


def check_heads(chosen: Objectives, model: Any, heads: nn.ModuleDict) -> None:
    """Raises RunError where the model, embedding images as the run does, lacks a head that a loss needs, or patches to hide."""
    name = type(model).__name__
    for loss, _, head in _needs(chosen):
        if head and head not in heads:
            raise RunError(f"a {name} cannot learn {loss}: it has no head {head!r}; set objectives.{loss} to 0")
    hides = chosen.masked_codes or chosen.masked_codes_image_only
    if hides and not isinstance(getattr(model, "patches", None), PatchEmbedding | PatchEmbeddingWithoutPosition):
        raise RunError(
            f'codes are of hidden patches, but what this {name} reads of images is frozen: set embedders.image to "own"'
        )


def check_samples(module: nn.Module, training: Training, ranks: int, queued: int = 0) -> None:
    """Raises RunError where a loss compares samples with one another, but a micro-batch gives each no other.

    Args:
        module: the step that is trained.
        queued: features of earlier samples that contrast compares with, too.
    """
    own = training.batch_size // (training.grad_accum * ranks)
    step = student_of(module)
    found = step.samples_compared(ComparisonPool(own, own * ranks, queued)) if isinstance(step, ContrastiveStep) else {}
    for loss, candidates in found.items():
        if candidates < FEWEST:
            raise RunError(
                f"{loss} compares each sample with others, but a micro-batch has {own} (batch_size {training.batch_size}, grad_accum "
                f"{training.grad_accum}, {ranks} rank{'s' * (ranks > 1)}): give --batch_size {FEWEST * training.grad_accum * ranks} or "
                f"more, a smaller --grad_accum, or set the weight of {loss} to 0"
            )


def compares(module: nn.Module) -> bool:
    """Whether any loss of a step compares samples with one another."""
    step = student_of(module)
    return isinstance(step, ContrastiveStep) and bool(step.samples_compared(ComparisonPool(FEWEST, FEWEST)))


def _needs(chosen: Objectives) -> list[tuple[str, type, str]]:
    """The rows of NEEDS whose loss has a weight."""
    words = verbs.UnimodalTextEncoder if chosen.text_only else verbs.FusionEncoder
    return [row for row in (*NEEDS, ("mlm", words, "words")) if getattr(chosen, row[0])]


def _verbs(protocol: type) -> list[str]:
    """The names that a Protocol asks for."""
    return sorted(
        {name for base in protocol.__mro__ for name in (*vars(base), *vars(base).get("__annotations__", ()))
         if not name.startswith("_")}
    )  # fmt: skip
