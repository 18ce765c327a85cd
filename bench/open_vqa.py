"""Open beside closed VQA: the same pre-trained start, its answers classified, ranked and freely generated.

python -m bench.open_vqa --data FOLDER      FOLDER contains daquar
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.task_study import Column, Row, Study

PRETRAIN = (
    "pretrain {system}.small --data scenes:2000 --steps 60 --batch_size 128 --seed 0 --workers 0 --device cpu "
    "--out {{out}}/start/{system}"
)
FINETUNE = (
    "finetune vqa --init_from {{out}}/start/{system} --data {{{data}}} --steps 120 --batch_size 64 --workers 0 "
    "--device cpu --min_answer_count 2 --seed {{seed}} {options}--out {{out}}/{name}/{{seed}}"
)
EVALUATE = "evaluate {{out}}/{name}/{{seed}} --split val --workers 0 --device cpu"
FORMS = {
    "closed": "",
    "open": "--answers open ",
    "closed, question only": "--ablate image ",
}


def rows(systems: tuple[str, ...], data: tuple[str, ...]) -> list[Row]:
    """A row for each data set, system and form of the answers."""
    made = list[Row]()
    for corpus in data:
        for system in systems:
            for form, options in FORMS.items():
                words = {"system": system, "data": corpus, "options": options}
                words["name"] = f"{corpus}/{system}/{form.replace(', ', '_').replace(' ', '_')}"
                commands = tuple(text.format(**words) for text in (PRETRAIN, FINETUNE, EVALUATE))
                made.append(Row(f"{corpus}: `{system}.small`, {form}", commands, f"{words['name']}/{{seed}}/**"))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.open_vqa", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with daquar")
    parser.add_argument("--out", type=Path, default=Path("runs/open_vqa"), help="folder of the runs")
    parser.add_argument("--systems", nargs="+", default=["albef", "blip"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further row after this time")
    arguments = parser.parse_args()
    folders = {"scenes": "scenes:400", "daquar": str(arguments.data / "daquar")}
    facts = {
        "title": "Open beside closed VQA",
        "data": "scenes:400 (built in) and DAQUAR, val split; baselines: `diptych baselines --task vqa`",
        "first column": "answers",
    }
    columns = (
        Column("classified or ranked", "accuracy"),
        Column("freely generated", "free accuracy"),
        Column("upper bound of the list", "upper bound on accuracy, the run's answers", interval=False),
    )
    made = rows(tuple(arguments.systems), tuple(folders))
    seeds = tuple(arguments.seeds)
    Study("open_vqa", made, columns, seeds, arguments.out.resolve(), facts, folders).run(arguments.minutes)


if __name__ == "__main__":
    main()
