"""Settings of VLMo, and what was published of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from diptych.config.published import Published
from diptych.config.validation import (
    Cells,
    Depth,
    DepthOrNone,
    Heads,
    Hidden,
    Images,
    Length,
    Patch,
    Range,
    Share,
    ShareBelowOne,
    Vocabulary,
    Width,
    require_at_most,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models.vlmo import model as vlmo


@settings("model")
class VLMo:
    """Arguments of models.vlmo.VLMo; the defaults are VLMo-Base."""

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    together: DepthOrNone = 10
    patch: Patch = 16
    grid: tuple[Cells, Cells] = (14, 14)
    vocabulary: Vocabulary = 30522
    text_length: Length = 196
    images: Images = 1
    relative: bool = True
    scale: Share = 0.1
    readouts: Annotated[int, Range(1, 2)] = 2
    drop: ShareBelowOne = 0.1
    hides: bool = False

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("width", "heads"))
        require_at_most(self, "model", ("together", "depth"))

    def build(self) -> vlmo.VLMo:
        from diptych.models.vlmo.model import VLMo as Model

        return Model(**vars(self))


# What was published, to stand beside our figures; none was measured here. "Not verified here": from the paper by memory; look it
# up before citing it. "As leaderboards list it": from public lists of results (wizwand.com), not from the paper itself.
PUBLISHED = Published(
    title="VLMo: Unified Vision-Language Pre-Training with Mixture-of-Modality-Experts (Bao et al., NeurIPS 2022)",
    code="github.com/microsoft/unilm/tree/master/vlmo, commit 768a3c8, MIT",
    model=("vlmo", "VLMo"),
    parameters={"base, pre-training on pairs": 202_414_750, "base, VQA at 224 pixels": 181_983_897},
    results={
        "VQA v2 test-dev, base / base plus / large": "76.6 / 78.5 / 79.9 (README of the official code)",
        "NLVR2 test-P": "83.3 / 85.1 / 86.9 (README)",
        "COCO fine-tuned, image to text / text to image R@1, base": "74.8 / 57.2 (README)",
    },
)
