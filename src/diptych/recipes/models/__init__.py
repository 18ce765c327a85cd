"""The models' sizes, as plain values: one dataclass a system, its fields the model's arguments. `build` imports torch, and not
before.
"""

from __future__ import annotations

from diptych.recipes.models.fusers import ALBEF, ViLBERT, ViLT, VisualBERT, VLMo
from diptych.recipes.models.speakers import BLIP, BEiT3, CoCa
from diptych.recipes.models.towers import CLIP, SCAN, VSEpp
from diptych.recipes.models.vision import MAE, CrossViT, VisualTokenizer, ViT

Seeing = ViT | MAE | CrossViT | VisualTokenizer
"""Models that read no text."""

Classifying = ViT | CrossViT | BEiT3
"""Models that have, or can have, a classifier of images."""

Speaking = ALBEF | BEiT3 | BLIP | CLIP | CoCa | SCAN | ViLBERT | ViLT | VisualBERT | VLMo | VSEpp
"""Models that read image and text."""

Detecting = SCAN | ViLBERT | VisualBERT | VSEpp
"""Models that read what a detector saw."""

Model = Seeing | Speaking

__all__ = [
    "ALBEF", "BLIP", "CLIP", "MAE", "SCAN", "BEiT3", "Classifying", "CoCa", "CrossViT", "Detecting", "Model", "Seeing", "Speaking", "VLMo", "VSEpp",
    "ViLBERT", "ViLT", "ViT", "VisualBERT", "VisualTokenizer", "answers_in_words", "longest_text", "pieces", "pooled_width",
]  # fmt: skip


def answers_in_words(model: Model) -> bool:
    """Whether it has a decoder that answers questions (ALBEF, BLIP): others choose among given answers."""
    return (isinstance(model, ALBEF) and model.decoder_depth > 0) or (isinstance(model, BLIP) and model.form == "vqa")


def pieces(model: Model) -> int:
    """How many pieces of text a model knows, not counting those that it begins texts with itself; 0: it reads none."""
    if isinstance(model, Seeing):
        return 0
    if isinstance(model, BLIP):  # [DEC] and [ENC] stand behind BERT's pieces, or in the place of unused ones
        behind = [i for i in (model.begin, model.ground) if i >= model.vocabulary - 2]
        return model.vocabulary - len(behind)
    return model.vocabulary


def longest_text(model: Speaking) -> int:
    """How many pieces of a text a model reads at most; recurrent ones have no such bound, and get SCAN's usual 50."""
    return 50 if isinstance(model, SCAN | VSEpp) else model.text_length


def pooled_width(model: Speaking) -> int:
    """The width of the summary of a pair, which heads of tasks read."""
    match model:
        case ViLBERT():
            return model.meeting_width
        case CLIP() | CoCa():
            return model.text_width
        case BEiT3(pooling="both"):
            return 2 * model.width
    return model.width
