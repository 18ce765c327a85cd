"""How words are hidden; `draws` says with which chances."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diptych.inputs import Text
from diptych.objectives.hiding import Uniform


@dataclass(frozen=True)
class Masking:
    """BERT's masking: of the chosen pieces 80 % become [MASK], 10 % a random piece, 10 % stay (Devlin et al. 2019, 3.1).

    `ends`: the token that ends a text may hide too, so that who learns to write learns to stop (BEiT-3, official code).
    """

    vocabulary: int = 30522
    mask_id: int = 103
    rate: float = 0.15
    whole_words: bool = True
    ends: bool = False


@dataclass(frozen=True)
class MaskedText:
    """A text with some pieces hidden, and what stood there."""

    text: Text
    hidden: Bool[Tensor, "b n"]
    original: Int[Tensor, "b n"]


def mask(text: Text, masking: Masking, uniform: Uniform) -> MaskedText:
    """Hides about `rate` of each text's real pieces, at least one; with `whole_words` all pieces of a word or none.

    The budget counts real pieces only (the official ViLT collator also counts pads); [CLS] never hides, [SEP] only with `ends`.
    """
    n = text.ids.shape[1]
    hidden = _chosen(text, masking, uniform)
    fate = torch.from_numpy(uniform("masking: fate", n))
    word = torch.from_numpy(uniform("masking: word", n))
    replaced = torch.where(fate < 0.8, masking.mask_id, (word * masking.vocabulary).long()).to(text.ids.device)
    ids = torch.where(hidden & (fate < 0.9).to(text.ids.device), replaced, text.ids)
    return MaskedText(replace(text, ids=ids), hidden, text.ids)


def _chosen(text: Text, masking: Masking, uniform: Uniform) -> Bool[Tensor, "b n"]:
    real = text.real.cpu().numpy()
    order = uniform("masking: order", real.shape[1])
    places, last = np.arange(real.shape[1]), real.sum(1, keepdims=True) - 1
    inner = real & (places > 0) & (places < last + masking.ends)
    begins = inner if text.begins is None or not masking.whole_words else text.begins.cpu().numpy() & inner
    begins = begins | (inner & (places == last))
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
