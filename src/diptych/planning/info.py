"""Parameters of a model by part, and the output tokens and FLOPs of each of its methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from diptych import protocols
from diptych.batch import Image, Regions, Text
from diptych.config.published import Published
from diptych.config.run import Pretrain
from diptych.models.configs import CrossViTConfig, RegionModel, ViLBERTConfig
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.planning.counting import Counter, Placeholders

NUM_REGIONS = 36  # of an image, for models of region features
TEXT_TOKENS = 15  # a caption of typical length, with [CLS] and [SEP]


@dataclass(frozen=True)
class MethodCost:
    """The cost of one method for one sample. `flops`: a multiply-add is two."""

    name: str
    tokens: int  # of the output; 0 if the output is not tokens
    flops: int


@dataclass(frozen=True)
class Info:
    """Parameters of the model by part, and of its pre-training heads; shared ones count for the first part."""

    parameters: dict[str, int]
    heads: dict[str, int]
    methods: list[MethodCost]


def info(known: Published | Pretrain) -> Info:
    """The parameters and costs of a system at its published size, or of a recipe's model.

    Operations are counted without computing (`planning.counting.Placeholders`), for texts and images of zeros. Methods
    that compute nothing (pooling that takes one token's state) are left out.
    """
    placeholders = Placeholders()
    with placeholders:
        model = _build(known).eval()
    methods = _costs(model, _image(known), placeholders)
    return Info(*parameters(known), [method for method in methods if method.tokens or method.flops])


def parameters(known: Published | Pretrain) -> tuple[dict[str, int], dict[str, int]]:
    """Parameter counts of the model's parts and of its pre-training heads."""
    with torch.device("meta"):
        model = _build(known)
        heads = model.pretraining_heads() if hasattr(model, "pretraining_heads") else nn.ModuleDict()
    counted: set[nn.Parameter] = set()
    parts = _count(model.named_children(), counted)
    own = sum(p.numel() for p in model.parameters(recurse=False))
    return parts | ({"its own": own} if own else {}), _count(heads.named_children(), counted)


def _count(parts: Iterable[tuple[str, nn.Module]], counted: set[nn.Parameter]) -> dict[str, int]:
    """Parameters of each part that are not in `counted`, to which they are added; parts without any are left out."""
    counts = {}
    for name, part in parts:
        if not any(True for _ in part.parameters()):
            continue
        counts[name] = sum(p.numel() for p in part.parameters() if p not in counted)
        counted.update(part.parameters())
    return counts


def _build(known: Published | Pretrain) -> Any:
    if isinstance(known, Pretrain):
        return known.model.build()
    module, name = known.model
    config_class = getattr(import_module(f"diptych.models.{module}.config"), f"{name}Config")
    return config_class(**known.config_overrides).build()


def _image(known: Published | Pretrain) -> Image | Regions:
    if isinstance(known, Pretrain):
        model = known.model
        if isinstance(model, RegionModel):
            return _regions(NUM_REGIONS, model.feature_dim, isinstance(model, ViLBERTConfig))
        if isinstance(model, CrossViTConfig):
            return Image.from_full(torch.zeros(1, 3, *model.image_sizes[:1] * 2))
        rows, columns = (side * model.patch_size for side in model.grid)
        return Image.from_full(torch.zeros(1, 3, rows, columns))
    if not known.regions:
        return Image.from_full(torch.zeros(1, 3, *known.image_size))
    return _regions(known.regions, 2048, known.with_image_region)


def _regions(n: int, feature_dim: int, whole: bool) -> Regions:
    regions = Regions(torch.zeros(1, n, feature_dim), torch.zeros(1, n, 5), torch.ones(1, n, dtype=torch.bool))
    return regions.with_whole_image() if whole else regions


@torch.no_grad()
def _costs(model: Any, image: Image | Regions, placeholders: Placeholders) -> Iterator[MethodCost]:
    """The cost of each method that the model has, on the outputs of the methods before it."""
    text = Text(torch.ones(1, TEXT_TOKENS, dtype=torch.long), torch.ones(1, TEXT_TOKENS, dtype=torch.bool))
    outputs: dict[str, Any] = {}

    def cost(name: str, method: Callable[[], Any]) -> MethodCost:
        with Counter(placeholders) as counter:
            outputs[name] = output = method()
        parts = [output.text, output.image] if isinstance(output, FusedTokens) else [output]
        tokens = sum(x.mask.shape[1] for x in parts if isinstance(x, Tokens))
        return MethodCost(name, tokens, counter.flops)

    if isinstance(model, protocols.ImageEncoder):
        yield cost("encode_image", lambda: model.encode_image(image))  # type: ignore[arg-type]
    if isinstance(model, protocols.TextEncoder):
        yield cost("encode_text", lambda: model.encode_text(text))
    if isinstance(model, protocols.DualEncoder):
        yield cost("pooled_features, image", lambda: model.pooled_features(outputs["encode_image"]))
        yield cost("pooled_features, text", lambda: model.pooled_features(outputs["encode_text"]))
    if isinstance(model, protocols.SimilarityModel):
        yield cost("similarity", lambda: model.similarity(outputs["encode_image"], outputs["encode_text"]))
    if isinstance(model, protocols.FusionEncoder):
        yield cost("fuse", lambda: model.fuse(outputs["encode_text"], outputs["encode_image"]))
    if isinstance(model, protocols.MaskedAutoencoder):
        patches = outputs["encode_image"]
        yield cost("reconstruct", lambda: model.reconstruct(patches, patches.layout))
    if isinstance(model, protocols.TextDecoder):
        with suppress(protocols.UnsupportedOperation):
            yield cost("next_token_logits", lambda: model.next_token_logits(text, outputs["encode_image"]))
    if isinstance(model, protocols.ImageClassifier):
        with suppress(protocols.UnsupportedOperation):
            yield cost("classify", lambda: model.classify(image))  # type: ignore[arg-type]
