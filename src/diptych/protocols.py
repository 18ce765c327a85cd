"""What a vision-language model can do, one small Protocol per capability, and what training needs of a step.

A model has the capabilities of its paper: ViT only encodes and classifies, ViLT encodes and fuses, CLIP never fuses.
`TrainStep` is what the training loop runs: a module from a batch to named losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.batch import Batch, Image, Regions, Text
from diptych.modules.attention import Context, KVCache, SharedContext
from diptych.modules.codebook import Codebook
from diptych.modules.heads import MLMHead
from diptych.modules.pool import RunningMean
from diptych.modules.tokens import FusedTokens, Layout, Tokens


class UnsupportedOperation(ValueError):
    """An operation that a model cannot do: it was built without the part that it needs, or not trained for it."""


@runtime_checkable
class PartlySupported(Protocol):
    """A model that may be built without a part that some pre-training operations need."""

    def unsupported(self) -> dict[str, str]:
        """Returns: pre-training operations that this model cannot run, each with the option that would allow it.

        They may or may not be among the model's methods.
        """
        ...


@runtime_checkable
class ImageEncoder(Protocol):
    """A model that encodes images: every model here except those of detected regions."""

    def encode_image(self, image: Image) -> Tokens:
        """Image tokens, before fusion with any text."""
        ...


@runtime_checkable
class RegionEncoder(Protocol):
    """A model that encodes detected regions (ViLBERT, SCAN, VSE++). Its method is called `encode_image` too."""

    def encode_image(self, image: Regions) -> Tokens:
        """Region tokens, before fusion with any text."""
        ...


@runtime_checkable
class PatchEncoder(ImageEncoder, Protocol):
    """A model with one token per image patch, of `dim` channels (or its `image_dim`)."""

    dim: int


@runtime_checkable
class TextEncoder(Protocol):
    """A model that encodes texts."""

    def encode_text(self, text: Text) -> Tokens:
        """Text tokens, before fusion with any image."""
        ...


@runtime_checkable
class FusionEncoder(ImageEncoder, TextEncoder, Protocol):
    """A model that fuses text and image tokens by attention."""

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Fused text and image tokens, and their pooled vector. `image.image_index`: which of a sample's images."""
        ...


@runtime_checkable
class CrossAttentionEncoder(FusionEncoder, Protocol):
    """A fusion model whose text cross-attends to the image, which fusion leaves as it is (ALBEF, BLIP).

    What depends on one side alone need be computed once for many pairs. In training the pairs share an image's keys and
    values, as a `SharedContext`. When pairs are scored, `before_image` and `pooled_pairs` equal `fuse` together.
    """

    def fuse(self, text: Tokens, image: Context) -> FusedTokens:
        """As `FusionEncoder.fuse`; images may be shared by several texts."""
        ...

    def before_image(self, text: Tokens) -> Tokens:
        """A text's tokens after all that `fuse` computes before its first cross-attention."""
        ...

    def pooled_pairs(self, text: Tokens, image: SharedContext) -> Float[Tensor, "b d"]:
        """The pooled vectors that `fuse` gives, from texts after `before_image` and one image for each of them."""
        ...


@runtime_checkable
class PooledFusionEncoder(FusionEncoder, Protocol):
    """A fusion model that can compute the pooled vector of a pair without the other tokens of its last block."""

    def pooled_pair(self, text: Tokens, image: Tokens) -> Float[Tensor, "b d"]:
        """The pooled vector that `fuse` gives."""
        ...


def pooled_pair(model: FusionEncoder, text: Tokens, image: Tokens) -> Float[Tensor, "b d"]:
    """The pooled vector that a model's `fuse` gives, by the shortest way that it has.

    In training by `fuse` itself, as dropout draws numbers for every token.
    """
    if torch.is_grad_enabled() or getattr(model, "training", True):
        return model.fuse(text, image).pooled
    if isinstance(model, CrossAttentionEncoder):
        return model.pooled_pairs(model.before_image(text), SharedContext.of(image))
    return model.pooled_pair(text, image) if isinstance(model, PooledFusionEncoder) else model.fuse(text, image).pooled


def image_contexts(model: object, image: Tokens) -> Context:
    """The images as contexts of a model's fusion and decoder.

    Where texts cross-attend to images, keys and values of an image are shared by all texts and calls.
    """
    return SharedContext.of(image) if isinstance(model, CrossAttentionEncoder) else image


@runtime_checkable
class CausalFusionEncoder(FusionEncoder, Protocol):
    """A fusion model that can generate text: its fusion has a causal form."""

    def fuse_causal(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Tokens as from `fuse`, with a causal mask on the text.

        Text tokens attend to the image and earlier text only, image tokens to the image only.
        """
        ...


@runtime_checkable
class MultiImageFusionEncoder(ImageEncoder, TextEncoder, Protocol):
    """A model that fuses a text with several images jointly (ALBEF's and BLIP's forms for NLVR2)."""

    def fuse_images(self, text: Tokens, images: tuple[Tokens, ...]) -> FusedTokens:
        """The text fused with all `images`; the result's image tokens are those of the first image."""
        ...


@runtime_checkable
class DualEncoder(ImageEncoder, TextEncoder, Protocol):
    """A model with separate image and text features, compared by cosine: for contrastive training and retrieval."""

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """One or more pooled features of one modality, each with an ITC head of its own (VLMo has two).

        If `encode_text` and `encode_image` run the encoders, this only pools (ALBEF); if they only embed, the encoder
        runs here (BEiT-3).
        """
        ...


@runtime_checkable
class UnimodalTextEncoder(TextEncoder, Protocol):
    """A model that can encode one modality without the other, after `encode_text`, which only embeds."""

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """The tokens after self-attention within their modality: the input of MLM on text without an image."""
        ...


@runtime_checkable
class SimilarityModel(TextEncoder, Protocol):
    """A model with a similarity of its own: VSE++'s may be an order, SCAN's attends."""

    def similarity(self, image: Tokens, text: Tokens) -> Float[Tensor, "images texts"]:
        """The similarity of every image with every text; the two batches may differ in size."""
        ...


@runtime_checkable
class TextDecoder(Protocol):
    """A model with a text decoder."""

    def next_token_logits(
        self, text: Text, context: Context, cache: KVCache | None = None
    ) -> Float[Tensor, "b n vocab_size"]:
        """Logits of the token that follows each token of `text`.

        Args:
            context: image tokens, or the tokens of a question fused with an image. As a `SharedContext`, its keys and
                values are computed once for all texts of an image, and for all calls.
            cache: with one, `text` holds the newest tokens only; keys and values of earlier ones come from the cache.
                Frozen text features have no keys to cache: `generation.decoding.IncrementalDecoder` passes the prefix
                to them (`modules.frozen_text`).
        """
        ...


@runtime_checkable
class CausalDecoder(TextDecoder, Protocol):
    """A model that decodes autoregressively: one pass predicts the next token at every position of a text."""

    def decode_hidden_states(self, text: Text, context: Context, cache: KVCache | None = None) -> Tokens:
        """The input of the LM head at every token: `next_token_logits` before the vocabulary is scored."""
        ...

    def get_output_embeddings(self) -> MLMHead | nn.Linear:
        """The layer from hidden states to vocabulary logits. Raises UnsupportedOperation."""
        ...


@runtime_checkable
class EncodedTextDecoder(CausalDecoder, TextEncoder, Protocol):
    """A causal decoder whose first layers are the text encoder, so that another loss may share their output (CoCa)."""

    def decode_encoded(self, text: Tokens, context: Context) -> Tokens:
        """The tokens that `decode_hidden_states` gives, from texts after `encode_text`."""
        ...


@runtime_checkable
class MaskedImageEncoder(UnimodalTextEncoder, ImageEncoder, Protocol):
    """A model that encodes masked images, for masked image modeling (BEiT-3, VLMo).

    A method of its own: `isinstance` with a Protocol checks method names, not a further argument of `encode_image`.
    """

    def encode_masked(self, image: Image, masked: Bool[Tensor, "b cells"]) -> Tokens:
        """Image tokens as from `encode_image`, with the mask token at patches where `masked` is True.

        Raises UnsupportedOperation for a model without a mask token.
        """
        ...


@runtime_checkable
class VectorQuantizer(ImageEncoder, Protocol):
    """A visual tokenizer (BEiT v2): its `encode_image` gives one unit vector per patch."""

    codebook: Codebook
    feature_mean: RunningMean
    training: bool

    def quantize(self, tokens: Tokens) -> tuple[Tokens, Int[Tensor, " t"]]:
        """Each vector replaced by its nearest code, and that code's index, without padding."""
        ...

    def decode_codes(self, codes: Tokens) -> Tokens:
        """The teacher's feature of each patch, less its mean (`feature_mean`), reconstructed from the codes."""
        ...


@runtime_checkable
class MaskedAutoencoder(ImageEncoder, Protocol):
    """A model that reconstructs the pixels of masked patches (MAE)."""

    patch_size: int

    def embed_image(self, image: Image) -> Tokens:
        """Embedded patches, with positions, before the encoder."""
        ...

    def encode_visible(self, patches: Tokens) -> Tokens:
        """The encoder's output for the visible patches."""
        ...

    def reconstruct(self, visible: Tokens, whole: Layout) -> Tokens:
        """The pixels of every patch, by row, column and channel; `whole`: the layout of `embed_image`'s tokens."""
        ...


@runtime_checkable
class ImageClassifier(Protocol):
    """A model with an image classification head."""

    def classify(self, image: Image) -> Float[Tensor, "b classes"]:
        """Class logits per image."""
        ...


@dataclass(frozen=True)
class ChanceLoss:
    """Chance level: the loss of a model that knows only the label prior, and why a loss may stay there."""

    value: float  # in nats, the unit of the loss it belongs to
    name: str  # the predictions that give it: "uniform over candidates"
    usual_cause: str  # what usually keeps a loss on it


@runtime_checkable
class StepObserver(Protocol):
    """A step that updates state once per optimizer step, before its first forward pass (a momentum teacher)."""

    def begin(self, step: int) -> None:
        """Updates the state for optimizer step number `step`, unless that has been done."""
        ...


@dataclass(frozen=True)
class ComparisonPool:
    """How many samples a sample can be contrasted with: in this rank's micro-batch, on all ranks, in the queue."""

    local: int
    all_ranks: int
    queue: int = 0


@runtime_checkable
class ContrastiveStep(Protocol):
    """A step with losses that contrast samples of a batch: with a single sample such a loss is 0 and trains nothing."""

    def samples_compared(self, among: ComparisonPool) -> dict[str, int]:
        """How many candidates each sample is contrasted with, itself included, by loss."""
        ...


@runtime_checkable
class TrainStep(Protocol):
    """A module that computes losses as means over the *global* batch.

    Such means need the number of terms on every rank and in every micro-batch first: `num_terms` counts them before the
    step runs, and the step is called with the global counts.
    """

    weights: dict[str, float]  # the losses that are summed and trained, with their weights
    chance_losses: dict[str, ChanceLoss]  # chance level of each loss, if it is known

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        """How many terms each loss and metric averages over on this batch, as 0-d float32. Does not run the model."""
        ...

    def __call__(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: this batch's sum / counts[name]}. Names that are not in `weights` are detached metrics."""
        ...


def student_of(module: nn.Module) -> nn.Module:
    """The part of a step that is saved and used after training: its `student` if it has one, else the step."""
    student = getattr(module, "student", None)
    return student if isinstance(student, nn.Module) else module
