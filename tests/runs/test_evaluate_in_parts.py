"""Evaluations that are interrupted and continued, or divided over two ranks, have the results of one that is neither."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.cli import main
from diptych.config.objectives import ITC, ITM, LM, Objectives
from diptych.config.run import Pretrain
from diptych.models.configs import CoCaConfig, VLMoConfig
from diptych.models.vlmo import recipes as vlmo
from diptych.runs.build import build
from diptych.runs.load_model import load_model
from diptych.tasks.session import Session
from diptych.training.checkpoint import save_weights
from tests.runs.tiny_runs import ENVIRONMENT, EXACT, kill_all, start_python, write_model

GALLERY = ["--gallery", "12", "--captions", "2"]
CASES = {
    "vqa": [],
    "reranked": ["--task", "retrieval", "--rerank", "4", *GALLERY],
    "fused": ["--task", "retrieval", *GALLERY],
    "captions": ["--task", "captioning", *GALLERY],
    "matching": ["--task", "matching"],
}
"""By the folder of a run, the words of a command that evaluates it in several parts."""
BATCHES = {"retrieval.IMAGE_BATCH": 3, "retrieval.FUSION_IMAGE_BATCH": 3, "captioning.BATCH": 3}
SCRIPT = f"""
import sys, time
from diptych.cli import main
from diptych.tasks import captioning, retrieval, session
for name, size in {BATCHES}.items():
    module, _, constant = name.partition(".")
    setattr(dict(captioning=captioning, retrieval=retrieval)[module], constant, size)
write = session.Session._write
def slow(*arguments):
    time.sleep(SECONDS)
    return write(*arguments)
session.FLUSH, session.Session._write = 0.0, slow
for command in sys.argv[1].split(";"):
    assert main(command.split()) == 0
"""
"""Evaluates in small batches, with a pause after each."""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in BATCHES.items():
        monkeypatch.setattr(f"diptych.tasks.{name}", size)


def folder_of(model: Any, objectives: Objectives, out: Path) -> None:
    """A run folder of an untrained model with perturbed weights, so that pairs have different scores."""
    run: Pretrain = replace(vlmo.tiny(), model=model, objectives=objectives, data="scenes:50")
    module, generator = build(run), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    write_model(out, run, module)


@pytest.fixture(scope="module")
def folders(vqa: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folders of CASES, without evaluations."""
    root = tmp_path_factory.mktemp("parts")
    shutil.copytree(vqa, root / "vqa", ignore=shutil.ignore_patterns("evaluate-*"))
    dual = VLMoConfig(
        16, 2, 2, 32, vl_start_layer=1, grid=(5, 7), vocab_size=114, relative_position=False, layer_scale=0.0,
        num_itc_branches=1, drop_path=0.0,
    )  # fmt: skip
    decoder = CoCaConfig(
        dim=16, depth=1, num_heads=2, mlp_dim=32, patch_size=16, grid=(5, 7), num_queries=3, pool_num_heads=2,
        text_dim=16, text_depth=1, text_num_heads=2, text_mlp_dim=32, vocab_size=114, text_length=24, decoder_depth=1,
        decoder_num_heads=2, decoder_mlp_dim=32, embed_dim=8,
    )  # fmt: skip
    both = Objectives(itc=ITC(), itm=ITM())
    folder_of(dual, both, root / "reranked")
    folder_of(dual, both, root / "matching")
    folder_of(replace(dual, vl_start_layer=0), Objectives(itm=ITM()), root / "fused")
    folder_of(decoder, Objectives(lm=LM()), root / "captions")
    return root


@pytest.fixture(scope="module")
def expected(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run folders, evaluated by one process without an interruption."""
    root = tmp_path_factory.mktemp("whole") / "runs"
    shutil.copytree(folders, root)
    with pytest.MonkeyPatch.context() as patch:
        for name, size in BATCHES.items():
            patch.setattr(f"diptych.tasks.{name}", size)
        for name in CASES:
            assert main(command(root, name)) == 0
    return root


def command(root: Path, name: str) -> list[str]:
    return ["evaluate", str(root / name), *CASES[name], "--split", "train", "--workers", "0", *EXACT]


def results(folder: Path) -> dict[str, Any]:
    """The content of all files of the evaluation in a run folder."""
    (evaluation,) = folder.glob("evaluate-*")
    return {path.name: json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
            for path in evaluation.iterdir()}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_evaluation_continues_to_the_same_results(
    folders: Path, expected: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    shutil.copytree(folders / name, tmp_path / name)
    write, recorded = Session._write, list[int]()

    def stopping(self: Session, stage: str, size: list[int], part: int, value: Any) -> Any:
        if len(recorded) == 2:
            raise KeyboardInterrupt
        recorded.append(part)
        return write(self, stage, size, part, value)

    monkeypatch.setattr(Session, "_write", stopping)
    assert main(command(tmp_path, name)) == 130
    (evaluation,) = (tmp_path / name).glob("evaluate-*")
    assert [path.name for path in evaluation.iterdir()] == ["progress-0.jsonl"]
    computed = list[int]()

    def counting(self: Session, stage: str, size: list[int], part: int, value: Any) -> Any:
        computed.append(part)
        return write(self, stage, size, part, value)

    monkeypatch.setattr(Session, "_write", counting)
    capsys.readouterr()
    assert main(command(tmp_path, name)) == 0
    assert "continues an interrupted evaluation: 2 parts are done" in capsys.readouterr().out
    assert computed and not set(computed) & set(recorded)
    assert results(tmp_path / name) == results(expected / name)


@pytest.mark.slow
def test_an_evaluation_of_other_weights_is_not_continued(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    shutil.copytree(folders / "reranked", folder := tmp_path / "reranked")

    def stop(self: Session) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "remove", stop)
        assert main(command(tmp_path, "reranked")) == 130
    module = load_model(folder, torch.device("cpu")).module
    with torch.no_grad():
        next(module.parameters()).add_(1e-3)
    save_weights(folder, module)
    assert main(command(tmp_path, "reranked")) == 0
    assert "the interrupted evaluation had another model: the evaluation begins again" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_evaluation_continues_to_the_same_results(folders: Path, expected: Path, tmp_path: Path, capsys: Any):
    shutil.copytree(folders / "reranked", tmp_path / "reranked")
    process = start_python("-c", SCRIPT.replace("SECONDS", "0.5"), " ".join(command(tmp_path, "reranked")))
    deadline, lines = time.monotonic() + 120, 0
    while lines < 3:
        assert time.monotonic() < deadline and process.poll() is None
        lines = sum(path.read_bytes().count(b"\n") for path in (tmp_path / "reranked").glob("*/progress-0.jsonl"))
        time.sleep(0.02)
    kill_all(process)
    capsys.readouterr()
    assert main(command(tmp_path, "reranked")) == 0
    assert "continues an interrupted evaluation" in capsys.readouterr().out
    assert results(tmp_path / "reranked") == results(expected / "reranked")


@pytest.mark.slow
def test_two_ranks_have_the_results_of_one(folders: Path, expected: Path, tmp_path: Path):
    shutil.copytree(folders, root := tmp_path / "runs")
    (script := tmp_path / "evaluate_all.py").write_text(SCRIPT.replace("SECONDS", "0"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    commands = ";".join(" ".join(command(root, name)) for name in CASES)
    done = subprocess.run([*torchrun, commands], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.html") == len(CASES), "only the main rank prints"
    for name in CASES:
        assert results(root / name) == results(expected / name), name
