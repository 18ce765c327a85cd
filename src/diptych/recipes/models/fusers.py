"""Models in which text and image meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from diptych.ranges import (
    Activation,
    Cells,
    Classes,
    ClassesOrNone,
    Depth,
    DepthOrNone,
    Epsilon,
    Heads,
    Hidden,
    Images,
    Length,
    Longest,
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
    from diptych.models import albef, vilbert, vilt, visualbert, vlmo


@settings("model")
class ViLBERT:
    """Arguments of models.vilbert.ViLBERT; the defaults are those of BERT-base and six image layers."""

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    image_width: Width = 1024
    image_depth: Depth = 6
    image_heads: Heads = 8
    image_hidden: Hidden = 1024
    meeting_width: Width = 1024
    meeting_heads: Heads = 8
    schedule: Annotated[tuple[tuple[DepthOrNone, DepthOrNone], ...], Longest(512)] = (
        (6, 0),
        (7, 1),
        (8, 2),
        (9, 3),
        (10, 4),
        (11, 5),
    )
    features: Width = 2048
    region_targets: Classes = 1601
    vocabulary: Vocabulary = 30522
    text_length: Length = 512
    tasks: ClassesOrNone = 0
    dropout: ShareBelowOne = 0.1

    def __post_init__(self) -> None:
        require_multiple(
            self, "model", ("width", "heads"), ("image_width", "image_heads"), ("meeting_width", "meeting_heads")
        )
        if any(text > self.depth or image > self.image_depth for text, image in self.schedule):
            depths = f"{self.depth} and {self.image_depth}"
            raise ValueError(
                f"model.schedule must stay within model.depth and model.image_depth, {depths}: got {self.schedule}"
            )

    def build(self) -> vilbert.ViLBERT:
        from diptych.models.vilbert import ViLBERT as Model

        return Model(**vars(self))


@settings("model")
class VisualBERT:
    """Arguments of models.visualbert.VisualBERT; the defaults are BERT-base's."""

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    features: Width = 2048
    vocabulary: Vocabulary = 30522
    text_length: Length = 512
    dropout: ShareBelowOne = 0.1

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("width", "heads"))

    def build(self) -> visualbert.VisualBERT:
        from diptych.models.visualbert import VisualBERT as Model

        return Model(**vars(self))


@settings("model")
class ViLT:
    """Arguments of models.vilt.ViLT; the defaults are ViLT-B/32."""

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    patch: Patch = 32
    grid: tuple[Cells, Cells] = (12, 12)
    vocabulary: Vocabulary = 30522
    text_length: Length = 40
    images: Images = 1
    dropout: ShareBelowOne = 0.1
    activation: Activation = "gelu"
    eps: Epsilon = 1e-6
    text_eps: Epsilon = 1e-12

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("width", "heads"))

    def build(self) -> vilt.ViLT:
        from diptych.models.vilt import ViLT as Model

        return Model(**vars(self))


@settings("model")
class ALBEF:
    """Arguments of models.albef.ALBEF; the defaults are those of pre-training at 256 pixels."""

    image_width: Width = 768
    image_depth: Depth = 12
    image_heads: Heads = 12
    image_hidden: Hidden = 3072
    patch: Patch = 16
    grid: tuple[Cells, Cells] = (16, 16)
    width: Width = 768
    text_depth: Depth = 6
    fusion_depth: Depth = 6
    heads: Heads = 12
    hidden: Hidden = 3072
    vocabulary: Vocabulary = 30522
    text_length: Length = 512
    joint: Width = 256
    images: Images = 1
    decoder_depth: DepthOrNone = 0
    dropout: ShareBelowOne = 0.1

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("width", "heads"), ("image_width", "image_heads"))

    def build(self) -> albef.ALBEF:
        from diptych.models.albef import ALBEF as Model

        return Model(**vars(self))


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
        from diptych.models.vlmo import VLMo as Model

        return Model(**vars(self))
