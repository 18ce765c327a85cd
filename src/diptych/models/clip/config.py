"""Settings of CLIP, and what was published of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diptych.config.published import Published, Weights
from diptych.config.validation import (
    Activation,
    Cells,
    Depth,
    Dim,
    Epsilon,
    Length,
    MLPDim,
    NumHeads,
    PatchSize,
    VocabSize,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models.clip import model as clip


@settings("model")
class CLIPConfig:
    """Arguments of models.clip.CLIP; the defaults are ViT-B/32."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 32
    grid: tuple[Cells, Cells] = (7, 7)
    text_dim: Dim = 512
    text_depth: Depth = 12
    text_num_heads: NumHeads = 8
    text_mlp_dim: MLPDim = 2048
    vocab_size: VocabSize = 49408
    text_length: Length = 77
    embed_dim: Dim = 512
    activation: Activation = "quick_gelu"
    text_activation: Literal["", Activation] = ""  # empty: the image tower's
    eps: Epsilon = 1e-5
    text_eps: Epsilon = 1e-5

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"), ("text_dim", "text_num_heads"))

    def build(self) -> clip.CLIP:
        from diptych.models.clip.model import CLIP as Model

        return Model(**vars(self))


# What was published, to stand beside our figures; none was measured here. "Not verified here": from the paper by memory; look it
# up before citing it. "As leaderboards list it": from public lists of results (wizwand.com), not from the paper itself.
B32, RN50 = (
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
)
JIT = "a TorchScript archive, which holds code: save its state_dict as .pt first, or take Hugging Face's .safetensors"
OPENAI = "https://openaipublic.azureedge.net/clip/models"

PUBLISHED = Published(
    title="Learning Transferable Visual Models From Natural Language Supervision (Radford et al., ICML 2021)",
    code="github.com/openai/CLIP, commit d05afc4, MIT",
    model=("clip", "CLIP"),
    parameters={"ViT-B/32": 151_277_313, "RN50": 102_007_137},
    results={},
    weights=(
        Weights("ViT-B-32.pt", "ViT-B/32", f"{OPENAI}/{B32}/ViT-B-32.pt", B32, JIT),
        Weights("RN50.pt", "RN50", f"{OPENAI}/{RN50}/RN50.pt", RN50, JIT),
    ),
)
