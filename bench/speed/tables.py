"""Tables and figure of docs/results/speed.md, from the JSON file of `python -m bench.speed`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]
PRECISIONS = ("fp32", "bf16")


def speed_records(content: Record) -> dict[str, Record]:
    """Tables by name: ratios with their figure, seconds, operators of the profiles, start-up."""
    same = {"source": "the same measurement"}
    return {
        "speed": {**ratios(content["rows"]), **conditions(content)},
        "speed_seconds": {**seconds(content["rows"]), **same},
        "speed_profiles": {**profiles(content["rows"]), **same},
        "speed_start_up": {**start_up(content["start_up"]), **same},
    }


def conditions(content: Record) -> Record:
    """Command, machine, versions, date and commit as one line each."""
    if "source" in content:
        return {key: content[key] for key in ("machine", "versions", "date", "source")}
    machine = content["machine"]
    amx = "with" if machine["amx_bf16"] else "without"
    limit = f", oneDNN limited to {machine['onednn_limit']}" if machine["onednn_limit"] else ""
    return {
        "command": content["command"],
        "data": "medians of interleaved rounds, peer / Diptych, CPU seconds; published sizes, equal weights, outputs "
        "compared first",
        "machine": f"{machine['processor']} {amx} AMX bf16{limit}, {machine['cores']} cores, {machine['threads']} thread",
        "versions": ", ".join(f"{name} {number}" for name, number in content["versions"].items() if number),
        "date": content["date"],
        "source": f"commit {content['commit']}",
    }


def ratios(rows: list[Record]) -> Record:
    """One line for each peer of each kind of work, with both precisions and their targets."""
    lines: dict[tuple[str, str], dict[str, Record]] = {}
    for row in rows:
        lines.setdefault((row["title"], row["peer"]), {})[row["precision"]] = row
    cells, bars = [], []
    for (title, peer), by_precision in lines.items():
        both = [by_precision.get(precision) for precision in PRECISIONS]
        cells.append([title, peer, *(cell for row in both for cell in (ratio(row), target(row)))])
        bars.append([title, peer, *(row.get("ratio") if row is not None and equal(row) else None for row in both)])
    columns = [["work", 0], ["compared with", 0], ["fp32", 2], ["target", 0], ["bf16", 2], ["target", 0]]
    figure = {
        "columns": list(PRECISIONS),
        "names": ["work", "compared with", *PRECISIONS],
        "rows": bars,
        "labels": 2,
        "axis": "time of the peer / time of Diptych",
        "title": "Speed beside named peers (above 1: Diptych is faster)",
        "lines": {"equal": 1.0},
    }
    return {"columns": columns, "rows": cells, "figure": figure}


def equal(row: Record) -> bool:
    """Whether the outputs passed every check."""
    return all(check["passed"] for check in row.get("checks", []))


def ratio(row: Record | None) -> float | str | None:
    if row is None:
        return None
    if "not_measured" in row:
        return "not measured"
    return row["ratio"] if equal(row) else f"outputs differ ({row['ratio']:.2f})"


def target(row: Record | None) -> str | None:
    if row is None or row.get("target") is None:
        return None
    missed = {True: "", False: ", missed", None: ""}[row.get("reached")]
    return f"≥ {row['target']:g}{missed}"


def seconds(rows: list[Record]) -> Record:
    """One line for each peer and precision: seconds of both sides, the checks before, peak memory."""
    columns = ["work", "compared with", "precision", "rounds", "Diptych, CPU s", "peer, CPU s", "Diptych, wall s"]
    columns += ["peer, wall s", "checked first", "peak GiB, Diptych / peer"]
    lines = []
    for row in rows:
        line = [row["title"], row["peer"], row["precision"]]
        if "not_measured" in row:
            lines.append([*line, *([None] * 5), f"not measured ({row['not_measured']})", None])
        elif "ours" in row:
            sides = [spread(row[side], clock) for clock in ("cpu", "wall") for side in ("ours", "theirs")]
            lines.append([*line, row["rounds"], *sides, "; ".join(map(check, row["checks"])), memory(row)])
    return {"columns": [[name, 0] for name in columns], "rows": lines}


def spread(side: Record, clock: str) -> str:
    low, high = side[f"{clock}_range"]
    return f"{side[clock]:.2f} ({low:.2f}–{high:.2f})"


def check(outcome: Record) -> str:
    limit = "" if outcome["limit"] is None else f" {'≤' if outcome['passed'] else '>'} {outcome['limit']:g}"
    return f"{outcome['measure']}: {outcome['value']:.2g}{limit}"


def memory(row: Record) -> str | None:
    peak = row.get("peak_memory")
    return None if peak is None else f"{peak['ours']:.1f} / {peak['theirs']:.1f}"


def profiles(rows: list[Record]) -> Record:
    """The operators with the largest shares of CPU time, where a target was missed."""
    missed = [row for row in rows if row.get("reached") is False]
    return {
        "columns": [[name, 0] for name in ("work", "precision", "side", "share of CPU time by operator (calls)")],
        "rows": [line for row in missed for line in _profile_lines(row)],
    }


def _profile_lines(row: Record) -> Iterator[list[str]]:
    for side, operators in row.get("profiles", {}).items():
        shares = ", ".join(f"{o['operator'].removeprefix('aten::')} {o['share']:.0%} ({o['calls']})" for o in operators)
        yield [row["title"], row["precision"], side, shares]


def start_up(rows: list[Record]) -> Record:
    """Commands from the shell, as `bench.start_up.rows` returns them."""
    columns = [["command", 0], ["Diptych", 2], ["unit", 0], ["rounds", 0], ["note", 0]]
    lines = []
    for row in rows:
        command, comma, until = row["work"].partition(", ")
        lines.append([f"`{command}`{comma}{until}", *(row.get(key) for key in ("ours_s", "unit", "rounds", "note"))])
    return {"columns": columns, "rows": lines}
