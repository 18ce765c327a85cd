"""Loading of a saved model: the module that config.json describes, with the weights that lie beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.config.tasks import FINETUNED
from diptych.inference.embedders import input_embeddings
from diptych.inference.feature_extractors import check_frozen_features
from diptych.inference.folder import SIZE_MARGIN, check_model, check_module, load_weights, weight_shapes
from diptych.inference.loaded_model import LoadedModel, ModelWithHeads
from diptych.inference.saved_model import RunError, SavedModel, read_config
from diptych.models.configs import ClassifierModel
from diptych.models.importing import ADAPTERS
from diptych.modules.heads import ITCHead, LogScale
from diptych.protocols import student_of
from diptych.runs.finetune import task_module
from diptych.tasks.classification import Classification
from diptych.tasks.definition import Labels
from diptych.tasks.vqa import ClosedVQA
from diptych.utils.state_dict import named_weights, without_weights


def load_model(folder: Path, device: torch.device) -> LoadedModel:
    """The trained model in a run folder, on `device`. Sizes are compared before memory is allocated.

    Raises:
        RunError, WeightsError: weights and config.json do not fit each other, or the frozen features have changed.
    """
    saved = read_config(folder)
    check_frozen_features(saved)
    check_model(folder, saved)
    shapes = weight_shapes(folder)
    check_module(folder, lambda: module_of(saved, shapes))
    module = load_weights(module_of(saved, shapes), folder)
    return LoadedModel(saved, module.to(device).eval(), device, folder)


def module_of(saved: SavedModel, weights: Mapping[str, Tensor]) -> nn.Module:
    """The module that a config describes, with initial weights.

    Args:
        weights: its weights by name, or their shapes on the meta device: which optional parts heads have.

    Raises RunError if the config names a task or heads that there are none of.
    """
    if saved.task == "pretraining":
        model: Any = saved.model.build(input_embeddings(saved))
        return ModelWithHeads(model, _heads(saved, model, weights))
    if saved.imported is not None:
        return _imported_task(saved, saved.imported.system, weights)
    if saved.task not in FINETUNED:
        raise RunError(f"config.task: expected pretraining or one of {', '.join(FINETUNED)}, got {saved.task!r:.60}")
    return task_module(saved, saved.task, saved.options or FINETUNED[saved.task].options(), Labels(saved.labels))


def _imported_task(saved: SavedModel, system: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """The module of a task that an official checkpoint of `system` was trained for."""
    adapter = ADAPTERS.get(system)
    if adapter is None or type(saved.model) is not adapter.config_class:
        raise RunError(
            f"config.imported.system: expected a system whose model is a {type(saved.model).__name__}, got "
            f"{system!r:.60}"
        )
    try:
        module = student_of(adapter.build(asdict(saved.model), saved.task, weights))
    except KeyError as error:  # a weight's name contains that of a head which no module can have
        raise RunError(f"the weights do not fit the task {saved.task!r:.60}: {error.args[0]:.200}") from None
    outputs = len(saved.labels)
    if isinstance(module, ClosedVQA):
        head: Any = module.head
        outputs = head.answers.out_features
    elif isinstance(module, Classification) and isinstance(saved.model, ClassifierModel):
        outputs = saved.model.num_classes
    if len(saved.labels) != outputs:
        raise RunError(f"config.labels: expected {outputs} labels, one for each output, got {len(saved.labels)}")
    return module


def _heads(saved: SavedModel, model: Any, weights: Mapping[str, Tensor]) -> nn.ModuleDict:
    """The pre-training heads: the model's own, an ITC head, or a linear layer that an objective added.

    A linear layer has the sizes of its weights; an ITC head has a scale and a bias of its logits if they are among the
    weights (BLIP's matching has no scale, only SigLIP's loss has the bias).
    """
    own = _own_heads(model, weights)
    heads = {name: _head(name, own, model, weights) for name in saved.heads}
    try:
        return nn.ModuleDict(heads)
    except KeyError as error:  # a name that no module can have
        raise RunError(f"config.heads: {error.args[0]:.200}") from None


def _own_heads(model: Any, weights: Mapping[str, Tensor]) -> nn.ModuleDict:
    """The pre-training heads that the model defines. Raises RunError if they are far larger than all `weights`.

    Also those that the config does not name are built, so `check_module` does not see their sizes.
    """
    if not hasattr(model, "pretraining_heads"):
        return nn.ModuleDict()
    with without_weights():
        size = sum(parameter.numel() for parameter in model.pretraining_heads().parameters())
    stored = sum(tensor.numel() for tensor in weights.values())
    if size > SIZE_MARGIN + 2 * stored:
        raise RunError(
            f"config.model describes heads of {size:,} parameters, but all weights have {stored:,}: they do not fit"
        )
    return model.pretraining_heads()


def _head(name: str, own: nn.ModuleDict, model: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    layer = weights.get(f"heads.{name}.weight")
    if name in own:
        head = own[name]
    elif name == "itc" and hasattr(model, "dim"):
        head = ITCHead(model.dim, model.dim, model.dim, LogScale(), bias=False)
    elif layer is not None and layer.dim() == 2:
        head = nn.Linear(layer.shape[1], layer.shape[0], f"heads.{name}.bias" in weights)
    else:
        raise RunError(f"config.heads: a {type(model).__name__} has no head {name!r:.60}, and the weights have none")
    if isinstance(head, ITCHead):
        if f"heads.{name}.offset" in weights:
            head.use_sigmoid()
        if not any(weight.startswith(f"heads.{name}.scale") for weight in weights):
            del head.scale
    return head


def head_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the pre-training heads among a module's weights."""
    return tuple(dict.fromkeys(name.split(".")[1] for name in named_weights(module) if name.startswith("heads.")))
