"""Grad-CAM of attention: which patches or regions of an image the score of an image-text pair depends on.

An attention probability times the gradient of the score with respect to it, clamped at zero, averaged over heads
(Grad-CAM: Selvaraju et al., ICCV 2017; of attention: ALBEF, Li et al., NeurIPS 2021, section on visual grounding). The
attention is that of text tokens to image tokens, in cross-attention or in one transformer of both, or that of the
class token to the image tokens in the image encoder.

Source: salesforce/ALBEF, Grounding.py, `gradcam_mode` "itm" and "itc".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.batch import Image, Regions, Text
from diptych.modules.attention import AttentionMap, retain_attention
from diptych.modules.heads import ITCHead
from diptych.modules.tokens import Layout, packing
from diptych.protocols import DualEncoder, FusionEncoder, UnsupportedOperation

Score = Callable[[Text, Image | Regions], Float[Tensor, " b"]]
"""The score of each text with its image. Must not depend on the other samples of the batch."""


@dataclass(frozen=True)
class Attention:
    """A kind of attention to image tokens.

    Args:
        name: in words, after "attention".
        queries: columns of the queries that count, by their layout; none if a layer has no such attention.
        default_layer: number of the layer that is explained, from the number of layers with such attention.
    """

    name: str
    queries: Callable[[Layout], list[int]]
    default_layer: Callable[[int], int]

    def among(self, query: Layout, key: Layout) -> bool:
        """Whether a layer with these queries and keys has attention of this kind."""
        return bool(self.queries(query)) and bool(position_columns(key))


def position_columns(layout: Layout) -> list[int]:
    """Columns of the tokens that have a place in the image: patches with a grid and regions, without a class token."""
    return _columns(layout, [i for i in layout.columns("image", None) if _has_place(layout, i)])


def _has_place(layout: Layout, span: int) -> bool:
    return layout.spans[span].grid is not None or layout.spans[span].name == "regions"


def _text_columns(layout: Layout) -> list[int]:
    """Columns of the text's own tokens, without a task token (12-in-1)."""
    return _columns(layout, [i for i in layout.columns("text", None) if layout.spans[i].name != "task"])


def _class_column(layout: Layout) -> list[int]:
    """The column of an image's class token, of an image without a text."""
    return [] if layout.columns("text", None) else _columns(layout, layout.columns("image", "cls"))


def _columns(layout: Layout, spans: list[int]) -> list[int]:
    return [column for span in spans for column in range(*layout.bounds(span))]


TEXT_TO_IMAGE = Attention("of a text to positions of an image", _text_columns, lambda layers: (layers - 1) // 2)
"""By default in the middle layer: in ALBEF the third of six fusion layers, as in the official code."""
CLASS_TO_IMAGE = Attention("of the class token to positions of an image", _class_column, lambda layers: 2 * layers // 3)
"""By default at two thirds of the depth: in ALBEF the ninth of twelve layers, as in the official code."""


@dataclass(frozen=True)
class Relevance:
    """Grad-CAM of each query token at each position of the image, zero at padding.

    Args:
        queries: which queries are tokens: those of a text, or one class token.
        positions: which positions are in the image: patches in raster order, or regions.
        grid: rows and columns of the patches, padding included; None for regions.
    """

    values: Float[Tensor, "b queries positions"]
    queries: Bool[Tensor, "b queries"]
    positions: Bool[Tensor, "b positions"]
    grid: tuple[int, int] | None

    def mean(self, tokens: Bool[Tensor, "b queries"] | None = None) -> Float[Tensor, "b positions"]:
        """The mean over some of the query tokens; None: over all, special tokens included (ALBEF)."""
        chosen = self.queries if tokens is None else self.queries & tokens
        return (self.values * chosen[:, :, None]).sum(1) / chosen.sum(1, keepdim=True).clamp(min=1)


class GradCAM:
    """Grad-CAM of the attention of one layer.

    Args:
        score: what is explained.
        attention: the kind of attention.
        layer: number of the layer, from 0, among those with such attention that the score depends on; None: the default
            of `attention`.

    Called with texts and images, it returns the `Relevance`. The model must be in evaluation mode.

    Raises UnsupportedOperation for a model without such attention, and ValueError for a layer that does not exist.
    """

    def __init__(self, score: Score, attention: Attention, layer: int | None = None):
        self.score, self.attention, self.layer = score, attention, layer
        self._calls: list[int] | None = None

    @torch.enable_grad()
    def __call__(self, text: Text, image: Image | Regions) -> Relevance:
        if self._calls is None:
            self._calls = self._used_calls(text[:1], image[:1])
        call = self._calls[self._layer_index(len(self._calls))]
        scores, (attention,) = self._compute(text, image, call)
        (gradient,) = torch.autograd.grad(scores.sum(), attention.probabilities)
        return relevance(attention, gradient, self.attention)

    def _used_calls(self, text: Text, image: Image | Regions) -> list[int]:
        """Which computations of such attention the score depends on: one for each layer."""
        scores, maps = self._compute(text, image, None)
        if not maps:
            return []
        gradients = torch.autograd.grad(scores.sum(), [one.probabilities for one in maps], allow_unused=True)
        return [i for i, gradient in enumerate(gradients) if gradient is not None]

    def _layer_index(self, layers: int) -> int:
        if not layers:
            raise UnsupportedOperation(f"Grad-CAM: this model has no attention {self.attention.name}")
        if self.layer is not None and not 0 <= self.layer < layers:
            raise ValueError(
                f"layer must be in [0, {layers - 1}]: got {self.layer}; {layers} layers of this model have attention "
                f"{self.attention.name}"
            )
        return self.attention.default_layer(layers) if self.layer is None else self.layer

    def _compute(self, text: Text, image: Image | Regions, call: int | None) -> tuple[Tensor, list[AttentionMap]]:
        """The scores, and the probabilities of one computation of such attention; None: of all."""
        number = -1

        def chosen(query: Layout, key: Layout) -> bool:
            nonlocal number
            fits = self.attention.among(query, key)
            number += fits
            return fits and call in (None, number)

        with packing(False), retain_attention(chosen) as maps:
            return self.score(text, image), maps


@torch.no_grad()
def relevance(attention: AttentionMap, gradient: Float[Tensor, "b h n m"], kind: Attention) -> Relevance:
    """Attention probabilities times their `gradient`, clamped at zero, averaged over heads."""
    product = (attention.probabilities * gradient.clamp(min=0)).mean(1)  # b n m
    rows, columns = kind.queries(attention.query), position_columns(attention.key)
    queries, positions = attention.query.mask[:, rows], attention.key.mask[:, columns]
    values = product[:, rows][:, :, columns].float() * queries[:, :, None] * positions[:, None]
    grid = next((span.grid for span in attention.key.spans if span.grid is not None), None)
    return Relevance(values, queries, positions, grid)


def matching_score(model: FusionEncoder, head: Callable[[Tensor], Tensor]) -> Score:
    """The logit that a text matches its image: the last output of an ITM or ranking `head` of the fused pair.

    What is encoded before fusion has no part in the gradient.
    """

    def score(text: Text, image: Image | Regions) -> Float[Tensor, " b"]:
        with torch.no_grad():
            encoded = model.encode_text(text), model.encode_image(image)  # type: ignore[arg-type]  # as the model takes
        logits = head(model.fuse(*encoded).pooled)
        return logits[:, -1] if logits.dim() == 2 else logits

    return score


def similarity_score(model: DualEncoder, head: ITCHead) -> Score:
    """The scaled cosine of a text and its image, by an ITC head (of the first ITC branch, if there are several)."""

    def score(text: Text, image: Image | Regions) -> Float[Tensor, " b"]:
        with torch.no_grad():
            words = head.project_text(model.pooled_features(model.encode_text(text))[0])
        pixels = head.project_image(model.pooled_features(model.encode_image(image))[0])  # type: ignore[arg-type]
        return head.scale() * (words * pixels).sum(1)

    return score
