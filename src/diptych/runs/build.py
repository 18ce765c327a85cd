"""Training module of a pre-training run: model, heads, objectives, teacher, and initial weights from other runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
from diptych.inference.embedders import input_embeddings, input_image_settings
from diptych.inference.feature_extractors import check_frozen_features, frozen_cnn
from diptych.inference.folder import check_model, read_weights
from diptych.inference.saved_model import RunError, read_config
from diptych.inference.tokenizer import vocabulary_of
from diptych.models import configs
from diptych.models.configs import model_name
from diptych.models.initialize import (
    initialize_image_encoder,
    initialize_text_encoder_from_file,
    initialize_vilt_from_vit,
)
from diptych.models.vilt.model import ViLT
from diptych.modules.heads import ITCHead
from diptych.modules.init import scale_init
from diptych.objectives.definition import Setup, any_needs, definitions, losses_of, needs_of
from diptych.objectives.momentum import MomentumDistillation, Queue
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.vqkd import LEAST_USED
from diptych.runs.check_init import check_image_start, check_same_model, check_text_start
from diptych.runs.check_objectives import check_heads, check_no_leak, check_protocols
from diptych.utils.name_patterns import matches
from diptych.utils.state_dict import named_weights
from diptych.utils.terminal import echo

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
    needs_cnn = guided and any_needs(run.objectives, lambda needs: needs.frozen_cnn)
    teacher = frozen_cnn().with_normalization(input_image_settings(run).mean_std) if needs_cnn else None
    needs_codes = guided and any_needs(run.objectives, lambda needs: needs.visual_tokenizer)
    visual_tokenizer = frozen_tokenizer(run) if needs_codes else None
    grad_cache_size = max((needs.grad_cache_size for needs in needs_of(run.objectives).values()), default=0)
    itc_heads = tuple(name for name in heads if name.startswith("itc"))
    return Pretraining(
        model,
        heads,
        objectives(run, itc_heads),
        statistics,
        run.max_patches or None,
        teacher,
        tokenizer=visual_tokenizer,
        grad_cache_size=grad_cache_size or None,
    )


def heads_of(model: Any, run: Pretrain) -> nn.ModuleDict:
    """Pre-training heads: those of the model that `run.heads` selects, and any others that its objectives need."""
    own: nn.ModuleDict = model.pretraining_heads() if hasattr(model, "pretraining_heads") else nn.ModuleDict()
    heads = nn.ModuleDict({name: head for name, head in own.items() if any(fnmatchcase(name, p) for p in run.heads)})
    for name, settings in run.objectives.present().items():
        definitions()[name].add_heads(settings, model, heads)
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
        RunError: `run.visual_tokenizer` names no usable visual tokenizer, or it has another number of codes than an
            objective's `codebook_size`.
    """
    if not run.visual_tokenizer:
        raise RunError(
            "--visual_tokenizer is empty, and masked image codes need a visual tokenizer: name the run that trained one"
        )
    folder = Path(run.visual_tokenizer)
    trained = read_config(folder)
    if not isinstance(trained.model, configs.VisualTokenizerConfig):
        raise RunError(
            f"--visual_tokenizer {folder}: expected a visual tokenizer, but it contains a {model_name(trained.model)}"
        )
    for name, needs in needs_of(run.objectives).items():
        if needs.codebook_size not in (0, trained.model.num_codes):
            raise RunError(
                f"--visual_tokenizer {folder} has {trained.model.num_codes} codes, but objectives.{name}.codebook_size "
                f"is {needs.codebook_size}: set it to {trained.model.num_codes}"
            )
    check_model(folder, trained)
    model = trained.model.build(input_embeddings(trained))
    load_strict(model, strip_prefix(read_weights(folder), "model."), run.visual_tokenizer)
    patch_size = getattr(run.model, "patch_size", trained.model.patch_size)
    frozen = FrozenTokenizer(
        model, input_image_settings(run).mean_std, input_image_settings(trained).mean_std, patch_size
    )
    if (unused := frozen.unused()) > 1 - LEAST_USED:
        raise RunError(
            f"--visual_tokenizer {folder}: {unused:.0%} of its codes are unused, its codebook has collapsed; train another"
        )
    return frozen


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Freezes the parameters whose names a pattern matches, for example "transformer.blocks.*.attention".

    A pattern after "!" trains what it matches again: ("*", "!head") is a linear probe. Frozen parameters get no
    gradients; their modules stay in training mode (dropout, batch statistics), as in the official code.

    Args:
        patterns: see `utils.name_patterns.matches`; of several that match, the last one counts.

    Raises:
        RunError: a pattern matches nothing.
    """
    for pattern in patterns:
        matched = [p for name, p in model.named_parameters() if matches(name, pattern.removeprefix("!"))]
        if not matched:
            parts = ", ".join(name for name, _ in model.named_children())
            raise RunError(
                f"freeze: no part of the {type(model).__name__} is called {pattern!r}; its parts are {parts} (without "
                "'model.' before them; output heads are not frozen, but left out with --heads)"
            )
        for parameter in matched:
            parameter.requires_grad_(pattern.startswith("!"))


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
    before = read_config(folder)
    if before.embedders == run.embedders:  # else the layers that read frozen features start at their initial weights
        check_frozen_features(before)
    state, model = read_weights(folder), module.get_submodule("model")
    check_same_model(before.model, run.model, str(folder))
    if model_name(before.model) == type(model).__name__:
        return _init_from_same_model(module, resize_state(module, state, getattr(before.model, "grid", None)), folder)
    if isinstance(before.model, configs.ViTConfig) and isinstance(model, ViLT):
        check_image_start(before.model, model, str(folder))
        initialize_vilt_from_vit(model, strip_prefix(state, "model."))
        return [name for name in state if not name.startswith(("model.patches.", "model.blocks.", "model.norm."))]
    raise RunError(
        f"{folder} contains a {model_name(before.model)}, and a {type(model).__name__} cannot be initialised from its "
        f"weights: give --init_from a run of a {type(model).__name__}"
    )


def _init_image_tower(model: nn.Module, folder: str) -> None:
    check_image_start(read_config(Path(folder)).model, model, folder)
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


def objectives(run: Pretrain, itc_heads: tuple[str, ...] = ("itc",)) -> list[Objective]:
    """The losses of a run's objectives, and their metrics.

    Args:
        itc_heads: names of the ITC heads. In-batch hard negatives are sampled by the first one.
    """
    # a model with an unknown vocabulary may be built, for comparison; `tokenizer_of` refuses to train it
    known = vocabulary_of(run) or vocabulary()
    return list(losses_of(run.objectives, Setup(known.size, known.mask, itc_heads)))
