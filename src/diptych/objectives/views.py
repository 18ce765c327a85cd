"""The views of a batch: each encoding computed when first asked for, once, and shared by all objectives."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.batch import Batch, Image, Matching, Regions, Text
from diptych.encoders.efficientnet import FrozenCNN, TeacherFeatures
from diptych.encoders.visual_tokenizer import FrozenTokenizer
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.objectives.gradient_cache import in_chunks
from diptych.objectives.sampling import MaskedText, RandomChoices, WordMasking
from diptych.protocols import DualEncoder, FusionEncoder, ImageEncoder, RegionEncoder, TextEncoder

Made = TypeVar("Made")


class Features(NamedTuple):
    """Images and texts as unit vectors of one space."""

    image: Float[Tensor, "b e"]
    text: Float[Tensor, "b e"]


@dataclass(frozen=True)
class TeacherOutput:
    """What a momentum model (objectives.momentum) says of the same batch: its views, and the share `alpha` that they have
    in the targets. `queued`: features it made of earlier batches, with the identities of their images (−1: unknown).
    """

    views: Views
    alpha: float = 0.0
    queued: Features | None = None
    identities: Int[Tensor, " k"] | None = None


class Views:
    """What a model makes of a batch. `heads` are the model's own, `draws` the random choices made for this batch.

    `most_patches`: images keep at most so many patches (ViLT's max_image_len); None keeps all. `guide` is a frozen
    network whose view of the images may be imitated, `tokenizer` one whose codes of them may be guessed, `lesson` what a
    momentum model says of the batch. `chunk`: how many samples are encoded at once for contrast; None: all.
    """

    def __init__(
        self, model: ImageEncoder | RegionEncoder, heads: nn.ModuleDict, batch: Batch, draws: RandomChoices,
        max_patches: int | None = None, teacher_network: FrozenCNN | None = None, teacher_output: TeacherOutput | None = None,
        tokenizer: FrozenTokenizer | None = None, grad_cache_size: int | None = None,
    ):  # fmt: skip
        self.model, self.heads, self.batch, self.draws = model, heads, batch, draws
        self.max_patches, self._guide, self.teacher_output, self._tokenizer = (
            max_patches,
            teacher_network,
            teacher_output,
            tokenizer,
        )
        self.grad_cache_size = grad_cache_size
        self._made: dict[tuple[Hashable, ...], Any] = {}

    def head(self, name: str, x: Tensor) -> Tensor:
        """What a head of the model says of `x`."""
        return self.heads[name](x)

    @property
    def reading(self) -> TextEncoder:
        """The model, which must know text too."""
        if not isinstance(self.model, TextEncoder):
            raise ValueError(f"{type(self.model).__name__} reads no text")
        return self.model

    @property
    def fusing(self) -> FusionEncoder:
        """The model, in which both sides must meet."""
        if not isinstance(self.model, FusionEncoder):
            raise ValueError(f"{type(self.model).__name__} cannot fuse text and image")
        return self.model

    @property
    def text_input(self) -> Text:
        return _given(self.batch.text, "this batch has no text")

    @property
    def image_input(self) -> Image:
        return _given(self.batch.image, "this batch has no image")

    @property
    def matching(self) -> Matching:
        why = "this batch has nothing to match: ask the data for replaced images (matching > 0)"
        return _given(self.batch.matching, why)

    @property
    def aligning(self) -> DualEncoder:
        """The model, whose sides must be comparable without fusing them."""
        if not isinstance(self.model, DualEncoder):
            raise ValueError(f"{type(self.model).__name__} has no readouts to contrast")
        return self.model

    def encode(self, image: Image | Regions) -> Tokens:
        """Image tokens, of at most `most_patches` patches."""
        tokens = self.model.encode_image(image)  # type: ignore[arg-type]
        if self.max_patches is None:
            return tokens
        return tokens.apply_mask(self.draws.keep_patches(tokens, self.max_patches))

    @property
    def teacher_network(self) -> FrozenCNN:
        return _given(self._guide, "this run has no guide to imitate")

    @property
    def tokenizer(self) -> FrozenTokenizer:
        return _given(self._tokenizer, "this run has no visual tokenizer")

    @cached_property
    def teacher_features(self) -> TeacherFeatures:
        """What the guide sees in the images."""
        return self.teacher_network(self.image_input, self.batch.image_keys)

    @cached_property
    def image(self) -> Tokens:
        """Each image's tokens, before they meet a text."""
        return self.encode(self._shown)

    @property
    def _shown(self) -> Image | Regions:
        """What is read as image."""
        regions = self.batch.regions
        return self.image_input if regions is None or self.batch.image is not None else regions

    @cached_property
    def text(self) -> Tokens:
        """Each text's tokens, before they meet an image."""
        return self.reading.encode_text(self.text_input)

    @cached_property
    def image_readouts(self) -> tuple[Tensor, ...]:
        """What a contrast reads of each image, before its head projects it."""
        return self._readouts(lambda: self.image, self._shown, self.encode)

    @cached_property
    def text_readouts(self) -> tuple[Tensor, ...]:
        """What a contrast reads of each text."""
        return self._readouts(lambda: self.text, self.text_input, self.reading.encode_text)

    def _readouts(self, whole: Callable[[], Tokens], given: Any, encode: Callable[[Any], Tokens]) -> tuple[Tensor, ...]:
        """Of tokens that others share, or in chunks, of which nothing is kept."""
        read = self.aligning.pooled_features
        if self.grad_cache_size is None:
            return read(whole())
        if self.max_patches is not None:
            raise ValueError("a batch in chunks keeps all patches: set most_patches to 0")
        return in_chunks(lambda rows: read(encode(given[rows])), len(self.batch), self.grad_cache_size)

    def features(self, head: str, readout: int = 0) -> Features:
        """What a Contrast head makes of a readout of each side."""

        def make() -> Features:
            image, text, contrast = self.image_readouts[readout], self.text_readouts[readout], self.heads[head]
            return Features(contrast.project_image(image), contrast.project_text(text))  # type: ignore[operator]

        return self.cached(("features", head, readout), make)

    def cached(self, what: tuple[Hashable, ...], make: Callable[[], Made]) -> Made:
        """What others make of these views, made when first asked for."""
        if what not in self._made:
            self._made[what] = make()
        return self._made[what]

    @cached_property
    def pair(self) -> FusedTokens:
        """Each text with its own image."""
        return self.fusing.fuse(self.text, self.image)

    @cached_property
    def matching_pair(self) -> FusedTokens:
        """Each text with the image it is asked about, its own or another's."""
        return self.fusing.fuse(self.text, self.encode(self.matching.visual))

    @property
    def teacher(self) -> Views | None:
        """The momentum model's views of the batch, where there is one."""
        return None if self.teacher_output is None else self.teacher_output.views

    def masked(self, masking: WordMasking) -> MaskedText:
        """The texts with words hidden."""
        return self.cached(("masked", masking), lambda: self.draws.mask_text(self.text_input, masking))

    def masked_pair(self, masking: WordMasking) -> FusedTokens:
        """Each masked text with its own image."""
        encode, fuse = self.fusing.encode_text, self.fusing.fuse
        return self.cached(("masked pair", masking), lambda: fuse(encode(self.masked(masking).text), self.image))


def _given(thing: Made | None, why: str) -> Made:
    """What must have been given. Raises ValueError."""
    if thing is None:
        raise ValueError(why)
    return thing
