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
from diptych.config.training import share
from diptych.data.tokenizers.tokenizer import vocabulary
from diptych.encoders.visual_tokenizer import FrozenTokenizer
from diptych.models import configs as settings
from diptych.models.initialize import start_image, start_text_from, start_vilt_from_vit
from diptych.models.vilt.model import ViLT
from diptych.models.vit.model import ViT
from diptych.modules.heads import Contrast, LogScale
from diptych.modules.init import init_transformer, widen
from diptych.objectives.cnn_distillation import ClassImitation, GridImitation
from diptych.objectives.itc import ImageTextContrast
from diptych.objectives.itm import HardMatching, ImageTextMatching
from diptych.objectives.lm import NextWords
from diptych.objectives.masked_captions import MaskedCaptions
from diptych.objectives.masked_codes import MaskedCodes
from diptych.objectives.masked_regions import ByContrast, MaskedRegions, Target, by_class, by_feature
from diptych.objectives.masking import BlockMasking, RegionMasking
from diptych.objectives.mim import MaskedPixels
from diptych.objectives.mlm import MaskedWords
from diptych.objectives.momentum import Momentum, Queue
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.sampling import Hiding, Masking
from diptych.objectives.triplet import Hinge
from diptych.objectives.vqkd import LEAST_USED, CodedFeatures, UnusedCodes
from diptych.objectives.wpa import WordPatchAlignment
from diptych.protocols import EncodesPatches
from diptych.runs.compatibility import check_heads, check_verbs
from diptych.runs.embedders import CNN_CELL, exchange, pictures
from diptych.runs.feature_extractors import check_given, frozen_cnn
from diptych.runs.fitting import check_model
from diptych.runs.run_folder import RunError, read_run, read_weights
from diptych.runs.starting import check_image_start, check_text_start
from diptych.runs.tokenizer import vocabulary_of
from diptych.utils.state_dict import weights
from diptych.utils.terminal import say

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
    widen(nn.ModuleList([model, heads]), run.widen)
    exchange(model, run)
    check_heads(run.objectives, model, heads)
    freeze(model, run.freeze)
    asked = run.objectives
    guided_by_cnn = guided and (asked.grid or asked.classes or asked.features)
    guide = frozen_cnn().reading(pictures(run).normalisation) if guided_by_cnn else None
    codes = frozen_tokenizer(run) if guided and (asked.codes or asked.codes_alone) else None
    contrasts = tuple(name for name in heads if name.startswith("contrast"))
    return Pretraining(
        model, heads, objectives(run, contrasts), statistics, run.most_patches or None, guide,
        tokenizer=codes, chunk=run.chunk or None,
    )  # fmt: skip


def heads_of(model: Any, run: Pretrain) -> nn.ModuleDict:
    """The model's own, and those that its paper has not but the run's objectives ask for."""
    own: nn.ModuleDict = model.heads() if hasattr(model, "heads") else nn.ModuleDict()
    heads = nn.ModuleDict({name: head for name, head in own.items() if any(fnmatchcase(name, p) for p in run.heads)})
    asked = run.objectives
    if asked.grid or asked.classes:
        width = getattr(model, "image_width", model.width)
        heads["grid"], heads["classes"] = nn.Linear(width, CNN_CELL), nn.Linear(width, CNN_CLASSES)
    if asked.codes or asked.codes_alone:
        heads["codes"] = nn.Linear(model.width, asked.codebook).apply(init_transformer)
    if (asked.mlm or asked.mlm_alone) and "words" not in heads and "captions" in heads:
        heads["words"] = heads["captions"]  # BEiT-3 has one head for all hidden words
    if asked.itc and "contrast" not in heads and isinstance(model, EncodesPatches):
        heads["contrast"] = Contrast(model.width, model.width, model.width, LogScale(), bias=False)
    if asked.contrast_form == "sigmoid":
        for head in heads.values():
            if isinstance(head, Contrast):
                head.judging_pairs()
    _check_named(run.heads, [*own, *heads], model)
    return heads


def _check_named(patterns: tuple[str, ...], own: list[str], model: Any) -> None:
    """Raises RunError for a pattern of `heads` that names none of the model's heads; * alone may find none."""
    for pattern in patterns:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in own):
            there = f"its heads are {', '.join(dict.fromkeys(own))}" if own else "it has none of its own"
            raise RunError(
                f"heads: a {type(model).__name__} has no output head called {pattern!r}; {there} (attention heads are "
                "--model.heads)"
            )


def frozen_tokenizer(run: Pretrain) -> FrozenTokenizer:
    """The visual tokenizer that the run's codes come from. Raises RunError."""
    if not run.tokenizer:
        raise RunError("codes are a visual tokenizer's: name the run that trained one (tokenizer)")
    before, _ = read_run(Path(run.tokenizer))
    if not isinstance(before.model, settings.VisualTokenizer):
        raise RunError(f"{run.tokenizer} holds a {type(before.model).__name__}, not a visual tokenizer")
    if before.model.codes != run.objectives.codebook:
        raise RunError(f"{run.tokenizer} has {before.model.codes} codes: set objectives.codebook to it")
    check_model(Path(run.tokenizer), before)
    model = before.model.build()
    exchange(model, before)
    load_strict(model, within(read_weights(Path(run.tokenizer)), "model."), run.tokenizer)
    patch = getattr(run.model, "patch", before.model.patch)
    frozen = FrozenTokenizer(model, pictures(run).normalisation, pictures(before).normalisation, patch)
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


def taught(student: Pretraining, run: Pretrain) -> Pretraining | Momentum:
    """The student beside its momentum model, where the run has one."""
    teacher = run.teacher
    if not teacher.momentum:
        return student
    queue, scales = None, []
    for name, head in student.heads.items():
        if isinstance(head, Contrast):
            scales.append(f"heads.{name}.scale")
            if teacher.queue:
                queue = Queue(teacher.queue, head.image.out_features, identified=True)
    if teacher.queue and len(scales) != 1:
        raise RunError(
            f"a queue remembers what one contrast makes, but there are {len(scales)}; set teacher.queue to 0"
        )
    without = [*scales, *(["heads.match"] if "match" in student.heads else [])]
    steps = share(teacher.warmup, run.training.steps)
    return Momentum(student, queue, without, momentum=teacher.momentum, alpha=teacher.alpha, warmup=steps)


def start(module: Pretraining, run: Pretrain) -> list[str]:
    """Begins with the weights of the run that it starts from: all of a pre-training run of the same model, or a ViT's for a
    ViLT's image side. Parts that an earlier stage did not have (VLMo's experts of both modalities) stay fresh; all that it had
    must have its place, but for heads and LEFT_BEHIND. Before that, its towers may begin with a ViT and a BERT. Gives the names of what
    stays behind. Raises RunError, WeightsError.
    """
    if run.start_image:
        if isinstance(image := getattr(module.get_submodule("model"), "image", None), ViT):
            check_image_start(read_run(Path(run.start_image))[0].model, image.blocks[0], run.start_image)
        start_image(module.get_submodule("model"), within(read_weights(Path(run.start_image)), "model."))
    if run.start_text:
        check_text_start(Path(run.start_text), module.get_submodule("model"))
        _, notes = start_text_from(module.get_submodule("model"), Path(run.start_text))
        for note in notes if int(os.environ.get("RANK", "0")) == 0 else ():
            say(f"{run.start_text}: {note}")
    if not run.start:
        return []
    folder = Path(run.start)
    before, facts = read_run(folder)
    if before.embed == run.embed:  # else what reads them begins anew
        check_given(before, facts)
    state, model = read_weights(folder), module.get_submodule("model")
    if type(before.model).__name__ == type(model).__name__:
        state = refit(module, state, getattr(before.model, "grid", None))
        if state.keys() == weights(module).keys():
            load_strict(module, state, str(folder))
            return []
        fresh = weights(model)  # other objectives, other heads
        taken = {name: t for name, t in within(state, "model.").items() if name in fresh or name not in LEFT_BEHIND}
        load_strict(model, fresh | taken, str(folder))
        return [name for name in state if name.removeprefix("model.") not in taken]
    elif isinstance(before.model, settings.ViT) and isinstance(model, ViLT):
        check_image_start(before.model, model.transformer.blocks[0], str(folder))
        start_vilt_from_vit(model, within(state, "model."))
        return [name for name in state if not name.startswith(("model.patches.", "model.blocks.", "model.norm."))]
    else:
        raise RunError(
            f"{folder} holds a {type(before.model).__name__}, which a {type(model).__name__} cannot start from"
        )


TARGETS: dict[str, Target] = {"classes": by_class, "features": by_feature, "contrast": ByContrast()}
"""What masked regions can be asked for, by its name in recipes."""


def objectives(run: Pretrain, contrasts: tuple[str, ...] = ("contrast",)) -> list[Objective]:
    """The losses whose weight is not 0. `contrasts`: the heads of contrast."""
    chosen = run.objectives
    # a model of another vocabulary may be built, to be compared; `tokenizer_of` refuses to train it
    known = vocabulary_of(run) or vocabulary()
    masking = Masking(known.size, known.mask, chosen.mask_rate, chosen.whole_words)
    regions = RegionMasking()
    hiding = Hiding(masking, regions) if chosen.hide_regions else None
    blocks = BlockMasking(chosen.patch_rate, chosen.block_least)
    beside = regions if chosen.hide_regions else blocks if chosen.codes else None
    hard = HardMatching(
        weight=chosen.itm, head=contrasts[0] if contrasts else "", even=chosen.even, in_rank=chosen.in_rank
    )
    possible: list[Objective] = [
        ImageTextContrast(weight=chosen.itc, heads=contrasts, form=chosen.contrast_form),
        hard if chosen.hard_negatives else ImageTextMatching(weight=chosen.itm, hiding=hiding),
        MaskedWords(masking, weight=chosen.mlm, alone=chosen.alone, beside=beside),
        WordPatchAlignment(weight=chosen.wpa),
        GridImitation(weight=chosen.grid),
        ClassImitation(weight=chosen.classes),
        NextWords(weight=chosen.lm, smoothing=chosen.smoothing),
        MaskedCaptions(replace(masking, ends=True), chosen.smoothing, weight=chosen.captions),
        MaskedRegions(Hiding(masking, regions), TARGETS[chosen.region_target], weight=chosen.regions),
        MaskedPixels(weight=chosen.mim, ratio=chosen.patch_rate),
        MaskedCodes(blocks, weight=chosen.codes, beside=masking),
        MaskedCodes(blocks, "codes_alone", chosen.codes_alone),
        MaskedWords(replace(masking, rate=chosen.alone_rate), "mlm_alone", chosen.mlm_alone, alone=True),
        CodedFeatures(weight=chosen.features),
        Hinge(weight=chosen.hinge, margin=chosen.margin, hardest=chosen.hardest),
    ]
    watched = [UnusedCodes()] if chosen.features else []
    return [o for o in possible if o.weight] + watched
