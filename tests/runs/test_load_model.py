"""Loading of saved models: the modules that were trained or imported, without their objectives, and equal ones after saving."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diptych
from diptych.checkpoints.nested_state_dicts import split_by_modality
from diptych.checkpoints.read import WeightsError
from diptych.inference.folder import write_config
from diptych.inference.saved_model import RunError, read_config
from diptych.models.importing import ADAPTERS
from diptych.objectives.pretraining import Pretraining
from diptych.protocols import student_of
from diptych.runs import build as building
from diptych.runs.import_checkpoint import import_checkpoint
from diptych.runs.load_model import load_model
from diptych.runs.recipes import recipe, recipes
from diptych.tasks.definition import Labels, fine_tuning
from diptych.utils.state_dict import named_weights
from tests.models.test_finetuning_recipes import OWN, labels_of, small, task_of
from tests.models.test_first_step import toy
from tests.models.test_other_sizes import EXAMPLES, Example, random_state
from tests.runs.tiny_runs import write_model

CPU = torch.device("cpu")
PLAIN = (bool, int, float, str, tuple, type(None))


def settings_of(module: nn.Module) -> dict[str, Any]:
    """The classes and plain attributes of a module and of its parts, by name: what weights do not show."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        plain = {key: x for key, x in vars(part).items() if isinstance(x, PLAIN) and key != "training"}
        found[name] = (type(part), plain)
    return found


def check_same_weights(module: nn.Module, expected: Mapping[str, torch.Tensor]) -> None:
    weights = named_weights(module)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def check_same_parts(module: nn.Module, trained: nn.Module) -> None:
    """Checks that model and heads are the same modules, with the same settings and weights, as in the training step."""
    weights = named_weights(trained)
    for part in ("model", "head", "rank"):
        if isinstance(getattr(trained, part, None), nn.Module):
            assert settings_of(module.get_submodule(part)) == settings_of(trained.get_submodule(part)), part
    for name, head in getattr(trained, "heads", nn.ModuleDict()).items():
        if any(weight.startswith(f"heads.{name}.") for weight in weights):  # BEiT-3's decoder is tied to its words
            assert settings_of(module.get_submodule(f"heads.{name}")) == settings_of(head), name
    check_same_weights(module, weights)


def refuse_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a pre-training step impossible to build."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a training step was built")

    monkeypatch.setattr(Pretraining, "__init__", refuse)


@pytest.mark.parametrize("name", recipes("Pretrain"))
def test_a_run_of_every_recipe_is_loaded_without_its_objectives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = toy(recipe(name))
    step = building.build(run, guided=False)
    write_model(tmp_path, run, step)
    refuse_training_steps(monkeypatch)
    loaded = load_model(tmp_path, CPU)
    assert loaded.saved.heads == tuple(step.heads) == tuple(loaded.heads)
    assert loaded.losses == set(run.objectives.present()) and not loaded.module.training
    check_same_parts(loaded.module, step)


@pytest.mark.parametrize("name", OWN)
def test_a_run_of_every_task_is_loaded_with_its_labels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, _ = small(recipe(name, "Finetune"))
    module = task_of(run)
    run = replace(run, model=fine_tuning(run.task).config(run.model, Labels(labels_of(run))))
    write_model(tmp_path, run, module, labels_of(run))
    refuse_training_steps(monkeypatch)
    loaded = load_model(tmp_path, CPU)
    assert (
        loaded.saved.task == run.task and loaded.saved.labels == labels_of(run) and type(loaded.module) is type(module)
    )
    check_same_parts(loaded.module, module)


def official_file(example: Example, folder: Path) -> tuple[Path, Path]:
    """A checkpoint of random weights in the official layout, and its config with every setting."""
    state = random_state(example)
    official = ADAPTERS[example.system].names(example.arguments, example.task).to_official(state)
    torch.save({"model": split_by_modality({n: t.contiguous() for n, t in official.items()})}, folder / "x.pth")
    (folder / "x.json").write_text(json.dumps({"arguments": example.arguments}))
    return folder / "x.pth", folder / "x.json"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.system}-{example.task}")
@pytest.mark.slow
def test_an_import_of_every_system_and_task_is_loaded_saved_and_loaded_equal(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoint, config = official_file(example, tmp_path)
    step = student_of(import_checkpoint(example.system, checkpoint, tmp_path / "first", config=config).step)
    refuse_training_steps(monkeypatch)
    loaded = load_model(tmp_path / "first", CPU)
    if (example.system, example.task) == ("albef", "retrieval"):  # the official code does not bound it there
        step.get_submodule("heads.itc.scale").bounds = loaded.heads.get_submodule("itc.scale").bounds
    check_same_parts(loaded.module, step)
    model = diptych.load(tmp_path / "first", device="cpu")
    model.save(tmp_path / "second")
    again = load_model(tmp_path / "second", CPU)
    assert again.saved == loaded.saved and again.module.training is False
    check_same_parts(again.module, loaded.module)
    assert not (tmp_path / "first" / "run.json").exists() and not (tmp_path / "second" / "run.json").exists()


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """An imported ViLT that answers questions."""
    example = next(one for one in EXAMPLES if (one.system, one.task) == ("vilt", "vqa"))
    checkpoint, config = official_file(example, tmp_path)
    import_checkpoint("vilt", checkpoint, tmp_path / "run", config=config)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("system", "task", "message"),
    [
        ("nothing", "vqa", "config.imported.system: .* 'nothing'"),
        ("beit3", "vqa", "config.imported.system: .*ViLTConfig.* 'beit3'"),
        ("vilt", "encoder", "unexpected: head"),
        ("vilt", "nlvr2", "does not fit"),
        ("vilt", "dreams", "unexpected: head"),
        ("vilt", "pretraining", "unexpected: head"),
    ],
)
def test_an_import_of_another_system_or_task_is_an_error(imported: Path, system: str, task: str, message: str):
    saved = read_config(imported)
    assert saved.imported is not None
    write_config(imported, replace(saved, task=task, imported=replace(saved.imported, system=system)))
    with pytest.raises((RunError, WeightsError), match=message) as error:
        load_model(imported, CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [(), ("yes",), tuple(map(str, range(14)))])
def test_labels_are_as_many_as_the_outputs(imported: Path, labels: tuple[str, ...]):
    write_config(imported, replace(read_config(imported), labels=labels))
    with pytest.raises(RunError, match=f"config.labels: expected 13 labels, one for each output, got {len(labels)}"):
        load_model(imported, CPU)
