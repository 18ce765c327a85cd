"""The benchmark table: finished rows are read back, unfinished ones are resumed, and missing numbers stay empty."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diptych.benchmark import run
from diptych.benchmark.table import NOT_RUN
from diptych.cli import main
from diptych.config.objectives import ITC, ITM, MLM, Objectives
from diptych.config.run import Pretrain
from diptych.config.tasks import Captioning, Evaluation, Matching, Retrieval
from diptych.config.training import Training
from diptych.data.sources.base import DataError
from diptych.models.configs import ViLTConfig, VLMoConfig
from diptych.models.vilt import recipes as vilt
from diptych.models.vlmo import recipes as vlmo

DATA = "scenes:50"
EXACT: dict[str, Any] = dict(gallery=6, captions=1, workers=0, device="cpu", precision="fp32")
EVALUATIONS = {
    "retrieval": Retrieval(rerank=3, **EXACT),
    "matching": Matching(**EXACT),
    "captioning": Captioning(**EXACT),
}
SIZE = {"dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "patch_size": 16, "grid": (5, 7), "vocab_size": 114}
SHORT = Training(steps=4, batch_size=8, log_every=1, checkpoint_every=2, workers=0, device="cpu", precision="fp32")


def fused(objectives: Objectives) -> Pretrain:
    return replace(vilt.tiny(), model=ViLTConfig(**SIZE, dropout=0.0), objectives=objectives, training=SHORT)


def words() -> Pretrain:
    return replace(fused(Objectives(mlm=MLM())), recipe="toy.words")


def matched() -> Pretrain:
    return replace(fused(Objectives(itm=ITM(), mlm=MLM())), recipe="toy.matched")


def contrasted() -> Pretrain:
    model = VLMoConfig(
        **SIZE, vl_start_layer=0, relative_position=False, layer_scale=0.0, num_itc_branches=1, drop_path=0.0
    )
    objectives = Objectives(itc=ITC(), itm=ITM())
    return replace(vlmo.tiny(), recipe="toy.contrasted", model=model, objectives=objectives, training=SHORT)


ROWS = {"two stages": (words(), matched()), "contrast": (contrasted(),)}


def table(
    out: Path,
    rows: dict[str, tuple[Pretrain, ...]] = ROWS,
    minutes: float = 9,
    seeds: tuple[int, ...] = (0, 1),
) -> dict[str, list[str]]:
    """Runs `benchmark`; the rows of results.md by name."""
    markdown = run.benchmark(rows, seeds, DATA, out, minutes, EVALUATIONS)
    assert (out / "results.md").read_text() == markdown
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in markdown.splitlines() if "|" in line]
    return {line[0]: line[1:] for line in lines if line[0] in rows}


def cells(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["cells"]


@pytest.fixture(scope="module", autouse=True)
def few_held_out() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diptych.runs.train.VALIDATION_EXAMPLES", 8)
        yield


@pytest.fixture(scope="module")
def finished(few_held_out: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both rows for seed 0, and the first for seed 1."""
    out = tmp_path_factory.mktemp("benchmark")
    table(out, seeds=(0,))
    table(out, {"two stages": ROWS["two stages"]}, seeds=(1,))
    return out


def test_rows_that_were_not_run_are_marked(tmp_path: Path):
    result = table(tmp_path, minutes=0)
    assert result == {name: [f"seed 0: {NOT_RUN}; seed 1: {NOT_RUN}", *[NOT_RUN] * 7] for name in ROWS}
    assert not any(cell["stages"] for cell in cells(tmp_path)) and (tmp_path / "report.html").is_file()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.slow
def test_finished_rows_are_read_back_without_training(finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "pretrain", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(run, "evaluate", lambda *_: pytest.fail("scored again"))
    result = table(finished, minutes=0)
    assert result["two stages"][0] == "0, 1" and result["contrast"][0] == f"0; seed 1: {NOT_RUN}"
    both, one = result["two stages"], result["contrast"]
    assert both[2].startswith("toy.words: mlm ") and "; toy.matched: itm " in both[2] and "(0.69)" in both[2]
    assert both[4] == both[6] == "–"
    assert one[4].count("/") == 4 and "(" in one[4], "recall with re-ranking, and without it in brackets"
    cell = cells(finished)[2]
    assert cell["row"] == "contrast" and cell["seed"] == 0
    (stage,) = cell["stages"]
    (path,) = (finished / "contrast/seed0/last").glob("evaluate-retrieval-*/metrics.json")
    scores = json.loads(path.read_text())
    accuracy = stage["scores"]["matching"]["matching accuracy"]
    low, high = stage["intervals"]["matching"]["matching accuracy"]
    assert one[3] == f"{100 * accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert stage["scores"]["retrieval"] == scores["metrics"] and scores["metrics"]["images"] == 6
    rows = [json.loads(line) for line in (finished / "contrast/seed0/last/metrics.jsonl").read_text().splitlines()]
    assert stage["losses"]["itc"]["start"] == rows[0]["itc"] and stage["losses"]["itc"]["end"] == rows[3]["itc"]


@pytest.mark.slow
def test_the_mean_and_half_the_range_of_seeds(finished: Path):
    result = table(finished, minutes=0)
    values = [100 * cell["stages"][-1]["scores"]["matching"]["matching accuracy"] for cell in cells(finished)[:2]]
    assert result["two stages"][3] == f"{sum(values) / 2:.1f} ±{abs(values[0] - values[1]) / 2:.1f}"


@pytest.mark.slow
def test_a_stage_starts_from_the_one_before(finished: Path):
    run_json = json.loads((finished / "two stages/seed1/last/run.json").read_text())["run"]
    assert run_json["init_from"] == str(finished / "two stages/seed1/stage1") and run_json["training"]["seed"] == 1


@pytest.mark.slow
def test_an_interrupted_row_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows, evaluate = {"contrast": ROWS["contrast"]}, run.evaluate

    def interrupted(folder: Path, evaluation: Evaluation) -> dict[str, float]:
        if evaluation.task == "matching":
            raise SystemExit(130)
        return evaluate(folder, evaluation)

    with monkeypatch.context() as patch:
        patch.setattr(run, "evaluate", interrupted)
        with pytest.raises(SystemExit):
            table(tmp_path, rows, seeds=(0,))
    assert "not run" in (tmp_path / "results.md").read_text() and not cells(tmp_path)[0]["stages"]
    tasks: list[str] = []
    monkeypatch.setattr(run, "pretrain", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(run, "evaluate", lambda folder, config: tasks.append(config.task) or evaluate(folder, config))
    assert table(tmp_path, rows, seeds=(0,))["contrast"][0] == "0" and tasks == ["matching"]


@pytest.mark.slow
def test_a_failed_row_is_reported_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pretrain = run.pretrain

    def failing(stage: Pretrain, out: Path) -> None:
        if stage.recipe == "toy.words":
            raise DataError("no such\nfile")
        pretrain(stage, out)

    monkeypatch.setattr(run, "pretrain", failing)
    result = table(tmp_path, seeds=(0,))
    assert result["two stages"] == ["seed 0: failed: DataError: no such file", *[NOT_RUN] * 7]
    assert result["contrast"][0] == "0"


@pytest.mark.slow
def test_a_folder_of_other_settings_is_not_this_row(finished: Path):
    longer = replace(contrasted(), training=replace(SHORT, steps=5))
    before = (finished / "contrast/seed0/last/metrics.jsonl").read_bytes()
    result = table(finished, {"contrast": (longer,)}, seeds=(0,))
    assert "failed: RunError: " in result["contrast"][0] and "contains a run of other settings" in result["contrast"][0]
    assert (finished / "contrast/seed0/last/metrics.jsonl").read_bytes() == before


def test_published_rows_follow_with_their_source(tmp_path: Path):
    table(tmp_path, minutes=0)
    text = (tmp_path / "results.md").read_text()
    assert text.index("| published |") > text.index("| system |")
    assert "16.5 / 40.6 / 54.2" in text and "CVPR 2015" in text and "not verified here" in text


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = ["--rows", "vilt,vilt.small_text+vilt.small"]
    assert main(["benchmark", "--data", DATA, "--out", str(tmp_path), "--minutes", "0", "--seeds", "3", *rows]) == 0
    output = capsys.readouterr().out
    assert "| vilt | seed 3: not run |" in output and "| vilt.small_text+vilt.small | seed 3: not run |" in output
    assert main(["benchmark", "--data", DATA, "--seeds", "a"]) == 2 and "--seeds" in capsys.readouterr().err
    assert main(["benchmark"]) == 2 and "--data is missing" in capsys.readouterr().err
    assert main(["benchmark", "--data", DATA, "--rows", "vlit"]) == 2 and "did you mean vilt" in capsys.readouterr().err


def test_a_row_may_override_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    received: dict[str, tuple[Pretrain, ...]] = {}
    monkeypatch.setattr(run, "benchmark", lambda rows, *_: received.update(rows))
    words = ["benchmark", "--data", DATA, "--rows"]
    assert main([*words, "vilt@objectives.mlm=none@steps=7,vilt"]) == 0
    (without,), (default,) = received.values()
    assert (without.objectives.mlm, without.training.steps) == (None, 7)
    assert replace(without, objectives=default.objectives, training=default.training) == default
    assert main([*words, "vilt@objectives.mlmm=0"]) == 2 and "objectives.mlm" in capsys.readouterr().err
