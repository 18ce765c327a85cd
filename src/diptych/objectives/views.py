"""The views of a batch: each encoding computed when first asked for, once, and shared by all objectives."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from diptych.inputs import Batch, Image, Matching, Text
from diptych.models.cnn import FrozenCNN, Guidance
from diptych.models.verbs import Aligns, EncodesImage, EncodesText, Fuses
from diptych.objectives.draws import Draws, MaskedText, Masking
from diptych.objectives.gather import gathered
from diptych.tokens import Pair, Tokens


class Features(NamedTuple):
    """Each sample's image and text as unit vectors of one space."""

    image: Float[Tensor, "b e"]
    text: Float[Tensor, "b e"]


class Contrasted(NamedTuple):
    """Scaled cosines of this rank's images with all texts, and of its texts with all images; its own begin at `first`."""

    to_text: Float[Tensor, "b m"]
    to_image: Float[Tensor, "b m"]
    first: int


class Views:
    """What a model makes of a batch. `heads` are the model's own, `draws` the random choices made for this batch.

    `most_patches`: images keep at most so many patches (ViLT's max_image_len); None keeps all. `guide` is a frozen
    network whose view of the images may be imitated.
    """

    def __init__(
        self,
        model: EncodesImage,
        heads: nn.ModuleDict,
        batch: Batch,
        draws: Draws,
        most_patches: int | None = None,
        guide: FrozenCNN | None = None,
    ):
        self.model, self.heads, self.batch, self.draws = model, heads, batch, draws
        self.most_patches, self._guide = most_patches, guide
        self._masked: dict[Masking, MaskedText] = {}
        self._masked_pair: dict[Masking, Pair] = {}
        self._features: dict[tuple[str, int], Features] = {}

    def head(self, name: str, x: Tensor) -> Tensor:
        """What a head of the model says of `x`."""
        return self.heads[name](x)

    @property
    def reading(self) -> EncodesText:
        """The model, which must know text too."""
        if not isinstance(self.model, EncodesText):
            raise ValueError(f"{type(self.model).__name__} reads no text")
        return self.model

    @property
    def fusing(self) -> Fuses:
        """The model, in which both sides must meet."""
        if not isinstance(self.model, Fuses):
            raise ValueError(f"{type(self.model).__name__} cannot fuse text and image")
        return self.model

    @property
    def given_text(self) -> Text:
        if self.batch.text is None:
            raise ValueError("this batch has no text")
        return self.batch.text

    @property
    def given_image(self) -> Image:
        if self.batch.image is None:
            raise ValueError("this batch has no image")
        return self.batch.image

    @property
    def matching(self) -> Matching:
        if self.batch.matching is None:
            raise ValueError("this batch has nothing to match: ask the data for replaced images (matching > 0)")
        return self.batch.matching

    @property
    def aligning(self) -> Aligns:
        """The model, whose sides must be comparable without fusing them."""
        if not isinstance(self.model, Aligns):
            raise ValueError(f"{type(self.model).__name__} has no readouts to contrast")
        return self.model

    def encode(self, image: Image) -> Tokens:
        """Image tokens, of at most `most_patches` patches."""
        tokens = self.model.encode_image(image)
        if self.most_patches is None:
            return tokens
        return tokens.pick(self.draws.kept(tokens, self.most_patches))

    @property
    def guide(self) -> FrozenCNN:
        if self._guide is None:
            raise ValueError("this run has no guide to imitate")
        return self._guide

    @cached_property
    def guidance(self) -> Guidance:
        """What the guide sees in the images."""
        return self.guide(self.given_image)

    @cached_property
    def image(self) -> Tokens:
        """Each image's tokens, before they meet a text."""
        return self.encode(self.given_image)

    @cached_property
    def text(self) -> Tokens:
        """Each text's tokens, before they meet an image."""
        return self.reading.encode_text(self.given_text)

    @cached_property
    def image_readouts(self) -> tuple[Tensor, ...]:
        """What a contrast reads of each image, before its head projects it."""
        return self.aligning.unimodal(self.image)

    @cached_property
    def text_readouts(self) -> tuple[Tensor, ...]:
        """What a contrast reads of each text."""
        return self.aligning.unimodal(self.text)

    def features(self, head: str, readout: int = 0) -> Features:
        """What a Contrast head makes of a readout of each side."""
        if (head, readout) not in self._features:
            image, text = self.image_readouts[readout], self.text_readouts[readout]
            contrast = self.heads[head]
            self._features[head, readout] = Features(contrast.of_image(image), contrast.of_text(text))  # type: ignore[operator]
        return self._features[head, readout]

    def contrast(self, head: str, readout: int = 0) -> Contrasted:
        """Each sample compared with those of all ranks."""
        own, scale = self.features(head, readout), self.heads[head].scale()  # type: ignore[operator]
        (images, first), (texts, _) = gathered(own.image), gathered(own.text)
        return Contrasted(scale * own.image @ texts.T, scale * own.text @ images.T, first)

    @cached_property
    def pair(self) -> Pair:
        """Each text with its own image."""
        return self.fusing.fuse(self.text, self.image)

    @cached_property
    def matching_pair(self) -> Pair:
        """Each text with the image it is asked about, its own or another's."""
        return self.fusing.fuse(self.text, self.encode(self.matching.image))

    def masked(self, masking: Masking) -> MaskedText:
        """The texts with words hidden."""
        if masking not in self._masked:
            self._masked[masking] = self.draws.masked(self.given_text, masking)
        return self._masked[masking]

    def masked_pair(self, masking: Masking) -> Pair:
        """Each masked text with its own image."""
        if masking not in self._masked_pair:
            text = self.fusing.encode_text(self.masked(masking).text)
            self._masked_pair[masking] = self.fusing.fuse(text, self.image)
        return self._masked_pair[masking]
