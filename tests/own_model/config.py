"""Settings of the mean pair, the example of docs/adding-a-model.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.config.validation import Dim, Length, PatchesPerSide, PatchSize, VocabSize, settings
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.mean_pair.model import MeanPair


@settings("model")
class MeanPairConfig:
    """Settings of the mean pair."""

    dim: Dim = 128  # of patches, words and the joint space
    patch_size: PatchSize = 16
    grid: tuple[PatchesPerSide, PatchesPerSide] = (5, 7)  # patches that have a learned position
    vocab_size: VocabSize = 114
    text_length: Length = 40

    def build(self, embedders: InputEmbeddings = OWN) -> MeanPair:
        from diptych.models.mean_pair.model import MeanPair

        return MeanPair(self, embedders)
