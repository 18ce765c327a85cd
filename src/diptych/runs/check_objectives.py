"""Compatibility of a model with a run's objectives: what cannot be trained is refused before the first step."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych import protocols
from diptych.config.objectives import Objectives
from diptych.config.run import Pretrain
from diptych.config.training import Training
from diptych.inference.embedders import reads_regions
from diptych.inference.saved_model import RunError
from diptych.models.configs import model_name
from diptych.modules.embeddings import PatchEmbedding, PatchEmbeddingWithoutPosition
from diptych.modules.frozen_text import FrozenTextEmbedding
from diptych.objectives.definition import Needs, any_needs, needs_of
from diptych.protocols import ComparisonPool, ContrastiveStep, student_of

MIN_COMPARED = 2
"""Samples that a loss needs if it compares samples with one another."""

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
    """Raises RunError if the model, with its settings, lacks what one of the run's objectives needs of it."""
    for name, needs in needs_of(run.objectives).items():
        _check_methods(name, needs, model)
        _check_states(name, needs, model, reads_regions(run))
        if needs.other and needs.other.name not in run.objectives.present():
            other, why, alternative = needs.other
            raise RunError(f"{why}, but objectives.{other} is none: set it to default, or objectives.{alternative}")
    if run.mixgen and reads_regions(run):
        raise RunError(f"mixgen blends pixels, and this {type(model).__name__} reads region features; set mixgen to 0")


def check_no_leak(run: Pretrain, model: nn.Module) -> None:
    """Raises RunError if a causal objective would read bidirectional MiniLM features.

    It does if the model embeds words itself; a decoder beside a whole frozen text embedding has its own word
    embeddings.
    """
    causal = any_needs(run.objectives, lambda needs: needs.causal)
    reads_words = any(isinstance(part, FrozenTextEmbedding) for part in model.modules())
    if causal and run.embedders.text == "minilm" and reads_words:
        raise RunError(
            f"{model_name(run.model)} decodes autoregressively, and bidirectional MiniLM features would leak future "
            'tokens: set embedders.text to "minilm_causal" (causal mask) or "own"'
        )


def _check_methods(name: str, needs: Needs, model: Any) -> None:
    """Raises RunError if the model lacks, or was built without, a method that objective `name` needs."""
    unsupported = model.unsupported() if isinstance(model, protocols.PartlySupported) else {}
    for protocol in needs.model:
        methods = _methods(protocol)
        if reason := next((unsupported[method] for method in methods if method in unsupported), ""):
            raise RunError(f"{reason}, or set objectives.{name} to none")
        if missing := [method for method in methods if not hasattr(model, method)]:
            capability, systems = CAPABILITIES.get(protocol, (missing[0], ""))
            others = f" ({systems} have one)" if systems else ""
            raise RunError(
                f"a {type(model).__name__} cannot be trained with {name}: it has no {capability}{others}; "
                f"set objectives.{name} to none"
            )


def _check_states(name: str, needs: Needs, model: Any, regions: bool) -> None:
    """Raises RunError if the model's image input, or the dimensions of its states, do not fit objective `name`.

    Args:
        regions: whether the model's image input is region features.
    """
    name_of_model, remedy = type(model).__name__, f"set objectives.{name} to none"
    if needs.patch_grid and (regions or isinstance(model, protocols.VectorQuantizer)):
        raise RunError(f"{name} needs image patches, and this {name_of_model} has none; {remedy}")
    if needs.regions and not regions:
        raise RunError(f"{name} masks detected regions, and this {name_of_model} reads pixels; {remedy}")
    text_dim, image_dim = getattr(model, "dim", 0), getattr(model, "image_dim", 0)
    if needs.equal_dims and image_dim not in (0, text_dim):
        raise RunError(
            f"{name} needs text and image states of one dimension, but this {name_of_model} has text dim {text_dim} != "
            f"image dim {image_dim}; {remedy}"
        )


def check_heads(config: Objectives, model: Any, heads: nn.ModuleDict) -> None:
    """Raises RunError if the model lacks a head or the patches to mask."""
    name_of_model = type(model).__name__
    own_patches = PatchEmbedding | PatchEmbeddingWithoutPosition
    for name, needs in needs_of(config).items():
        if needs.head and needs.head not in heads:
            raise RunError(
                f"a {name_of_model} cannot be trained with {name}: it has no head {needs.head!r}; "
                f"set objectives.{name} to none"
            )
        if needs.masks_patches and not isinstance(getattr(model, "patches", None), own_patches):
            raise RunError(
                f"{name} masks the model's own patch embeddings, and this {name_of_model} has frozen image features: set "
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
                f"objectives.{loss} to none"
            )


def compares_samples(module: nn.Module) -> bool:
    """Whether any loss of a training step compares samples with one another."""
    step = student_of(module)
    return isinstance(step, ContrastiveStep) and bool(step.samples_compared(ComparisonPool(MIN_COMPARED, MIN_COMPARED)))


def _methods(protocol: type) -> list[str]:
    """Names of the methods and attributes that a Protocol declares."""
    names: set[str] = set()
    for base in protocol.__mro__:
        names |= {*vars(base), *vars(base).get("__annotations__", ())}
    return sorted(name for name in names if not name.startswith("_"))
