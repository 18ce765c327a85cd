"""The reliability page contains the numbers of the campaign's records."""

from __future__ import annotations

from typing import Any

import pytest

from tests.campaign.reliability import page

ABOUT = {"seed": 7, "date": "2026-01-02", "machine": "Linux x86_64, 2 cores", "seconds": 90.0}


def fuzzed(reader: str, values: int, refused: int, slowest: float) -> dict[str, Any]:
    counts = {"inputs": values + refused, "values": values, "refused": refused, "failed": 0}
    return {**ABOUT, **counts, "reader": reader, "slowest": slowest, "largest": 3 << 20, "failures": []}


def test_each_reader_and_each_kind_of_run_has_its_row():
    killed = {**ABOUT, "run": "pretrain", "kills": 10, "compared": 3, "equal": 3}
    written = page([fuzzed("png", 200, 1000, 0.5), fuzzed("gif", 30, 4, 1.25), killed])
    assert "Seed 7, 2026-01-02, Linux x86_64, 2 cores." in written and "--seed 7" in written
    rows = [line for line in written.splitlines() if line.startswith("| ")]
    assert rows[1:4] == [
        "| gif | 34 | 30 | 4 | 0 | 1.25 s | 3 MiB |",
        "| png | 1,200 | 200 | 1,000 | 0 | 0.50 s | 3 MiB |",
        "| all 2 | 1,234 | 230 | 1,004 | 0 | 1.25 s | 3 MiB |",
    ]
    assert rows[-1] == "| pretrain | 10 | 3 | 3 |"


def test_records_of_two_campaigns_are_an_error():
    with pytest.raises(ValueError, match="records of 2 campaigns"):
        page([fuzzed("png", 1, 1, 0.1), {**fuzzed("gif", 1, 1, 0.1), "seed": 8}])
    with pytest.raises(ValueError, match="records of 0 campaigns"):
        page([])
