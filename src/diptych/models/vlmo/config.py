"""Settings of VLMo, and what was published of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from diptych.config.published import Published
from diptych.config.validation import (
    Cells,
    Depth,
    DepthOrNone,
    Dim,
    Length,
    MLPDim,
    NumHeads,
    NumImages,
    PatchSize,
    Range,
    Share,
    ShareBelowOne,
    VocabSize,
    require_at_most,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models.vlmo import model as vlmo


@settings("model")
class VLMoConfig:
    """Arguments of models.vlmo.VLMo; the defaults are VLMo-Base."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    vl_start_layer: DepthOrNone = 10
    patch_size: PatchSize = 16
    grid: tuple[Cells, Cells] = (14, 14)
    vocab_size: VocabSize = 30522
    text_length: Length = 196
    num_images: NumImages = 1
    relative: bool = True
    scale: Share = 0.1
    num_itc_branches: Annotated[int, Range(1, 2)] = 2
    drop_path: ShareBelowOne = 0.1
    with_mask_token: bool = False

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"))
        require_at_most(self, "model", ("vl_start_layer", "depth"))

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
