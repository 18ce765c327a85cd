"""Hard negatives: never a positive, sampled by similarity, the same on every rank."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diptych.batch import Batch
from diptych.models.vit.config import ViTConfig
from diptych.models.vit.model import ViT
from diptych.modules.heads import ITCHead, LogScale
from diptych.objectives.contrastive_logits import within_modality_logits
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.random_choices import FixedChoices, KeyedChoices
from diptych.objectives.views import JointEmbeddings, TeacherOutput, Views


def keyed(b: int, seed: int = 0) -> KeyedChoices:
    return KeyedChoices(Batch(seed, 1, torch.arange(b)))


def test_negatives_are_sampled_in_proportion_to_their_weight():
    log_weights = torch.tensor([-torch.inf, 0.0, math.log(3.0), -torch.inf]).expand(4000, 4)
    drawn = keyed(4000).sample_negatives("image", log_weights)
    share = drawn.bincount(minlength=4) / 4000
    assert share[0] == share[3] == 0
    assert share[2].item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(drawn, keyed(4000).sample_negatives("image", log_weights))
    assert not torch.equal(drawn, keyed(4000).sample_negatives("text", log_weights))
    assert not torch.equal(drawn, keyed(4000, seed=1).sample_negatives("image", log_weights))


def test_tiny_weights_can_be_sampled_and_no_candidate_is_an_error():
    log_weights = torch.full((2, 3), -900.0)
    log_weights[:, 0] = -torch.inf
    assert (keyed(2).sample_negatives("text", log_weights) > 0).all()
    with pytest.raises(ValueError, match="has no negative text, only positives"):
        keyed(2).sample_negatives("text", torch.full((2, 2), -torch.inf))
    with pytest.raises(ValueError, match="FixedChoices has no negative_images"):
        FixedChoices().sample_negatives("image", log_weights)


@pytest.mark.parametrize("even", [0.0, 1e-4])
def test_weights_are_the_softmax_plus_a_uniform_share_without_positives(even: float):
    logits = torch.tensor([[50.0, 1.0, 2.0], [0.0, 40.0, 0.0], [1.0, 3.0, -2.0]])
    weights = HardNegativeITMLoss(uniform_mix=even).log_weights(logits, torch.eye(3, dtype=torch.bool)).exp()
    expected = (logits.softmax(1) + even).fill_diagonal_(0)
    torch.testing.assert_close(weights, expected)


def test_chance_loss_is_the_entropy_of_one_match_in_three():
    assert HardNegativeITMLoss().chance_loss({}).value == pytest.approx(-math.log(1 / 3) / 3 - 2 * math.log(2 / 3) / 3)


def test_within_modality_logits_ignore_the_teacher():
    """Two of three pairs share an image; the teacher's features and queue differ from the student's."""
    image, text = (F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(i)), dim=1) for i in range(2))
    heads = nn.ModuleDict({"itc": ITCHead(4, 4, 4, LogScale(2.0))})
    batch = Batch(0, 1, torch.arange(3), labels={"image": torch.tensor([7, 8, 7])})
    draws, model = KeyedChoices(batch), ViT(ViTConfig(8, 1, 2, 8, 4, (1, 1), 0))
    theirs = Views(model, heads, batch, draws)
    theirs.cached(("features", "itc", 0), lambda: JointEmbeddings(text, image))
    views = Views(model, heads, batch, draws, teacher_output=TeacherOutput(theirs, 0.5, JointEmbeddings(image, text)))
    views.cached(("features", "itc", 0), lambda: JointEmbeddings(image, text))
    logits = within_modality_logits(views, "itc")
    torch.testing.assert_close(logits.to_text, 2 * image @ text.T)
    torch.testing.assert_close(logits.to_image, 2 * text @ image.T)
    negatives = HardNegativeITMLoss(compare=within_modality_logits).negatives(views)
    assert negatives.images[[0, 2]].tolist() == negatives.texts[[0, 2]].tolist() == [1, 1]
    assert negatives.images[1] != 1 and negatives.texts[1] != 1
