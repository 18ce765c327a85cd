"""Settings of VisualBERT, and what was published of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.config.published import Published
from diptych.config.validation import (
    Depth,
    Heads,
    Hidden,
    Length,
    ShareBelowOne,
    Vocabulary,
    Width,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models.visualbert import model as visualbert


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
        from diptych.models.visualbert.model import VisualBERT as Model

        return Model(**vars(self))


# What was published, to stand beside our figures; none was measured here. "Not verified here": from the paper by memory; look it
# up before citing it. "As leaderboards list it": from public lists of results (wizwand.com), not from the paper itself.
PUBLISHED = Published(
    title="VisualBERT (Li et al., 2019), the single-stream form that UNITER (Chen et al., ECCV 2020) shares",
    code="checked against transformers' VisualBertModel",
    model=("visualbert", "VisualBERT"),
    parameters={},
    results={},
    regions=36,
)
