"""Checks that a model computes with its initial weights as the model did that they were trained in.

Weight shapes show neither the number of attention heads, nor activations, eps, token ids or forms of attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from diptych.checkpoints.huggingface.folder import CONFIG_FILE, read_json_object
from diptych.checkpoints.huggingface.rules import apply
from diptych.checkpoints.strict import differences_beyond_shapes
from diptych.config.run import TrainingRun
from diptych.config.validation import shown
from diptych.inference.saved_model import RunError, read_config
from diptych.inference.tokenizer import vocabulary_of
from diptych.models.configs import ImageOnlyModel, Model, ViTConfig, model_name
from diptych.models.huggingface.keys import BERT
from diptych.models.initialize import first_image_block, first_text_block
from diptych.modules.block import activation_named

OLD_BERT_KEYS = {"num_attention_heads", "hidden_act", "type_vocab_size"}
"""Keys of a BERT's config.json, by which old ones, without a model_type, are recognised."""
TRAINING_ONLY = ("dropout", "drop_path", "layer_scale", "decay", "patience")
"""Settings of models that change training, or initial weights, but no output of trained weights."""
HEADS = "num_heads"
"""The end of the names of head counts. Query, key and value layers of one width fit any count that divides it."""
RESIZED = ("grid",)
"""Settings that may differ because position embeddings are resized."""


def check_same_model(source: Model, model: Model, where: str, regroup: bool = False) -> list[str]:
    """Checks the settings that weight shapes do not show, for a run initialised from a run of the same system.

    Configs of other systems pass: they are refused, or compared by `check_image_start`, elsewhere.

    Args:
        source: the settings of the model that the weights were trained in.
        model: the settings of the model that they initialise.
        where: names the source in the error.
        regroup: numbers of attention heads may differ: the same projections are then split into other heads.

    Returns:
        What differs, for printing: "heads regrouped: coattention_num_heads 8 -> 2".

    Raises:
        RunError: a setting differs, apart from TRAINING_ONLY and RESIZED, and head counts with `regroup`.
    """
    if type(source) is not type(model):
        return []
    notes: list[str] = []
    for name, (own, theirs) in differences_beyond_shapes(model, source).items():
        if regroup and name.endswith(HEADS):
            notes.append(f"heads regrouped: {name} {shown(theirs)} -> {shown(own)}")
        elif name in TRAINING_ONLY:
            notes.append(f"{name} {shown(theirs)} -> {shown(own)}")
        elif name not in RESIZED:
            raise RunError(
                f"{where} holds weights of a {model_name(source)} with {name} {theirs!r}, but the model that they "
                f"initialise has {own!r}, which computes something else: set --model.{name} {shown(theirs)}"
            )
    return notes


def check_same_vocabulary(run: TrainingRun) -> None:
    """Raises RunError if a run's vocabulary is not that of the run it starts from, whose word embeddings it takes."""
    if not run.init_from or isinstance(run.model, ImageOnlyModel):
        return
    before = read_config(Path(run.init_from))
    if isinstance(before.model, ImageOnlyModel):
        return
    known, trained = vocabulary_of(run), vocabulary_of(before)
    if known and trained and known.tokens != trained.tokens:
        advice = f"give --vocabulary {before.vocabulary}" if before.vocabulary else "give no --vocabulary"
        raise RunError(
            f"{run.init_from} learned with the vocabulary {trained.name}, but this run has {known.name}: {advice}"
        )


def check_image_start(source: Any, model: nn.Module, where: str) -> None:
    """Checks heads, activation and eps of the image blocks that a ViT initialises.

    Configs of other models pass: they are refused elsewhere.

    Args:
        source: the ViT's settings.
        where: names the source in the error.

    Raises:
        RunError: they differ. WeightsError: the model has no blocks that a ViT initialises.
    """
    if isinstance(source, ViTConfig):
        _check_equal(first_image_block(model), source.num_heads, source.activation, source.eps, where)


def check_text_start(checkpoint: Path, model: nn.Module) -> None:
    """The same check for a BERT, if a config.json lies beside its weights. Raises RunError, WeightsError."""
    file = checkpoint.parent / CONFIG_FILE
    values = read_json_object(file) if file.is_file() else {}
    if values.get("model_type", "bert" if values.keys() >= OLD_BERT_KEYS else None) != "bert":
        return
    settings, _ = apply(BERT, values, f"{file}: ")
    block = first_text_block(model)
    _check_equal(block, settings["num_heads"], settings["activation"], settings["eps"], str(file))


def _check_equal(block: nn.Module, num_heads: int, activation: str, eps: float, where: str) -> None:
    """Raises RunError if the block has another number of attention heads, activation or eps of its LayerNorms."""
    parts: list[Any] = list(block.modules())
    own_heads = next(part.num_heads for part in parts if hasattr(part, "num_heads"))
    own_activation = next(part.activation for part in parts if hasattr(part, "activation"))
    own_eps = next(part.eps for part in parts if isinstance(part, nn.LayerNorm))
    owner = "but the model that it initialises has"
    advice = "set the model's, or import the weights with that of the model, where they were trained so"
    if own_heads != num_heads:
        raise RunError(f"{where} has {num_heads} attention heads, {owner} {own_heads}: {advice}")
    if repr(activation_named(activation)) != repr(own_activation):
        raise RunError(f"{where} has the activation {activation}, {owner} {own_activation}: {advice}")
    if own_eps != eps:
        raise RunError(f"{where} has the LayerNorm eps {eps:g}, {owner} {own_eps:g}: {advice}")
