"""Recomputation for MixGen: images; the texts, which are in config.json, must be equal too."""

from __future__ import annotations

from torch import Tensor

from diptych.data.mixgen import mixed, mixed_in_turn
from tests.parity.golden_case import Case, Table, unmasked


class Recomputation:
    """MixGen has no weights and no loss."""

    def __init__(self, case: Case):
        self.case = case

    def table(self) -> Table:
        return unmasked(
            {
                "image": lambda: self._checked(
                    "texts_mixgen", *mixed(*self._inputs(), int(self.case.input("num")), self.share)
                ),
                "image_batch": lambda: self._checked(
                    "texts_mixgen_batch", *mixed_in_turn(*self._inputs(), self.case.input("index").tolist(), self.share)
                ),
            }
        )

    def total(self) -> Tensor:
        raise LookupError("an augmentation has no loss")

    @property
    def share(self) -> float:
        return self.case.input("lambda").item()

    def _inputs(self) -> tuple[Tensor, list[str]]:
        return self.case.input("image"), self.case.config["texts"]

    def _checked(self, key: str, images: Tensor, texts: list[str]) -> Tensor:
        """The images. Raises ValueError if the texts differ from those in the config."""
        wrong = [ours for ours, theirs in zip(texts, self.case.config[key], strict=True) if ours != theirs]
        if wrong:
            raise ValueError(f"{key} differ: {wrong[0]!r} was generated")
        return images
