from __future__ import annotations

import pytest
import torch

from diptych.batch import Text
from diptych.modules.text_encoders import RecurrentText
from diptych.modules.tokens import packing


def texts(lengths: list[int]) -> Text:
    ids = torch.randint(1, 20, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    return Text(ids, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_each_text_is_read_as_if_alone_in_any_order(bidirectional: bool, packed: bool):
    torch.manual_seed(0)
    tower = RecurrentText(20, 6, 5, depth=2, bidirectional=bidirectional)
    together = texts([2, 5, 1, 4])
    with packing(packed):
        found = tower(together)
        readout = tower.readout(found)
    for i, n in enumerate([2, 5, 1, 4]):
        states, _ = tower.gru(tower.word(together.ids[i : i + 1, :n]))
        if bidirectional:
            states = (states[..., :6] + states[..., 6:]) / 2
        torch.testing.assert_close(found.to_padded()[i, :n], states[0])
        torch.testing.assert_close(readout[i], states[0, -1])


def test_words_begin_small():
    weight = RecurrentText(2000, 4).word.weight
    assert 0.099 < weight.abs().max() <= 0.1
