from __future__ import annotations

import pytest
import torch
from torch import nn

from diptych.batch import Batch, Image
from diptych.models.mae.config import MAEConfig
from diptych.models.mae.model import MAE
from diptych.models.vit.config import ViTConfig
from diptych.models.vit.model import ViT
from diptych.modules.tokens import packing
from diptych.objectives.masking import first_patches, patch_order
from diptych.objectives.mim import MIMLoss, patch_pixels
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import FixedChoices

SIZES = torch.tensor([[8, 12], [4, 8], [8, 4]])  # 6, 2 and 2 patches of 4


def ragged() -> Image:
    pixels = torch.zeros(3, 3, 8, 12)
    for canvas, (height, width) in zip(pixels, SIZES.tolist(), strict=True):
        canvas[:, :height, :width] = torch.randn(3, height, width, generator=torch.Generator().manual_seed(height))
    return Image(pixels, SIZES)


def step(objective: MIMLoss) -> Pretraining:
    torch.manual_seed(0)
    model = MAE(
        MAEConfig(16, 1, 2, 16, 4, (2, 3), decoder_dim=16, decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=16)
    )
    return Pretraining(model, nn.ModuleDict(), [objective]).eval()


def batch() -> Batch:
    return Batch(0, 0, torch.arange(3), image=ragged())


def test_patches_are_ordered_by_the_noise_at_their_raster_index():
    tokens = step(MIMLoss()).model.embed_image(ragged())  # type: ignore[union-attr]
    noise = torch.tensor([[0.5, 0.1, 0.9, 0.2, 0.4, 0.3], [0.7, 0.6, 0, 0, 0, 0], [0.1, 0.2, 0, 0, 0, 0]])
    order = patch_order(tokens, noise)
    assert order[0, 1:].tolist() == [4, 0, 5, 1, 3, 2]
    assert order[1, [1, 2]].tolist() == [1, 0]
    assert order[2, [1, 4]].tolist() == [0, 1], "its second patch is in the second row of the canvas"
    kept = first_patches(tokens, order, 1)
    assert kept.sum(1).tolist() == [2, 2, 2] and kept[:, 0].all()
    assert kept[0, 2] and kept[1, 2] and kept[2, 1]


@pytest.mark.parametrize("packed", [False, True])
def test_only_masked_patches_count_and_do_not_reach_the_encoder(packed: bool):
    objective = MIMLoss(ratio=0.5, normalise=False)
    made = step(objective)
    draws = FixedChoices(patch_noise=torch.tensor([[0.0, 1, 2, 3, 4, 5]]).expand(3, 6))
    with packing(packed):
        views = made.views(batch(), draws)
        output = objective.reconstruction(views)
        loss = objective.loss_sums(views)["mim"]
    assert output.masked.sum(1).tolist() == [3, 1, 1] and objective.num_terms(views)["mim"] == 5
    predicted = output.predicted.to_padded()
    target = patch_pixels(ragged(), 4)
    torch.testing.assert_close(loss, (predicted - target)[output.masked].square().mean(1).sum())
    image = ragged()
    image.pixels[0, :, 4:] += 3  # the three masked patches of the first image
    with packing(packed):
        again = objective.reconstruction(made.views(Batch(0, 0, torch.arange(3), image=image), draws))
    torch.testing.assert_close(again.predicted.to_padded(), predicted)


def test_normalised_targets_ignore_a_patchs_brightness_and_contrast():
    made, bright = step(MIMLoss()), ragged()
    noise = FixedChoices(patch_noise=torch.tensor([[0.0, 1, 2, 3, 4, 5]]).expand(3, 6))
    bright.pixels[0, :, 4:, 8:] *= 3
    bright.pixels[0, :, 4:, 8:] += 2
    losses = [made(Batch(0, 0, torch.arange(3), image=image), draws=noise)["mim"] for image in (ragged(), bright)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def test_patch_pixels_are_ordered_by_row_column_and_channel():
    pixels = torch.arange(3 * 4 * 8.0).view(1, 3, 4, 8)
    patches = patch_pixels(Image.from_full(pixels), 4)
    assert patches.shape == (1, 2, 48)
    assert patches[0, 1].view(4, 4, 3)[2, 1].tolist() == pixels[0, :, 2, 5].tolist()


def test_mim_without_an_autoencoder_or_an_order_raises_an_error():
    made = Pretraining(ViT(ViTConfig(8, 1, 2, 8, 4, (2, 3), 0)), nn.ModuleDict(), [MIMLoss()])
    with pytest.raises(ValueError, match="ViT is not a masked autoencoder"):
        made(batch())
    with pytest.raises(ValueError, match="FixedChoices has no patch_noise"):
        step(MIMLoss())(batch(), draws=FixedChoices())


@pytest.mark.parametrize(("ratio", "patches", "kept"), [(0.75, 196, 49), (0.75, 6, 1), (0.6, 10, 4), (0.8, 10, 1)])
def test_the_number_of_visible_patches_rounds_as_the_official_code(ratio: float, patches: int, kept: int):
    assert MIMLoss(ratio=ratio).num_visible(torch.tensor(patches)).item() == kept == int(patches * (1 - ratio))
