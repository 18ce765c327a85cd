"""Beginning one paper's model with another's weights.

Beginning the towers of a model with weights that know one modality: a BERT's layers, a ViT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from diptych.checkpoints.bert import LAYER, WORDS
from diptych.checkpoints.mapping import KeyMapping, prefixed
from diptych.checkpoints.positions import resize_positions
from diptych.checkpoints.read import WeightsError, read_states
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

CLASSIFIER = ("head.", "representation.")  # of a ViT, with the hidden layer before it


def start_vilt_from_vit(vilt: ViLT, vit: Mapping[str, Tensor]) -> list[str]:
    """ViLT's patches, blocks and final norm from a ViT's (our names), as the paper starts from ImageNet's (section 4.1).

    Text embeddings, modality types and pooler stay as they are; a classifier is left behind; a square position grid of
    another size is resized. Gives the names that were loaded. Raises WeightsError naming what does not fit.
    """
    loaded = {
        name if name.startswith("patches.") else f"transformer.{name}": tensor
        for name, tensor in vit.items()
        if not name.startswith(CLASSIFIER)
    }
    wanted = [n for n in vilt.state_dict() if n.startswith(("patches.", "transformer.blocks.", "transformer.norm."))]
    missing = [name.removeprefix("transformer.") for name in wanted if name not in loaded]
    if missing:
        raise WeightsError(f"the ViT to start from lacks {missing[0]}; is it another model's?")
    loaded["patches.position"] = fitted(loaded["patches.position"], vilt.patches.grid, resize_bilinear)
    load_strict(vilt, vilt.state_dict() | loaded, "the ViT to start from")
    return list(loaded)


def start_vlmo_from_vit(vlmo: VLMo, vit: Mapping[str, Tensor]) -> list[str]:
    """VLMo's patches, attention, experts of images and final norm from a ViT's (our names): its stage on images alone.

    Everything else stays as it is. Exact but for the modality's vector: keys' bias, which VLMo has not, adds the same to all
    scores of a query. Differs: the paper starts from BEiT, whose relative positions and LayerScale a ViT lacks, so this
    is for models with positions that are added (base-plus). Gives our names of what was loaded. Raises WeightsError.
    """
    if not isinstance(vlmo.patches, PatchEmbedding):
        raise WeightsError(
            "a VLMo with relative positions cannot start from a ViT, which adds positions to its patches"
        )
    loaded: dict[str, Tensor] = {}
    for name, tensor in vit.items():
        if name.startswith(CLASSIFIER):
            continue
        ours = name if name.startswith("patches.") else f"transformer.{name}"
        ours = ours.replace(".norm1.", ".norm.").replace(".norm2.", ".apart.image.norm.")
        ours = ours.replace(".feedforward.", ".apart.image.feedforward.")
        if ours.endswith(".qkv.bias"):
            part = ours.removesuffix("qkv.bias")
            loaded[f"{part}query_bias"], _, loaded[f"{part}value_bias"] = tensor.chunk(3)
        else:
            loaded[ours] = tensor
    apart = ("words.", "modality.", "transformer.pooler.")
    missing = [
        name
        for name in named_weights(vlmo)
        if name not in loaded
        and not name.startswith(apart)
        and not any(part in name for part in (".apart.text.", ".together.", ".scale"))
    ]
    if missing:
        raise WeightsError(f"the ViT to start from lacks {missing[0]}; is it another model's?")
    loaded["patches.position"] = fitted(loaded["patches.position"], vlmo.patches.grid, vlmo.patches.resize)
    load_strict(vlmo, named_weights(vlmo) | loaded, "the ViT to start from")
    return list(loaded)


def fitted(position: Tensor, grid: tuple[int, int], resize: Resize) -> Tensor:
    """A ViT's positions for another grid. Raises WeightsError where its own is not square."""
    cells = position.shape[1] - 1
    if cells == grid[0] * grid[1]:
        return position
    side = math.isqrt(cells)
    if side * side != cells:
        raise WeightsError(f"the ViT to start from has {cells} positions, which are no square grid to resize")
    return resize_positions(position, (side, side), grid, resize)


MARK = "embeddings.word_embeddings.weight"  # by which a BERT is known
SEGMENT = {"token_type_embeddings.weight": "segment.weight"}


def start_text(model: nn.Module, bert: Mapping[str, Tensor]) -> list[str]:
    """A BERT's embeddings and layers, as its own code names them, in the places of the model's. What it has besides stays
    behind: pooler, word head, and layers that the model lacks. Gives our names of what was loaded.

    ALBEF: the first layers read, the others fuse. BLIP: encoder and decoder. Raises WeightsError.
    """
    loaded = _places_of(model, bert)
    load_strict(model, named_weights(model) | loaded, "the BERT to start from")
    return list(loaded)


def start_text_from(model: nn.Module, file: Path) -> tuple[list[str], list[str]]:
    """`start_text` with the BERT in a file. Gives our names of what was loaded, and what was left out on the way to it, a
    sentence each (`wrappers.fitting`). Raises WeightsError.
    """

    def fit(bert: dict[str, Tensor]) -> dict[str, Tensor]:
        check_fit(model, named_weights(model) | _places_of(model, bert), "the BERT to start from")
        return bert

    bert, notes = unwrap(file, read_states(file), fit, lambda bert: any(name.endswith(MARK) for name in bert))
    return start_text(model, bert), notes


def _places_of(model: nn.Module, bert: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A BERT's weights under our names, in every place of the model that they are for. Raises WeightsError."""
    bert = {_modern(name): tensor for name, tensor in bert.items()}
    words, layers = _places(model)
    words_table = prefixed(
        "embeddings.", words, WORDS | (SEGMENT if hasattr(model.get_submodule(words[:-1]), "segment") else {})
    )
    loaded = _taken(bert, {name: our for name, our in words_table.items() if our in model.state_dict()})
    for number, places in enumerate(layers):
        for place in places:
            loaded |= _taken(bert, prefixed(f"encoder.layer.{number}.", place, LAYER))
    return loaded


def start_image(model: nn.Module, vit: Mapping[str, Tensor]) -> list[str]:
    """A ViT (our names) in the place of the image tower of an ALBEF or a BLIP, or of a VLMo's part for images; its classifier stays behind, a square position
    grid of another size is resized. Gives our names of what was loaded. Raises WeightsError.
    """
    if isinstance(model, VLMo):
        return start_vlmo_from_vit(model, vit)
    if not isinstance(model, ALBEF | BLIP):
        raise WeightsError(f"a {type(model).__name__} has no ViT for its images to begin with")
    loaded = {f"image.{name}": tensor for name, tensor in vit.items() if not name.startswith(CLASSIFIER)}
    patches, at = model.image.patches, "image.patches.position"
    loaded[at] = fitted(loaded[at], patches.grid, patches.resize)
    missing = [name for name in named_weights(model) if name.startswith("image.") and name not in loaded]
    if missing:
        raise WeightsError(f"the ViT to start from lacks {missing[0]}; is it another model's?")
    load_strict(model, named_weights(model) | loaded, "the ViT to start from")
    return list(loaded)


def first_text_block(model: nn.Module) -> nn.Module:
    """The layer that BERT's first becomes. Raises WeightsError."""
    return model.get_submodule(_places(model)[1][0][0].removesuffix("."))


def _places(model: nn.Module) -> tuple[str, list[list[str]]]:
    """Where a model keeps BERT's embeddings, and each of its layers."""
    match model:
        case ALBEF():
            read = [[f"text.{i}."] for i in range(len(model.text))]
            return "words.", read + [
                [f"fusion.{i}.{k}." for k in range(model.num_images)] for i in range(len(model.fusion))
            ]
        case BLIP():
            roles = [role for role in ("encoder", "decoder") if getattr(model, role) is not None]
            depth = len(getattr(model, roles[0]).blocks)
            return f"{roles[0]}.words.", [[f"{role}.blocks.{i}." for role in roles] for i in range(depth)]
        case ViLBERT():
            return "words.", [[f"streams.text.{i}."] for i in range(len(model.streams.text))]
        case VisualBERT():
            return "words.", [[f"transformer.blocks.{i}."] for i in range(len(model.transformer.blocks))]
    raise WeightsError(f"a {type(model).__name__} has no BERT for its texts to begin with")


def _modern(name: str) -> str:
    """As BERT's names are today: without the model's prefix, norms with weight and bias."""
    return (
        name.removeprefix("bert.")
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias")
    )


def _taken(bert: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    missing = [name for name in table if name not in bert]
    if missing:
        raise WeightsError(f"the BERT to start from lacks {missing[0]}; is it another model's, or has it fewer layers?")
    return KeyMapping(table).from_official({name: bert[name] for name in table})
