"""Training module of a pre-training run: model, heads, objectives, teacher, and initial weights from other runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.checkpoints.mapping import strip_prefix
from diptych.checkpoints.positions import resize_state
from diptych.checkpoints.strict import load_strict
from diptych.config.run import Pretrain
from diptych.config.training import steps_of
from diptych.data.tokenizers.tokenizer import vocabulary
from diptych.encoders.visual_tokenizer import FrozenTokenizer
from diptych.models import configs as settings
from diptych.models.configs import model_name
from diptych.models.initialize import (
    initialize_image_encoder,
    initialize_text_encoder_from_file,
    initialize_vilt_from_vit,
)
from diptych.models.vilt.model import ViLT
from diptych.modules.heads import ITCHead, LogScale
from diptych.modules.init import init_transformer, scale_init
from diptych.objectives.cnn_distillation import ClassDistillation, GridDistillation
from diptych.objectives.itc import ITC
from diptych.objectives.itm import ITM, HardNegativeITM
from diptych.objectives.lm import LM
from diptych.objectives.masked_captions import MaskedCaptioning
from diptych.objectives.masked_codes import MaskedImageCodes
from diptych.objectives.masked_regions import ContrastTarget, MaskedRegions, Target, class_target, feature_target
from diptych.objectives.masking import BlockMasking, RegionMasking
from diptych.objectives.mim import MIM
from diptych.objectives.mlm import MLM
from diptych.objectives.momentum import MomentumDistillation, Queue
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.random_choices import PairMasking, WordMasking
from diptych.objectives.triplet import TripletLoss
from diptych.objectives.vqkd import LEAST_USED, VQKD, UnusedCodes
from diptych.objectives.wpa import WPA
from diptych.protocols import PatchEncoder
from diptych.runs.check_init import check_image_start, check_same_model, check_text_start
from diptych.runs.check_objectives import check_heads, check_protocols
from diptych.runs.check_weights import check_model
from diptych.runs.embedders import CNN_CELL, check_no_leak, image_loader, input_embeddings
from diptych.runs.feature_extractors import check_frozen_features, frozen_cnn
from diptych.runs.run_folder import RunError, read_run, read_weights
from diptych.runs.tokenizer import vocabulary_of
from diptych.utils.state_dict import named_weights
from diptych.utils.terminal import echo

CNN_CLASSES = 1000  # ImageNet classes of the teacher CNN
DROPPED_WEIGHTS = ("mask_token",)
"""Model weights that a later stage may lack: the mask token of pre-training on images only."""


def build(run: Pretrain, statistics: Mapping[str, float] | None = None, guided: bool = True) -> Pretraining:
    """The run's model with initial weights drawn from its seed, its heads and its objectives; without momentum model.

    Args:
        statistics: facts of the training data, for the chance losses.
        guided: with the frozen networks that only training needs: the CNN of distillation, and the visual tokenizer.

    Raises:
        RunError: the model does not support one of the objectives, or another setting does not fit it.
    """
    torch.manual_seed(run.training.seed)
    model: Any = run.model.build(input_embeddings(run))
    check_protocols(run, model)
    check_no_leak(run, model)
    heads = heads_of(model, run)
    scale_init(nn.ModuleList([model, heads]), run.init_scale)
    check_heads(run.objectives, model, heads)
    freeze(model, run.freeze)
    config = run.objectives
    needs_cnn = guided and (config.grid_distillation or config.class_distillation or config.vqkd)
    teacher = frozen_cnn().with_normalization(image_loader(run).mean_std) if needs_cnn else None
    needs_codes = guided and (config.masked_codes or config.masked_codes_image_only)
    visual_tokenizer = frozen_tokenizer(run) if needs_codes else None
    itc_heads = tuple(name for name in heads if name.startswith("itc"))
    return Pretraining(
        model,
        heads,
        objectives(run, itc_heads),
        statistics,
        run.max_patches or None,
        teacher,
        tokenizer=visual_tokenizer,
        grad_cache_size=run.grad_cache_size or None,
    )


def heads_of(model: Any, run: Pretrain) -> nn.ModuleDict:
    """Pre-training heads: those of the model that `run.heads` selects, and any others that its objectives need."""
    own: nn.ModuleDict = model.pretraining_heads() if hasattr(model, "pretraining_heads") else nn.ModuleDict()
    heads = nn.ModuleDict({name: head for name, head in own.items() if any(fnmatchcase(name, p) for p in run.heads)})
    config = run.objectives
    if config.grid_distillation or config.class_distillation:
        dim = getattr(model, "image_dim", model.dim)
        heads["grid"], heads["classes"] = nn.Linear(dim, CNN_CELL), nn.Linear(dim, CNN_CLASSES)
    if config.masked_codes or config.masked_codes_image_only:
        heads["codes"] = nn.Linear(model.dim, config.codebook_size).apply(init_transformer)
    if config.itc and "itc" not in heads and isinstance(model, PatchEncoder):
        heads["itc"] = ITCHead(model.dim, model.dim, model.dim, LogScale(), bias=False)
    if config.itc_form == "sigmoid":
        for head in heads.values():
            if isinstance(head, ITCHead):
                head.use_sigmoid()
    _check_patterns(run.heads, [*own, *heads], model)
    return heads


def _check_patterns(patterns: tuple[str, ...], names: list[str], model: Any) -> None:
    """Raises RunError for a pattern of `heads` that matches no head; "*" may match none."""
    for pattern in patterns:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            heads = f"its heads are {', '.join(dict.fromkeys(names))}" if names else "it has none of its own"
            raise RunError(
                f"heads: a {type(model).__name__} has no output head called {pattern!r}; {heads} (for the number of "
                "attention heads set --model.num_heads)"
            )


def frozen_tokenizer(run: Pretrain) -> FrozenTokenizer:
    """The visual tokenizer (VQ-KD) whose codes the run's masked image modeling predicts.

    Raises:
        RunError: `run.tokenizer` names no usable visual tokenizer, or its codes do not fit `objectives.codebook_size`.
    """
    if not run.visual_tokenizer:
        raise RunError(
            "--visual_tokenizer is empty, and masked image codes need a visual tokenizer: name the run that trained one"
        )
    folder = Path(run.visual_tokenizer)
    trained, _ = read_run(folder)
    if not isinstance(trained.model, settings.VisualTokenizerConfig):
        raise RunError(
            f"--visual_tokenizer {folder}: expected a visual tokenizer, but it contains a {model_name(trained.model)}"
        )
    if trained.model.num_codes != run.objectives.codebook_size:
        raise RunError(
            f"--visual_tokenizer {folder} has {trained.model.num_codes} codes, but objectives.codebook_size is "
            f"{run.objectives.codebook_size}: set it to {trained.model.num_codes}"
        )
    check_model(folder, trained)
    model = trained.model.build(input_embeddings(trained))
    load_strict(model, strip_prefix(read_weights(folder), "model."), run.visual_tokenizer)
    patch_size = getattr(run.model, "patch_size", trained.model.patch_size)
    frozen = FrozenTokenizer(model, image_loader(run).mean_std, image_loader(trained).mean_std, patch_size)
    if (unused := frozen.unused()) > 1 - LEAST_USED:
        raise RunError(
            f"--visual_tokenizer {folder}: {unused:.0%} of its codes are unused, its codebook has collapsed; train another"
        )
    return frozen


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Freezes the parameters below every module that a pattern matches, for example "transformer.blocks.*.attention".

    Raises:
        RunError: a pattern matches nothing.
    """
    for pattern in patterns:
        matches = [p for name, p in model.named_parameters() if _matches(name.split("."), pattern.split("."))]
        if not matches:
            raise RunError(f"freeze: no part of the {type(model).__name__} is called {pattern!r}")
        for parameter in matches:
            parameter.requires_grad_(False)


def _matches(name: list[str], pattern: list[str]) -> bool:
    """Whether the pattern matches the first parts of a parameter's name."""
    first = name[: len(pattern)]
    return len(first) == len(pattern) and all(map(fnmatchcase, first, pattern))


def with_teacher(student: Pretraining, run: Pretrain) -> Pretraining | MomentumDistillation:
    """The student with its momentum model, if the run has one (`teacher.momentum` above 0); else only the student."""
    config = run.teacher
    if not config.momentum:
        return student
    queue, scales = None, []
    for name, head in student.heads.items():
        if isinstance(head, ITCHead):
            scales.append(f"heads.{name}.scale")
            if config.queue_size:
                queue = Queue(config.queue_size, head.image.out_features, with_identities=True)
    if config.queue_size and len(scales) != 1:
        raise RunError(
            f"teacher.queue_size is {config.queue_size}, and a queue needs exactly one ITC head, but this run has "
            f"{len(scales)}; set teacher.queue_size to 0"
        )
    without = [*scales, *(["heads.itm"] if "itm" in student.heads else [])]
    warmup = steps_of(config.warmup, run.training.steps)
    return MomentumDistillation(student, queue, without, momentum=config.momentum, alpha=config.alpha, warmup=warmup)


def init_from_run(module: Pretraining, run: Pretrain) -> list[str]:
    """Initialises weights of a pre-training module from other runs, by the run's settings.

    - `init_image_from`: the image tower from a ViT; `init_text_from`: the text tower from a BERT. These come first.
    - `init_from`: all weights from a pre-training run of the same model, or the transformer of a ViLT from a ViT. If
      that run has other heads, only the model. Weights that an earlier stage did not have (VLMo's vision-language
      experts) keep their initial values; all that it had must fit, except heads and `DROPPED_WEIGHTS`.

    Returns:
        Names of the weights of `init_from` that were not used.

    Raises:
        RunError, WeightsError: a run cannot be used for this model, or its weights do not fit.
    """
    if run.init_image_from:
        _init_image_tower(module.get_submodule("model"), run.init_image_from)
    if run.init_text_from:
        _init_text_tower(module.get_submodule("model"), run.init_text_from)
    if not run.init_from:
        return []
    folder = Path(run.init_from)
    before, facts = read_run(folder)
    if before.embedders == run.embedders:  # else the layers that read frozen features start at their initial weights
        check_frozen_features(before, facts)
    state, model = read_weights(folder), module.get_submodule("model")
    check_same_model(before.model, run.model, str(folder))
    if model_name(before.model) == type(model).__name__:
        return _init_from_same_model(module, resize_state(module, state, getattr(before.model, "grid", None)), folder)
    if isinstance(before.model, settings.ViTConfig) and isinstance(model, ViLT):
        check_image_start(before.model, model, str(folder))
        initialize_vilt_from_vit(model, strip_prefix(state, "model."))
        return [name for name in state if not name.startswith(("model.patches.", "model.blocks.", "model.norm."))]
    raise RunError(
        f"{folder} contains a {model_name(before.model)}, and a {type(model).__name__} cannot be initialised from its "
        f"weights: give --init_from a run of a {type(model).__name__}"
    )


def _init_image_tower(model: nn.Module, folder: str) -> None:
    check_image_start(read_run(Path(folder))[0].model, model, folder)
    initialize_image_encoder(model, strip_prefix(read_weights(Path(folder)), "model."))


def _init_text_tower(model: nn.Module, file: str) -> None:
    check_text_start(Path(file), model)
    _, notes = initialize_text_encoder_from_file(model, Path(file))
    for note in notes if int(os.environ.get("RANK", "0")) == 0 else ():
        echo(f"{file}: {note}")


def _init_from_same_model(module: Pretraining, state: Mapping[str, Tensor], folder: Path) -> list[str]:
    """Loads `state` into the module, or only into its model if the heads differ. Names of the weights not used."""
    if state.keys() == named_weights(module).keys():
        load_strict(module, state, str(folder))
        return []
    model = module.get_submodule("model")
    initial = named_weights(model)
    loaded = {
        name: tensor
        for name, tensor in strip_prefix(state, "model.").items()
        if name in initial or name not in DROPPED_WEIGHTS
    }
    load_strict(model, initial | loaded, str(folder))
    return [name for name in state if name.removeprefix("model.") not in loaded]


REGION_TARGETS: dict[str, Target] = {
    "classes": class_target,
    "features": feature_target,
    "nce": ContrastTarget(),
}
"""Targets of masked region modeling, by their names in `objectives.region_target`."""


def objectives(run: Pretrain, itc_heads: tuple[str, ...] = ("itc",)) -> list[Objective]:
    """The objectives of a run: those whose weight is not 0; with VQ-KD also the metric of unused codes.

    Args:
        itc_heads: names of the ITC heads. In-batch hard negatives are sampled by the first one.
    """
    config = run.objectives
    # a model with an unknown vocabulary may be built, for comparison; `tokenizer_of` refuses to train it
    known = vocabulary_of(run) or vocabulary()
    masking = WordMasking(known.size, known.mask, config.mask_rate, config.whole_words)
    regions = RegionMasking()
    pair_masking = PairMasking(masking, regions) if config.mask_regions else None
    blocks = BlockMasking(config.mim_rate, config.min_block)
    image_masking = regions if config.mask_regions else blocks if config.masked_codes else None
    hard_itm = HardNegativeITM(
        weight=config.itm,
        head=itc_heads[0] if itc_heads else "",
        uniform_mix=config.uniform_mix,
        local_negatives=config.local_negatives,
    )
    text_only_masking = replace(masking, rate=config.mlm_text_only_rate)
    possible: list[Objective] = [
        ITC(weight=config.itc, head_names=itc_heads, form=config.itc_form),
        hard_itm if config.hard_negatives else ITM(weight=config.itm, masking=pair_masking),
        MLM(masking, weight=config.mlm, text_only=config.text_only, image_masking=image_masking),
        WPA(weight=config.wpa),
        GridDistillation(weight=config.grid_distillation),
        ClassDistillation(weight=config.class_distillation),
        LM(weight=config.lm, label_smoothing=config.label_smoothing),
        MaskedCaptioning(replace(masking, ends=True), config.label_smoothing, weight=config.masked_captions),
        MaskedRegions(
            PairMasking(masking, regions), REGION_TARGETS[config.region_target], weight=config.masked_regions
        ),
        MIM(weight=config.mim, ratio=config.mim_rate),
        MaskedImageCodes(blocks, weight=config.masked_codes, text_masking=masking),
        MaskedImageCodes(blocks, "masked_codes_image_only", config.masked_codes_image_only),
        MLM(text_only_masking, "mlm_text_only", config.mlm_text_only, text_only=True),
        VQKD(weight=config.vqkd),
        TripletLoss(weight=config.triplet, margin=config.margin, hardest_only=config.hardest_only),
    ]
    metrics = [UnusedCodes()] if config.vqkd else []
    return [objective for objective in possible if objective.weight] + metrics
