"""Views of a batch: its encodings, each computed lazily and once, shared by all objectives."""

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
from diptych.modules.attention import Context
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.objectives.gradient_cache import in_chunks
from diptych.objectives.random_choices import MaskedText, RandomChoices, WordMasking
from diptych.protocols import (
    DualEncoder,
    FusionEncoder,
    ImageEncoder,
    RegionEncoder,
    TextEncoder,
    image_contexts,
)

Value = TypeVar("Value")


class JointEmbeddings(NamedTuple):
    """Image and text embeddings as unit vectors of a joint space."""

    image: Float[Tensor, "b e"]
    text: Float[Tensor, "b e"]


@dataclass(frozen=True)
class TeacherOutput:
    """The views of the same batch by a momentum model (objectives.momentum), and their weight `alpha` in the targets.

    `queued`: its features of earlier batches, with their image ids in `identities` (−1: unknown).
    """

    views: Views
    alpha: float = 0.0
    queued: JointEmbeddings | None = None
    identities: Int[Tensor, " k"] | None = None


class Views:
    """A model's encodings of a batch.

    Args:
        heads: the model's pre-training heads.
        draws: the random choices for this batch.
        max_patches: at most so many patches per image, sampled at random (ViLT's max_image_len); None: all.
        teacher_network: a frozen CNN to distill.
        teacher_output: a momentum model's views of the batch.
        tokenizer: a frozen visual tokenizer, whose codes are targets.
        grad_cache_size: how many samples are encoded at once for contrastive losses (objectives.gradient_cache); None:
            all.
    """

    def __init__(
        self,
        model: ImageEncoder | RegionEncoder,
        heads: nn.ModuleDict,
        batch: Batch,
        draws: RandomChoices,
        max_patches: int | None = None,
        teacher_network: FrozenCNN | None = None,
        teacher_output: TeacherOutput | None = None,
        tokenizer: FrozenTokenizer | None = None,
        grad_cache_size: int | None = None,
    ):
        self.model, self.heads, self.batch, self.draws = model, heads, batch, draws
        self.max_patches, self.teacher_output, self.grad_cache_size = max_patches, teacher_output, grad_cache_size
        self._teacher_network, self._tokenizer = teacher_network, tokenizer
        self._cache: dict[tuple[Hashable, ...], Any] = {}

    def head(self, name: str, x: Tensor) -> Tensor:
        """The output of head `name` for `x`."""
        return self.heads[name](x)

    @property
    def text_encoder(self) -> TextEncoder:
        """The model, checked to encode text. Raises ValueError."""
        if not isinstance(self.model, TextEncoder):
            raise ValueError(f"{type(self.model).__name__} has no text encoder")
        return self.model

    @property
    def fusion_encoder(self) -> FusionEncoder:
        """The model, checked to fuse text and image. Raises ValueError."""
        if not isinstance(self.model, FusionEncoder):
            raise ValueError(f"{type(self.model).__name__} cannot fuse text and image")
        return self.model

    @property
    def text_input(self) -> Text:
        return _required(self.batch.text, "this batch has no text")

    @property
    def image_input(self) -> Image:
        return _required(self.batch.image, "this batch has no image")

    @property
    def matching(self) -> Matching:
        error = "this batch has no images for ITM: let the data replace some images (matching > 0)"
        return _required(self.batch.matching, error)

    @property
    def dual_encoder(self) -> DualEncoder:
        """The model, checked to be a dual encoder. Raises ValueError."""
        if not isinstance(self.model, DualEncoder):
            raise ValueError(f"{type(self.model).__name__} has no pooled_features, which contrastive losses need")
        return self.model

    def encode(self, image: Image | Regions) -> Tokens:
        """Image tokens, with at most `max_patches` patches."""
        tokens = self.model.encode_image(image)  # type: ignore[arg-type]
        if self.max_patches is None:
            return tokens
        return tokens.apply_mask(self.draws.keep_patches(tokens, self.max_patches))

    @property
    def teacher_network(self) -> FrozenCNN:
        return _required(self._teacher_network, "distillation needs a teacher network, but this run has none")

    @property
    def tokenizer(self) -> FrozenTokenizer:
        return _required(self._tokenizer, "masked codes need a visual tokenizer, but this run has none")

    @cached_property
    def teacher_features(self) -> TeacherFeatures:
        """The teacher network's features of the images."""
        return self.teacher_network(self.image_input, self.batch.image_keys)

    @cached_property
    def image(self) -> Tokens:
        """The tokens of each image, before fusion."""
        return self.encode(self._visual)

    @property
    def _visual(self) -> Image | Regions:
        """The model's visual input: images, or else detected regions."""
        regions = self.batch.regions
        return self.image_input if regions is None or self.batch.image is not None else regions

    @cached_property
    def text(self) -> Tokens:
        """The tokens of each text, before fusion."""
        return self.text_encoder.encode_text(self.text_input)

    @cached_property
    def image_pooled(self) -> tuple[Tensor, ...]:
        """The pooled image features, before projection by ITC heads."""
        return self._pooled(lambda: self.image, self._visual, self.encode)

    @cached_property
    def text_pooled(self) -> tuple[Tensor, ...]:
        """The pooled text features, before projection by ITC heads."""
        return self._pooled(lambda: self.text, self.text_input, self.text_encoder.encode_text)

    def _pooled(self, tokens: Callable[[], Tokens], inputs: Any, encode: Callable[[Any], Tokens]) -> tuple[Tensor, ...]:
        """Pooled features of the shared `tokens`, or with gradient caching of `inputs`, encoded in chunks."""
        pool = self.dual_encoder.pooled_features
        if self.grad_cache_size is None:
            return pool(tokens())
        if self.max_patches is not None:
            raise ValueError(
                "gradient caching cannot sample patches: set max_patches or objectives.itc.grad_cache_size to 0"
            )
        return in_chunks(lambda rows: pool(encode(inputs[rows])), len(self.batch), self.grad_cache_size)

    def features(self, head: str, branch: int = 0) -> JointEmbeddings:
        """Both modalities' pooled features of an ITC `branch`, projected by its head."""

        def project() -> JointEmbeddings:
            image, text, contrast = self.image_pooled[branch], self.text_pooled[branch], self.heads[head]
            return JointEmbeddings(contrast.project_image(image), contrast.project_text(text))  # type: ignore[operator]

        return self.cached(("features", head, branch), project)

    def cached(self, key: tuple[Hashable, ...], compute: Callable[[], Value]) -> Value:
        """The value of `compute`, computed at the first call with this `key`."""
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    @cached_property
    def image_context(self) -> Context:
        """Each image as a context of fusion and of a text decoder; all uses of it share keys and values."""
        return image_contexts(self.model, self.image)

    def fuse(self, text: Tokens, images: Int[Tensor, " texts"] | None = None) -> FusedTokens:
        """Each text fused with its own image, or with the image of the sample in `images`."""
        context = self.image_context if images is None else self.image_context.index_samples(images)
        return self.fusion_encoder.fuse(text, context)  # type: ignore[arg-type]  # shared if the model takes it

    @cached_property
    def pair(self) -> FusedTokens:
        """Each text fused with its own image."""
        return self.fuse(self.text)

    @cached_property
    def matching_pair(self) -> FusedTokens:
        """Each text fused with its image of the ITM task, its own or another's."""
        return self.fusion_encoder.fuse(self.text, self.encode(self.matching.visual))

    @property
    def teacher(self) -> Views | None:
        """The momentum model's views of the batch, if there is one."""
        return None if self.teacher_output is None else self.teacher_output.views

    def masked(self, masking: WordMasking) -> MaskedText:
        """The masked texts."""
        return self.cached(("masked", masking), lambda: self.draws.mask_text(self.text_input, masking))

    def masked_pair(self, masking: WordMasking) -> FusedTokens:
        """Each masked text fused with its own image."""
        encode = self.fusion_encoder.encode_text
        return self.cached(("masked pair", masking), lambda: self.fuse(encode(self.masked(masking).text)))


def _required(value: Value | None, error: str) -> Value:
    """`value`, if it is not None. Raises ValueError with the message `error`."""
    if value is None:
        raise ValueError(error)
    return value
