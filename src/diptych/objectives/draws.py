"""The one place where objectives draw at random: which words and regions are hidden, which patches are kept, what
does not belong together.

Everything is keyed by (seed, step, sample id), or given from outside (`Given`), which golden tests do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych import keyed
from diptych.inputs import Batch, Regions, Text
from diptych.objectives.hiding import HiddenRegions, RegionMasking, hide, others
from diptych.objectives.shuffle import first_of, order_of
from diptych.tokens import Tokens


@dataclass(frozen=True)
class Masking:
    """BERT's masking: of the chosen pieces 80 % become [MASK], 10 % a random piece, 10 % stay (Devlin et al. 2019, 3.1)."""

    vocabulary: int = 30522
    mask_id: int = 103
    rate: float = 0.15
    whole_words: bool = True


@dataclass(frozen=True)
class MaskedText:
    """A text with some pieces hidden, and what stood there."""

    text: Text
    hidden: Bool[Tensor, "b n"]
    original: Int[Tensor, "b n"]


@dataclass(frozen=True)
class Hiding:
    """What is hidden of a pair that is read once for all objectives, as ViLBERT does."""

    words: Masking
    regions: RegionMasking


@runtime_checkable
class Draws(Protocol):
    """Where an objective's random choices come from."""

    def masked(self, text: Text, masking: Masking) -> MaskedText:
        """The text with some of its words hidden."""
        ...

    def order(self, image: Tokens) -> Int[Tensor, "b n"]:
        """The place of each patch in a random order of its image's; what is no patch stands behind."""
        ...

    def kept(self, image: Tokens, most: int) -> Bool[Tensor, "b n"]:
        """Which image tokens stay, where at most `most` patches may."""
        ...

    def negatives(self, side: str, likeness: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        """For each sample a candidate that does not belong to it, of the other `side` ("image" or "text"), in proportion to
        exp(`likeness`); −∞ where it would belong.
        """
        ...

    def hidden_regions(self, regions: Regions, masking: RegionMasking) -> HiddenRegions:
        """The regions with some of them hidden."""
        ...

    def other_regions(self, hidden: HiddenRegions, number: int) -> Int[Tensor, "k number"]:
        """For each hidden region, in order, others to be told from: places among the batch's regions, flattened."""
        ...


@dataclass(frozen=True)
class Keyed:
    """Choices drawn for the samples of a batch, the same whenever and wherever they are drawn."""

    batch: Batch

    def uniform(self, stream: str, n: int) -> np.ndarray:
        """``(b, n)`` in [0, 1); `stream` names the use."""
        return keyed.uniform(self.batch.seed, self.batch.step, self.batch.ids.cpu().numpy(), stream, n)

    def masked(self, text: Text, masking: Masking) -> MaskedText:
        """Hides about `rate` of each text's real pieces, at least one; with `whole_words` all pieces of a word or none.

        The budget counts real pieces only (the official ViLT collator also counts pads); [CLS] and [SEP] never hide.
        """
        n = text.ids.shape[1]
        hidden = self._chosen(text, masking)
        fate = torch.from_numpy(self.uniform("masking: fate", n))
        word = torch.from_numpy(self.uniform("masking: word", n))
        replaced = torch.where(fate < 0.8, masking.mask_id, (word * masking.vocabulary).long()).to(text.ids.device)
        ids = torch.where(hidden & (fate < 0.9).to(text.ids.device), replaced, text.ids)
        return MaskedText(replace(text, ids=ids), hidden, text.ids)

    def _chosen(self, text: Text, masking: Masking) -> Bool[Tensor, "b n"]:
        real = text.real.cpu().numpy()
        order = self.uniform("masking: order", real.shape[1])
        inner = _between_ends(real)
        begins = inner if text.begins is None or not masking.whole_words else text.begins.cpu().numpy() & inner
        hidden = np.zeros_like(real)
        for row in range(len(real)):
            budget = max(1, round(masking.rate * int(real[row].sum())))
            starts = np.flatnonzero(begins[row])
            ends = np.append(starts[1:], inner[row].sum() + 1)
            words = np.argsort(order[row, starts], kind="stable")
            if len(words):  # a text of long words alone still hides one
                budget = max(budget, min(ends - starts))
            for word in words:
                length = ends[word] - starts[word]
                if length <= budget:
                    hidden[row, starts[word] : ends[word]] = True
                    budget -= length
        return torch.from_numpy(hidden).to(text.ids.device)

    def order(self, image: Tokens) -> Int[Tensor, "b n"]:
        noise = torch.from_numpy(self.uniform("kept patches", image.real.shape[1])).float()
        return order_of(image, noise.to(image.real.device))

    def kept(self, image: Tokens, most: int) -> Bool[Tensor, "b n"]:
        """At most `most` patches of each image, drawn without replacement; class tokens are always kept."""
        return first_of(image, self.order(image), most)

    def hidden_regions(self, regions: Regions, masking: RegionMasking) -> HiddenRegions:
        return hide(regions, masking, self.uniform)

    def other_regions(self, hidden: HiddenRegions, number: int) -> Int[Tensor, "k number"]:
        return others(hidden, number, self.uniform)

    def negatives(self, side: str, likeness: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        """By the Gumbel trick, which no likeness is too small for. Raises ValueError where nothing may be drawn."""
        if not (likeness > -torch.inf).any(1).all():
            raise ValueError(
                f"a sample of the batch has no {side} that is not its own: give it more, or other, samples"
            )
        drawn = torch.from_numpy(self.uniform(f"negative {side}", likeness.shape[1])).clamp(min=1e-300)
        return (likeness.double() - drawn.log().neg().log().to(likeness.device)).argmax(1)


def _between_ends(real: np.ndarray) -> np.ndarray:
    """Real places but the first and the last: what stands between [CLS] and [SEP]."""
    places = np.arange(real.shape[1])
    return real & (places > 0) & (places < real.sum(1, keepdims=True) - 1)


@dataclass(frozen=True)
class Given:
    """Choices made elsewhere."""

    masked_text: MaskedText | None = None
    kept_patches: Bool[Tensor, "b n"] | None = None
    patch_noise: Float[Tensor, "b m"] | None = None  # of each image's patches, in raster order
    negative_images: Int[Tensor, " b"] | None = None
    negative_texts: Int[Tensor, " b"] | None = None
    masked_regions: HiddenRegions | None = None
    others: Int[Tensor, "k number"] | None = None

    def masked(self, text: Text, masking: Masking) -> MaskedText:
        if self.masked_text is None:
            raise ValueError("masked words were asked for, but none were given")
        return self.masked_text

    def order(self, image: Tokens) -> Int[Tensor, "b n"]:
        if self.patch_noise is None:
            raise ValueError("an order of patches was asked for, but none was given")
        return order_of(image, self.patch_noise)

    def kept(self, image: Tokens, most: int) -> Bool[Tensor, "b n"]:
        if self.kept_patches is None:
            raise ValueError("kept patches were asked for, but none were given")
        return self.kept_patches

    def hidden_regions(self, regions: Regions, masking: RegionMasking) -> HiddenRegions:
        if self.masked_regions is None:
            raise ValueError("hidden regions were asked for, but none were given")
        return self.masked_regions

    def other_regions(self, hidden: HiddenRegions, number: int) -> Int[Tensor, "k number"]:
        if self.others is None:
            raise ValueError("other regions were asked for, but none were given")
        return self.others

    def negatives(self, side: str, likeness: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        given = {"image": self.negative_images, "text": self.negative_texts}[side]
        if given is None:
            raise ValueError(f"negative {side}s were asked for, but none were given")
        return given
