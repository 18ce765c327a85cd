"""One row at one precision, in a process of its own: `python -m bench.speed.worker ROW PRECISION FILE`

Writes a JSON file: the results by peer, or with --memory-of the peak memory of one candidate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from bench.speed.harness import OURS, measure, peak_memory, profiles
from bench.speed.rows import ROWS, Row
from diptych.utils.memory import keep_freed_memory


def results(row: Row, precision: str, options: argparse.Namespace) -> Any:
    """The results by peer, or the peak memory of one candidate in GiB."""
    work = row.work(precision)
    if options.memory_of:
        return peak_memory(work, options.memory_of)
    measured = measure(work, options.rounds)
    if options.profile:
        shares = profiles(work)
        for result in measured:
            result["profiles"] = {name: shares[name] for name in (OURS, result["peer"]) if name in shares}
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.worker", description=__doc__)
    parser.add_argument("row", choices=[row.name for row in ROWS])
    parser.add_argument("precision", choices=("fp32", "bf16"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--memory-of", metavar="CANDIDATE", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as in Diptych's commands; all candidates gain by it
    row = next(row for row in ROWS if row.name == options.row)
    options.file.write_text(json.dumps(results(row, options.precision, options)), encoding="utf-8")


if __name__ == "__main__":
    main()
