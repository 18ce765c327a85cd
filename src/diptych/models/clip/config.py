"""Settings of CLIP, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from diptych.config.published import CheckpointFile, Published
from diptych.config.validation import (
    Activation,
    Depth,
    Dim,
    Epsilon,
    Length,
    MaxItems,
    MLPDim,
    NumHeads,
    PatchesPerSide,
    PatchSize,
    Range,
    VocabSize,
    divisors,
    require_multiple,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.clip.model import CLIP
    from diptych.models.clip.resnet import CLIPResNet


@settings("model")
class CLIPConfig:
    """Settings of CLIP with a ViT. The defaults are ViT-B/32."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 32  # pixels
    grid: tuple[PatchesPerSide, PatchesPerSide] = (7, 7)  # rows and columns of positions, resized for other images
    text_dim: Dim = 512
    text_depth: Depth = 12
    text_num_heads: NumHeads = 8
    text_mlp_dim: MLPDim = 2048
    vocab_size: VocabSize = 49408
    text_length: Length = 77  # maximum number of tokens
    embed_dim: Dim = 512  # of the joint space
    activation: Activation = "quick_gelu"  # OpenAI's; open_clip has "gelu"
    text_activation: Literal["", Activation] = ""  # empty: the image tower's
    eps: Epsilon = 1e-5
    text_eps: Epsilon = 1e-5

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"), ("text_dim", "text_num_heads"))

    def build(self, embedders: InputEmbeddings = OWN) -> CLIP:
        from diptych.models.clip.model import CLIP

        return CLIP(self, embedders)


@settings("model")
class CLIPResNetConfig:
    """Settings of CLIP with a ResNet, which is imported and exported but has no recipe. The defaults are RN50."""

    dim: Annotated[int, Range(2, 2**16)] = 64  # channels of the first stage
    depths: Annotated[tuple[Depth, ...], MaxItems(8)] = (3, 4, 6, 3)  # blocks of each stage
    num_heads: NumHeads = 32  # of the attention pooling
    grid: tuple[PatchesPerSide, PatchesPerSide] = (7, 7)  # rows and columns of positions, of the attention pooling
    text_dim: Dim = 512
    text_depth: Depth = 12
    text_num_heads: NumHeads = 8
    text_mlp_dim: MLPDim = 2048
    vocab_size: VocabSize = 49408
    text_length: Length = 77  # maximum number of tokens
    embed_dim: Dim = 1024  # of the joint space
    activation: Activation = "quick_gelu"  # of the text tower

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("text_dim", "text_num_heads"))
        if not self.depths:
            raise ValueError("model.depths must have at least one stage: got ()")
        if self.channels % self.num_heads:
            raise ValueError(
                f"model.num_heads must divide the channels of the last stage, 4 * model.dim * 2 ** "
                f"(len(model.depths) - 1) = {self.channels}: got {self.num_heads}; possible head counts: "
                f"{', '.join(map(str, divisors(self.channels)))}"
            )

    @property
    def channels(self) -> int:
        """Channels of the last stage, which attention pools."""
        return 4 * self.dim * 2 ** (len(self.depths) - 1)

    @property
    def patch_size(self) -> int:
        """Pixels along a side of a cell of the last feature map: the stem halves images twice, later stages once."""
        return 4 * 2 ** (len(self.depths) - 1)

    def build(self, embedders: InputEmbeddings = OWN) -> CLIPResNet:
        from diptych.models.clip.resnet import CLIPResNet

        if embedders.image or embedders.text or embedders.word:
            raise ValueError("CLIP's ResNet reads pixels and words itself: leave embedders at their defaults")
        return CLIPResNet(self)


VIT_B32_SHA256, RN50_SHA256 = (
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
)
TORCHSCRIPT = (
    "a TorchScript archive, which contains code: save its state_dict as .pt first, or take Hugging Face's .safetensors"
)
OPENAI = "https://openaipublic.azureedge.net/clip/models"

PUBLISHED = Published(
    title="Learning Transferable Visual Models From Natural Language Supervision (Radford et al., ICML 2021)",
    code="github.com/openai/CLIP, commit d05afc4, MIT",
    model=("clip", "CLIP"),
    parameters={"ViT-B/32": 151_277_313, "RN50": 102_007_137},
    results={},
    weights=(
        CheckpointFile(
            "ViT-B-32.pt", "ViT-B/32", f"{OPENAI}/{VIT_B32_SHA256}/ViT-B-32.pt", VIT_B32_SHA256, TORCHSCRIPT
        ),
        CheckpointFile("RN50.pt", "RN50", f"{OPENAI}/{RN50_SHA256}/RN50.pt", RN50_SHA256, TORCHSCRIPT),
    ),
)
