"""The harness of `python -m bench.speed`: what is compared, timed, reported and kept."""

from __future__ import annotations

import json
import subprocess
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.result_pages import markdown
from bench.speed import __main__ as speed
from bench.speed import rows as speed_rows
from bench.speed.harness import OURS, Check, Work, compare_steps, compare_tensors, measure, training_step
from bench.speed.peers import unless_missing, versions
from bench.speed.rows import Row
from bench.speed.tables import speed_records

ROW = Row("toy", "toy work", "toy:work", {"fp32": 0.0}, {"fast": {"fp32": 2.0}, "absent": {}})
CONDITIONS: dict[str, Any] = {
    "command": "c",
    "machine": {"processor": "p", "amx_bf16": False, "onednn_limit": None, "cores": 2, "threads": 1},
    "versions": {"torch": "2"},
    "date": "2026-12-01",
    "commit": "abc",
}


def busy(seconds: float, result: float) -> Any:
    def run(_: int) -> torch.Tensor:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return torch.tensor([result])

    return run


def toy_work(theirs: float = 1.0) -> Work:
    peers = {"fast": busy(0.01, theirs), "absent": "No module named 'absent'"}
    return Work(busy(0.02, 1.0), peers, compare_tensors("fp32", "values", 1e-6, 1.0))


def tables(results: list[dict[str, Any]]) -> dict[str, str]:
    content = {**CONDITIONS, "rows": results, "start_up": []}
    return {name: markdown(record) for name, record in speed_records(content).items()}


def results_of(monkeypatch: pytest.MonkeyPatch, work: Work) -> list[dict[str, Any]]:
    monkeypatch.setattr(speed, "run_worker", lambda *_: measure(work, 3))
    return speed.measured(ROW, "fp32", 3, profile=False)


def test_a_ratio_is_the_peers_cpu_seconds_over_ours(monkeypatch: pytest.MonkeyPatch):
    fast, _ = results_of(monkeypatch, toy_work())
    assert fast["ratio"] == pytest.approx(0.5, rel=0.2)
    assert fast["ours"]["cpu_range"][0] <= fast["ours"]["cpu"] <= fast["ours"]["cpu_range"][1]
    assert (fast["rounds"], fast["target"], fast["reached"]) == (3, 2.0, False)
    assert fast["checks"] == [{"measure": "values", "value": 0.0, "limit": 1e-6, "passed": True}]


def test_a_peer_that_cannot_be_imported_keeps_its_row(monkeypatch: pytest.MonkeyPatch):
    _, absent = results_of(monkeypatch, toy_work())
    assert absent["not_measured"] == "No module named 'absent'"
    assert list(speed.summary([absent])) == ["  absent: not measured (No module named 'absent')"]
    pages = tables([absent])
    assert "not measured" in pages["speed"]
    assert "No module named 'absent'" in pages["speed_seconds"]


def test_outputs_that_differ_are_reported(monkeypatch: pytest.MonkeyPatch):
    fast, _ = results_of(monkeypatch, toy_work(theirs=1.1))
    assert not fast["checks"][0]["passed"]
    assert "OUTPUTS DIFFER: values 1.0e-01 > 1e-06" in next(iter(speed.summary([fast])))
    assert "outputs differ" in tables([fast])["speed"]
    assert speed_records({**CONDITIONS, "rows": [fast], "start_up": []})["speed"]["figure"]["rows"][0][2] is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("MemoryError: out of memory"), "MemoryError: out of memory"),
        (subprocess.TimeoutExpired("worker", 120.0), "took more than 120 s"),
    ],
)
def test_a_row_that_fails_loses_no_peer(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(speed, "run_worker", fail)
    results = speed.measured(ROW, "fp32", 5, profile=False)
    assert [(result["peer"], result["not_measured"]) for result in results] == [("fast", reason), ("absent", reason)]


@pytest.mark.slow
def test_a_workers_last_line_is_the_reason():
    row = Row("no.such", "", "toy:work", {"fp32": 0.0}, {})
    with pytest.raises(RuntimeError, match=r"invalid choice: 'no\.such'"):
        speed.run_worker(row, "fp32", 1)


def test_results_are_added_to_a_file_of_the_same_conditions_only(tmp_path: Path):
    path, row = tmp_path / "speed.json", {"row": "a", "precision": "fp32"}
    speed.Report(path, CONDITIONS, keep=False).add([{**row, "ratio": 1.0}])
    report = speed.Report(path, CONDITIONS, keep=True)
    report.add([{"row": "b", "precision": "fp32", "ratio": 3.0}])
    report.add([{**row, "ratio": 2.0}])
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [(r["row"], r["ratio"]) for r in rows] == [("b", 3.0), ("a", 2.0)]
    with pytest.raises(SystemExit, match="another commit"):
        speed.Report(path, {**CONDITIONS, "commit": "def"}, keep=True)


def test_a_step_is_compared_by_losses_and_gradient():
    module = torch.nn.Linear(2, 1)
    run = training_step(module, lambda _: {"loss": module(torch.ones(1, 2)).sum()}, {"loss": 2.0}, "fp32")
    first = run(0)
    assert first["gradient"] == pytest.approx(2 * 3**0.5)  # of two weights and a bias
    assert set(run(1)) == {"loss"}
    compare = compare_steps("fp32", 1e-6)
    assert all(check.passed for check in compare(first, first))
    assert [check.passed for check in compare({**first, "loss": first["loss"] + 1e-4}, first)] == [False, True]
    two, invalid = {**first, "other": 1.0}, {**first, "other": float("nan")}
    assert [check.passed for check in compare(invalid, two)] == [check.passed for check in compare(two, invalid)]
    assert [check.passed for check in compare(two, invalid)] == [False, True]
    assert [check.passed for check in compare({**first, "gradient": 1.01 * first["gradient"]}, first)] == [True, False]


def test_a_check_without_a_limit_passes():
    assert Check("ids that differ", 3.0, None).passed
    assert not Check("ids that differ", 3.0, 0.0).passed


def test_a_missing_package_is_a_reason():
    def build() -> Any:
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401

    assert unless_missing(build) == "No module named 'no_such_package'"
    assert versions("open_clip, cut").startswith("open_clip_torch ")
    assert versions("reference run as the official code") == ""


def test_rows_name_functions_and_peers():
    names = [row.name for row in speed_rows.ROWS]
    assert len(set(names)) == len(names)
    for row in speed_rows.ROWS:
        module, _, function = row.prepare.partition(":")
        assert callable(getattr(import_module(f"bench.speed.{module}"), function))
        assert row.peers and OURS not in row.peers
        assert set(row.seconds) <= set(speed_rows.BOTH)
