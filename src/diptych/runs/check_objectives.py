"""Compatibility of a model with a run's objectives: what cannot be trained is refused before the first step."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych import protocols
from diptych.config.run import Objectives, Pretrain
from diptych.config.training import Training
from diptych.modules.embeddings import PatchEmbedding, PatchEmbeddingWithoutPosition
from diptych.protocols import ComparisonPool, ContrastiveStep, student_of
from diptych.runs.embedders import reads_regions
from diptych.runs.run_folder import RunError

PATCH_OBJECTIVES = ("wpa", "grid_distillation", "class_distillation")
"""Objectives that need image patches; region features have no grid."""

MIN_COMPARED = 2
"""Samples that a loss needs if it compares samples with one another."""

NEEDS: tuple[tuple[str, type, str], ...] = (
    ("itc", protocols.DualEncoder, "itc"),
    ("itm", protocols.FusionEncoder, "itm"),
    ("wpa", protocols.FusionEncoder, ""),
    ("wpa", protocols.PatchEncoder, ""),
    ("grid_distillation", protocols.PatchEncoder, "grid"),
    ("class_distillation", protocols.PatchEncoder, "classes"),
    ("lm", protocols.CausalDecoder, ""),
    ("masked_captions", protocols.CausalFusionEncoder, "mlm"),
    ("masked_regions", protocols.FusionEncoder, "regions"),
    ("mim", protocols.MaskedAutoencoder, ""),
    ("triplet", protocols.SimilarityModel, ""),
    ("masked_codes", protocols.MaskedImageEncoder, "codes"),
    ("masked_codes_image_only", protocols.MaskedImageEncoder, "codes"),
    ("mlm_text_only", protocols.UnimodalTextEncoder, "mlm"),
    ("vqkd", protocols.VectorQuantizer, ""),
)
"""(objective, protocol of the model, name of the head) that an objective needs; for MLM see `_needs`."""

CAPABILITIES: dict[type, tuple[str, str]] = {
    protocols.DualEncoder: ("separate image and text features", "clip, vsepp, albef, vlmo, blip, coca, beit3"),
    protocols.FusionEncoder: (
        "fusion of text and image",
        "vilbert, visualbert, vilt, albef, vlmo, blip, coca, beit3",
    ),
    protocols.PatchEncoder: ("tokens of image patches", ""),
    protocols.CausalDecoder: ("autoregressive text decoder", "blip, coca"),
    protocols.CausalFusionEncoder: ("causal form of its fusion", "beit3"),
    protocols.MaskedAutoencoder: ("decoder from visible patches to pixels", "mae"),
    protocols.SimilarityModel: ("similarity of its own", "vsepp, scan"),
    protocols.MaskedImageEncoder: ("encoder of masked images", "vlmo, beit3"),
    protocols.UnimodalTextEncoder: ("text encoder that runs without an image", "vlmo, blip, beit3"),
    protocols.VectorQuantizer: ("codebook", ""),
}
"""Each protocol in words, and the systems whose models have it, if they are worth naming in an error."""


def check_protocols(run: Pretrain, model: Any) -> None:
    """Raises RunError if the model, with its settings, lacks a method that one of the run's objectives needs."""
    name = type(model).__name__
    unsupported = model.unsupported() if isinstance(model, protocols.PartlySupported) else {}
    for objective, protocol, _ in _needs(run.objectives):
        methods = _methods(protocol)
        if reason := next((unsupported[method] for method in methods if method in unsupported), ""):
            raise RunError(f"{reason}, or set objectives.{objective} to 0")
        if not all(hasattr(model, method) for method in methods):
            capability, systems = CAPABILITIES[protocol]
            others = f" ({systems} have one)" if systems else ""
            raise RunError(
                f"a {name} cannot be trained with {objective}: it has no {capability}{others}; "
                f"set objectives.{objective} to 0"
            )
        if objective in PATCH_OBJECTIVES and (reads_regions(run) or isinstance(model, protocols.VectorQuantizer)):
            raise RunError(
                f"{objective} needs image patches, and this {name} has none; set objectives.{objective} to 0"
            )
    text_dim, image_dim = getattr(model, "dim", 0), getattr(model, "image_dim", 0)
    if run.objectives.wpa and image_dim not in (0, text_dim):
        raise RunError(
            f"wpa needs text and image states of one dimension, but this {name} has text dim {text_dim} != image dim "
            f"{image_dim}; set objectives.wpa to 0"
        )
    if run.mixgen and reads_regions(run):
        raise RunError(f"mixgen blends pixels, and this {name} reads region features; set mixgen to 0")
    if run.objectives.itm and run.objectives.hard_negatives and not run.objectives.itc:
        raise RunError(
            "hard negatives of itm are sampled by itc similarity, but objectives.itc is 0: set it above 0, or "
            "objectives.hard_negatives to False"
        )


def check_heads(config: Objectives, model: Any, heads: nn.ModuleDict) -> None:
    """Raises RunError if the model lacks a head or the patches to mask."""
    name = type(model).__name__
    for objective, _, head in _needs(config):
        if head and head not in heads:
            raise RunError(
                f"a {name} cannot be trained with {objective}: it has no head {head!r}; set objectives.{objective} to 0"
            )
    masks_patches = config.masked_codes or config.masked_codes_image_only
    own_patches = PatchEmbedding | PatchEmbeddingWithoutPosition
    if masks_patches and not isinstance(getattr(model, "patches", None), own_patches):
        raise RunError(
            f"masked image codes mask the model's own patch embeddings, and this {name} has frozen image features: set "
            'embedders.image to "own"'
        )


def check_samples(module: nn.Module, training: Training, ranks: int, queued: int = 0) -> None:
    """Raises RunError if a loss compares samples with one another but a micro-batch has only one.

    Args:
        module: the training step.
        ranks: number of ranks.
        queued: features in the queue, which ITC compares with too.
    """
    own = training.batch_size // (training.grad_accum * ranks)
    step = student_of(module)
    pool = ComparisonPool(own, own * ranks, queued)
    candidates = step.samples_compared(pool) if isinstance(step, ContrastiveStep) else {}
    for loss, number in candidates.items():
        if number < MIN_COMPARED:
            raise RunError(
                f"{loss} compares each sample with others, but a micro-batch has {own} (batch_size "
                f"{training.batch_size}, grad_accum {training.grad_accum}, {ranks} rank{'s' * (ranks > 1)}): give "
                f"--batch_size {MIN_COMPARED * training.grad_accum * ranks} or more, a smaller --grad_accum, or set "
                f"the weight of {loss} to 0"
            )


def compares_samples(module: nn.Module) -> bool:
    """Whether any loss of a training step compares samples with one another."""
    step = student_of(module)
    return isinstance(step, ContrastiveStep) and bool(step.samples_compared(ComparisonPool(MIN_COMPARED, MIN_COMPARED)))


def _needs(config: Objectives) -> list[tuple[str, type, str]]:
    """The rows of `NEEDS` of objectives whose weight is not 0; MLM needs a text encoder without images, or fusion."""
    mlm = protocols.UnimodalTextEncoder if config.text_only else protocols.FusionEncoder
    return [row for row in (*NEEDS, ("mlm", mlm, "mlm")) if getattr(config, row[0])]


def _methods(protocol: type) -> list[str]:
    """Names of the methods and attributes that a Protocol declares."""
    names: set[str] = set()
    for base in protocol.__mro__:
        names |= {*vars(base), *vars(base).get("__annotations__", ())}
    return sorted(name for name in names if not name.startswith("_"))
