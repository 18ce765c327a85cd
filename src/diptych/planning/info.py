"""What a model is: parameters by part, and the tokens and floating-point operations of each thing it can be asked to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diptych import protocols as verbs
from diptych.batch import Image, Regions, Text
from diptych.config.published import Published
from diptych.config.run import Pretrain
from diptych.models.configs import CrossViTConfig, RegionModel, ViLBERTConfig
from diptych.modules.tokens import FusedTokens, Tokens

DETECTED = 36  # regions of an image, where a model reads those
WORDS = 15  # a caption of usual length, with [CLS] and [SEP]


@dataclass(frozen=True)
class Verb:
    """What one verb costs for one sample. `flops`: a multiply-add is two."""

    name: str
    tokens: int  # that come out of it; 0 where what comes out is no tokens
    flops: int


@dataclass(frozen=True)
class Info:
    """`parameters` by part of the figure, and of the heads that pre-training has; shared ones under the first that has them."""

    parameters: dict[str, int]
    heads: dict[str, int]
    verbs: list[Verb]


def info(known: Published | Pretrain) -> Info:
    """Of a system at its published size, or of a recipe's model. Its weights are nought: they cost no time to draw.

    A verb that computes nothing (a readout that is a token's state, as it stands) is left out.
    """
    verbs = _costs(_nought(_build, known), _image(known))
    return Info(*parameters(known), [verb for verb in verbs if verb.tokens or verb.flops])


def parameters(known: Published | Pretrain) -> tuple[dict[str, int], dict[str, int]]:
    """Of the model's parts, and of its heads."""
    with torch.device("meta"):
        model = _build(known)
        heads = model.pretraining_heads() if hasattr(model, "pretraining_heads") else nn.ModuleDict()
    seen: set[nn.Parameter] = set()
    parts = _counted(model.named_children(), seen)
    own = sum(p.numel() for p in model.parameters(recurse=False))
    return parts | ({"its own": own} if own else {}), _counted(heads.named_children(), seen)


def _counted(parts: Iterable[tuple[str, nn.Module]], seen: set[nn.Parameter]) -> dict[str, int]:
    """Parameters that no part before it has, which are then `seen`; a part that has none is none of the figure's."""
    counts = {}
    for name, part in parts:
        if not any(True for _ in part.parameters()):
            continue
        counts[name] = sum(p.numel() for p in part.parameters() if p not in seen)
        seen.update(part.parameters())
    return counts


def _build(known: Published | Pretrain) -> Any:
    if isinstance(known, Pretrain):
        return known.model.build()
    module, name = known.model
    return getattr(import_module(f"diptych.models.{module}.model"), name)(**known.arguments)


def _nought(build: Callable[[Any], Any], known: Published | Pretrain) -> Any:
    """The model with real buffers and weights of nought, which take no memory before they are written to."""
    with torch.device("meta"):
        model = build(known).eval()
    for part in model.modules():
        for name, p in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(torch.zeros(p.shape), requires_grad=False))
        for name, b in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.zeros(b.shape, dtype=b.dtype))
    return model


def _image(known: Published | Pretrain) -> Image | Regions:
    if isinstance(known, Pretrain):
        model = known.model
        if isinstance(model, RegionModel):
            return _regions(DETECTED, model.feature_dim, isinstance(model, ViLBERTConfig))
        if isinstance(model, CrossViTConfig):
            return Image.from_full(torch.zeros(1, 3, *model.image_sizes[:1] * 2))
        rows, columns = (side * model.patch_size for side in model.grid)
        return Image.from_full(torch.zeros(1, 3, rows, columns))
    if not known.regions:
        return Image.from_full(torch.zeros(1, 3, *known.image_size))
    return _regions(known.regions, 2048, known.whole)


def _regions(n: int, feature_dim: int, whole: bool) -> Regions:
    regions = Regions(torch.zeros(1, n, feature_dim), torch.zeros(1, n, 5), torch.ones(1, n, dtype=torch.bool))
    return regions.with_whole_image() if whole else regions


@torch.no_grad()
def _costs(model: Any, image: Image | Regions) -> Iterator[Verb]:
    """Each verb that the model has, on what the verbs before it have made."""
    text = Text(torch.ones(1, WORDS, dtype=torch.long), torch.ones(1, WORDS, dtype=torch.bool))
    made: dict[str, Any] = {}

    def asked(name: str, ask: Callable[[], Any]) -> Verb:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels go uncounted
            made[name] = found = ask()
        pair = [found.text, found.image] if isinstance(found, FusedTokens) else [found]
        tokens = sum(x.mask.shape[1] for x in pair if isinstance(x, Tokens))
        return Verb(name, tokens, counter.get_total_flops())

    if isinstance(model, verbs.ImageEncoder):
        yield asked("encode_image", lambda: model.encode_image(image))  # type: ignore[arg-type]
    if isinstance(model, verbs.TextEncoder):
        yield asked("encode_text", lambda: model.encode_text(text))
    if isinstance(model, verbs.DualEncoder):
        yield asked("unimodal, image", lambda: model.pooled_features(made["encode_image"]))
        yield asked("unimodal, text", lambda: model.pooled_features(made["encode_text"]))
    if isinstance(model, verbs.SimilarityModel):
        yield asked("similarity", lambda: model.similarity(made["encode_text"], made["encode_image"]))
    if isinstance(model, verbs.FusionEncoder):
        yield asked("fuse", lambda: model.fuse(made["encode_text"], made["encode_image"]))
    if isinstance(model, verbs.MaskedAutoencoder):
        patches = made["encode_image"]
        yield asked("reconstruct", lambda: model.reconstruct(patches, patches.layout))
    if isinstance(model, verbs.TextDecoder):
        with suppress(verbs.UnsupportedOperation):
            yield asked("next_token_logits", lambda: model.next_token_logits(text, made["encode_image"]))
    if isinstance(model, verbs.ImageClassifier):
        with suppress(verbs.UnsupportedOperation):
            yield asked("classify", lambda: model.classify(image))  # type: ignore[arg-type]
