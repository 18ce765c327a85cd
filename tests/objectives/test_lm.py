"""The LM loss: which tokens are predicted, and its chance level."""

from __future__ import annotations

import math

import torch

from diptych.batch import Text
from diptych.objectives.lm import LMLoss, without_prompt

IDS = torch.tensor([[1, 5, 6, 7, 2], [1, 5, 2, 0, 0]])
TEXT = Text(IDS, IDS > 0)


def test_the_prompt_and_padding_are_not_predicted():
    assert without_prompt(TEXT).tolist() == [[True, True, True, True], [True, True, False, False]]
    assert without_prompt(TEXT, num_prompt_tokens=3).tolist() == [
        [False, False, True, True],
        [False, False, False, False],
    ]


def test_chance_loss_is_the_unigram_entropy_without_smoothing():
    floor = LMLoss().chance_loss({"unigram_entropy": math.pi})
    assert floor is not None and floor.value == math.pi
    assert LMLoss(label_smoothing=0.1).chance_loss({"unigram_entropy": math.pi}) is None
    assert LMLoss().chance_loss({}) is None
