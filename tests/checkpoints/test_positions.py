"""Loading of a run's weights into a model for another image size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diptych.batch import Image
from diptych.checkpoints.positions import resize_state
from diptych.checkpoints.read import WeightsError
from diptych.checkpoints.strict import load_strict
from diptych.models.albef.config import ALBEFConfig
from diptych.models.albef.model import ALBEF
from diptych.models.vlmo.config import VLMoConfig
from diptych.models.vlmo.model import VLMo
from diptych.utils.state_dict import named_weights


def albef(side: int) -> nn.Module:
    return ALBEF(ALBEFConfig(8, 1, 2, 16, 4, (side, side), 8, 1, 1, 2, 16, 20, 12, 4, dropout=0.0))


def vlmo(side: int) -> nn.Module:
    return VLMo(VLMoConfig(8, 2, 2, 16, 1, 4, (side, side), 20, 12, drop_path=0.0))


@pytest.mark.parametrize("make", [albef, vlmo])
def test_only_position_embeddings_are_resized(make):
    small, large = make(3), make(4)
    for p in small.parameters():
        nn.init.normal_(p)
    with pytest.raises(WeightsError, match="of another shape"):
        load_strict(large, named_weights(small), "the small one")
    learned = named_weights(small)
    resized = resize_state(large, learned, (3, 3))
    load_strict(large, resized, "the small one")
    changed = [name for name, tensor in learned.items() if resized[name] is not tensor]
    assert changed == ["image.patches.position" if make is albef else "transformer.positions.table"]
    large.encode_image(Image.from_full(torch.randn(1, 3, 16, 16)))


def test_the_same_grid_changes_nothing():
    same = vlmo(3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            resize_state(same, named_weights(same), (3, 3)).values(), named_weights(same).values(), strict=True
        )
    )
