"""VSE++ and SCAN: files with a list of two states, every depth and direction, and parameter counts at full size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.nested_state_dicts import MODALITY_PREFIXES, split_by_modality
from diptych.checkpoints.read import WeightsError, load_state_dict
from diptych.models.importing import identify_system, load_official, map_official
from diptych.models.scan.config import SCANConfig
from diptych.models.scan.model import SCAN
from diptych.models.vsepp.checkpoint import names
from diptych.models.vsepp.config import VSEppConfig
from diptych.models.vsepp.model import VSEpp
from tests.parity.goldens import GOLDEN_CASES


@pytest.mark.parametrize("system", ["vsepp", "scan"])
def test_a_file_of_two_states_is_translated_both_ways(system: str):
    nested = torch.load(GOLDEN_CASES / system / "checkpoint.pth", weights_only=True)["model"]
    imported = load_official(system, GOLDEN_CASES / system / "checkpoint.pth")
    back = split_by_modality(imported.names.to_official(imported.state))
    assert isinstance(back, list) and [side.keys() for side in back] == [side.keys() for side in nested]
    assert all(torch.equal(ours[name], side[name]) for ours, side in zip(back, nested, strict=True) for name in side)
    assert set(imported.build().state_dict()) == set(imported.state)


def test_one_state_is_not_split():
    state = {"img_enc.fc.bias": torch.ones(1), "other": torch.ones(1)}
    assert split_by_modality(state) is state


@pytest.mark.parametrize("odd", [[{}], [1, 2], [{"a": torch.ones(1)}] * 3, ({}, {}, {})])
def test_lists_of_anything_else_raise(tmp_path: Path, odd: object):
    torch.save({"model": odd}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        load_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize(("depth", "bidirectional"), [(1, True), (2, True), (3, False)])
def test_depth_and_direction_are_inferred_from_the_names(depth: int, bidirectional: bool):
    arguments: dict[str, Any] = dict(feature_dim=6, dim=8, vocab_size=11, word_dim=5, depth=depth)
    model = SCAN(SCANConfig(**arguments, bidirectional=True)) if bidirectional else VSEpp(VSEppConfig(**arguments))
    ours = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    table = names({**arguments, "bidirectional": bidirectional}, "pretraining")
    state: dict[str, Tensor] = table.to_official(ours)
    assert all(name.startswith(MODALITY_PREFIXES) for name in state)
    imported = map_official(
        identify_system(state, {"margin": 0.2, **({"bi_gru": True} if bidirectional else {})}), state, {}
    )
    assert imported.arguments == (arguments | {"bidirectional": True} if bidirectional else arguments)
    assert all(torch.equal(imported.state[name], ours[name]) for name in ours)


def test_a_unidirectional_scan_is_identified_by_its_config_only():
    state = load_state_dict(GOLDEN_CASES / "vsepp" / "checkpoint.pth")
    assert identify_system(state, {"margin": 0.2}) == "vsepp"
    config = {
        "bi_gru": False,
        "cross_attn": "i2t",
        "agg_func": "Mean",
        "raw_feature_norm": "no_norm",
        "lambda_softmax": 4.0,
    }
    assert identify_system(state, config) == "scan"
    imported = map_official("scan", state, config)
    attention = {"direction": "image", "aggregate": "mean", "norm": "none", "lambda_softmax": 4.0}
    assert imported.arguments.items() >= ({"bidirectional": False} | attention).items()
    assert set(imported.build().state_dict()) == set(imported.state)
    with pytest.raises(WeightsError, match="names of both vsepp and scan"):
        identify_system(state)


def test_full_size_counts():
    """A linear layer, word embeddings, and for each direction a GRU of three gates with two biases."""
    one_way = 3 * 1024 * (300 + 1024 + 2)
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in model.parameters()) for model in (VSEpp(VSEppConfig()), SCAN(SCANConfig()))]
    assert sizes == [2049 * 1024 + 11353 * 300 + one_way, 2049 * 1024 + 8481 * 300 + 2 * one_way]
