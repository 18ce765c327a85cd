"""All captions of an image are its positives: in ITC, hard negatives, triplet loss, and batches read from files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.batch import Batch, Image, Regions, Text
from diptych.config.data import ImageSettings
from diptych.data.examples import PairExamples
from diptych.data.regions.arrays import fixed_boxes
from diptych.data.regions.frozen_features import BoxLoader, ExtractedFeatures
from diptych.data.sources.captions import open_captions
from diptych.data.tokenizers.tokenizer import Tokenizer, vocabulary
from diptych.models.vit.config import ViTConfig
from diptych.models.vit.model import ViT
from diptych.models.vsepp.config import VSEppConfig
from diptych.models.vsepp.model import VSEpp
from diptych.modules.heads import ITCHead, ITMHead, LogScale
from diptych.modules.tokens import FusedTokens, Span, Tokens
from diptych.objectives.contrastive_logits import positive_pairs
from diptych.objectives.itc import ITCLoss
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import FixedChoices, KeyedChoices
from diptych.objectives.triplet import TripletLoss, triplet_loss
from diptych.objectives.views import JointEmbeddings, Views
from diptych.utils.feature_cache import MemoryCache

SHARED = [7, 5, 7, 9]
LABELS = {"image": torch.tensor(SHARED)}


def features(b: int = 4) -> JointEmbeddings:
    return JointEmbeddings(*(F.normalize(torch.randn(b, 6, generator=draw(seed)), dim=1) for seed in (0, 1)))


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views_of(labels: Mapping[str, Tensor], embeddings: JointEmbeddings | None = None) -> Views:
    embeddings = embeddings or features()
    batch = Batch(0, 1, torch.arange(len(embeddings.image)), labels=dict(labels))
    heads = nn.ModuleDict({"itc": ITCHead(6, 6, 6, LogScale(4.0))})
    views = Views(ViT(ViTConfig(8, 1, 2, 8, 4, (1, 1), 0)), heads, batch, KeyedChoices(batch))
    views.cached(("features", "itc", 0), lambda: embeddings)
    return views


def by_hand(form: str, embeddings: JointEmbeddings, images: list[int]) -> float:
    total, n = 0.0, len(images)
    for query, candidates in (embeddings, reversed(embeddings)):
        logits = 4 * query @ candidates.T
        for i in range(n):
            belong = [j for j in range(n) if images[j] == images[i]]
            if form == "softmax":
                total -= sum(float(logits[i].log_softmax(0)[j]) for j in belong) / len(belong)
            else:
                total -= sum(float(F.logsigmoid(logits[i, j] if j in belong else -logits[i, j])) for j in range(n))
    return total / 2


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_itc_targets_are_shared_among_an_images_captions(form: Any):
    objective = ITCLoss(form=form)
    loss = objective.loss_sums(views_of(LABELS))["itc"].item()
    assert loss == pytest.approx(by_hand(form, features(), SHARED), rel=1e-5)
    without_ids = objective.loss_sums(views_of({}))["itc"].item()
    assert without_ids == pytest.approx(by_hand(form, features(), list(range(4))), rel=1e-5) != loss
    assert objective.loss_sums(views_of({"image": torch.tensor([3, 2, 8, 5])}))["itc"].item() == without_ids


def test_retrieving_another_caption_of_the_image_counts_as_correct():
    """Image 0 is most similar to text 2, and text 2 to image 0."""
    image = torch.eye(6)[[0, 1, 2, 3]]
    embeddings = JointEmbeddings(image, image[[2, 1, 0, 3]])
    right = ITCLoss().loss_sums(views_of(LABELS, embeddings))["itc/accuracy"]
    assert (right, ITCLoss().loss_sums(views_of({}, embeddings))["itc/accuracy"]) == (4, 2)


def test_equal_logits_still_give_ln_of_the_number_of_candidates():
    alike = JointEmbeddings(torch.ones(4, 6), torch.ones(4, 6))
    loss = ITCLoss().loss_sums(views_of(LABELS, alike))["itc"] / 4
    assert loss.item() == pytest.approx(math.log(4))


def test_hard_negatives_are_always_of_other_images():
    image = torch.eye(6)[[0, 1, 0, 3]]  # the image is in the batch twice, and most similar to itself
    drawn = HardNegativeITMLoss().negatives(views_of(LABELS, JointEmbeddings(10 * image, image)))
    for chosen in drawn:
        assert all(SHARED[j] != SHARED[i] for i, j in enumerate(chosen.tolist()))
    without_ids = HardNegativeITMLoss().negatives(views_of({}, JointEmbeddings(10 * image, image)))
    assert without_ids.texts[[0, 2]].tolist() == [2, 0], "without ids all sampled negatives count"


class Sums(nn.Module):
    """A model whose tokens are its inputs; the fused vector is their sum."""

    def encode_image(self, image: Image) -> Tokens:
        return self._tokens("image", image.pixels[:, None, 0, 0])

    def encode_text(self, text: Text) -> Tokens:
        return self._tokens("text", text.ids[:, None].float())

    def _tokens(self, side: str, values: Tensor) -> Tokens:
        return Tokens.from_padded(values, torch.ones(values.shape[:2], dtype=torch.bool), Span(side, "cls", 1))

    def pooled_features(self, tokens: Tokens) -> tuple[Tensor, ...]:
        return (tokens.first(),)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        return FusedTokens(text, image, text.first() + image.first())


def matched(images: list[int], in_rank: bool = False) -> tuple[Pretraining, Batch]:
    torch.manual_seed(0)
    b = len(images)
    heads = nn.ModuleDict({"itc": ITCHead(6, 6, 6, LogScale(4.0)), "itm": ITMHead(6)})
    text = Text(torch.randint(1, 9, (b, 6)), torch.ones(b, 6, dtype=torch.bool))
    image = Image.from_full(torch.randn(b, 1, 1, 6))
    batch = Batch(0, 1, torch.arange(b), image=image, text=text, labels={"image": torch.tensor(images)})
    return Pretraining(Sums(), heads, [HardNegativeITMLoss(local_negatives=in_rank)]), batch


@pytest.mark.parametrize("in_rank", [False, True])
def test_with_a_single_image_only_true_pairs_count_in_itm(in_rank: bool):
    """A small validation split may have a single image: that raises no error, and gives no negatives."""
    step, batch = matched([4, 4, 4], in_rank)
    counts, losses = step.num_terms(batch), step(batch)
    assert counts["itm"] == 3
    own = step.heads["itm"](step.views(batch).pair.pooled)
    torch.testing.assert_close(losses["itm"], F.cross_entropy(own, torch.ones(3, dtype=torch.long)))
    torch.testing.assert_close(losses["itm/accuracy"], own.argmax(1).float().mean())
    full, mixed = matched([4, 4, 5], in_rank)
    assert full.num_terms(mixed)["itm"] == 9


def test_a_single_sample_raises_an_error():
    step, batch = matched([4])
    with pytest.raises(ValueError, match="has no negative image, only positives"):
        step(batch)


def test_the_itm_mean_is_over_counted_pairs():
    step, batch = matched([4, 4, 5])
    drawn = FixedChoices(negative_images=torch.tensor([2, 2, 0]), negative_texts=torch.tensor([2, 2, 1]))
    text, image = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2, 1]), torch.tensor([0, 1, 2, 2, 2, 0, 0, 1, 2])
    assert batch.text and batch.image
    pairs = batch.text.ids.float()[text] + batch.image.pixels[image, 0, 0]
    truth = (torch.arange(9) < 3).long()
    expected = F.cross_entropy(step.heads["itm"](pairs), truth)
    torch.testing.assert_close(step(batch, None, drawn)["itm"], expected)


@pytest.mark.parametrize("hardest", [True, False])
def test_other_captions_of_the_image_are_not_negatives_of_the_triplet_loss(hardest: bool):
    """The image's other caption is even more similar than its own; only captions of other images cost."""
    similarity = torch.tensor([[0.5, 0.2, 0.9], [0.4, 0.6, 0.3], [0.8, 0.45, 0.7]])
    own = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()
    loss = triplet_loss(similarity, similarity.T, 0.3, hardest, positives=own)
    costs = [[0.3 + 0.2 - 0.5], [0.3 + 0.4 - 0.6, 0.3 + 0.3 - 0.6], [0.3 + 0.45 - 0.7]]
    back = [[0.3 + 0.4 - 0.5], [0.3 + 0.2 - 0.6, 0.3 + 0.45 - 0.6], [0.3 + 0.3 - 0.7]]
    each = [[max(0.0, cost) for cost in row] for row in costs + back]
    assert loss.item() == pytest.approx(sum(max(row) if hardest else sum(row) for row in each), abs=1e-6)


def test_the_triplet_loss_uses_image_ids():
    smaller = []
    for k in range(8):
        regions = Regions(
            torch.randn(4, 1, 6, generator=draw(k)), torch.zeros(4, 1, 5), torch.ones(4, 1, dtype=torch.bool)
        )
        text = Text(torch.randint(1, 9, (4, 4), generator=draw(k + 1)), torch.ones(4, 4, dtype=torch.bool))
        batch = Batch(0, 0, torch.arange(4), regions=regions, text=text, labels=LABELS)
        step = Pretraining(VSEpp(VSEppConfig(6, 8, 9, 4)), nn.ModuleDict(), [TripletLoss(margin=0.4)])
        views = step.views(batch)
        similarity = views.model.similarity(views.image, views.text)  # type: ignore[union-attr]
        expected = triplet_loss(similarity, similarity.T, 0.4, True, positives=positive_pairs(views).mask()) / 4
        torch.testing.assert_close(step(batch)["triplet"], expected)
        blind = step(replace(batch, labels={}))["triplet"]
        assert expected <= blind + 1e-6  # fewer negatives, so the hardest is no harder
        smaller.append(bool(expected < blind - 1e-3))
        one_image = step(replace(batch, labels={"image": torch.zeros(4, dtype=torch.long)}))
        assert (one_image["triplet"], one_image["triplet/accuracy"]) == (0, 1)
    assert any(smaller)


def karpathy(folder: Path) -> Path:
    """Three images with five captions each."""
    from PIL import Image as Pillow

    images = []
    for i in range(3):
        Pillow.new("RGB", (40, 30), (80 * i, 20, 30)).save(folder / f"{i}.png")
        sentences = [{"raw": f"photo {i} caption {j}"} for j in range(5)]
        images.append({"filename": f"{i}.png", "split": "train", "sentences": sentences})
    path = folder / "dataset_three.json"
    path.write_text(json.dumps({"images": images}))
    return path


def test_five_captions_per_image_with_frozen_regions_from_files_to_losses(tmp_path: Path):
    """Karpathy's JSON, frozen features of fixed boxes, ITC, hard-negative ITM and triplet loss."""

    def extractor(pixels: Tensor) -> dict[str, Tensor]:
        return {"grid": F.adaptive_avg_pool2d(pixels[None], 4)[0].permute(1, 2, 0).half()}

    extracted = ExtractedFeatures(extractor, b"means", ImageSettings(shorter_side=32, patch_size=16), MemoryCache())
    shows = BoxLoader(extracted, fixed_boxes(), lambda x: (x, x[..., :2].softmax(-1)), MemoryCache())
    examples = PairExamples(open_captions(str(karpathy(tmp_path)), "train"), Tokenizer(16), shows, matching=0.0)
    ids = [0, 5, 1, 2, 10, 11]  # images 0, 1, 0, 0, 2, 2
    batch = examples.collate([examples.load(i, 0, 0) for i in ids], ids, 0, 0)
    owners = np.array([0, 1, 0, 0, 2, 2])
    same = torch.from_numpy(owners[:, None] == owners)
    step = Pretraining(VSEpp(VSEppConfig(3, 8, vocabulary().size, 4)), nn.ModuleDict(), [TripletLoss()])
    assert torch.equal(positive_pairs(step.views(batch)).mask(), same)
    views = views_of(batch.labels, features(6))
    assert ITCLoss().loss_sums(views)["itc"].item() == pytest.approx(
        by_hand("softmax", features(6), owners.tolist()), rel=1e-5
    )
    for chosen in HardNegativeITMLoss().negatives(views):
        assert all(owners[j] != owners[i] for i, j in enumerate(chosen.tolist()))
    all_negatives = triplet_loss(
        step_similarity(step, batch), step_similarity(step, batch).T, 0.2, True, positives=same
    )
    torch.testing.assert_close(step(batch)["triplet"], all_negatives / 6)


def step_similarity(step: Pretraining, batch: Batch) -> Tensor:
    views = step.views(batch)
    return views.model.similarity(views.image, views.text)  # type: ignore[union-attr]
