"""The recurrent text encoder."""

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
def test_a_texts_states_do_not_depend_on_the_batch(bidirectional: bool, packed: bool):
    torch.manual_seed(0)
    encoder = RecurrentText(20, 6, 5, depth=2, bidirectional=bidirectional)
    batch = texts([2, 5, 1, 4])
    with packing(packed):
        states = encoder(batch)
        pooled = encoder.pool(states)
    for i, n in enumerate([2, 5, 1, 4]):
        expected, _ = encoder.gru(encoder.word(batch.ids[i : i + 1, :n]))
        if bidirectional:
            expected = (expected[..., :6] + expected[..., 6:]) / 2
        torch.testing.assert_close(states.to_padded()[i, :n], expected[0])
        torch.testing.assert_close(pooled[i], expected[0, -1])


def test_word_embeddings_are_initialised_uniformly():
    weight = RecurrentText(2000, 4).word.weight
    assert 0.099 < weight.abs().max() <= 0.1
