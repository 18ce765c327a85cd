"""Run folders: run.json and weights are read back as they were written; invalid ones raise an error with the cause."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import diptych
from diptych.checkpoints.read import WeightsError
from diptych.cli import main
from diptych.config.run import Pretrain
from diptych.inference.folder import load_weights
from diptych.inference.saved_model import RunError
from diptych.models.vilt import recipes as vilt
from diptych.modules.heads import MLMHead
from diptych.objectives.pretraining import Pretraining
from diptych.runs import build as building
from diptych.runs.run_folder import ancestors, read_run, write_run
from diptych.training.checkpoint import MODEL, save_weights
from diptych.utils.state_dict import named_weights
from tests.runs.tiny_runs import write_model


class Tied(nn.Module):
    """A model with an MLM head that shares its word embeddings."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.ModuleDict({"words": nn.Embedding(7, 3), "out": nn.Linear(3, 3)})
        self.heads = nn.ModuleDict({"mlm": MLMHead(3, 7, tied=self.model["words"])})  # type: ignore[arg-type]


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def test_tied_weights_are_saved_once_and_loaded_tied(tmp_path: Path):
    module, other = Tied(), Tied(seed=1)
    assert not same(module, other)
    save_weights(tmp_path, module)
    saved = load_file(tmp_path / MODEL)
    assert "model.words.weight" in saved and "heads.mlm.decoder.weight" not in saved
    assert saved.keys() == dict(module.named_parameters()).keys()
    assert load_weights(other, tmp_path) is other
    assert same(module, other)
    assert other.heads["mlm"].decoder.weight is other.model["words"].weight  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["model.words.weight", "model.out.bias", "heads.mlm.bias"])
def test_missing_unexpected_and_misshapen_weights_are_named(tmp_path: Path, name: str):
    save_weights(tmp_path, Tied())
    saved = load_file(tmp_path / MODEL)
    module = Tied(seed=1)
    save_file({n: t for n, t in saved.items() if n != name}, tmp_path / MODEL)
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        load_weights(module, tmp_path)
    save_file(saved | {"model.more": torch.ones(1)}, tmp_path / MODEL)
    with pytest.raises(WeightsError, match=r"unexpected: model\.more"):
        load_weights(module, tmp_path)
    save_file(saved | {name: torch.ones(9)}, tmp_path / MODEL)
    with pytest.raises(WeightsError, match=r"of another shape"):
        load_weights(module, tmp_path)
    assert same(module, Tied(seed=1)), "nothing is loaded if one weight does not fit"


def test_a_folder_without_weights_or_with_a_damaged_file_raises(tmp_path: Path):
    with pytest.raises(RunError, match=r"no model\.safetensors there yet"):
        load_weights(Tied(), tmp_path)
    (tmp_path / MODEL).write_bytes(b"\x80\x04pickle")
    with pytest.raises(RunError, match="cannot be read"):
        load_weights(Tied(), tmp_path)


def small(tie: bool, seed: int) -> tuple[Pretrain, Pretraining]:
    run = vilt.tiny()
    model = replace(run.model, dim=16, depth=1, num_heads=2, mlp_dim=32)
    run = replace(run, model=model, training=replace(run.training, seed=seed))
    module = building.build(run)
    if tie:
        module.heads["mlm"].decoder.weight = module.get_submodule("model.words.word").weight  # type: ignore[union-attr]
    return run, module


@pytest.mark.parametrize("tie", [False, True])
def test_init_from_copies_model_and_heads(tmp_path: Path, tie: bool):
    run, module = small(tie, seed=0)
    write_model(tmp_path, run, module)
    _, other = small(tie, seed=1)
    building.init_from_run(other, replace(run, init_from=str(tmp_path)))
    assert same(module, other)


def test_init_from_a_run_with_other_heads_copies_the_model_only(tmp_path: Path):
    run, module = small(False, seed=0)
    del module.heads["itm"]
    write_model(tmp_path, run, module)
    _, other = small(False, seed=1)
    before = {name: t.clone() for name, t in named_weights(other.heads).items()}
    building.init_from_run(other, replace(run, init_from=str(tmp_path)))
    assert same(module.get_submodule("model"), other.get_submodule("model"))
    assert all(torch.equal(t, before[name]) for name, t in named_weights(other.heads).items())


def test_ancestors_lists_the_chain_of_initial_runs(tmp_path: Path):
    first, second = tmp_path / "words", tmp_path / "pairs"
    write_run(first, replace(vilt.small_text(), init_from="gone"), {}, ())
    write_run(second, replace(vilt.small(), init_from=str(first)), {}, ())
    chain = ancestors(replace(vilt.tiny(), init_from=str(second)))
    words = f"{first} (vilt.small_text), initialised from gone (not found)"
    assert chain == f"{second} (vilt.small), initialised from {words}"
    assert ancestors(vilt.tiny()) == ""
    write_run(first, replace(vilt.small_text(), init_from=str(second)), {}, ())  # a cycle
    assert ancestors(replace(vilt.tiny(), init_from=str(second)), max_runs=4).count("initialised from") == 3


def set_version(folder: Path, version: str) -> None:
    record = json.loads((folder / "run.json").read_text())
    del record["digest"]  # run.json may be edited on purpose
    (folder / "run.json").write_text(json.dumps(record | {"versions": record["versions"] | {"diptych": version}}))


COMMANDS = (
    "evaluate {run}",
    "evaluate {run} --data scenes:8",
    "finetune vqa --init_from {run} --data scenes:8 --out {run}/out",
    "pretrain vilt.tiny --init_from {run} --out {run}/out",
    "pretrain albef.small --init_image_from {run} --out {run}/out",
    "pretrain beit3.small --visual_tokenizer {run} --out {run}/out",
    "pretrain vilt.tiny --data scenes:8 --out {run}",
    "finetune vqa --recipe vilt.tiny --data scenes:8 --out {run}",
    "export {run} --to official --out {run}/x.pth",
    "capfilt scenes:8 --filter {run} --out {run}/out",
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("version", ["0.1.0", "0.1.9"])
def test_run_folders_of_version_0_1_are_a_one_line_error_of_every_command(
    command: str, version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    write_run(folder, vilt.tiny(), {}, ())
    set_version(folder, version)
    before = sorted(folder.iterdir())
    assert main(command.format(run=folder).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"diptych: {folder}: run folder of Diptych {version}, which {diptych.__version__} does not read"
    )
    assert "train again with" in line and "diptych export" in line and "diptych import" in line
    assert sorted(folder.iterdir()) == before


def test_run_folders_of_this_version_and_of_0_10_are_not_taken_for_0_1(tmp_path: Path):
    write_run(tmp_path, vilt.tiny(), {}, ())
    assert read_run(tmp_path)[0] == vilt.tiny()
    set_version(tmp_path, "0.10.0")
    with pytest.raises(RunError, match=r"written by Diptych 0\.10\.0"):
        read_run(tmp_path)
