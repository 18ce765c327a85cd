"""Each objective on hand-made tokens: what it averages over, what it excludes, and its chance level."""

from __future__ import annotations

import math
from dataclasses import replace

import ot
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.batch import Batch, Image, ImageKeys, Matching, Text
from diptych.encoders.efficientnet import FrozenCNN
from diptych.modules.normalization import CENTRED, renormalize
from diptych.modules.tokens import FusedTokens, Span, Tokens, packing
from diptych.objectives.cnn_distillation import ClassDistillationLoss, GridDistillationLoss
from diptych.objectives.itm import ITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.random_choices import FixedChoices, KeyedChoices, MaskedText, WordMasking
from diptych.objectives.views import Views
from diptych.objectives.wpa import WPALoss
from diptych.utils.feature_cache import MemoryCache

WIDTH, VOCABULARY = 6, 50
MASKING = WordMasking(VOCABULARY, mask_id=4)


class Plain(nn.Module):
    """A model without a transformer: word embeddings, mean colours of patches, and a sum as fusion."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.colour = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(3, WIDTH)
        self.passes: list[str] = []

    def encode_text(self, text: Text) -> Tokens:
        self.passes.append("text")
        n = text.ids.shape[1]
        return Tokens.from_padded(self.words(text.ids), text.mask, Span("text", "cls", 1), Span("text", "words", n - 1))

    def encode_image(self, image: Image) -> Tokens:
        self.passes.append("image")
        cells = F.avg_pool2d(image.pixels, 32)
        rows, columns = cells.shape[-2:]
        inside = torch.ones(len(image), 1 + rows * columns, dtype=torch.bool)
        for row, (h, w) in zip(inside, (image.sizes // 32).tolist(), strict=True):
            row[1:] = ((torch.arange(rows)[:, None] < h) & (torch.arange(columns) < w)).flatten()
        values = F.pad(self.colour(cells.flatten(2).transpose(1, 2)), (0, 0, 1, 0), value=1.0)
        return Tokens.from_padded(
            values, inside, Span("image", "cls", 1), Span("image", "patches", rows * columns, (rows, columns))
        )

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        self.passes.append("fuse")
        return FusedTokens(text, image, text.mean() * image.mean())


class StandIn(FrozenCNN):
    """The frozen CNN's cache with colours in place of ImageNet features; counts its computations."""

    def __init__(self) -> None:
        self.name, self._cache, self.num_extracted = b"", MemoryCache(), 0

    def _compute(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.num_extracted += 1
        colours = F.avg_pool2d(pixels[None], 32)[0].permute(1, 2, 0)
        features = F.pad(colours, (0, 1280 - 3))
        return features.half(), F.pad(colours.mean((0, 1)), (0, 1000 - 3)).half()


def batch_of(extents: list[tuple[int, int]] | None = None, seed: int = 0) -> Batch:
    extents = extents or [(1, 2), (2, 2), (2, 1), (1, 1)]
    generator = torch.Generator().manual_seed(seed)
    b = len(extents)
    pixels = torch.zeros(b, 3, 64, 64)
    for canvas, (h, w) in zip(pixels, extents, strict=True):
        canvas[:, : 32 * h, : 32 * w] = torch.rand(3, 32 * h, 32 * w, generator=generator)
    image = Image(pixels, 32 * torch.tensor(extents))
    lengths = torch.randint(4, 9, (b, 1), generator=generator)
    real = torch.arange(8) < lengths
    ids = torch.randint(6, VOCABULARY, real.shape, generator=generator) * real
    ids[:, 0] = 1
    ids.scatter_(1, (lengths - 1), 2)
    matched = torch.arange(b) % 3 != 0
    return Batch(1, 2, torch.arange(20, 20 + b), image, Text(ids, real), Matching(image, matched))


def heads() -> nn.ModuleDict:
    torch.manual_seed(1)
    sizes = {"itm": 2, "mlm": VOCABULARY, "grid": 1280, "classes": 1000}
    return nn.ModuleDict({name: nn.Linear(WIDTH, n) for name, n in sizes.items()})


ALL: tuple[Objective, ...] = (
    ITMLoss(),
    MLMLoss(MASKING),
    WPALoss(),
    GridDistillationLoss(),
    ClassDistillationLoss(),
)


def step_of(*objectives: Objective, most_patches: int | None = None, pack: bool = True) -> Pretraining:
    return Pretraining(Plain(), heads(), objectives or ALL, {"unigram_entropy": 3.0}, most_patches, StandIn(), pack)


def rows(batch: Batch, which: slice) -> Batch:
    assert batch.image and batch.text and batch.matching
    matching = Matching(batch.matching.image[which], batch.matching.matched[which])
    return replace(batch, ids=batch.ids[which], image=batch.image[which], text=batch.text[which], matching=matching)


@pytest.mark.quick("2-True")
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("most_patches", [None, 2])
@pytest.mark.slow
def test_the_mean_of_a_batch_is_the_weighted_mean_of_its_parts(pack: bool, most_patches: int | None):
    step, batch = step_of(most_patches=most_patches, pack=pack), batch_of()
    whole, counts = step(batch), step.num_terms(batch)
    parts = [rows(batch, slice(0, 1)), rows(batch, slice(1, 4))]
    assert set(whole) == set(counts) > {o.name for o in ALL}
    for name, mean in whole.items():
        shares = [step.num_terms(part)[name] for part in parts]
        weighted = torch.stack([step(part)[name] * share for part, share in zip(parts, shares, strict=True)]).sum()
        torch.testing.assert_close(weighted / counts[name], mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.stack(shares).sum(), counts[name])


def test_each_encoding_is_computed_once_and_shared():
    step, batch = step_of(), batch_of()
    step(batch)
    passes = step.model.passes  # type: ignore[union-attr]
    assert sorted(passes) == ["fuse", "fuse", "image", "image", "text", "text"], "two images, plain and masked"


def test_encodings_that_no_objective_uses_are_not_computed():
    step = step_of(ClassDistillationLoss())
    step(batch_of())
    assert step.model.passes == ["image"]  # type: ignore[union-attr]
    step.num_terms(batch_of())
    assert step.model.passes == ["image"], "counting ran the model"  # type: ignore[union-attr]


@pytest.mark.parametrize("prior", [0.5, 1 / 3])
def test_chance_loss_of_itm_is_the_entropy_of_its_prior(prior: float):
    floor = ITMLoss(prior=prior).chance_loss({})
    logits = torch.tensor([math.log(1 - prior), math.log(prior)]).expand(1000, 2)
    labels = torch.arange(1000) < round(1000 * prior)
    assert floor.value == pytest.approx(F.cross_entropy(logits, labels.long()).item(), abs=1e-3)
    if prior == 0.5:
        assert floor.value == pytest.approx(math.log(2))


def test_chance_losses_are_given_if_they_are_known():
    step = step_of()
    assert set(step.chance_losses) == {"itm", "mlm", "class_distillation"}
    assert step.chance_losses["mlm"].value == 3.0
    assert step.chance_losses["class_distillation"].value == pytest.approx(math.log(1000))
    assert MLMLoss().chance_loss({}) is None
    assert step.weights == {"itm": 1.0, "mlm": 1.0, "wpa": 0.1, "grid_distillation": 1.0, "class_distillation": 0.5}


def test_mlm_counts_masked_tokens_only():
    step, batch = step_of(MLMLoss(MASKING)), batch_of()
    assert batch.text is not None
    views = step.views(batch)
    masked = views.masked(MASKING)
    logits = step.heads["mlm"](step.model.words(masked.text.ids))  # type: ignore[union-attr]
    wanted = F.cross_entropy(logits[masked.masked], batch.text.ids[masked.masked])
    losses = step(batch)
    torch.testing.assert_close(losses["mlm"], wanted)
    right = (logits.argmax(2) == batch.text.ids)[masked.masked].float().mean()
    torch.testing.assert_close(losses["mlm/accuracy"], right)
    assert step.num_terms(batch)["mlm"] == masked.masked.sum()


def test_without_masked_tokens_the_loss_is_zero_and_not_nan():
    step, batch = step_of(MLMLoss(MASKING)), batch_of()
    assert batch.text is not None
    none = MaskedText(batch.text, torch.zeros_like(batch.text.mask), batch.text.ids)
    losses = step(batch, None, FixedChoices(none))
    losses["mlm"].backward()
    assert losses["mlm"].item() == 0 and losses["mlm/accuracy"].item() == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in step.parameters())


@pytest.mark.parametrize("pack", [False, True])
def test_wpa_is_matched_minus_mismatched_transport_distance(pack: bool):
    step, batch = step_of(WPALoss(iterations=1000), pack=pack), batch_of()
    assert batch.text and batch.matching and batch.image
    losses, model = step(batch), step.model
    exact = []
    for i, length in enumerate(batch.text.mask.sum(1).tolist()):
        words = model.words(batch.text.ids[i, 1 : length - 1])  # type: ignore[union-attr]
        h, w = (batch.image.sizes[i] // 32).tolist()
        colours = F.avg_pool2d(batch.image.pixels[i], 32)[:, :h, :w].flatten(1).T
        cost = 1 - F.cosine_similarity(words[:, None], model.colour(colours)[None], dim=2)  # type: ignore[union-attr]
        cost = cost.double().detach().numpy()
        exact.append(float((ot.emd(ot.unif(len(cost)), ot.unif(cost.shape[1]), cost) * cost).sum()))
    distances, matched = torch.tensor(exact), batch.matching.matched
    near, far = distances[matched], distances[~matched]
    assert losses["wpa"].item() == pytest.approx(((near.sum() - far.sum()) / 4).item(), abs=2e-3)
    assert losses["wpa/matched"].item() == pytest.approx(near.mean().item(), rel=0.01)
    assert losses["wpa/mismatched"].item() == pytest.approx(far.mean().item(), rel=0.01)


def test_the_plan_has_a_row_per_column_after_cls_and_none_for_sep_or_pads():
    batch = batch_of()
    assert batch.text and batch.image
    model = Plain()
    pair = model.fuse(model.encode_text(batch.text), model.encode_image(batch.image))
    plan = WPALoss().transport(pair).plan
    assert plan.shape == (4, 7, 4)
    for row, length in zip(plan, batch.text.mask.sum(1).tolist(), strict=True):
        massive = (row.sum(1) > 0).nonzero().flatten().tolist()
        assert massive == list(range(length - 2)), "only words have mass"


# -- CNN distillation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [False, True])
def test_grid_distillation_compares_each_patch_with_the_cnn_at_its_cell(pack: bool):
    step, batch = step_of(GridDistillationLoss(), ClassDistillationLoss(temperature=2.0), pack=pack), batch_of()
    assert batch.image
    distances, divergences = [], []
    for pixels, (h, w) in zip(batch.image.pixels, (batch.image.sizes // 32).tolist(), strict=True):
        colours = F.avg_pool2d(pixels, 32)[:, :h, :w].flatten(1).T
        guess = step.heads["grid"](step.model.colour(colours))  # type: ignore[union-attr]
        distances += (1 - F.cosine_similarity(guess, F.pad(colours.half().float(), (0, 1277)), dim=1)).tolist()
        target = F.pad(colours.mean(0).half().float(), (0, 997))
        logits = step.heads["classes"](torch.ones(WIDTH))
        divergences.append(-((target / 2).softmax(0) * (logits / 2).log_softmax(0)).sum().item())
    losses = step(batch)
    assert losses["grid_distillation"].item() == pytest.approx(sum(distances) / len(distances), rel=1e-3)
    assert losses["class_distillation"].item() == pytest.approx(sum(divergences) / 4, rel=1e-3)


def test_the_cnn_caches_by_pixels_without_image_keys():
    """Two splits have the same sample ids, and five captions share one image."""
    cnn, batch = StandIn(), batch_of()
    assert batch.image
    first = cnn(batch.image)
    assert cnn.num_extracted == 4
    again = cnn(batch.image[torch.tensor([2, 0])])
    assert cnn.num_extracted == 4
    assert torch.equal(again.grid, first.grid[[2, 0]]) and torch.equal(again.classes, first.classes[[2, 0]])
    other = batch_of(seed=5).image
    assert other
    assert torch.equal(cnn(other).classes, StandIn()(other).classes)
    assert cnn.num_extracted == 8


def test_a_full_cache_recomputes():
    cnn, batch = StandIn(), batch_of()
    cnn._cache = MemoryCache(max_bytes=0)
    assert batch.image
    assert torch.equal(cnn(batch.image).grid, cnn(batch.image).grid)
    assert cnn.num_extracted == 8


def test_the_cnn_caches_by_image_key_and_flips_cached_features():
    """Equal values computed or cached; for a flipped image the features of the original are computed and flipped."""
    cnn, batch = StandIn(), batch_of()
    assert batch.image
    pixels, sizes = batch.image.pixels.clone(), batch.image.sizes
    for row, (h, w) in zip(pixels[1:3], sizes[1:3].tolist(), strict=True):
        row[:, :h, :w] = row[:, :h, :w].flip(2)
    names = [bytes([i]) * 20 for i in range(4)]
    keys = ImageKeys.from_digests(names, [False, True, True, False])
    plain, turned = StandIn()(batch.image), cnn(Image(pixels, sizes), keys)
    assert cnn.num_extracted == 4 and torch.equal(turned.classes, plain.classes)
    assert torch.equal(turned.grid[[0, 3]], plain.grid[[0, 3]])
    for row, unflipped, (h, w) in zip(turned.grid[1:3], plain.grid[1:3], sizes[1:3] // 32, strict=True):
        assert torch.equal(row[:h, :w], unflipped[:h, :w].flip(1)) and not row[h:].any() and not row[:, w:].any()
    again, upright = cnn(Image(pixels, sizes), keys), cnn(batch.image, ImageKeys.from_digests(names, [False] * 4))
    assert cnn.num_extracted == 4 and torch.equal(again.grid, turned.grid) and torch.equal(upright.grid, plain.grid)
    without_cache = StandIn()
    without_cache._cache = MemoryCache(max_bytes=0)
    assert torch.equal(without_cache(Image(pixels, sizes), keys).grid, turned.grid)


def test_a_patch_size_other_than_the_cnns_stride_raises_an_error():
    class Coarse(StandIn):
        stride = 64

        def _compute(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros(1, 1, 1280), torch.zeros(1000)

    step = Pretraining(Plain(), heads(), [GridDistillationLoss()], teacher_network=Coarse())
    with pytest.raises(ValueError, match="expected patches of 64 pixels"):
        step(batch_of())


@pytest.mark.slow
def test_the_real_cnns_features_do_not_depend_on_the_batch():
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `cnn`")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 64, 96, generator=generator) * 2 - 1
    canvas = torch.zeros(2, 3, 96, 96)
    canvas[0] = torch.rand(3, 96, 96, generator=generator)
    canvas[1, :, :64] = pixels[0]
    batch = Image(canvas, torch.tensor([[96, 96], [64, 96]]))
    cnn = FrozenCNN()
    cached = cnn(Image.from_full(pixels))
    with torch.autocast("cpu", torch.bfloat16):
        fresh = FrozenCNN()(batch)
    for batched in (fresh, cnn(batch)):
        assert torch.equal(batched.grid[1, :2, :3], cached.grid[0])
        assert torch.equal(batched.classes[1], cached.classes[0])
        assert batched.grid[1, 2:].abs().sum() == 0
    assert cached.grid.shape == (1, 2, 3, 1280)
    assert not cached.grid.requires_grad and cached.classes.std() > 0.1

    other = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of a run with another normalisation of the same image
    reading = cnn.with_normalization(other)
    renormalized = reading(Image.from_full(renormalize(pixels, CENTRED, other)))
    torch.testing.assert_close(renormalized.classes, cached.classes, atol=2e-2, rtol=1e-2)
    assert (reading(Image.from_full(pixels)).classes - cached.classes).abs().max() > 0.1


# -- errors for missing inputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "change", "message"),
    [
        (ITMLoss(), {"matching": None}, "no images for ITM"),
        (MLMLoss(MASKING), {"text": None}, "no text"),
        (ClassDistillationLoss(), {"image": None}, "no image"),
    ],
)
def test_a_batch_without_required_inputs_raises_an_error(objective: Objective, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        step_of(objective)(replace(batch_of(), **change))


def test_a_missing_teacher_network_or_text_encoder_raises_an_error():
    with pytest.raises(ValueError, match="needs a teacher network, but this run has none"):
        Pretraining(Plain(), heads(), [ClassDistillationLoss()])(batch_of())

    class Blind(nn.Module):
        def encode_image(self, image: Image) -> Tokens:
            return Plain().encode_image(image)

    with pytest.raises(ValueError, match="Blind cannot fuse text and image"):
        Pretraining(Blind(), heads(), [MLMLoss(MASKING)])(batch_of())


def test_every_view_has_the_same_kept_patches():
    batch = batch_of([(2, 2), (1, 2)])
    for packed in (False, True):
        with packing(packed):
            views = Views(Plain(), heads(), batch, KeyedChoices(batch), max_patches=2)
            assert views.image.mask.sum(1).tolist() == [3, 3]
            assert views.matching_pair.image.mask.sum(1).tolist() == [3, 3]
