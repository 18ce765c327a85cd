"""Initialisation of a vision-language model from unimodal weights: text layers from a BERT, image layers from a ViT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from diptych.checkpoints.bert import LAYER, TEXT_EMBEDDING
from diptych.checkpoints.mapping import KeyMapping, prefixed
from diptych.checkpoints.positions import resize_positions
from diptych.checkpoints.read import WeightsError, load_all_state_dicts
from diptych.checkpoints.strict import check_fit, load_strict
from diptych.checkpoints.wrappers import unwrap
from diptych.models.albef.model import ALBEF
from diptych.models.blip.model import BLIP
from diptych.models.vilbert.model import ViLBERT
from diptych.models.vilt.model import ViLT
from diptych.models.visualbert.model import VisualBERT
from diptych.models.vlmo.model import VLMo
from diptych.modules.embeddings import PatchEmbedding
from diptych.modules.position import Resize, resize_bilinear
from diptych.utils.state_dict import named_weights

CLASSIFIER = ("head.", "representation.")  # a ViT's classifier and the hidden layer before it, which are not loaded
BERT_EMBEDDING = "embeddings.word_embeddings.weight"  # identifies a BERT
SEGMENT = {"token_type_embeddings.weight": "segment.weight"}


def initialize_vilt_from_vit(vilt: ViLT, vit: Mapping[str, Tensor]) -> list[str]:
    """Initialises ViLT's patch embedding, blocks and final norm from a ViT (our names), as in section 4.1 of the paper.

    Text embeddings, modality types and pooler are unchanged; a square position grid of another size is resized.

    Returns:
        The names that were loaded.

    Raises:
        WeightsError: weights that do not fit; the message names them.
    """
    loaded = {
        name if name.startswith("patches.") else f"transformer.{name}": tensor
        for name, tensor in vit.items()
        if not name.startswith(CLASSIFIER)
    }
    needed = [n for n in vilt.state_dict() if n.startswith(("patches.", "transformer.blocks.", "transformer.norm."))]
    _check_complete(loaded, needed, "transformer.")
    loaded["patches.position"] = resize_to_grid(loaded["patches.position"], vilt.patches.grid, resize_bilinear)
    load_strict(vilt, vilt.state_dict() | loaded, "the ViT to initialise from")
    return list(loaded)


def _check_complete(loaded: Mapping[str, Tensor], needed: list[str], prefix: str = "") -> None:
    """Raises WeightsError, which names weights without `prefix`, if a needed weight is missing."""
    missing = [name.removeprefix(prefix) for name in needed if name not in loaded]
    if missing:
        raise WeightsError(f"the ViT to initialise from lacks {missing[0]}; is it another model's?")


def initialize_vlmo_from_vit(vlmo: VLMo, vit: Mapping[str, Tensor]) -> list[str]:
    """Initialises VLMo's patch embedding, attention, vision experts and final norm from a ViT's (our names).

    This is VLMo's stage of training on images only; everything else is unchanged. Except for the modality embedding,
    the result computes the same as the ViT: the bias of keys, which VLMo lacks, adds the same to all scores of a query.

    Differs: the paper initialises from BEiT, whose relative positions and LayerScale a ViT lacks, so this is for models
    with absolute positions (base-plus).

    Returns:
        The names that were loaded.

    Raises:
        WeightsError: the model has relative positions, or weights do not fit.
    """
    if not isinstance(vlmo.patches, PatchEmbedding):
        raise WeightsError(
            "a VLMo with relative positions cannot be initialised from a ViT, which has absolute positions"
        )
    loaded: dict[str, Tensor] = {}
    for name, tensor in vit.items():
        if name.startswith(CLASSIFIER):
            continue
        ours = name if name.startswith("patches.") else f"transformer.{name}"
        ours = ours.replace(".norm1.", ".norm.").replace(".norm2.", ".modality_ffn.image.norm.")
        ours = ours.replace(".feedforward.", ".modality_ffn.image.feedforward.")
        if ours.endswith(".qkv.bias"):
            part = ours.removesuffix("qkv.bias")
            loaded[f"{part}query_bias"], _, loaded[f"{part}value_bias"] = tensor.chunk(3)
        else:
            loaded[ours] = tensor
    unchanged = ("words.", "modality.", "transformer.pooler.")
    needed = [
        name
        for name in named_weights(vlmo)
        if not name.startswith(unchanged)
        and not any(part in name for part in (".modality_ffn.text.", ".vl_ffn.", ".scale"))
    ]
    _check_complete(loaded, needed)
    loaded["patches.position"] = resize_to_grid(loaded["patches.position"], vlmo.patches.grid, vlmo.patches.resize)
    load_strict(vlmo, named_weights(vlmo) | loaded, "the ViT to initialise from")
    return list(loaded)


def resize_to_grid(position: Tensor, grid: tuple[int, int], resize: Resize) -> Tensor:
    """The positions of a ViT, (1, 1 + cells, d), resized to a grid. Raises WeightsError if their own is not square."""
    cells = position.shape[1] - 1
    if cells == grid[0] * grid[1]:
        return position
    side = math.isqrt(cells)
    if side * side != cells:
        raise WeightsError(
            f"the ViT to initialise from has {cells} positions, which is not a square number, so they cannot be resized"
        )
    return resize_positions(position, (side, side), grid, resize)


def initialize_text_encoder(model: nn.Module, bert: Mapping[str, Tensor]) -> list[str]:
    """Initialises the text embedding and text layers of a model from a BERT under its official names.

    The pooler, the MLM head and layers that the model lacks are not loaded. In ALBEF the first layers initialise the
    text encoder and the others the multimodal encoder; in BLIP each initialises both encoder and decoder.

    Returns:
        The names that were loaded.

    Raises:
        WeightsError: the model has no BERT, or weights do not fit.
    """
    loaded = _mapped(model, bert)
    load_strict(model, named_weights(model) | loaded, "the BERT to initialise from")
    return list(loaded)


def initialize_text_encoder_from_file(model: nn.Module, file: Path) -> tuple[list[str], list[str]]:
    """Initialises the text encoder from the BERT in a file. Raises WeightsError.

    Returns:
        The names that were loaded, and notes on what was removed or not read (`wrappers.unwrap`).
    """

    def fit(bert: dict[str, Tensor]) -> dict[str, Tensor]:
        check_fit(model, named_weights(model) | _mapped(model, bert), "the BERT to initialise from")
        return bert

    def is_bert(state: dict[str, Tensor]) -> bool:
        return any(name.endswith(BERT_EMBEDDING) for name in state)

    bert, notes = unwrap(file, load_all_state_dicts(file), fit, is_bert)
    return initialize_text_encoder(model, bert), notes


def _mapped(model: nn.Module, bert: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a BERT under the names of every module of the model that they initialise. Raises WeightsError."""
    bert = {_current_name(name): tensor for name, tensor in bert.items()}
    embedding, layers = _bert_prefixes(model)
    segment = SEGMENT if hasattr(model.get_submodule(embedding[:-1]), "segment") else {}
    table = prefixed("embeddings.", embedding, TEXT_EMBEDDING | segment)
    loaded = _renamed(bert, {name: our for name, our in table.items() if our in model.state_dict()})
    for number, prefixes in enumerate(layers):
        for prefix in prefixes:
            loaded |= _renamed(bert, prefixed(f"encoder.layer.{number}.", prefix, LAYER))
    return loaded


def initialize_image_encoder(model: nn.Module, vit: Mapping[str, Tensor]) -> list[str]:
    """Initialises the image encoder of ALBEF or BLIP, or the vision experts of VLMo, from a ViT (our names).

    The classifier is not loaded; a square position grid of another size is resized.

    Returns:
        The names that were loaded.

    Raises:
        WeightsError: the model has no ViT, or weights do not fit.
    """
    if isinstance(model, VLMo):
        return initialize_vlmo_from_vit(model, vit)
    if not isinstance(model, ALBEF | BLIP):
        raise WeightsError(f"{type(model).__name__} has no ViT as image encoder; expected ALBEF, BLIP or VLMo")
    loaded = {f"image.{name}": tensor for name, tensor in vit.items() if not name.startswith(CLASSIFIER)}
    patches, position = model.image.patches, "image.patches.position"
    loaded[position] = resize_to_grid(loaded[position], patches.grid, patches.resize)
    _check_complete(loaded, [name for name in named_weights(model) if name.startswith("image.")])
    load_strict(model, named_weights(model) | loaded, "the ViT to initialise from")
    return list(loaded)


def encoder_weights(mae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an MAE's encoder, under the names that they have in a ViT. `mae`: all weights, by our names."""
    return {name: tensor for name, tensor in mae.items() if not name.startswith("decoder.")}


def first_image_block(model: nn.Module) -> nn.Module:
    """The layer that a ViT's first layer initialises. Raises WeightsError."""
    match model:
        case ALBEF() | BLIP():
            return model.image.blocks[0]
        case VLMo() | ViLT():
            return model.transformer.blocks[0]
    raise WeightsError(f"{type(model).__name__} has no ViT as image encoder; expected ALBEF, BLIP, VLMo or ViLT")


def first_text_block(model: nn.Module) -> nn.Module:
    """The layer that BERT's first layer initialises. Raises WeightsError."""
    return model.get_submodule(_bert_prefixes(model)[1][0][0].removesuffix("."))


def _bert_prefixes(model: nn.Module) -> tuple[str, list[list[str]]]:
    """The prefix of the text embedding, and for each layer of BERT the prefixes of the layers that it initialises."""
    match model:
        case ALBEF():
            text = [[f"text.{i}."] for i in range(len(model.text))]
            fusion = [[f"fusion.{i}.{k}." for k in range(model.num_images)] for i in range(len(model.fusion))]
            return "words.", text + fusion
        case BLIP():
            parts = [part for part in ("encoder", "decoder") if getattr(model, part) is not None]
            depth = len(getattr(model, parts[0]).blocks)
            return f"{parts[0]}.words.", [[f"{part}.blocks.{i}." for part in parts] for i in range(depth)]
        case ViLBERT():
            return "words.", [[f"streams.text.{i}."] for i in range(len(model.streams.text))]
        case VisualBERT():
            return "words.", [[f"transformer.blocks.{i}."] for i in range(len(model.transformer.blocks))]
    raise WeightsError(
        f"{type(model).__name__} has no BERT as text encoder; expected ALBEF, BLIP, ViLBERT or VisualBERT"
    )


def _current_name(name: str) -> str:
    """The current name of a weight of BERT: without the prefix "bert.", norms with weight and bias."""
    return (
        name.removeprefix("bert.")
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias")
    )


def _renamed(bert: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights in `table` under our names. Raises WeightsError if one is missing."""
    missing = [name for name in table if name not in bert]
    if missing:
        raise WeightsError(
            f"the BERT to initialise from lacks {missing[0]}; is it another model's, or has it fewer layers?"
        )
    return KeyMapping(table).from_official({name: bert[name] for name in table})
