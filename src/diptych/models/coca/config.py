"""Settings of CoCa, and what was published of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from diptych.config.published import Published, Weights
from diptych.config.validation import (
    Activation,
    Cells,
    Depth,
    Heads,
    Hidden,
    Length,
    Patch,
    Place,
    Range,
    Vocabulary,
    Width,
    require_at_most,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models.coca import model as coca


@settings("model")
class CoCa:
    """Arguments of models.coca.CoCa; the defaults are open_clip's ViT-B/32."""

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    patch: Patch = 32
    grid: tuple[Cells, Cells] = (7, 7)
    queries: Annotated[int, Range(1, 4096)] = 256
    pool_heads: Heads = 8
    text_width: Width = 512
    text_depth: Depth = 12
    text_heads: Heads = 8
    text_hidden: Hidden = 2048
    vocabulary: Vocabulary = 49408
    text_length: Length = 76
    decoder_depth: Depth = 12
    decoder_heads: Heads = 8
    decoder_hidden: Hidden = 2048
    joint: Width = 512
    activation: Activation = "gelu"
    pad: Place = 0

    def __post_init__(self) -> None:
        require_multiple(
            self,
            "model",
            ("width", "heads"),
            ("text_width", "text_heads"),
            ("text_width", "decoder_heads"),
            ("text_width", "pool_heads"),
        )
        require_at_most(self, "model", ("pad", "vocabulary"), below=True)

    def build(self) -> coca.CoCa:
        from diptych.models.coca.model import CoCa as Model

        return Model(**vars(self))


# What was published, to stand beside our figures; none was measured here. "Not verified here": from the paper by memory; look it
# up before citing it. "As leaderboards list it": from public lists of results (wizwand.com), not from the paper itself.
PUBLISHED = Published(
    title="CoCa: Contrastive Captioners are Image-Text Foundation Models (Yu et al., TMLR 2022)",
    code="not released; equality is checked against open_clip 3.3.0, whose models are of their own training",
    model=("coca", "CoCa"),
    parameters={"open_clip coca_ViT-B-32": 253_560_065},
    results={
        "ImageNet zero-shot / fine-tuned, 2.1 B": "86.3 / 91.0 (paper; not verified here)",
        "COCO captions CIDEr, 2.1 B": "143.6 (paper; not verified here)",
    },
    weights=(
        Weights(
            "open_clip_pytorch_model.bin",
            "coca_ViT-B-32, LAION-2B (open_clip's own training)",
            "https://huggingface.co/laion/CoCa-ViT-B-32-laion2B-s13B-b90k",
        ),
    ),
)
