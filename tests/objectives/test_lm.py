"""Next pieces: which are asked for, and what they cost."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from diptych.inputs import Text
from diptych.objectives.lm import NextWords, asked, next_losses

IDS = torch.tensor([[1, 5, 6, 7, 2], [1, 5, 2, 0, 0]])
TEXT = Text(IDS, IDS > 0)


def test_what_is_given_or_padding_is_not_asked_for():
    assert asked(TEXT).tolist() == [[True, True, True, True], [True, True, False, False]]
    assert asked(TEXT, given=3).tolist() == [[False, False, True, True], [False, False, False, False]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_those_of_the_token_that_follows(smoothing: float):
    logits = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    losses = next_losses(logits, TEXT, smoothing, given=2)
    log = logits[0, 2].log_softmax(0)
    assert losses[0, 2].item() == pytest.approx((-(1 - smoothing) * log[7] - smoothing * log.mean()).item(), rel=1e-5)
    assert losses[0, 0] == 0 and (losses[1, 2:] == 0).all()
    whole = F.cross_entropy(logits[0, 1:4], IDS[0, 2:], reduction="sum", label_smoothing=smoothing)
    assert losses[0].sum().item() == pytest.approx(whole.item(), rel=1e-5)


def test_its_floor_is_the_unigram_entropy_of_unsmoothed_targets():
    floor = NextWords().floor({"unigram_entropy": math.pi})
    assert floor is not None and floor.value == math.pi
    assert NextWords(smoothing=0.1).floor({"unigram_entropy": math.pi}) is None
    assert NextWords().floor({}) is None
