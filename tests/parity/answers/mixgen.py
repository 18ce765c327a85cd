"""What of a MixGen golden can be recomputed: images; the texts beside them, which config.json holds, must be equal too."""

from __future__ import annotations

from torch import Tensor

from diptych.data.mixgen import mixed, mixed_in_turn
from tests.parity.golden_case import Case, Table, answered


class Answers:
    """It has no weights, so no loss."""

    def __init__(self, case: Case):
        self.case = case

    def table(self) -> Table:
        return answered(
            {
                "image": lambda: self._checked(
                    "texts_mixgen", *mixed(*self._given(), int(self.case.input("num")), self.share)
                ),
                "image_batch": lambda: self._checked(
                    "texts_mixgen_batch", *mixed_in_turn(*self._given(), self.case.input("index").tolist(), self.share)
                ),
            }
        )

    def total(self) -> Tensor:
        raise LookupError("augmentation minimises nothing")

    @property
    def share(self) -> float:
        return self.case.input("lambda").item()

    def _given(self) -> tuple[Tensor, list[str]]:
        return self.case.input("image"), self.case.config["texts"]

    def _checked(self, texts: str, images: Tensor, made: list[str]) -> Tensor:
        """The images; raises ValueError where the texts made with them are others than the config's."""
        wrong = [ours for ours, theirs in zip(made, self.case.config[texts], strict=True) if ours != theirs]
        if wrong:
            raise ValueError(f"{texts} differ: {wrong[0]!r} was made")
        return images
