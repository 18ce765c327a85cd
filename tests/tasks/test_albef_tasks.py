"""ALBEF's downstream steps: answers by a decoder, momentum distillation, re-ranking, text assignment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diptych.batch import AnswerTargets, Batch, Image, Text
from diptych.models.albef.config import ALBEFConfig
from diptych.models.albef.model import ALBEF
from diptych.objectives.cross_entropy import SoftTargets
from diptych.tasks.entailment import Entailment
from diptych.tasks.momentum_distillation import MomentumDistilled
from diptych.tasks.nlvr2 import TextAssignment
from diptych.tasks.open_vqa import OpenVQA, next_losses
from diptych.tasks.pair_scores import FILL
from diptych.tasks.retrieval import RerankedRetrieval

DIM = 16


def model(**others: Any) -> ALBEF:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "image_dim": 12,
        "image_depth": 1,
        "image_num_heads": 2,
        "image_mlp_dim": 24,
        "patch_size": 4,
        "grid": (2, 2),
    }
    text = {"dim": DIM, "text_depth": 1, "fusion_depth": 1, "num_heads": 2, "mlp_dim": 24, "vocab_size": 30}
    total: dict[str, Any] = {**sizes, **text, "text_length": 8, "embed_dim": 6, "dropout": 0.0, **others}
    made = ALBEF(ALBEFConfig(**total))
    for weight in made.parameters():  # large enough that outputs differ
        nn.init.normal_(weight, std=0.4) if weight.dim() > 1 else None
    return made


def texts(b: int, n: int = 5) -> Text:
    ids = torch.randint(4, 30, (b, n), generator=torch.Generator().manual_seed(b))
    mask = torch.arange(n) < torch.tensor([n - i % 2 for i in range(b)])[:, None]
    return Text(ids * mask, mask)


def batch_of(b: int = 4, **others: Any) -> Batch:
    image = Image.from_full(torch.randn(b, 3, 8, 8, generator=torch.Generator().manual_seed(b)))
    return Batch(0, 0, torch.arange(b), image=image, text=texts(b), **others)


def answer_targets() -> AnswerTargets:
    return AnswerTargets(texts(5, 4), torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0.5, 0.5, 1.0, 0.3, 1.0]))


def test_the_loss_of_a_question_is_the_weighted_sum_over_its_answers_tokens():
    step, batch = OpenVQA(model(decoder_depth=1)), batch_of(answers=answer_targets())
    assert batch.answers is not None
    answers, logits = batch.answers, step.batch_logits(batch)
    total = 0.0
    for i, weight in enumerate(answers.weights.tolist()):
        for j in range(1, int(answers.text.mask[i].sum())):
            total -= weight * logits[i, j - 1].log_softmax(0)[answers.text.ids[i, j]].item()
    assert step(batch, step.num_terms(batch))["vqa"].item() == pytest.approx(total / 4, rel=1e-5)


@pytest.mark.parametrize("double_first_token", [False, True])
def test_candidates_are_chosen_by_their_first_token_and_ranked_by_all(double_first_token: bool):
    step, batch, candidates = (
        OpenVQA(model(decoder_depth=1), double_first_token=double_first_token).eval(),
        batch_of(),
        texts(6, 4),
    )
    question = step.encode_question(batch)
    ranked = step.rank(question, candidates, 3)
    for q in range(4):
        own = question.index_samples(torch.tensor([q] * 6))
        logits = step.model.next_token_logits(candidates, own).log_softmax(2)
        first = logits[0, 0][candidates.ids[:, 1]]
        total = -step.answer_losses(step.model.next_token_logits(candidates, own), candidates)
        chosen = first.topk(3).indices
        score = (total + first if double_first_token else total)[chosen]
        assert ranked.candidates[q].tolist() == chosen[score.argsort(descending=True)].tolist()
        torch.testing.assert_close(ranked.probabilities[q], score.softmax(0).sort(descending=True).values)


def test_momentum_distillation_softens_the_targets_and_updates_the_teacher():
    head = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, 3))
    step = MomentumDistilled(Entailment(model(), head), momentum=0.5, alpha=0.4)
    batch = batch_of(labels={"entailment": torch.tensor([0, 1, 2, 0])})
    with torch.no_grad():
        step.student.head[2].bias.add_(torch.tensor([2.0, 0.0, -1.0]))
    counts = step.num_terms(batch)
    loss = step.eval()(batch, counts)["entailment"]
    logits, teacher_logits = step.student.batch_logits(batch), step.teacher.batch_logits(batch)
    soft = -(logits.log_softmax(1) * teacher_logits.softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, 0.6 * F.cross_entropy(logits, batch.labels["entailment"]) + 0.4 * soft)
    assert not teacher_logits.requires_grad and not torch.allclose(logits, teacher_logits)
    step.train()(batch, counts)
    assert torch.equal(step.teacher.head[2].bias, torch.tensor([1.0, 0.0, -0.5]))


def test_soft_targets_of_answers_ignore_padding():
    step, batch = OpenVQA(model(decoder_depth=1)), batch_of(answers=answer_targets())
    assert batch.answers is not None
    logits = step.batch_logits(batch).detach()
    other = logits.clone()
    other[1, 2:] += torch.randn(30)  # the second answer has three tokens: the logits from its third on have no target
    each = [step.answer_losses(logits, batch.answers.text, SoftTargets(x, 0.4)) for x in (logits, other)]
    torch.testing.assert_close(*each)


@pytest.mark.parametrize("add_cosine", [False, True])
def test_only_candidates_are_scored(add_cosine: bool):
    albef = model()
    heads: Any = albef.pretraining_heads()
    images = Image.from_full(torch.randn(3, 3, 8, 8))
    scores = RerankedRetrieval(albef, heads["itc"], heads["itm"], 2, add_cosine)(images, texts(5), pairs=3)
    assert (scores.image_to_text > FILL).sum(1).tolist() == [2] * 3 and (scores.text_to_image > FILL).sum(
        1
    ).tolist() == [2] * 5
    text, image = albef.encode_text(texts(5)), albef.encode_image(images)
    similarity = heads["itc"].project_image(image.first()) @ heads["itc"].project_text(text.first()).T
    for i in range(3):
        for j in similarity[i].topk(2).indices.tolist():
            pair = albef.fuse(text.index_samples(torch.tensor([j])), image.index_samples(torch.tensor([i])))
            expected = heads["itm"](pair.pooled)[0, 1] + (similarity[i, j] if add_cosine else 0)
            torch.testing.assert_close(scores.image_to_text[i, j], expected)
    both = (scores.image_to_text > FILL) & (scores.text_to_image.T > FILL)
    torch.testing.assert_close(scores.image_to_text[both], scores.text_to_image.T[both])


def test_a_text_is_assigned_to_its_own_image_or_to_none():
    step = TextAssignment(model(num_images=2), DIM, nn.Linear(12, 6))
    batch = batch_of(60)
    targets, own = step.sample_images(batch, step.images(batch)), torch.arange(60)
    assert (targets.first != targets.second).all()
    assert torch.equal(targets.first == own, targets.labels == 0) and torch.equal(
        targets.second == own, targets.labels == 1
    )
    assert sorted(set(targets.labels.tolist())) == [0, 1, 2]
    with pytest.raises(ValueError, match="a batch of at least 3, got 2"):
        step(batch_of(2), step.num_terms(batch_of(2)))
    step(batch, step.num_terms(batch))["assignment"].backward()
    assert step.project.weight.grad is None and step.head.weight.grad is not None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_next_losses_are_those_of_the_following_token(smoothing: float):
    ids = torch.tensor([[1, 5, 6, 7, 2], [1, 5, 2, 0, 0]])
    logits = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    losses = next_losses(logits, Text(ids, ids > 0), smoothing)
    log = logits[0, 2].log_softmax(0)
    assert losses[0, 2].item() == pytest.approx((-(1 - smoothing) * log[7] - smoothing * log.mean()).item(), rel=1e-5)
    assert (losses[1, 2:] == 0).all()
    total = F.cross_entropy(logits[0, :4], ids[0, 1:], reduction="sum", label_smoothing=smoothing)
    assert losses[0].sum().item() == pytest.approx(total.item(), rel=1e-5)
