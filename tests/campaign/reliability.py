"""Writes the reliability page from a campaign's records: python tests/campaign/reliability.py RECORDS PAGE.md"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAD = """# Reliability

What is read from others, and what a killed run leaves, is tried in campaigns: `make campaign` runs them (.ci/run does so behind
`make test`), `make reliability` writes this page from their counts. Nothing here is written by hand but this paragraph and the
next ones. Seed {seed}, {date}, {machine}.

## Damaged input

Every reader gets seeded mutations of valid files: flipped bits, truncation, pieces of other files, edited lengths and numbers,
paths that lead outside, pickles that would run code. Each input must end in a value or in the reader's own error, within 10 s of
processor time and 1 GiB of memory more than before, run no code and open no file outside its folder.
`python -m tests.campaign.fuzz READER --seed {seed} --first N --inputs 1` repeats one.

An LMDB is the exception: its values are damaged, not its pages, which the library lmdb reads and trusts.
"""
KILLS = """
## Killed runs

Each kind of run is killed (SIGKILL, with all its processes) at moments drawn over its whole time and started again by the same
command, until it ends; then its weights, optimizer state and logged rows, or its tars and decisions, are compared with those of
a run that was never killed, bit by bit.
"""


def page(records: Sequence[dict[str, Any]]) -> str:
    """The page, from the records of one campaign. Raises ValueError if they are of several, or there are none."""
    about = {(one["seed"], one["date"], one["machine"]) for one in records}
    if len(about) != 1:
        raise ValueError(f"records of {len(about)} campaigns, where one is expected: run `make campaign`")
    seed, date, machine = about.pop()
    fuzzed, killed = ([one for one in records if key in one] for key in ("reader", "run"))
    lines = [HEAD.format(seed=seed, date=date, machine=machine)]
    columns = ("inputs", "values", "refused", "failed")
    lines += ["| reader | inputs | read | refused | failed | slowest | most memory |", "|---|--:|--:|--:|--:|--:|--:|"]
    for one in sorted(fuzzed, key=lambda one: one["reader"]):
        counts = " | ".join(f"{one[name]:,}" for name in columns)
        lines.append(f"| {one['reader']} | {counts} | {one['slowest']:.2f} s | {one['largest'] / 2**20:.0f} MiB |")
    totals = " | ".join(f"{sum(one[name] for one in fuzzed):,}" for name in columns)
    slowest, largest = (max((one[name] for one in fuzzed), default=0) for name in ("slowest", "largest"))
    lines += [f"| all {len(fuzzed)} | {totals} | {slowest:.2f} s | {largest / 2**20:.0f} MiB |", KILLS]
    lines += ["| run | kills | ends compared | equal |", "|---|--:|--:|--:|"]
    lines += [f"| {one['run']} | {one['kills']} | {one['compared']} | {one['equal']} |" for one in killed]
    minutes = sum(one["seconds"] for one in records) / 60
    return "\n".join([*lines, "", f"All of it took {minutes:.0f} minutes of one core's time or less.", ""])


def main(records: str, out: str) -> None:
    loaded = [json.loads(path.read_text()) for path in sorted(Path(records).glob("*.json"))]
    Path(out).write_text(page(loaded), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
