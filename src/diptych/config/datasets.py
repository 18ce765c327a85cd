"""Sizes of the field's data sets as the papers count them, from which epochs are converted to steps."""

from __future__ import annotations

NUM_PAIRS = {
    "COCO": 567_000,
    "VG": 769_000,
    "SBU": 860_000,
    "CC3M": 2_950_000,
    "CC12M": 10_060_000,
    "LAION115M": 115_000_000,
    "WIT": 400_000_000,
    "Flickr30k": 145_000,
}
"""Image-text pairs. Source: ALBEF, table 7 (the first five); BLIP, section 4.1; CLIP, section 2.2; Flickr30k: 29,000
images with five captions each. Web data sets shrink as links die: fewer pairs can be downloaded today.
"""

IMAGENET_IMAGES = 1_281_167
"""Images of ImageNet-1k's train split."""

IMAGENET_22K_IMAGES = 14_197_122
"""Images of all of ImageNet (22k classes)."""

VQA_V2_QUESTIONS = 443_757
"""Questions of VQA v2's train split."""

FOUR_MILLION = ("COCO", "VG", "SBU", "CC3M")
FOURTEEN_MILLION = (*FOUR_MILLION, "CC12M")


def epochs_to_steps(corpora: tuple[str, ...], batch: int, epochs: float) -> int:
    """Number of optimizer steps in `epochs` epochs over `corpora` at batch size `batch`."""
    return round(sum(NUM_PAIRS[name] for name in corpora) * epochs / batch)
