"""An untrusted folder: config.json is compared with the weights before memory of that size is allocated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diptych.checkpoints.read import WeightsError
from diptych.cli.arguments import apply_overrides
from diptych.inference.folder import check_model, check_module, weight_shapes
from diptych.inference.saved_model import RunError, read_config
from diptych.runs.build import build
from diptych.runs.load_model import load_model, module_of
from diptych.runs.recipes import recipe
from diptych.runs.run_folder import read_run
from tests.inference.tiny_folders import edit_json
from tests.runs.tiny_runs import write_model

SMALL = [
    "--model.dim",
    "16",
    "--model.depth",
    "2",
    "--model.num_heads",
    "2",
    "--model.mlp_dim",
    "32",
    "--model.vl_start_layer",
    "1",
    "--data",
    "scenes:20",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of a small VLMo."""
    run = apply_overrides(recipe("vlmo.tiny"), SMALL, "pretrain")
    return write_model(tmp_path / "run", run, build(run))


def test_a_run_fits_its_weights(folder: Path):
    saved = read_config(folder)
    check_model(folder, saved)
    check_module(folder, lambda: module_of(saved, weight_shapes(folder)))
    assert weight_shapes(folder)["model.modality.weight"].shape == (2, 16) and all(
        t.is_meta for t in weight_shapes(folder).values()
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("run/model/depth", 10**7, r"model.depth must be in \[1, 512\]: got 10000000"),
        ("run/model", 5, "run.model: expected one of .*, got 5"),
        ("run/training/optimizer", [], r"run.training.optimizer: expected an object with fields, got \[\]"),
        ("run/heads", "words", "run.heads: expected a list, got 'words'"),
        ("run/split", "", "split must not be empty"),
        ("run/colour", 3, "run.colour: no such field; remove it"),
        ("kind", "evaluation", "kind: expected pretrain, finetune, got 'evaluation'"),
        ("kind", "imported", "kind: expected pretrain, finetune, got 'imported'"),
        ("kind", ["pretrain"], "kind: expected text"),
        ("facts", [], "facts: expected a JSON object"),
        ("facts/examples", "many", "facts.examples: expected a number of at least 0, got 'many'"),
        ("facts/candidates", 0, "facts.candidates: expected a number of at least 1, got 0"),
        ("facts/precision", "fp16", "facts.precision: expected fp32 or bf16, got 'fp16'"),
        ("facts/chance_losses", [0.7], "facts.chance_losses: expected a value and a name of each, got "),
        ("facts/chance_losses", {"itm": 0.7}, "facts.chance_losses: expected a value and a name of each, got "),
        ("facts/chance_losses", {"itm": {"value": "low", "name": "chance"}}, "facts.chance_losses: expected a value"),
        ("versions", [], "versions: expected a JSON object"),
        ("versions/diptych", 3, "versions"),
        ("versions/diptych", "newest", "version: expected a version such as"),
        ("versions/diptych", "99.0", "written by Diptych 99.0, and this is "),
        ("command", None, "command: expected text, got None"),
    ],
)  # fmt: skip
def test_types_and_versions_are_checked_when_a_training_run_is_read(folder: Path, path: str, value: Any, message: str):
    edit_json(folder / "run.json", path, value)
    with pytest.raises(RunError, match=message) as error:
        read_run(folder)
    assert str(folder / "run.json") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "kind", "message"),
    [
        ("model/dim", 20000, RunError, "config.json describes a model of .* parameters, but model.safetensors has"),
        ("model/dim", 32, WeightsError, "of another shape: words.word.weight is .114, 16., the model has .114, 32."),
        ("model/depth", 400, RunError, "describes a model of 400 layers, but model.safetensors has .* tensors"),
        ("model/depth", 3, WeightsError, "missing: "),
        ("model/vocab_size", 2_000_000, WeightsError, "of another shape: "),
        ("model/text_length", 50, WeightsError, "of another shape: "),
        ("images/shorter_side", 4096, RunError, "images.shorter_side is 4096, whose square has .* times the area of model.grid"),
    ],
)  # fmt: skip
def test_sizes_that_differ_from_the_weights_raise(folder: Path, path: str, value: Any, kind: type, message: str):
    edit_json(folder / "config.json", path, value)
    with pytest.raises(kind, match=message) as error:
        check_model(folder, read_config(folder))
    assert "\n" not in str(error.value)
    with pytest.raises(kind, match=message):
        load_model(folder, torch.device("cpu"))


HEADS = [
    (["itm"], WeightsError, "unexpected"),
    (["itm", "itm", "itc"], RunError, "config.json: .*heads must be different names: got itm, itm, itc"),
    ([], WeightsError, "unexpected"),
    (["itc", "itm", "mlm", "pages"], RunError, "config.heads: a VLMo has no head 'pages', and the weights have none"),
    (["itc.image"], RunError, "config.heads: .*module name can't contain"),
    (["pop"], RunError, "config.heads: a VLMo has no head 'pop'"),
    ([""], RunError, "config.heads: a VLMo has no head ''"),
]


@pytest.mark.parametrize(("heads", "kind", "message"), HEADS)
def test_heads_are_compared_too(folder: Path, heads: list[str], kind: type, message: str):
    edit_json(folder / "config.json", "heads", heads)
    with pytest.raises(kind, match=message) as error:
        load_model(folder, torch.device("cpu"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["pop", "keys", "a.b", "", "training", "\n", "9"])
def test_a_head_of_any_name_among_the_weights_is_loaded_or_refused(folder: Path, name: str):
    """A layer that an objective added has the sizes of its weights, and a name that a module can have."""
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, f"heads.{name}.weight": torch.zeros(3, 16)}, folder / "model.safetensors")
    edit_json(folder / "config.json", "heads", [*read_config(folder).heads, name])
    try:
        head = load_model(folder, torch.device("cpu")).heads[name]
    except RunError as error:
        assert str(error).startswith("config.heads: ") and "\n" not in str(error)
        return
    assert isinstance(head, nn.Linear) and head.weight.shape == (3, 16) and head.bias is None


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "evaluate": lambda run: ["evaluate", str(run)],
    "finetune": lambda run: ["finetune", "vqa", "--init_from", str(run), "--data", "scenes:20", "--out", "new"],
    "export": lambda run: ["export", str(run), "--to", "official", "--out", "new.pth"],
    "capfilt": lambda run: ["capfilt", "scenes:20", "--filter", str(run), "--out", "new"],
}
HOSTILE_CONFIG = [
    ("model/dim", 20000, "describes a model of "), ("model/depth", 10**7, "model.depth must be in [1, 512]: got 10000000"),
    ("model/depth", 500, "describes a model of 500 layers"), ("images/shorter_side", 1_600_000, "images.shorter_side must be in [1, 4096]"),
    ("model/vocab_size", 30_522, "does not fit"), ("model/text_length", 60_000, "does not fit"),
    ("model/mlp_dim", 200_000, "does not fit"), ("model/dim", "16", "model.dim must be an integer: got '16'"),
    ("model/depth", True, "model.depth must be an integer: got True"), ("model/grid", [5, "5"], "model.grid must be an integer"),
    ("model", {"kind": "VLMoConfig", "dim": None}, "model.dim must be an integer: got None"),
    ("labels", [1], "labels must be text: got 1"), ("version", "9.9", "written by Diptych 9.9"),
]  # fmt: skip
"""Changed values in config.json, and a part of the error of every command."""
HOSTILE_RUN = [
    ("run/training/batch_size", 8.0, "batch_size must be an integer: got 8.0"), ("run/objectives/itc", "1", "run.objectives.itc: expected an object with fields, got '1'"),
    ("run/model/dim", 20000, "run.json and config.json describe different models"), ("run/model/num_heads", 4, "run.json and config.json describe different models"),
    ("run/objectives/masked_codes_image_only", {"codebook_size": 2**16}, "run.json and config.json describe different models"),
    ("run/heads", ["itm"], "it has no head"), ("kind", "finetune", "no such field; remove it"), ("versions/diptych", "9.9", "written by Diptych 9.9"),
]  # fmt: skip
"""Changed values in run.json, and a part of the error of an evaluation with the run's own losses."""
LIMITED = """
import json, resource, sys, time
import torch
import diptych.capfilt.run, diptych.runs.evaluate, diptych.runs.export, diptych.runs.finetune
from diptych.cli import main
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + (1 << 30),) * 2)
for words in json.loads(sys.argv[1]):
    began = time.process_time()
    print(main(words), time.process_time() - began, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc")
def test_every_command_exits_in_little_time_and_memory(folder: Path, tmp_path: Path):
    calls, messages = [], []
    for file, hostile in (("config.json", HOSTILE_CONFIG), ("run.json", HOSTILE_RUN)):
        commands = list(COMMANDS.values()) if file == "config.json" else [COMMANDS["evaluate"]]
        for number, (path, value, message) in enumerate(hostile):
            run = shutil.copytree(folder, tmp_path / f"hostile {file} {number}")
            edit_json(run / file, path, value)
            calls += [command(run) for command in commands]
            messages += [message] * len(commands)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps(calls)], capture_output=True, text=True, cwd=tmp_path, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [line.split() for line in done.stdout.splitlines()]
    assert [status for status, _ in results] == ["2"] * len(calls), done.stdout + done.stderr
    for call, line, message in zip(calls, done.stderr.splitlines(), messages, strict=True):
        assert message in line, (call, line)
    assert all(float(seconds) < 5 for _, seconds in results), done.stdout
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.pth").exists()
