"""The verbs of the field: what a vision-language model can be asked to do. One small Protocol each.

A model has the verbs its paper has: ViT only encodes and classifies, ViLT encodes and fuses, CLIP never fuses.

What the training loop needs to know of anything that is trained: a module from a batch to named losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.batch import Batch, Image, Regions, Text
from diptych.modules.attention import KVCache
from diptych.modules.codebook import Codebook
from diptych.modules.heads import MLMHead
from diptych.modules.pool import RunningMean
from diptych.modules.tokens import FusedTokens, Layout, Tokens


class UnsupportedOperation(ValueError):
    """A model has the verb, but was built without the part that answers it: a decoder, a classifier."""


@runtime_checkable
class PartlySupported(Protocol):
    """A model that may be built without what a verb needs."""

    def unsupported(self) -> dict[str, str]:
        """Verbs of pre-training that it cannot do, whether or not they are among its methods, and what would change that."""
        ...


@runtime_checkable
class ImageEncoder(Protocol):
    """A model that reads images: every one here but those of regions."""

    def encode_image(self, image: Image) -> Tokens:
        """Image tokens, before they have met any text."""
        ...


@runtime_checkable
class RegionEncoder(Protocol):
    """A model that reads what a detector saw (ViLBERT, SCAN, VSE++). It calls the verb `encode_image` too."""

    def encode_image(self, image: Regions) -> Tokens:
        """Region tokens, before they have met any text."""
        ...


@runtime_checkable
class ImageEmbedder(Protocol):
    """What stands before a model's first block and can be exchanged by assignment: a detector's regions
    (layers.regions.RegionEmbedding), a CNN's grid (layers.grid.GridEmbedding) or patches (layers.embed.PatchEmbedding).
    """

    def forward(self, image: Any) -> Tokens:
        """Image tokens in their places, of an Image or of Regions."""
        ...


@runtime_checkable
class PatchEncoder(ImageEncoder, Protocol):
    """A model that tells of each patch of an image, in `width` numbers (or its `image_width`)."""

    dim: int


@runtime_checkable
class TextEncoder(Protocol):
    """A model that reads texts."""

    def encode_text(self, text: Text) -> Tokens:
        """Text tokens, before they have met any image."""
        ...


@runtime_checkable
class FusionEncoder(ImageEncoder, TextEncoder, Protocol):
    """A model in which text and image meet."""

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Both, after they have met. `image.slot` says which of a sample's images it is."""
        ...


@runtime_checkable
class CausalFusionEncoder(FusionEncoder, Protocol):
    """A model that can read a caption as it grows."""

    def fuse_causal(self, text: Tokens, image: Tokens) -> FusedTokens:
        """As `fuse`, but no text token sees a later one, and the image sees no text."""
        ...


@runtime_checkable
class MultiImageFusionEncoder(ImageEncoder, TextEncoder, Protocol):
    """A model in which a text meets several images at once (ALBEF's and BLIP's forms for NLVR2)."""

    def fuse_images(self, text: Tokens, images: tuple[Tokens, ...]) -> FusedTokens:
        """The text after it has met all `images`; the pair's image tokens are the first's."""
        ...


@runtime_checkable
class DualEncoder(ImageEncoder, TextEncoder, Protocol):
    """A model whose sides can be compared without fusing them: what contrast is trained on, and search uses."""

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"], ...]:
        """One or more readouts of one side, each with a Contrast head of its own (VLMo has two).

        Where towers have spoken it only reads (ALBEF); where `encode_text` but embeds, the pass happens here (BEiT-3).
        """
        ...


@runtime_checkable
class UnimodalTextEncoder(TextEncoder, Protocol):
    """A model that gives every token of one side its context without the other, where `encode_text` but embeds."""

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """The tokens after they have met each other: what words hidden in a text without an image are guessed from."""
        ...


@runtime_checkable
class SimilarityModel(TextEncoder, Protocol):
    """A model with a similarity of its own: VSE++'s may be an order, SCAN's attends."""

    def similarity(self, text: Tokens, image: Tokens) -> Float[Tensor, "images texts"]:
        """How well every text fits every image; the two batches may differ in size."""
        ...


@runtime_checkable
class TextDecoder(Protocol):
    """A model that speaks."""

    def next_token_logits(
        self, text: Text, context: Tokens, cache: KVCache | None = None
    ) -> Float[Tensor, "b n vocabulary"]:
        """Logits of the token that follows each token of `text`, given `context` (an image, or a question that has met one).

        With a `cache`, `text` holds the newest tokens only, and what came before is remembered: but for a frozen encoder's
        words, which generate.reading.Reader tells of it (layers.given_words).
        """
        ...


@runtime_checkable
class CausalDecoder(TextDecoder, Protocol):
    """A model that tells at once, of every token of a text, what follows it."""

    def decode_hidden_states(self, text: Text, context: Tokens, cache: KVCache | None = None) -> Tokens:
        """What the token behind each is told from, by the `word_head`: `decode` before it scores the vocabulary."""
        ...

    def lm_head(self) -> MLMHead | nn.Linear:
        """A logit per word of the vocabulary. Raises BuiltWithout."""
        ...


@runtime_checkable
class MaskedImageEncoder(UnimodalTextEncoder, ImageEncoder, Protocol):
    """A model that can be asked what is hidden in an image (BEiT-3, VLMo); a Protocol sees names alone, not an argument more."""

    def encode_masked(self, image: Image, hidden: Bool[Tensor, "b cells"]) -> Tokens:
        """As `encode_image`, but where a patch is `hidden` a mask token stands for it. Raises BuiltWithout where there is none."""
        ...


@runtime_checkable
class VectorQuantizer(ImageEncoder, Protocol):
    """A tokenizer of images (BEiT v2): its `encode_image` gives unit vectors of patches."""

    codebook: Codebook
    feature_mean: RunningMean
    training: bool

    def quantize(self, tokens: Tokens) -> tuple[Tokens, Int[Tensor, " t"]]:
        """The nearest code in the place of each real vector, and which it is."""
        ...

    def decode_codes(self, codes: Tokens) -> Tokens:
        """What a teacher sees in each patch, from what it `usual`ly sees, as far as the codes say."""
        ...


@runtime_checkable
class MaskedAutoencoder(ImageEncoder, Protocol):
    """A model that guesses the pixels of patches which it has not seen (MAE)."""

    patch_size: int

    def embed_image(self, image: Image) -> Tokens:
        """Patches in their places, before any has met another."""
        ...

    def encode_visible(self, patches: Tokens) -> Tokens:
        """Those of them that are left, after they have met."""
        ...

    def reconstruct(self, visible: Tokens, whole: Layout) -> Tokens:
        """The pixels of all patches that `embed_image` gave (whose layout is `whole`), by row, column and channel."""
        ...


@runtime_checkable
class ImageClassifier(Protocol):
    """A model that names what is in a picture."""

    def classify(self, image: Image) -> Float[Tensor, "b classes"]:
        """A logit per class of picture."""
        ...


@dataclass(frozen=True)
class ChanceLoss:
    """The loss of a model that has learned nothing but the answers' prior, and why a loss may stay there."""

    value: float  # in nats, the unit of the loss it belongs to
    name: str  # "entropy of the matching prior"
    usual_cause: str  # what usually keeps a loss on it


@runtime_checkable
class StepObserver(Protocol):
    """A step whose state moves once per optimizer step, before any forward pass of it (a momentum teacher)."""

    def begin(self, step: int) -> None:
        """Moves it, where it has not been moved for optimizer step number `step`."""
        ...


@dataclass(frozen=True)
class ComparisonPool:
    """The samples that one can be compared with: those of this rank's micro-batch, of all ranks', and those in a queue."""

    local: int
    all_ranks: int
    queue: int = 0


@runtime_checkable
class ContrastiveStep(Protocol):
    """A step some of whose losses compare samples with one another: with no other sample such a loss is 0 and means nothing."""

    def samples_compared(self, among: ComparisonPool) -> dict[str, int]:
        """By loss: how many samples each one is compared with, itself among them."""
        ...


@runtime_checkable
class HasMissingDefaults(Protocol):
    """A part of a step that keeps more than it did when older checkpoints were written."""

    def missing_defaults(self) -> dict[str, Tensor]:
        """What those do not tell, by its name in this part, as it is to be taken then."""
        ...


@runtime_checkable
class TrainStep(Protocol):
    """A module that computes losses. Means over what a *global* batch holds need counts from every rank and
    micro-batch first, so a step says its counts before it is run, and is given the global ones.
    """

    weights: dict[str, float]  # the losses that are summed and trained, each with its weight
    chance_losses: dict[str, ChanceLoss]  # what each loss starts from; may lack some

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        """How many terms each loss and metric averages over on this batch; 0-d float32. Runs no model."""
        ...

    def __call__(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: this batch's total / counts[name]}. Names that are not in `weights` are metrics, detached."""
        ...


def student_of(module: nn.Module) -> nn.Module:
    """What of a step is kept and used once it is trained: of a student beside its teacher the student, else the step."""
    student = getattr(module, "student", None)
    return student if isinstance(student, nn.Module) else module
