"""ViLT's taxonomy of four kinds of models (docs/taxonomy.md), and the exchange of image embedders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.encoders.efficientnet import FrozenCNN
from diptych.models.clip.config import CLIPConfig
from diptych.models.clip.model import CLIP
from diptych.models.clip.resnet import ResNet
from diptych.models.vilt.config import ViLTConfig
from diptych.models.vilt.model import ViLT
from diptych.modules.embeddings import GridEmbedding, RegionEmbedding
from diptych.modules.input_embeddings import Grid, InputEmbeddings
from diptych.modules.tokens import packing
from diptych.protocols import DualEncoder, FusionEncoder

TEXT = Text(torch.tensor([[1, 7, 2, 0], [1, 8, 9, 2]]), torch.tensor([[True] * 3 + [False], [True] * 4]))
PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
IMAGE = Image(PIXELS, torch.tensor([[64, 96], [32, 64]]))
REGIONS = Regions(torch.randn(2, 3, 10), torch.rand(2, 3, 5), torch.tensor([[True, True, False], [True] * 3]))


def vilt(image: Callable[[int, Grid | None], nn.Module] | None = None) -> ViLT:
    torch.manual_seed(0)
    config = ViLTConfig(16, 2, 2, 32, 32, (2, 3), vocab_size=20, text_length=5, dropout=0.0)
    return ViLT(config, InputEmbeddings(image)).eval()


def size(*parts: nn.Module) -> int:
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def embedders() -> dict[str, tuple[nn.Module, Image | Regions]]:
    torch.manual_seed(0)
    network = ResNet(16, (1, 1, 1, 1)).eval()
    return {
        "patches": (vilt().patches, IMAGE),
        "grid": (GridEmbedding(network, network.out_channels, 16, (2, 3)), IMAGE),
        "regions": (RegionEmbedding(10, 16).eval(), REGIONS),
    }


@pytest.mark.parametrize("name", ["patches", "grid", "regions"])
def test_every_image_embedder_fits_the_model(name: str):
    """Fusion works as before, in both layouts: swapping the images changes the pooled features."""
    embedder, image = embedders()[name]
    model = vilt(lambda *_: embedder)
    assert isinstance(model, FusionEncoder) and model.patches is embedder
    swapped = image[torch.tensor([1, 0])]

    def pooled(visual: Image | Regions, packed: bool) -> Tensor:
        with packing(packed), torch.no_grad():
            return model.fuse(model.encode_text(TEXT), model.encode_image(visual)).pooled  # type: ignore[arg-type]

    own, other = pooled(image, False), pooled(swapped, False)
    torch.testing.assert_close(pooled(image, True), own, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(own, other, atol=1e-4)


@pytest.mark.slow
def test_a_frozen_pretrained_cnn_can_be_the_image_embedder():
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `cnn`")
    model = vilt(lambda dim, _: GridEmbedding(FrozenCNN().feature_maps, 1280, dim, (2, 3)))
    tokens = model.encode_image(IMAGE)
    assert tokens.layout.spans[0].grid == (2, 3) and tokens.layout.lengths == [6, 2]
    assert not any("network" in name for name in model.state_dict()), "the frozen network is not part of the state_dict"
    model.fuse(model.encode_text(TEXT), tokens).pooled.sum().backward()
    assert model.patches.project.weight.grad is not None


def test_kind_b_has_two_equal_towers_and_an_interaction_without_weights():
    model = CLIP(CLIPConfig(16, 2, 2, 32, 32, (2, 3), 16, 2, 2, 32, 20, 5, 8))
    assert isinstance(model, DualEncoder) and not isinstance(model, FusionEncoder)
    visual, textual = size(model.image.blocks), size(model.text.blocks)
    assert visual == textual
    assert {name for name, _ in model.pretraining_heads()["itc"].scale.named_parameters()} == {"log"}  # type: ignore[union-attr]


def test_kinds_c_and_d_differ_in_the_image_embedder():
    """Parameters at the published width: ViLT's patch and text embeddings are light, a ResNet is heavy."""
    with torch.device("meta"):
        model = ViLT(ViLTConfig())
        network = ResNet(64, (3, 4, 6, 3))
        grid = GridEmbedding(network, network.out_channels, model.dim, (7, 7))
    interaction, patches, words = (
        size(model.transformer),
        size(model.patches),
        size(model.words) - size(model.words.word),
    )
    assert interaction > 20 * (patches + words), "d: MI > VE = TE"
    assert size(grid) > 8 * patches > words, "c: VE is heavy, TE is not"
