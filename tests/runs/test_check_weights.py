"""An untrusted run folder: run.json is compared with the weights before memory of that size is allocated."""

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

from diptych.checkpoints.read import WeightsError
from diptych.cli.arguments import apply_overrides
from diptych.config.run import ImportedCheckpoint
from diptych.runs.build import build
from diptych.runs.check_weights import check_model, check_module, weight_shapes
from diptych.runs.export import export
from diptych.runs.recipes import recipe
from diptych.runs.run_folder import RunError, read_run, write_run
from diptych.training.checkpoint import save_weights

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
    write_run(tmp_path / "run", run, {"examples": 100, "candidates": 8, "unigram_entropy": 3.0})
    save_weights(tmp_path / "run", build(run))
    return tmp_path / "run"


def edited(folder: Path, path: str, value: Any) -> None:
    record = json.loads((folder / "run.json").read_text())
    record.pop("digest", None)
    *above, last = path.split("/")
    part = record
    for name in above:
        part = part[name]
    part[last] = value
    (folder / "run.json").write_text(json.dumps(record))


def test_a_run_fits_its_weights(folder: Path):
    run, _ = read_run(folder)
    check_model(folder, run)
    check_module(folder, lambda: build(run))  # type: ignore[arg-type]
    assert weight_shapes(folder)["model.modality.weight"].shape == (2, 16) and all(
        t.is_meta for t in weight_shapes(folder).values()
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("run/model/depth", 10**7, r"model.depth must be in \[1, 512\]: got 10000000"),
        ("run/model/grid", [5], "run.model.grid: expected 2 values, got 1"),
        ("run/model/grid", 5, "run.model.grid: expected a list, got 5"),
        ("run/model", 5, "run.model: expected one of .*, got 5"),
        ("run/images/shorter_side", 1_600_000, r"images.shorter_side must be in \[1, 4096\]: got 1600000"),
        ("run/training/optimizer", [], r"run.training.optimizer: expected an object with fields, got \[\]"),
        ("run/heads", "words", "run.heads: expected a list, got 'words'"),
        ("run/split", "", "split must not be empty"),
        ("kind", "evaluation", "kind: expected pretrain, finetune, imported, got 'evaluation'"),
        ("kind", ["pretrain"], "kind: expected text"),
        ("facts", [], "facts: expected a JSON object"),
        ("facts/examples", "many", "facts.examples: expected a number of at least 0, got 'many'"),
        ("facts/candidates", 0, "facts.candidates: expected a number of at least 1, got 0"),
        ("facts/answers", [1], "facts.answers: expected a list of texts"),
        ("facts/prior", [0.5], "facts.prior: expected one value for each of 0 answers, got 1"),
        ("facts/frozen_features", {"image": 1}, "facts.frozen_features: expected names and texts"),
        ("versions", [], "versions: expected a JSON object"),
        ("versions/diptych", 3, "versions.diptych: expected a version such as"),
        ("versions/diptych", "newest", "versions.diptych: expected a version such as"),
        ("versions/diptych", "99.0", "written by Diptych 99.0, and this is "),
        ("command", None, "command: expected text, got None"),
    ],
)  # fmt: skip
def test_types_and_versions_are_checked_when_a_run_is_read(folder: Path, path: str, value: Any, message: str):
    edited(folder, path, value)
    with pytest.raises(RunError, match=message) as error:
        read_run(folder)
    assert str(folder / "run.json") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "kind", "message"),
    [
        ("run/model/dim", 20000, RunError, "run.json describes a model of .* parameters, but model.safetensors has"),
        ("run/model/dim", 32, WeightsError, "of another shape: words.word.weight is .114, 16., the model has .114, 32."),
        ("run/model/depth", 400, RunError, "describes a model of 400 layers, but model.safetensors has .* tensors"),
        ("run/model/depth", 3, WeightsError, "missing: "),
        ("run/model/vocab_size", 2_000_000, WeightsError, "of another shape: "),
        ("run/model/text_length", 50, WeightsError, "of another shape: "),
        ("run/images/shorter_side", 4096, RunError, "images.shorter_side is 4096, whose square has .* times the area of model.grid"),
    ],
)  # fmt: skip
def test_sizes_that_differ_from_the_weights_raise(folder: Path, path: str, value: Any, kind: type, message: str):
    edited(folder, path, value)
    run, _ = read_run(folder)
    with pytest.raises(kind, match=message) as error:
        check_model(folder, run)
    assert "\n" not in str(error.value)


def test_heads_are_compared_too(folder: Path):
    edited(folder, "run/heads", ["itm"])
    run, _ = read_run(folder)
    check_model(folder, run)
    with pytest.raises((WeightsError, RunError), match=r"unexpected|no head"):
        check_module(folder, lambda: build(run))  # type: ignore[arg-type]


def test_an_imported_checkpoint_is_not_deeper_than_its_weights(folder: Path):
    """A checkpoint that no recipe expresses has untyped constructor arguments."""
    arguments = {"dim": 16, "depth": 10**9}
    write_run(folder, ImportedCheckpoint("clip_resnet", "pretraining", arguments, "x.pt"), {"system": "clip_resnet"})
    with pytest.raises(RunError, match="describes a model of 1000000000 layers"):
        export(folder, "safetensors", folder.parent / "out.safetensors")


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "evaluate": lambda run: ["evaluate", str(run)],
    "finetune": lambda run: ["finetune", "vqa", "--init_from", str(run), "--data", "scenes:20", "--out", "new"],
    "export": lambda run: ["export", str(run), "--to", "official", "--out", "new.pth"],
    "capfilt": lambda run: ["capfilt", "scenes:20", "--filter", str(run), "--out", "new"],
}
HOSTILE = [
    ("run/model/dim", 20000, "describes a model of "), ("run/model/depth", 10**7, "model.depth must be in [1, 512]: got 10000000"),
    ("run/model/depth", 500, "describes a model of 500 layers"), ("run/images/shorter_side", 1_600_000, "images.shorter_side must be in [1, 4096]"),
    ("run/model/vocab_size", 30_522, "does not fit"), ("run/model/text_length", 60_000, "does not fit"),
    ("run/model/mlp_dim", 200_000, "does not fit"), ("run/model/dim", "16", "model.dim must be an integer: got '16'"),
    ("run/model/depth", True, "model.depth must be an integer: got True"), ("run/model/grid", [5, "5"], "model.grid must be an integer"),
    ("run/training/batch_size", 8.0, "batch_size must be an integer: got 8.0"), ("run/objectives/itc", "1", "run.objectives.itc: expected an object with fields, got '1'"),
    ("run/model", {"kind": "VLMoConfig", "dim": None}, "model.dim must be an integer: got None"),
    ("versions/diptych", "9.9", "written by Diptych 9.9"),
]  # fmt: skip
"""Changed values in run.json, and a part of the error that they cause."""
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
    for number, (path, value, message) in enumerate(HOSTILE):
        run = shutil.copytree(folder, tmp_path / f"hostile{number}")
        edited(run, path, value)
        calls += [command(run) for command in COMMANDS.values()]
        messages += [message] * len(COMMANDS)
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
