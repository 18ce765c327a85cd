"""Visual tokens: block masking, training of the visual tokenizer, prediction of codes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diptych.config.objectives import BlockMasking
from diptych.config.training import Optimizer
from diptych.encoders.visual_tokenizer import FrozenTokenizer, VisualTokenizer
from diptych.encoders.visual_tokenizer_config import VisualTokenizerConfig
from diptych.modules.normalization import CENTRED, renormalize
from diptych.objectives.masked_codes import MaskedCodeLoss
from diptych.objectives.masked_views import masked_patches, visual_codes
from diptych.objectives.masking import block_mask
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import KeyedChoices
from diptych.objectives.vqkd import UnusedCodes, VQKDLoss
from diptych.training import checkpoint
from diptych.training.diagnostics import Diagnostics
from diptych.training.optimizer import build_optimizer
from tests.models.systems import beit3
from tests.models.systems.common import Colours, batch_of

torch.manual_seed(0)
SMALL = VisualTokenizer(VisualTokenizerConfig(
    dim=32, depth=1, num_heads=4, mlp_dim=64, patch_size=8, grid=(3, 4), num_codes=24, code_dim=8, decoder_depth=1,
    feature_dim=1280,
    patience=3,
))  # fmt: skip


@pytest.mark.parametrize(("rows", "columns", "least"), [(14, 14, 16), (7, 7, 4), (3, 4, 16), (1, 1, 16), (1, 9, 2)])
def test_a_fixed_fraction_of_patches_is_masked_in_blocks(rows: int, columns: int, least: int):
    wanted = max(1, round(0.4 * rows * columns))
    counts = np.zeros((rows, columns))
    alike = []
    for seed in range(60):
        hidden = block_mask(rows, columns, BlockMasking(0.4, least), np.random.default_rng(seed))
        assert hidden.shape == (rows, columns) and hidden.sum() == wanted
        counts += hidden
        alike.append((hidden[:, 1:] == hidden[:, :-1]).mean() if columns > 1 else 1.0)
    assert (counts > 0).all(), "every patch can be masked"
    if rows * columns == 196:  # independent masking would make neighbours equal in 0.4² + 0.6² = 52 % of the cases
        assert np.mean(alike) > 0.75


def test_block_masks_depend_on_the_sample_only_and_not_on_padding():
    batch = batch_of(8)
    assert batch.image is not None
    extents = batch.image.extents(8)
    masks = KeyedChoices(batch).mask_patches(extents, (3, 4), BlockMasking(min_block=2)).view(8, 3, 4)
    order = torch.arange(8).flip(0)
    turned = KeyedChoices(replace(batch, ids=batch.ids[order])).mask_patches(
        extents[order], (5, 6), BlockMasking(min_block=2)
    )
    assert torch.equal(turned.view(8, 5, 6)[:, :3, :4], masks[order])
    for hidden, (height, width) in zip(masks, extents.tolist(), strict=True):
        assert hidden.sum() == hidden[:height, :width].sum() == max(1, round(0.4 * height * width))


def tokenizer_step(seed: int = 0) -> Pretraining:
    torch.manual_seed(seed)
    model = VisualTokenizer(VisualTokenizerConfig(32, 1, 4, 64, 8, (3, 4), 24, 8, 1, 1280, patience=3))
    return Pretraining(model, nn.ModuleDict(), [VQKDLoss(), UnusedCodes()], teacher_network=Colours())


def trained(step: Pretraining, steps: range, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    history = []
    for k in steps:
        losses = step.train()(replace(batch_of(16, seed=k % 4), step=k))
        losses["vqkd"].backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: value.item() for name, value in losses.items()})
    return history


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_visual_tokenizer_trains_and_uses_its_codebook(seed: int):
    step = tokenizer_step(seed)
    history = trained(step, range(60), build_optimizer(step, Optimizer(learning_rate=3e-3)))
    assert history[-1]["vqkd/apart"] < 0.7 * history[0]["vqkd/apart"]
    assert history[-1]["unused"] < 0.5 * step.chance_losses["unused"].value
    assert step.chance_losses["unused"].value == pytest.approx(0.8) and step.weights["unused"] == 0
    before = {name: value.clone() for name, value in step.state_dict().items()}
    step.eval()(batch_of(4))
    assert all(torch.equal(before[name], value) for name, value in step.state_dict().items()), "scoring changes nothing"


def test_the_visual_tokenizer_learns_the_same_codes_in_half_precision():
    whole, half = tokenizer_step().train(), tokenizer_step().train()
    batch = batch_of(16)
    exact = whole(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = half(batch)
    torch.testing.assert_close(rough["vqkd"], exact["vqkd"], rtol=0.05, atol=0.05)
    book, other = (step.get_submodule("model.codebook") for step in (whole, half))
    assert all(buffer.dtype == other.get_buffer(name).dtype for name, buffer in book.named_buffers())
    x = F.normalize(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        codes = half.model.codebook.nearest(x)  # type: ignore[union-attr]
    assert torch.equal(codes, half.model.codebook.nearest(x))  # type: ignore[union-attr]


def test_the_target_is_the_feature_less_its_mean():
    """Compared with a hand computation on unit vectors."""
    step, batch = tokenizer_step(), batch_of(8)
    step.train()(batch)
    model, image = step.eval().model, batch.image
    assert isinstance(model, VisualTokenizer) and image is not None
    tokens = model.encode_image(image)
    features = F.normalize(Colours()(image).grid.flatten(1, 2)[tokens.mask], dim=1)
    torch.testing.assert_close(model.feature_mean.mean, features.mean(0))
    decoded = model.decode_codes(model.quantize(tokens)[0]).pack().values
    by_hand = 1 - F.cosine_similarity(decoded, features - features.mean(0))
    torch.testing.assert_close(step(batch)["vqkd/apart"], by_hand.mean())
    assert step.chance_losses["vqkd"].value == 1.0


def test_diagnostics_report_a_collapsed_codebook():
    diagnostics = Diagnostics(tokenizer_step().chance_losses, patience=5)
    (finding,) = diagnostics.watch({"step": 5, "unused": 0.9})
    assert finding.verdict == "stuck" and "the codebook has collapsed" in finding.message
    (finding,) = Diagnostics(diagnostics.chance_losses, patience=5).watch({"step": 5, "unused": 0.7})
    assert finding.verdict == "learning"


@pytest.mark.slow
def test_resume_gives_the_same_codebook(tmp_path: Path):
    settings = Optimizer(learning_rate=3e-3)
    whole, first, second = tokenizer_step(), tokenizer_step(), tokenizer_step()
    losses = trained(whole, range(6), build_optimizer(whole, settings))
    optimizer = build_optimizer(first, settings)
    trained(first, range(3), optimizer)
    checkpoint.save(tmp_path, first, optimizer, {})
    optimizer = build_optimizer(second, settings)
    checkpoint.load(tmp_path, second, optimizer)
    assert trained(second, range(3, 6), optimizer) == losses[3:]
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_the_tokenizer_gets_pixels_in_its_own_normalisation():
    image = batch_of(5).image
    assert image is not None
    other = ((0.4, 0.5, 0.6), (0.3, 0.3, 0.2))
    codes = FrozenTokenizer(SMALL, input_norm=other)(replace(image, pixels=renormalize(image.pixels, CENTRED, other)))
    assert (codes == FrozenTokenizer(SMALL)(image)).float().mean() > 0.9  # different rounding may change some codes
    valid = codes >= 0
    assert (FrozenTokenizer(SMALL, input_norm=other)(image) != codes)[valid].float().mean() > 0.1


def test_a_tokenizer_with_larger_patches_gets_larger_images():
    image = batch_of(5).image
    assert image is not None
    small = replace(image, pixels=F.avg_pool2d(image.pixels, 2), sizes=image.sizes // 2)
    larger = FrozenTokenizer(SMALL, patch_size=4)
    assert larger.patch == 4 and torch.equal(larger(small) < 0, FrozenTokenizer(SMALL)(image) < 0)
    again = replace(image, pixels=F.interpolate(small.pixels, scale_factor=2, mode="bilinear"))
    assert torch.equal(larger(small), FrozenTokenizer(SMALL)(again))
    ragged = replace(small, sizes=small.sizes - 1)
    assert torch.equal(larger(ragged) < 0, larger(small) < 0), "the valid patches are those that overlap the image"


def test_codes_of_masked_patches_are_predicted():
    """By hand: cross entropy at the masked patches, of the tokenizer's codes of the unmasked image."""
    torch.manual_seed(0)
    model, frozen = beit3.model(), FrozenTokenizer(SMALL)
    step = Pretraining(
        model,
        nn.ModuleDict({"codes": nn.Linear(32, 24)}),
        [MaskedCodeLoss(BlockMasking(min_block=2))],
        {"codes": 24.0},
        tokenizer=frozen,
    )
    batch = batch_of(5)
    views = step.views(batch)
    hidden, valid = masked_patches(views, BlockMasking(min_block=2)), visual_codes(views)
    assert valid[hidden].min() >= 0 and valid.max() < 24 and hidden.shape == valid.shape
    assert batch.image is not None
    hidden_states = model.encode_unimodal(model.encode_masked(batch.image, hidden)).select(name="patches").to_padded()
    logits = step.heads["codes"](hidden_states)
    by_hand = [F.cross_entropy(logits[i, j], valid[i, j]) for i, j in hidden.nonzero().tolist()]
    torch.testing.assert_close(step(batch)["masked_codes"], torch.stack(by_hand).mean())
    assert step.chance_losses["masked_codes"].value == pytest.approx(math.log(24))
    floor = MaskedCodeLoss().chance_loss({"codes": 24.0, "code_entropy": 2.0})
    assert floor is not None and floor.value == 2.0
    with pytest.raises(ValueError, match="need a visual tokenizer, but this run has none"):
        Pretraining(model, step.heads, [MaskedCodeLoss()])(batch)
