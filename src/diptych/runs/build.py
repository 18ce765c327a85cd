"""From a run to the module that is trained, and from other runs to the weights that it begins with.

From a run to the losses that it trains.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diptych.checkpoints.mapping import within
from diptych.checkpoints.positions import refit
from diptych.checkpoints.strict import load_strict
from diptych.config.run import Pretrain
from diptych.config.training import steps_of
from diptych.data.tokenizers.tokenizer import vocabulary
from diptych.encoders.visual_tokenizer import FrozenTokenizer
from diptych.models import configs as settings
from diptych.models.configs import model_name
from diptych.models.initialize import start_image, start_text_from, start_vilt_from_vit
from diptych.models.vilt.model import ViLT
from diptych.models.vit.model import ViT
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
from diptych.objectives.sampling import PairMasking, WordMasking
from diptych.objectives.triplet import TripletLoss
from diptych.objectives.vqkd import LEAST_USED, VQKD, UnusedCodes
from diptych.objectives.wpa import WPA
from diptych.protocols import PatchEncoder
from diptych.runs.compatibility import check_heads, check_verbs
from diptych.runs.embedders import CNN_CELL, image_loader, install_embedders
from diptych.runs.feature_extractors import check_given, frozen_cnn
from diptych.runs.fitting import check_model
from diptych.runs.run_folder import RunError, read_run, read_weights
from diptych.runs.starting import check_image_start, check_text_start
from diptych.runs.tokenizer import vocabulary_of
from diptych.utils.state_dict import named_weights
from diptych.utils.terminal import echo

CNN_CLASSES = 1000
LEFT_BEHIND = ("hidden_patch",)
"""Of a model, what a later stage may lack: the mask token of the stage on images alone."""


def build(run: Pretrain, statistics: Mapping[str, float] | None = None, guided: bool = True) -> Pretraining:
    """The run's model with fresh weights, keyed by its seed, under its objectives; without its teacher, which only training
    needs. `guided` False leaves out the guide and the tokenizer. Raises RunError where the model cannot learn what the run asks of it.
    """
    torch.manual_seed(run.training.seed)
    model: Any = run.model.build()
    check_verbs(run, model)
    heads = heads_of(model, run)
    scale_init(nn.ModuleList([model, heads]), run.init_scale)
    install_embedders(model, run)
    check_heads(run.objectives, model, heads)
    freeze(model, run.freeze)
    asked = run.objectives
    guided_by_cnn = guided and (asked.grid_distillation or asked.class_distillation or asked.vqkd)
    guide = frozen_cnn().with_normalization(image_loader(run).mean_std) if guided_by_cnn else None
    codes = frozen_tokenizer(run) if guided and (asked.masked_codes or asked.masked_codes_image_only) else None
    contrasts = tuple(name for name in heads if name.startswith("contrast"))
    return Pretraining(
        model, heads, objectives(run, contrasts), statistics, run.max_patches or None, guide,
        tokenizer=codes, grad_cache_size=run.grad_cache_size or None,
    )  # fmt: skip


def heads_of(model: Any, run: Pretrain) -> nn.ModuleDict:
    """The model's own, and those that its paper has not but the run's objectives ask for."""
    own: nn.ModuleDict = model.pretraining_heads() if hasattr(model, "pretraining_heads") else nn.ModuleDict()
    heads = nn.ModuleDict({name: head for name, head in own.items() if any(fnmatchcase(name, p) for p in run.heads)})
    asked = run.objectives
    if asked.grid_distillation or asked.class_distillation:
        width = getattr(model, "image_dim", model.dim)
        heads["grid"], heads["classes"] = nn.Linear(width, CNN_CELL), nn.Linear(width, CNN_CLASSES)
    if asked.masked_codes or asked.masked_codes_image_only:
        heads["codes"] = nn.Linear(model.dim, asked.codebook_size).apply(init_transformer)
    if (asked.mlm or asked.mlm_text_only) and "words" not in heads and "captions" in heads:
        heads["words"] = heads["captions"]  # BEiT-3 has one head for all hidden words
    if asked.itc and "contrast" not in heads and isinstance(model, PatchEncoder):
        heads["contrast"] = ITCHead(model.dim, model.dim, model.dim, LogScale(), bias=False)
    if asked.itc_form == "sigmoid":
        for head in heads.values():
            if isinstance(head, ITCHead):
                head.use_sigmoid()
    _check_named(run.heads, [*own, *heads], model)
    return heads


def _check_named(patterns: tuple[str, ...], own: list[str], model: Any) -> None:
    """Raises RunError for a pattern of `heads` that names none of the model's heads; * alone may find none."""
    for pattern in patterns:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in own):
            there = f"its heads are {', '.join(dict.fromkeys(own))}" if own else "it has none of its own"
            raise RunError(
                f"heads: a {type(model).__name__} has no output head called {pattern!r}; {there} (attention heads are "
                "--model.num_heads)"
            )


def frozen_tokenizer(run: Pretrain) -> FrozenTokenizer:
    """The visual tokenizer that the run's codes come from. Raises RunError."""
    if not run.tokenizer:
        raise RunError("codes are a visual tokenizer's: name the run that trained one (tokenizer)")
    before, _ = read_run(Path(run.tokenizer))
    if not isinstance(before.model, settings.VisualTokenizerConfig):
        raise RunError(f"{run.tokenizer} holds a {model_name(before.model)}, not a visual tokenizer")
    if before.model.num_codes != run.objectives.codebook_size:
        raise RunError(f"{run.tokenizer} has {before.model.num_codes} codes: set objectives.codebook_size to it")
    check_model(Path(run.tokenizer), before)
    model = before.model.build()
    install_embedders(model, before)
    load_strict(model, within(read_weights(Path(run.tokenizer)), "model."), run.tokenizer)
    patch = getattr(run.model, "patch_size", before.model.patch_size)
    frozen = FrozenTokenizer(model, image_loader(run).mean_std, image_loader(before).mean_std, patch)
    if (unused := frozen.unused()) > 1 - LEAST_USED:
        raise RunError(
            f"{run.tokenizer}: {unused:.0%} of the tokenizer's codes stand for nothing, its codebook has collapsed; train it anew"
        )
    return frozen


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """The parts that a pattern names ("transformer.blocks.*.attention") learn nothing. Raises RunError for one that names
    none.
    """
    for pattern in patterns:
        named = [p for name, p in model.named_parameters() if _within(name.split("."), pattern.split("."))]
        if not named:
            raise RunError(f"freeze: no part of the {type(model).__name__} is called {pattern!r}")
        for parameter in named:
            parameter.requires_grad_(False)


def _within(name: list[str], pattern: list[str]) -> bool:
    """Whether a parameter lies in the part that a pattern names."""
    head = name[: len(pattern)]
    return len(head) == len(pattern) and all(map(fnmatchcase, head, pattern))


def with_teacher(student: Pretraining, run: Pretrain) -> Pretraining | MomentumDistillation:
    """The student beside its momentum model, where the run has one."""
    teacher = run.teacher
    if not teacher.momentum:
        return student
    queue, scales = None, []
    for name, head in student.heads.items():
        if isinstance(head, ITCHead):
            scales.append(f"heads.{name}.scale")
            if teacher.queue_size:
                queue = Queue(teacher.queue_size, head.image.out_features, identified=True)
    if teacher.queue_size and len(scales) != 1:
        raise RunError(
            f"a queue remembers what one contrast makes, but there are {len(scales)}; set teacher.queue_size to 0"
        )
    without = [*scales, *(["heads.match"] if "match" in student.heads else [])]
    steps = steps_of(teacher.warmup, run.training.steps)
    return MomentumDistillation(student, queue, without, momentum=teacher.momentum, alpha=teacher.alpha, warmup=steps)


def init_from_run(module: Pretraining, run: Pretrain) -> list[str]:
    """Begins with the weights of the run that it starts from: all of a pre-training run of the same model, or a ViT's for a
    ViLT's image side. Parts that an earlier stage did not have (VLMo's experts of both modalities) stay fresh; all that it had
    must have its place, but for heads and LEFT_BEHIND. Before that, its towers may begin with a ViT and a BERT. Gives the names of what
    stays behind. Raises RunError, WeightsError.
    """
    if run.init_image_from:
        if isinstance(image := getattr(module.get_submodule("model"), "image", None), ViT):
            check_image_start(read_run(Path(run.init_image_from))[0].model, image.blocks[0], run.init_image_from)
        start_image(module.get_submodule("model"), within(read_weights(Path(run.init_image_from)), "model."))
    if run.init_text_from:
        check_text_start(Path(run.init_text_from), module.get_submodule("model"))
        _, notes = start_text_from(module.get_submodule("model"), Path(run.init_text_from))
        for note in notes if int(os.environ.get("RANK", "0")) == 0 else ():
            echo(f"{run.init_text_from}: {note}")
    if not run.init_from:
        return []
    folder = Path(run.init_from)
    before, facts = read_run(folder)
    if before.embedders == run.embedders:  # else what reads them begins anew
        check_given(before, facts)
    state, model = read_weights(folder), module.get_submodule("model")
    if model_name(before.model) == type(model).__name__:
        state = refit(module, state, getattr(before.model, "grid", None))
        if state.keys() == named_weights(module).keys():
            load_strict(module, state, str(folder))
            return []
        fresh = named_weights(model)  # other objectives, other heads
        taken = {name: t for name, t in within(state, "model.").items() if name in fresh or name not in LEFT_BEHIND}
        load_strict(model, fresh | taken, str(folder))
        return [name for name in state if name.removeprefix("model.") not in taken]
    elif isinstance(before.model, settings.ViTConfig) and isinstance(model, ViLT):
        check_image_start(before.model, model.transformer.blocks[0], str(folder))
        start_vilt_from_vit(model, within(state, "model."))
        return [name for name in state if not name.startswith(("model.patches.", "model.blocks.", "model.norm."))]
    else:
        raise RunError(f"{folder} holds a {model_name(before.model)}, which a {type(model).__name__} cannot start from")


TARGETS: dict[str, Target] = {"classes": class_target, "features": feature_target, "contrast": ContrastTarget()}
"""What masked regions can be asked for, by its name in recipes."""


def objectives(run: Pretrain, contrasts: tuple[str, ...] = ("contrast",)) -> list[Objective]:
    """The losses whose weight is not 0. `contrasts`: the heads of contrast."""
    chosen = run.objectives
    # a model of another vocabulary may be built, to be compared; `tokenizer_of` refuses to train it
    known = vocabulary_of(run) or vocabulary()
    masking = WordMasking(known.size, known.mask, chosen.mask_rate, chosen.whole_words)
    regions = RegionMasking()
    hiding = PairMasking(masking, regions) if chosen.mask_regions else None
    blocks = BlockMasking(chosen.mim_rate, chosen.min_block)
    beside = regions if chosen.mask_regions else blocks if chosen.masked_codes else None
    hard = HardNegativeITM(
        weight=chosen.itm,
        head=contrasts[0] if contrasts else "",
        uniform_mix=chosen.uniform_mix,
        local_negatives=chosen.local_negatives,
    )
    possible: list[Objective] = [
        ITC(weight=chosen.itc, head_names=contrasts, form=chosen.itc_form),
        hard if chosen.hard_negatives else ITM(weight=chosen.itm, hiding=hiding),
        MLM(masking, weight=chosen.mlm, text_only=chosen.text_only, beside=beside),
        WPA(weight=chosen.wpa),
        GridDistillation(weight=chosen.grid_distillation),
        ClassDistillation(weight=chosen.class_distillation),
        LM(weight=chosen.lm, label_smoothing=chosen.label_smoothing),
        MaskedCaptioning(replace(masking, ends=True), chosen.label_smoothing, weight=chosen.masked_captions),
        MaskedRegions(PairMasking(masking, regions), TARGETS[chosen.region_target], weight=chosen.masked_regions),
        MIM(weight=chosen.mim, ratio=chosen.mim_rate),
        MaskedImageCodes(blocks, weight=chosen.masked_codes, beside=masking),
        MaskedImageCodes(blocks, "masked_codes_image_only", chosen.masked_codes_image_only),
        MLM(replace(masking, rate=chosen.mlm_text_only_rate), "mlm_text_only", chosen.mlm_text_only, text_only=True),
        VQKD(weight=chosen.vqkd),
        TripletLoss(weight=chosen.triplet, margin=chosen.margin, hardest_only=chosen.hardest_only),
    ]
    watched = [UnusedCodes()] if chosen.vqkd else []
    return [o for o in possible if o.weight] + watched
