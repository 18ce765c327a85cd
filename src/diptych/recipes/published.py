"""What was published of each system: figures to stand beside ours, each with its source. None was measured here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One system's paper, code and numbers."""

    title: str
    code: str
    recipe: str  # the recipe that builds it at the published size
    parameters: dict[str, int]  # of the official model, per job
    results: dict[str, str]


PUBLISHED = {
    "vit": Published(
        title="An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021)",
        code="github.com/google-research/vision_transformer (JAX); equality is checked against timm",
        recipe="vit.base",
        parameters={"ViT-B/16 with 1,000 classes": 86_567_656},
        results={},
    ),
    "vilt": Published(
        title="ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision (Kim et al., ICML 2021)",
        code="github.com/dandelin/ViLT, commit 762fd39, Apache-2.0",
        recipe="vilt.base",
        parameters={
            "pre-training (masked words, matching)": 135_660_092,
            "VQA, 3,129 answers": 117_588_537,
            "NLVR2": 113_962_754,
            "retrieval": 111_597_315,
        },
        results={
            "VQA v2 test-dev": "71.32 (EVAL.md of the official code)",
            "NLVR2 dev / test-P": "75.65 / 76.52 (EVAL.md)",
            "COCO fine-tuned, text to image R@1/5/10": "42.99 / 72.84 / 83.07 (EVAL.md)",
            "COCO fine-tuned, image to text R@1/5/10": "61.62 / 86.32 / 92.70 (EVAL.md)",
        },
    ),
}
