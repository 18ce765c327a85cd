"""The downstream steps: their losses and metrics on fixed logits, chance levels, and errors for incomplete batches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.batch import Batch, Image, Text
from diptych.models.vilt.config import ViLTConfig
from diptych.models.vilt.model import ViLT
from diptych.models.vit.config import ViTConfig
from diptych.models.vit.model import ViT
from diptych.modules.heads import ITMHead, PairClassifier, RankingHead
from diptych.modules.tokens import packing
from diptych.protocols import TrainStep
from diptych.tasks.classification import Classification
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval_training import Retrieval
from diptych.tasks.vqa import ClosedVQA

DIM, ANSWERS, NEGATIVES, VOCABULARY = 16, 6, 3, 30


def vilt(num_images: int = 1) -> ViLT:
    torch.manual_seed(0)
    return ViLT(ViLTConfig(DIM, 1, 2, 32, 8, (2, 2), VOCABULARY, 8, num_images, 0.0))


def vit(num_classes: int) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(DIM, 1, 2, 32, 8, (2, 2), num_classes))


def image_of(b: int, seed: int) -> Image:
    return Image.from_full(torch.randn(b, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))


def text_of(b: int, seed: int) -> Text:
    mask = torch.arange(6) < torch.tensor([6, 4, 5])[torch.arange(b) % 3][:, None]
    ids = torch.randint(5, VOCABULARY, (b, 6), generator=torch.Generator().manual_seed(seed)) * mask
    return Text(ids, mask)


def batch_of(b: int = 3) -> Batch:
    return Batch(
        seed=0,
        step=0,
        ids=torch.arange(b),
        image=image_of(b, 1),
        text=text_of(b, 2),
        image2=image_of(b, 3),
        negative_texts=text_of(b * NEGATIVES, 4),
        labels={
            "class": torch.arange(b),
            "true": torch.arange(b) % 2,
            "targets": torch.rand(b, ANSWERS, generator=torch.Generator().manual_seed(5)),
        },
    )


def enlarge_weights(module: nn.Module) -> None:
    """Multiplies the weights by 8, so that scores differ."""
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(8 if p.dim() > 1 else 1)


def counts_of(step: nn.Module, batch: Batch) -> dict[str, Tensor]:
    assert isinstance(step, TrainStep)
    return step.num_terms(batch)


def test_vqa_sums_over_answers_and_averages_over_questions():
    step, batch = ClosedVQA(vilt(), DIM, ANSWERS), batch_of()
    logits, targets = torch.randn(3, ANSWERS), batch.labels["targets"]
    losses = step.losses(logits, targets, counts_of(step, batch))
    expected = F.binary_cross_entropy_with_logits(logits, targets) * ANSWERS  # the mean over all, times the answers
    torch.testing.assert_close(losses["vqa"], expected)
    score = torch.stack([t[row.argmax()] for row, t in zip(logits, targets, strict=True)]).mean()
    torch.testing.assert_close(losses["vqa/score"], score)


def test_a_prior_for_a_head_without_init_prior_raises():
    prior = [0.1] * ANSWERS
    assert ClosedVQA(vilt(), DIM, ANSWERS, prior=prior).chance_losses["vqa"].value > 0
    with pytest.raises(ValueError, match="a Linear cannot be initialised to a prior"):
        ClosedVQA(vilt(), DIM, ANSWERS, nn.Linear(DIM, ANSWERS), prior=prior)


def test_nlvr2_concatenates_the_left_pair_before_the_right_pair():
    step, batch = NLVR2(vilt(num_images=2), DIM), batch_of()
    enlarge_weights(step)
    left, right = step.pairs(batch)
    torch.testing.assert_close(step.logits((left, right)), step.head(torch.cat([left.pooled, right.pooled], 1)))
    swapped = replace(batch, image=batch.image2, image2=batch.image)
    assert not torch.allclose(step.logits(step.pairs(swapped)), step.logits((left, right)))
    losses = step(batch, counts_of(step, batch))
    expected = F.cross_entropy(step.logits((left, right)), batch.labels["true"])
    torch.testing.assert_close(losses["nlvr2"], expected)


def test_classification_is_cross_entropy():
    step, batch = Classification(vit(4), 4), batch_of()
    logits = torch.tensor([[2.0, 0, 0, 0], [0, 0, 3.0, 0], [0, 0, 1.0, 0]])
    losses = step.losses(logits, batch.labels["class"], counts_of(step, batch))
    torch.testing.assert_close(losses["classification"], F.cross_entropy(logits, torch.arange(3)))
    assert losses["classification/accuracy"].item() == pytest.approx(2 / 3)


def test_retrieval_scores_the_true_text_before_its_negatives():
    step, batch = Retrieval(vilt(), DIM, NEGATIVES), batch_of()
    enlarge_weights(step)
    scores = step.candidate_scores(batch)
    assert scores.shape == (3, 1 + NEGATIVES)
    assert batch.image and batch.text and batch.negative_texts
    for i in range(3):
        texts = [
            batch.text[i : i + 1],
            *(batch.negative_texts[k : k + 1] for k in range(i * NEGATIVES, (i + 1) * NEGATIVES)),
        ]
        image = step.model.encode_image(batch.image[i : i + 1])
        one_by_one = torch.cat([step.score(image, step.model.encode_text(text)) for text in texts])
        torch.testing.assert_close(scores[i], one_by_one, rtol=1e-4, atol=1e-5)
    losses = step(batch, counts_of(step, batch))
    torch.testing.assert_close(losses["retrieval"], -scores.log_softmax(1)[:, 0].mean())
    assert losses["retrieval/accuracy"].item() == pytest.approx((scores.argmax(1) == 0).float().mean().item())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("num_texts", [0, 2])
def test_retrieval_scores_the_text_with_its_negative_images(packed: bool, num_texts: int):
    step, batch = Retrieval(vilt(), DIM, num_texts + 2), batch_of()
    enlarge_weights(step)
    images, texts = image_of(6, 8), text_of(3 * num_texts, 4) if num_texts else None
    batch = replace(batch, negative_texts=texts, negative_images=images)
    with packing(packed):
        scores = step.candidate_scores(batch)
    assert batch.image and batch.text and scores.shape == (3, 3 + num_texts)
    for i in range(3):
        text = step.model.encode_text(batch.text[i : i + 1])
        candidates = [batch.image[i : i + 1], *(images[k : k + 1] for k in (2 * i, 2 * i + 1))]
        one_by_one = torch.cat([step.score(step.model.encode_image(image), text) for image in candidates])
        torch.testing.assert_close(scores[i, [0, -2, -1]], one_by_one, rtol=1e-4, atol=1e-5)
    losses = step(batch, counts_of(step, batch))
    torch.testing.assert_close(losses["retrieval"], -scores.log_softmax(1)[:, 0].mean())
    assert step.chance_losses["retrieval"].value == pytest.approx(math.log(3 + num_texts))


@pytest.mark.quick("4-*")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pairs", [1, 4, 100])
def test_matrix_scores_every_image_with_every_text(packed: bool, pairs: int):
    step = Retrieval(vilt(), DIM, NEGATIVES).eval()
    enlarge_weights(step)
    texts, images = text_of(4, 6), image_of(3, 7)
    with packing(packed):
        matrix = step.score_matrix(images, texts, pairs)
    assert matrix.shape == (3, 4) and not matrix.requires_grad
    assert matrix.std() > 1e-3
    for i in range(3):
        for j in range(4):
            text, image = step.model.encode_text(texts[j : j + 1]), step.model.encode_image(images[i : i + 1])
            torch.testing.assert_close(matrix[i, j], step.score(image, text)[0], rtol=1e-4, atol=1e-5)


def test_retrieval_is_initialised_to_the_logit_of_a_match():
    torch.manual_seed(0)
    step, match, pooled = Retrieval(vilt(), DIM), ITMHead(DIM), torch.randn(5, DIM)
    nn.init.normal_(match.linear.bias)
    step.init_from(match)
    torch.testing.assert_close(step.rank(pooled), match(pooled)[:, 1])
    with torch.no_grad():
        match.linear.weight.zero_()
    assert step.rank.linear.weight.abs().sum() > 0, "the weight is shared with the ITM head"


STEPS = [
    (lambda: ClosedVQA(vilt(), DIM, ANSWERS), "vqa", None),
    (lambda: NLVR2(vilt(num_images=2), DIM), "nlvr2", math.log(2)),
    (lambda: Retrieval(vilt(), DIM, NEGATIVES), "retrieval", math.log(1 + NEGATIVES)),
    (lambda: Classification(vit(5), 5), "classification", math.log(5)),
]


@pytest.mark.parametrize(("make", "name", "chance"), STEPS, ids=[name for _, name, _ in STEPS])
def test_steps_have_weights_counts_and_chance_losses(make, name: str, chance: float | None):
    step = make()
    assert step.weights == {name: 1.0}
    counts = counts_of(step, batch_of())
    assert name in counts and all(key.split("/")[0] == name for key in counts)
    assert {count.item() for count in counts.values()} == {3.0}
    loss = step.chance_losses.get(name)
    assert (loss.value if loss else None) == (pytest.approx(chance) if chance else None)


@pytest.mark.parametrize(
    ("make", "missing", "message"),
    [
        (STEPS[0][0], "text", "this batch has no question"),
        (STEPS[0][0], "image", "this batch has no image"),
        (STEPS[1][0], "image2", "this batch has no second image"),
        (STEPS[2][0], "negative_texts", "this batch has no negative texts"),
    ],
)
def test_a_missing_part_of_a_batch_is_named(make, missing: str, message: str):
    step = make()
    batch = replace(batch_of(), **{missing: None})
    with pytest.raises(ValueError, match=message):
        step(batch, counts_of(step, batch))


def test_heads_have_the_official_shape():
    head = PairClassifier(2 * DIM, 2 * DIM, 2)
    x = torch.randn(3, 2 * DIM)
    hidden = F.gelu(F.layer_norm(head.dense(x), (2 * DIM,), head.norm.weight, head.norm.bias, 1e-5))
    torch.testing.assert_close(head(x), head.answers(hidden))
    assert RankingHead(DIM)(x[:, :DIM]).shape == (3,)
