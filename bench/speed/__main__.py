"""Diptych beside named peers at published sizes: equal outputs first, then CPU seconds, one thread.

    python -m bench.speed                                 every row, to docs/results/speed.json (`make bench`)
    python -m bench.speed --only albef.step coca.step --rounds 1 --profile    some rows, to build/speed.json

Every row runs in a process of its own, and its results are in the file as soon as it ends. A peer that cannot be
imported gives a row "not measured", with the reason. Then `python -m bench.result_pages` writes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bench.result_pages import RESULTS, ROOT, markdown
from bench.side_by_side import processor
from bench.speed.harness import OURS, Result
from bench.speed.peers import PACKAGES, installed_version
from bench.speed.rows import ROWS, Row
from bench.speed.tables import speed_records
from diptych.utils.io import atomic_write

STARTING = 15.0  # seconds that a process takes to import and to prepare its models
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def header(command: str) -> dict[str, Any]:
    """The conditions that all rows share."""
    packages = ("torch", *PACKAGES.values(), "timm", "pillow", "simplejpeg")
    return {
        "command": command,
        "machine": {
            "processor": processor(),
            "amx_bf16": bool(torch.cpu.get_capabilities().get("amx_bf16")),
            "onednn_limit": os.environ.get("ONEDNN_MAX_CPU_ISA"),
            "cores": os.cpu_count(),
            "threads": 1,
        },
        "versions": {package: installed_version(package) for package in packages},
        "date": date.today().isoformat(),
        "commit": commit(),
    }


def commit() -> str:
    """The commit that was measured; with "+" if files had changed since."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    return described.stdout.strip() or "unknown"


def limit_of(row: Row, precision: str, rounds: int) -> float:
    """Seconds on the clock after which a row's process is ended."""
    return 10 * row.seconds[precision] * (rounds + 1) + 120


def run_worker(row: Row, precision: str, rounds: int, *more: str) -> Any:
    """The contents of a worker's JSON file. Raises RuntimeError with the reason if it failed, TimeoutExpired if it took too long."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        words = [sys.executable, "-m", "bench.speed.worker", row.name, precision, str(file), "--rounds", str(rounds)]
        done = subprocess.run(
            [*words, *more],
            cwd=ROOT,
            env=os.environ | THREADS,
            capture_output=True,
            text=True,
            timeout=limit_of(row, precision, rounds),
        )
        if done.returncode or not file.exists():
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise RuntimeError(lines[-1])
        return json.loads(file.read_text(encoding="utf-8"))


def measured(row: Row, precision: str, rounds: int, profile: bool) -> list[Result]:
    """The results of a row by peer; each says why if it was not measured."""
    try:
        results: list[Result] = run_worker(row, precision, rounds, *(["--profile"] if profile else []))
        if row.memory:
            add_memory(row, precision, results)
    except RuntimeError as error:
        results = without_numbers(row, precision, str(error))
    except subprocess.TimeoutExpired as error:
        results = without_numbers(row, precision, f"took more than {error.timeout:.0f} s")
    named = {"row": row.name, "title": row.title, "precision": precision}
    return [{**named, **result, **against_target(row, precision, result)} for result in results]


def without_numbers(row: Row, precision: str, reason: str) -> list[Result]:
    """A row's peers as not measured, with the reason."""
    return [{"peer": peer, "not_measured": reason} for peer in row.peers_at(precision)]


def against_target(row: Row, precision: str, result: Result) -> Result:
    """The ratio to be reached, and whether it was; None where there is none."""
    target = row.peers.get(result["peer"], {}).get(precision)
    comparable = target is not None and "ratio" in result
    return {"target": target, "reached": result["ratio"] >= target if comparable else None}


def add_memory(row: Row, precision: str, results: list[Result]) -> None:
    """Adds the peak memory of both sides, each of a process that runs only one of them."""
    ours = run_worker(row, precision, 1, "--memory-of", OURS)
    for result in results:
        if "not_measured" not in result:
            theirs = run_worker(row, precision, 1, "--memory-of", result["peer"])
            result["peak_memory"] = {"ours": ours, "theirs": theirs}


def start_up(rounds: int) -> list[Result]:
    """The rows of bench.start_up: commands from the shell."""
    try:
        return import_module("bench.start_up").rows(rounds)
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return [{"work": "start-up", "note": f"not measured ({error})"}]


def summary(results: list[Result]) -> Iterator[str]:
    """One line per peer of a row."""
    for result in results:
        name = f"  {result['peer']}:"
        if "not_measured" in result:
            yield f"{name} not measured ({result['not_measured']})"
            continue
        differing = [check for check in result["checks"] if not check["passed"]]
        unequal = "".join(f"; OUTPUTS DIFFER: {c['measure']} {c['value']:.1e} > {c['limit']:.0e}" for c in differing)
        target = f" (target {result['target']})" if result["target"] is not None else ""
        seconds = f"{result['ours']['cpu']:.2f} s, peer {result['theirs']['cpu']:.2f} s"
        yield f"{name} {result['ratio']:.2f}{target}; {seconds}{unequal}"
        for candidate, operators in result.get("profiles", {}).items():
            shares = ", ".join(f"{o['operator']} {o['share']:.0%} × {o['calls']}" for o in operators)
            yield f"    {candidate}: {shares}"


class Report:
    """The results file, written again after each row."""

    def __init__(self, path: Path, conditions: dict[str, Any], keep: bool):
        """`keep`: keeps the rows of an existing file. Raises SystemExit if it was written under other conditions."""
        self.path = path
        self.content = {**conditions, "rows": [], "start_up": []}
        if keep and path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            different = [key for key in ("machine", "versions", "commit") if before.get(key) != conditions[key]]
            if different:
                raise SystemExit(f"{path} was measured with another {', '.join(different)}: give another --out")
            self.content |= {"rows": before["rows"], "start_up": before["start_up"]}

    def add(self, results: list[Result]) -> None:
        """Adds results, instead of earlier ones of the same row and precision."""
        new = {(result["row"], result["precision"]) for result in results}
        rows = [row for row in self.content["rows"] if (row["row"], row["precision"]) not in new]
        self.write(rows=rows + results)

    def write(self, **changed: Any) -> None:
        self.content |= changed
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as file:
            file.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*names, "start_up"], metavar="ROW", help=", ".join(names))
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="the operators with the largest shares of CPU time")
    parser.add_argument("--out", type=Path, help="docs/results/speed.json; with --only build/speed.json")
    options = parser.parse_args()
    whole = options.only is None
    out = options.out or (RESULTS if whole else ROOT / "build") / "speed.json"
    rows = [
        (row, p) for row in ROWS if whole or row.name in options.only for p in options.precision if p in row.seconds
    ]
    command = " ".join(["OMP_NUM_THREADS=1 python -m bench.speed", *sys.argv[1:]])
    report = Report(out, header(command), keep=not whole)
    planned = [STARTING + row.seconds[p] * (options.rounds + 1) for row, p in rows]
    began = time.monotonic()
    for i, (row, precision) in enumerate(rows):
        pace = (time.monotonic() - began) / sum(planned[:i]) if i else 1.0
        left, limit = pace * sum(planned[i:]) / 60, limit_of(row, precision, options.rounds)
        print(f"[{i + 1}/{len(rows)}] {row.name} {precision}, at most {limit:.0f} s; {left:.0f} min left", flush=True)
        results = measured(row, precision, options.rounds, options.profile)
        report.add(results)
        print(*summary(results), sep="\n", flush=True)
    if whole or "start_up" in options.only:
        print("start-up", flush=True)
        report.write(start_up=start_up(options.rounds))
    for table in speed_records(report.content).values():
        print(markdown(table))
    print(out)


if __name__ == "__main__":
    main()
