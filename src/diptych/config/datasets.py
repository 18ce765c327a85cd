"""How much the field's corpora hold, as the papers count them: what their epochs are made of."""

from __future__ import annotations

PAIRS = {
    "COCO": 567_000,
    "VG": 769_000,
    "SBU": 860_000,
    "CC3M": 2_950_000,
    "CC12M": 10_060_000,
    "LAION115M": 115_000_000,
    "WIT": 400_000_000,
    "Flickr30k": 145_000,
}
"""Pairs of image and text (ALBEF, table 7, for the first five; BLIP, section 4.1; CLIP, section 2.2; five captions each for
29,000 photographs). Web corpora shrink: what can be downloaded today is less.
"""

IMAGENET = 1_281_167
"""Pictures of ImageNet-1k's train split."""

IMAGENET_22K = 14_197_122
"""Pictures of all of ImageNet."""

VQA_V2 = 443_757
"""Questions of VQA v2's train split."""

FOUR_MILLION = ("COCO", "VG", "SBU", "CC3M")
FOURTEEN_MILLION = (*FOUR_MILLION, "CC12M")


def steps(corpora: tuple[str, ...], batch: int, epochs: float) -> int:
    """Optimizer steps in so many epochs."""
    return round(sum(PAIRS[name] for name in corpora) * epochs / batch)
