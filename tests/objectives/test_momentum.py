"""Momentum distillation: teacher updates, the queue, and exact resume of both."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diptych.batch import Batch, Image, Text
from diptych.checkpoints.digests import CheckpointError
from diptych.config.training import Optimizer
from diptych.modules.heads import ITCHead, ITMHead, Temperature
from diptych.modules.tokens import FusedTokens, Span, Tokens
from diptych.objectives.contrastive_logits import contrast_logits, teacher_logits
from diptych.objectives.itc import ITCLoss
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.momentum import MomentumDistillation, MomentumSchedule, Queue, momentum_update, teacher_of
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.views import JointEmbeddings
from diptych.training import checkpoint
from diptych.training.optimizer import build_optimizer

WIDTH = 6


class Towers(nn.Module):
    """A linear layer per modality; the fused vector is their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.word = nn.Linear(3, WIDTH), nn.Embedding(9, WIDTH)

    def encode_image(self, image: Image) -> Tokens:
        values = self.image(image.pixels[:, None, :, 0, 0])
        return Tokens.from_padded(values, torch.ones(values.shape[:2], dtype=torch.bool), Span("image", "cls", 1))

    def encode_text(self, text: Text) -> Tokens:
        return Tokens.from_padded(self.word(text.ids), text.mask, Span("text", "cls", 1))

    def pooled_features(self, tokens: Tokens) -> tuple[Tensor, ...]:
        return (tokens.first(),)

    def fuse(self, text: Tokens, image: Tokens) -> FusedTokens:
        return FusedTokens(text, image, text.first() + image.first())


def momentum(size: int = 8, identified: bool = False, alpha: float = 0.4) -> MomentumDistillation:
    torch.manual_seed(0)
    heads = nn.ModuleDict({"itc": ITCHead(WIDTH, WIDTH, 4, Temperature()), "itm": ITMHead(WIDTH)})
    student = Pretraining(Towers(), heads, [ITCLoss(), HardNegativeITMLoss()])
    return MomentumDistillation(student, Queue(size, 4, identified), momentum=0.9, alpha=alpha)


def batch_of(b: int = 3, step: int = 0, **labels: Tensor) -> Batch:
    draw = torch.Generator().manual_seed(step)
    text = Text(torch.randint(9, (b, 1), generator=draw), torch.ones(b, 1, dtype=torch.bool))
    image = Image.from_full(torch.randn(b, 3, 1, 1, generator=draw))
    return Batch(0, step, torch.arange(b), image=image, text=text, labels=labels)


def train(module: MomentumDistillation, steps: range, optimizer: torch.optim.Optimizer) -> list[float]:
    """Where the queue stores image ids, the image of a step's first pair occurs again in the next step."""
    losses = []
    for step in steps:
        batch = batch_of(step=step)
        if module.queue is not None and module.queue.identified:
            batch = batch_of(step=step, image=torch.tensor([step, step + 1, 90 + step]))
        terms = module.train()(batch, module.num_terms(batch))
        loss = terms["itc"] + terms["itm"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_teacher_is_a_tied_copy_without_gradients_or_the_parts_it_lacks():
    module = nn.Module()
    module.a, module.b, module.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    module.b.weight = module.a.weight
    teacher = teacher_of(module, ["c"])
    assert not hasattr(teacher, "c") and hasattr(module, "c")
    assert teacher.get_parameter("b.weight") is teacher.get_parameter("a.weight") is not module.a.weight
    assert not any(p.requires_grad for p in teacher.parameters()) and all(p.requires_grad for p in module.parameters())
    before = teacher.get_parameter("a.weight").clone()
    with torch.no_grad():
        module.a.weight.add_(1)
    momentum_update(teacher, module, 0.9)
    torch.testing.assert_close(teacher.get_parameter("a.weight"), 0.9 * before + 0.1 * module.a.weight)


def test_the_teacher_is_updated_once_per_optimizer_step_in_training_only():
    module = momentum()
    before = module.teacher.get_parameter("model.image.weight").clone()
    with torch.no_grad():
        module.student.get_parameter("model.image.weight").add_(1)
    module.eval()(batch_of(step=4))
    assert torch.equal(module.teacher.get_parameter("model.image.weight"), before)
    assert module.queue is not None and int(module.queue.place) == 0
    for step, expected in ((4, 0.1), (4, 0.1), (5, 0.19)):  # two micro-batches of step 4
        module.train()(batch_of(step=step))
        torch.testing.assert_close(module.teacher.get_parameter("model.image.weight"), before + expected)
    assert int(module.queue.place) == 9 % 8


def test_the_queue_overwrites_its_oldest_entries():
    queue = Queue(4, 1, with_identities=True)
    for first in (0.0, 3.0):
        rows = (first + torch.arange(3.0))[:, None]
        queue.push(JointEmbeddings(rows, -rows), rows[:, 0].long())
    assert queue.image[:, 0].tolist() == [4, 5, 2, 3] and queue.text[:, 0].tolist() == [-4, -5, -2, -3]
    assert queue.identity.tolist() == [4, 5, 2, 3] and queue.place.tolist() == [2]
    many = torch.arange(10.0, 16.0)[:, None]
    queue.push(JointEmbeddings(many, many), many[:, 0].long())
    assert sorted(queue.image[:, 0].tolist()) == [12, 13, 14, 15]
    assert queue.text[:, 0].tolist() == queue.image[:, 0].tolist() == queue.identity.tolist(), "each with its own id"
    with pytest.raises(ValueError, match="stores image ids, but the batch has none"):
        queue.push(JointEmbeddings(many, many))


def test_candidates_are_the_teachers_batch_and_the_queue():
    module = momentum()
    batch = batch_of()
    views = module.views(batch)
    logits, targets = contrast_logits(views, "itc"), teacher_logits(views, "itc")
    assert module.queue is not None and views.teacher is not None and targets is not None
    scale = 1 / 0.07
    candidates = torch.cat([views.teacher.features("itc").text, module.queue.text])
    torch.testing.assert_close(logits.to_text, scale * views.features("itc").image @ candidates.T)
    assert logits.ids.tolist() == [0, 1, 2] and logits.candidate_ids.tolist() == [0, 1, 2] + [-1] * 8
    assert targets.to_text.requires_grad is False and logits.to_text.requires_grad
    hard, soft = ([module.student.losses(module.views(batch, alpha=a), module.num_terms(batch))] for a in (0.0, 1.0))
    by_hand = [
        -(logits.to_text.log_softmax(1) * target).sum(1).mean()
        for target in (torch.eye(3, 11), targets.to_text.softmax(1))
    ]
    other = [
        -(logits.to_image.log_softmax(1) * target).sum(1).mean()
        for target in (torch.eye(3, 11), targets.to_image.softmax(1))
    ]
    for made, a, b in zip((hard, soft), by_hand, other, strict=True):
        torch.testing.assert_close(made[0]["itc"], (a + b) / 2)


def test_pairs_of_one_image_are_positives():
    module = momentum(identified=True)
    assert module.queue is not None
    module.queue.identity[2] = 7
    batch = batch_of(image=torch.tensor([7, 5, 7]))
    views = module.views(batch)
    logits = contrast_logits(views, "itc")
    assert (logits.ids[:, None] == logits.candidate_ids).sum(1).tolist() == [3, 1, 3]
    negatives = HardNegativeITMLoss().negatives(views)
    assert negatives.images[0] == negatives.images[2] == 1 and negatives.texts[1] in (0, 2)


def test_alpha_grows_over_the_warm_up():
    pace = MomentumSchedule(alpha=0.4, warmup=10)
    assert [pace.alpha(step) for step in (0, 5, 10, 99)] == pytest.approx([0, 0.2, 0.4, 0.4])
    assert MomentumSchedule(alpha=0.4).alpha(0) == 0.4


def test_queued_features_of_an_image_are_positives_of_its_next_caption():
    """Over two steps: targets include the first step's queued features of the image, but not random rows."""
    module, without_ids = momentum(identified=True), momentum()
    for one in (module, without_ids):
        one.train()(batch_of(step=0, image=torch.tensor([3, 4, 3])))
    batch = batch_of(step=1, image=torch.tensor([3, 6, 7]))
    views = module.views(batch, alpha=0.0)
    logits = contrast_logits(views, "itc")
    truth = torch.zeros(3, 3 + 8)
    truth[0, [0, 3, 5]], truth[1, 1], truth[2, 2] = 1 / 3, 1, 1
    assert module.queue is not None and module.queue.identity.tolist() == [3, 4, 3] + [-100] * 5
    by_hand = -sum((x.log_softmax(1) * truth).sum(1).mean() for x in (logits.to_text, logits.to_image)) / 2
    losses = module.student.losses(views, module.num_terms(batch))
    torch.testing.assert_close(losses["itc"], by_hand)
    others = without_ids.student.losses(without_ids.views(batch, alpha=0.0), without_ids.num_terms(batch))
    assert losses["itc"] != others["itc"], "without ids in the queue they are negatives"


def test_a_checkpoint_without_queued_image_ids_raises(tmp_path: Path):
    before, now = momentum(), momentum(identified=True)
    settings = Optimizer(learning_rate=0.1)
    checkpoint.save(tmp_path, before, build_optimizer(before, settings), {})
    with pytest.raises(CheckpointError, match=r"does not fit: missing: queue\.identity"):
        checkpoint.load(tmp_path, now, build_optimizer(now, settings))


@pytest.mark.parametrize("identified", [False, True])
@pytest.mark.slow
def test_resume_gives_bitwise_the_same_state(tmp_path: Path, identified: bool):
    settings = Optimizer(learning_rate=0.1)
    whole = momentum(identified=identified)
    train(whole, range(6), build_optimizer(whole, settings))
    first = momentum(identified=identified)
    optimizer = build_optimizer(first, settings)
    train(first, range(3), optimizer)
    checkpoint.save(tmp_path, first, optimizer, {})
    torch.manual_seed(5)
    second = momentum(identified=identified)
    optimizer = build_optimizer(second, settings)
    checkpoint.load(tmp_path, second, optimizer)
    train(second, range(3, 6), optimizer)
    state = second.state_dict()
    assert any("queue." in name for name in state) and any("teacher." in name for name in state)
    assert ("queue.identity" in state) == identified
    for name, tensor in whole.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_only_the_student_gets_gradients():
    module = momentum()
    batch = batch_of()
    losses = module.train()(batch)
    (losses["itc"] + losses["itm"]).backward()
    assert all(p.grad is not None for p in module.student.parameters())
    assert all(p.grad is None for p in module.teacher.parameters())


@pytest.mark.quick("*-0")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [128, 1024])
@pytest.mark.slow
def test_untrained_the_loss_is_ln_of_batch_plus_queue(seed: int, size: int):
    """Within 5 %, in a wide space: with 256 dimensions, random cosines times 14 have a std of 0.9, which adds loss."""
    torch.manual_seed(seed)
    heads = nn.ModuleDict({"itc": ITCHead(WIDTH, WIDTH, 8192, Temperature())})
    student = Pretraining(Towers(), heads, [ITCLoss()], {"candidates": 32 + size})
    module = MomentumDistillation(student, Queue(size, 8192), without=["heads.itc.scale"])
    pixels, ids = torch.randn(32, 3, 1, 1), torch.randint(9, (32, 1))
    text = Text(ids, torch.ones_like(ids, dtype=torch.bool))
    loss = module.eval()(Batch(0, 0, torch.arange(32), image=Image.from_full(pixels), text=text))["itc"].item()
    assert module.chance_losses["itc"].value == pytest.approx(math.log(32 + size))
    assert loss == pytest.approx(math.log(32 + size), rel=0.05)
