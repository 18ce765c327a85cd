"""Tables and figures of the results pages, from the JSON files beside them: `python -m bench.result_pages`

Each `docs/results/NAME.json` contains one table with its provenance; speed.json, of `python -m bench.speed`, those of
bench/speed/tables.py. Its Markdown goes into the pages of docs/ and
README.md that contain the lines `<!-- table NAME -->` and `<!-- end -->`; if the file has a figure, it goes to
`docs/images/NAME.svg`.

    python -m bench.result_pages --parity FILE    docs/results/parity.json, from `python -m tests.parity --json FILE`
    python -m bench.result_pages --demo DIR       docs/results/demo.json, from the folder of `diptych demo --out DIR`
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Iterator
from dataclasses import fields
from datetime import date
from pathlib import Path
from textwrap import fill
from typing import Any

from bench.speed.tables import speed_records

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "docs" / "results", ROOT / "docs" / "images"
TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MISSING = "–"

Record = dict[str, Any]
"""One results file: `columns` (name, and decimal places for numbers), `rows` (cells: text, a number, [mean, half
range] or null), and the provenance: `command`, `date`, `machine`, `versions`, `data`, `seeds`, `source`. `figure`: see
`draw`.
"""


def pages() -> list[Path]:
    """README.md and every page below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def records() -> dict[str, Record]:
    """Every results file by its name, the tables of speed.json, and the table of systems."""
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    return {**files, **speed_records(files.pop("speed")), "systems": systems_record()}


def systems_record() -> Record:
    """The objectives and the fine-tuning tasks of each system, from its recipes."""
    from diptych.config.objectives import Objectives
    from diptych.models.configs import PUBLISHED
    from diptych.runs.recipes import recipe, recipes

    pretraining, finetuning = recipes(), recipes("Finetune")
    rows = []
    for system, published in PUBLISHED.items():
        own = [name for name in pretraining if name.startswith(f"{system}.")]
        trained = {loss for name in own for loss in recipe(name).objectives.present()}
        losses = [field.name for field in fields(Objectives) if field.name in trained]
        tasks = {recipe(name, "Finetune").task for name in finetuning if name.startswith(f"{system}.")}
        tasks |= {"retrieval"} & {name.partition(".")[2] for name in own}  # by contrast: a Pretrain recipe
        citation = ", ".join(re.findall(r"\(([^()]*\d{4})\)", published.title))
        rows.append(
            [
                f"`{system}` ({citation})",
                *(", ".join(f"`{word}`" for word in words) or None for words in (losses, sorted(tasks))),
            ]
        )
    columns = [["system", 0], ["pre-training objectives of its recipes", 0], ["fine-tuning recipes", 0]]
    return {
        "columns": columns,
        "rows": rows,
        "command": "python -m bench.result_pages",
        "source": "from the recipes",
    }


def cell(value: Any, digits: int) -> str:
    """One cell of a table: numbers with so many decimal places, a mean of several seeds with half their range."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        mean, half_range = value
        return f"{mean:.{digits}f} ± {half_range:.{digits}f}"
    return f"{value:,.{digits}f}"


def markdown(record: Record) -> str:
    """The table, and a line with the source of its numbers."""
    if not record["rows"]:
        return "\nNot measured.\n"
    names, places = zip(*record["columns"], strict=True)
    words = [
        all(value is None or isinstance(value, str) for value in column) for column in zip(*record["rows"], strict=True)
    ]
    align = ["---" if text else "---:" for text in words]
    rows = [[cell(value, digits) for value, digits in zip(row, places, strict=True)] for row in record["rows"]]
    lines = [f"| {' | '.join(line)} |" for line in (names, align, *rows)]
    return "\n".join(["", *lines, "", provenance(record), ""])


def provenance(record: Record) -> str:
    """Command, data, seeds, machine, date and source of a table's numbers."""
    parts = [f"`{record['command']}`"] if record.get("command") else []
    parts += [str(record[key]) for key in ("data", "seeds", "machine", "versions", "date", "source") if record.get(key)]
    return f"*{'; '.join(parts)}.*"


def with_tables(page: str, tables: dict[str, Record]) -> str:
    """A page with each of its tables written again.

    Raises:
        KeyError: a table has no results file.
    """
    return TABLE.sub(lambda match: f"{match[1]}{markdown(tables[match[2]])}{match[3]}", page)


def draw(record: Record, path: Path) -> None:
    """Horizontal bars of some columns, written as SVG.

    `record["figure"]` holds `columns` (the series), `axis` (the label of the axis), `title`, `lines` (values of reference
    by their labels), and `labels`: how many columns, from the first, name a row (1). Its own `names` and `rows`, if it
    has them, are drawn instead of the table's.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": path.stem, "font.size": 9, "axes.spines.top": False})
    from matplotlib import pyplot as plt

    figure = record["figure"]
    names, drawn = figure.get("names", [name for name, _ in record["columns"]]), figure.get("rows", record["rows"])
    rows = [row for row in drawn if any(row[names.index(name)] is not None for name in figure["columns"])][::-1]
    height = 0.8 / len(figure["columns"])
    chart, axes = plt.subplots(figsize=(7.2, 0.9 + 0.36 * len(rows)), layout="constrained")
    for k, name in enumerate(figure["columns"]):
        at = [i + 0.4 - (k + 0.5) * height for i in range(len(rows))]
        values, errors = zip(*map(_mean_and_error, (row[names.index(name)] for row in rows)), strict=True)
        axes.barh(
            at,
            values,
            height,
            xerr=errors if any(errors) else None,
            label=name,
            color=("#31688e", "#fd8d3c", "#888888")[k],
        )
    for k, (label, value) in enumerate(figure.get("lines", {}).items()):
        axes.axvline(value, color="#444444", linestyle=("--", ":")[k % 2], linewidth=1, label=label)
    axes.set_yticks(range(len(rows)), [fill(row_label(row[: figure.get("labels", 1)]), 46) for row in rows], fontsize=8)
    axes.margins(y=0.01)
    axes.set_xlabel(figure["axis"])
    axes.set_title(figure["title"], loc="left", fontsize=10)
    axes.spines.right.set_visible(False)
    if len(figure["columns"]) > 1 or figure.get("lines"):
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, metadata={"Date": None})
    plt.close(chart)


def row_label(cells: list[str]) -> str:
    return ": ".join(cells).replace("`", "")


def _mean_and_error(value: Any) -> tuple[float, float]:
    """The middle and the half range of a cell: of a number, of [mean, half range] or of a range "low–high"."""
    if value is None:
        return 0.0, 0.0
    if isinstance(value, str):
        low, high = map(float, value.split("–"))
        return (low + high) / 2, (high - low) / 2
    return (value[0], value[1]) if isinstance(value, list) else (value, 0.0)


def parity_record(report: Record) -> Record:
    """A row for each system of a parity report: cases, tensors, and the largest error relative to its tolerance."""
    systems: dict[str, list[Record]] = {}
    for folder, case in report["folders"].items():
        if not case["passed"]:
            raise SystemExit(f"{folder}: not equal to the official numbers; see the report of tests.parity")
        systems.setdefault(case["system"], []).append(case)
    rows = [
        [
            system,
            len(cases),
            sum(len({row["tensor"] for row in case["rows"]}) for case in cases),
            ", ".join(sorted({case["task"] for case in cases})),
            max(
                (row["error"] / row["tolerance"] for case in cases for row in case["rows"] if row["tolerance"]),
                default=0.0,
            ),
        ]
        for system, cases in sorted(systems.items())
    ]
    columns = [["system", 0], ["cases", 0], ["tensors", 0], ["tasks", 0], ["largest error / tolerance", 2]]
    figure = {
        "columns": ["largest error / tolerance"],
        "axis": "largest error as a share of its tolerance",
        "title": "Distance to the official numbers",
        "lines": {"limit": 1.0},
    }
    command = "python -m tests.parity $DIPTYCH_GOLDENS/* --json FILE"
    record = {"columns": columns, "rows": rows, "figure": figure, "command": command, "rule": report["rule"]}
    return {**record, **machine(report["torch"])}


def demo_record(folder: Path) -> Record:
    """The demo's rows: chance, fine-tuned from scratch, pre-trained and then fine-tuned; percent."""
    rows = []
    for task, names in (
        ("vqa", ("accuracy",)),
        ("retrieval", ("text to image R@1", "text to image R@10", "image to text R@10")),
    ):
        scores = [scores_in(folder / f"{task}-{start}") for start in ("scratch", "pretrained")]
        for name in names:
            chance = scores[0].get(f"{name}, chance")
            percent = [None if value is None else 100 * value for value in (chance, scores[0][name], scores[1][name])]
            rows.append([f"{task}: {name}", *percent])
    columns = [["measure", 0], ["chance", 1], ["from scratch", 1], ["pre-trained", 1]]
    figure = {
        "columns": ["from scratch", "pre-trained", "chance"],
        "axis": "percent",
        "title": "What pre-training is worth on the built-in scenes",
    }
    run = json.loads((folder / "pretrain" / "run.json").read_text(encoding="utf-8"))
    seed = f"seed {run['run']['training']['seed']}"
    data = "built-in scenes, val split: 5,000 questions, a gallery of 100; the same fine-tuning budget in both columns"
    record = {"columns": columns, "rows": rows, "figure": figure, "command": "diptych demo --out DIR", "data": data}
    return {**record, "seeds": seed, **machine(run["versions"]["torch"])}


def scores_in(run: Path) -> dict[str, float]:
    """The metrics of the one evaluation of a run folder."""
    (path,) = run.glob("evaluate-*/metrics.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    return content.get("metrics", content)


def machine(torch: str) -> dict[str, str]:
    """Processor, versions and today's date."""
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": f"Python {platform.python_version()}, PyTorch {torch}",
        "date": date.today().isoformat(),
    }


def write(name: str, record: Record) -> None:
    """Writes a results file."""
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def rewrite() -> Iterator[Path]:
    """Writes every table and figure again; returns the files that changed."""
    tables = records()
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = with_tables(before, tables)
        if after != before:
            page.write_text(after, encoding="utf-8")
            yield page
    for name, record in tables.items():
        if "figure" in record:
            draw(record, IMAGES / f"{name}.svg")
            yield IMAGES / f"{name}.svg"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.result_pages", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parity", type=Path, metavar="FILE", help="the report of python -m tests.parity")
    parser.add_argument("--demo", type=Path, metavar="DIR", help="the folder of diptych demo")
    arguments = parser.parse_args()
    if arguments.parity:
        write("parity", parity_record(json.loads(arguments.parity.read_text(encoding="utf-8"))))
    if arguments.demo:
        write("demo", demo_record(arguments.demo))
    for path in rewrite():
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
