"""A run's folder gives its module back: every weight, tied ones tied, or an error that names what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diptych.checkpoints.read import WeightsError
from diptych.config.run import Pretrain
from diptych.models.coca import recipes as coca
from diptych.models.vilt import recipes as vilt
from diptych.modules.heads import MLMHead
from diptych.objectives.pretraining import Pretraining
from diptych.runs import build as building
from diptych.runs.run_folder import RunError, ancestors, load_run, read_run, write_run
from diptych.training.checkpoint import MODEL, save_weights
from diptych.utils.state_dict import named_weights


class Tied(nn.Module):
    """A head that writes with the vectors that the model reads with."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.ModuleDict({"words": nn.Embedding(7, 3), "out": nn.Linear(3, 3)})
        self.heads = nn.ModuleDict({"words": MLMHead(3, 7, tied=self.model["words"])})  # type: ignore[arg-type]


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def test_a_tied_weight_is_saved_once_under_its_first_name_and_loaded_tied(tmp_path: Path):
    module, other = Tied(), Tied(seed=1)
    assert not same(module, other)
    save_weights(tmp_path, module)
    saved = load_file(tmp_path / MODEL)
    assert "model.words.weight" in saved and "heads.words.words.weight" not in saved
    assert saved.keys() == dict(module.named_parameters()).keys()
    assert load_run(other, tmp_path) is other
    assert same(module, other)
    assert other.heads["words"].words.weight is other.model["words"].weight  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["model.words.weight", "model.out.bias", "heads.words.bias"])
def test_what_is_missing_or_too_much_is_named(tmp_path: Path, name: str):
    save_weights(tmp_path, Tied())
    saved = load_file(tmp_path / MODEL)
    module = Tied(seed=1)
    save_file({n: t for n, t in saved.items() if n != name}, tmp_path / MODEL)
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        load_run(module, tmp_path)
    save_file(saved | {"model.more": torch.ones(1)}, tmp_path / MODEL)
    with pytest.raises(WeightsError, match=r"unexpected: model\.more"):
        load_run(module, tmp_path)
    save_file(saved | {name: torch.ones(9)}, tmp_path / MODEL)
    with pytest.raises(WeightsError, match=r"of another shape"):
        load_run(module, tmp_path)
    assert same(module, Tied(seed=1)), "nothing is loaded where one weight does not fit"


def test_a_folder_without_weights_or_with_broken_ones_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match=r"no model\.safetensors there yet"):
        load_run(Tied(), tmp_path)
    (tmp_path / MODEL).write_bytes(b"\x80\x04pickle")
    with pytest.raises(RunError, match="cannot be read"):
        load_run(Tied(), tmp_path)


def small(tie: bool, seed: int) -> tuple[Pretrain, Pretraining]:
    run = vilt.tiny()
    model = replace(run.model, dim=16, depth=1, num_heads=2, mlp_dim=32)
    run = replace(run, model=model, training=replace(run.training, seed=seed))
    module = building.build(run)
    if tie:
        module.heads["words"].words.weight = module.get_submodule("model.words.word").weight  # type: ignore[union-attr]
    return run, module


@pytest.mark.parametrize("tie", [False, True])
def test_a_run_starts_with_the_model_and_the_heads_of_another(tmp_path: Path, tie: bool):
    run, module = small(tie, seed=0)
    write_run(tmp_path, run, {})
    save_weights(tmp_path, module)
    _, other = small(tie, seed=1)
    building.init_from_run(other, replace(run, init_from=str(tmp_path)))
    assert same(module, other)


def test_with_other_heads_it_starts_with_the_model_alone(tmp_path: Path):
    run, module = small(False, seed=0)
    del module.heads["match"]
    write_run(tmp_path, run, {})
    save_weights(tmp_path, module)
    _, other = small(False, seed=1)
    before = {name: t.clone() for name, t in named_weights(other.heads).items()}
    building.init_from_run(other, replace(run, init_from=str(tmp_path)))
    assert same(module.get_submodule("model"), other.get_submodule("model"))
    assert all(torch.equal(t, before[name]) for name, t in named_weights(other.heads).items())


def test_a_run_tells_what_it_started_from(tmp_path: Path):
    first, second = tmp_path / "words", tmp_path / "pairs"
    write_run(first, replace(vilt.small_words(), init_from="gone"), {})
    write_run(second, replace(vilt.small(), init_from=str(first)), {})
    told = ancestors(replace(vilt.tiny(), init_from=str(second)))
    words = f"{first} (vilt.small_words), which began from gone (not there)"
    assert told == f"{second} (vilt.small), which began from {words}"
    assert ancestors(vilt.tiny()) == ""
    write_run(first, replace(vilt.small_words(), init_from=str(second)), {})  # in a circle
    assert ancestors(replace(vilt.tiny(), init_from=str(second)), most=4).count("which began from") == 3


def test_a_coca_of_before_reads_single_words_by_their_name(tmp_path: Path):
    run = coca.small()
    write_run(tmp_path, replace(run, embedders=replace(run.embedders, text="minilm")), {})
    assert read_run(tmp_path)[0] == replace(run, embedders=replace(run.embedders, text="minilm_words"))
