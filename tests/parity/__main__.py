"""Recomputes golden folders and prints the error and tolerance of every tensor, compared with the official code.

    python -m tests.parity DIR... [--json FILE]

One line for each `out.*` tensor in each layout. Exit status 0 if all are within tolerance; 1 if one is not, or if a
folder cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from diptych.checkpoints.read import WeightsError
from diptych.utils.io import atomic_write
from diptych.utils.terminal import echo
from tests.parity.compare import RULE, Report, Row, parity


def main(argv: list[str]) -> int:
    """Runs the command with these arguments; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a golden folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports to FILE")
    arguments = parser.parse_args(argv)
    reports: dict[str, Report | str] = {}
    for folder in arguments.folders:
        try:
            reports[str(folder)] = report = parity(folder)
        except (OSError, WeightsError) as error:
            reports[str(folder)] = f"cannot be recomputed: {error}"
            echo(f"{folder}: {reports[str(folder)]}", error=True)
        else:
            print_report(str(folder), report)
    if arguments.json:
        record = {
            "rule": RULE,
            "torch": torch.__version__,
            "folders": {n: as_json(report) for n, report in reports.items()},
        }
        with atomic_write(arguments.json) as file:
            file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    passed = all(isinstance(report, Report) and report.passed for report in reports.values())
    echo(f"{len(reports)} folders: {'all equal' if passed else 'NOT equal'}")
    return 0 if passed else 1


def as_json(report: Report | str) -> dict:
    return (
        {"passed": False, "error": report} if isinstance(report, str) else {"passed": report.passed, **asdict(report)}
    )


def print_report(name: str, report: Report) -> None:
    """Prints one line for each tensor, with its full name whatever the width of the terminal."""
    echo(f"{name}: {report.system} {report.task}, {report.source}")
    width = max((len(row.tensor) for row in report.rows), default=0) + len("out.")
    for row in report.rows:
        echo(line(row, width))
    wrong = sum(not row.ok for row in report.rows)
    tensors = len({row.tensor for row in report.rows})
    verdict = "all equal" if report.passed else f"{wrong} of {len(report.rows)} comparisons differ"
    echo(f"{name}: {tensors} tensors in two layouts: {verdict}\n")


def line(row: Row, width: int) -> str:
    error = "-" if row.error is None else f"{row.error:.2e}"
    tolerance = "-" if row.tolerance is None else f"{row.tolerance:.2e}"
    verdict = f"equal {row.note}".rstrip() if row.ok else f"DIFFERS {row.note}"
    return f"  {'out.' + row.tensor:<{width}}  {row.layout:<6}  error {error:>8}  tolerance {tolerance:>8}  {verdict}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
