"""Does pre-training help to ground phrases? ViLBERT small on Flickr8k with the boxes of Flickr30k Entities.

    python -m bench.grounding --data flickr8k/ --out grounding/
    python -m bench.grounding --scenes --out grounding/

`vilbert.small` is pre-trained on the photographs and their captions, then fine-tuned for grounding, with 36 fixed boxes
as regions; beside it the same without pre-training, with hidden phrases, with hidden images, and regions chosen without
a model. With ``--scenes`` the built-in world, whose true boxes are the regions, as an upper bound of what the model can
tell apart. The tables go to docs/results/grounding.json and grounding_scenes.json. The same command continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.task_study import Column, Row, Study
from diptych.config.tasks import Grounding
from diptych.runs.baselines import baselines

SCALES = "1 1 1 0.5 1 3 1 0.5 3 0.6 0.6 2 0.4 0.4 3 0.3 0.3 4"
"""The default boxes, in place of the 14 of the pre-training recipe: more of them are near a true box."""
COLUMNS = (
    Column("accuracy, %", "accuracy"),
    Column("mean IoU, %", "mean IoU", interval=False),
    Column("people, %", "accuracy, people", interval=False),
    Column("animals, %", "accuracy, animals", interval=False),
    Column("clothing, %", "accuracy, clothing", interval=False),
)
SCENE_COLUMNS = (
    Column("accuracy, %", "accuracy"),
    Column("by attributes, %", "accuracy, attributes", interval=False),
    Column("by a relation, %", "accuracy, relation", interval=False),
)
BLIND = ("random region", "largest region", "central region", "best region")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="Flickr8k with entities.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", action="store_true", help="the built-in world with true boxes instead")
    parser.add_argument("--photographs", type=int, default=1800, help="of train, in fine-tuning; 0: all")
    parser.add_argument("--train_scenes", type=int, default=5000, help="with --scenes; 1,200 are learned by heart")
    parser.add_argument("--steps", type=int, default=0, help="of each fine-tuning; 0: 350, with --scenes 2,000")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    scenes(arguments) if arguments.scenes else photographs(arguments)


def photographs(arguments: argparse.Namespace) -> None:
    """The study on photographs."""
    phrases = subset(Path(arguments.data) / "entities.jsonl", arguments.out, arguments.photographs)
    data = f"--data {{phrases}} --images_root {{flickr8k}} --embedders.scales {SCALES}"
    training = f"--steps {arguments.steps or 350} --seed {{seed}} --workers 0 --evaluate_every 200"
    pretrain = "pretrain vilbert.small --data {flickr8k} --seed {seed} --out {out}/pretrained-{seed}"

    def row(name: str, folder: str, start: str, *before: str, more: str = "") -> Row:
        finetune = f"finetune grounding {start} {data} {training} {more} --out {{out}}/{folder}-{{seed}}"
        commands = (*before, " ".join(finetune.split()), f"evaluate {{out}}/{folder}-{{seed}} --workers 0")
        return Row(name, commands, f"{{out}}/{folder}-{{seed}}/evaluate-grounding-*")

    start = "--from {out}/pretrained-{seed}"
    rows = (
        *blind_rows(str(phrases), arguments.data, "36 fixed boxes"),
        row("phrases hidden", "text-blind", start, pretrain, more="--ablate text"),
        row("images hidden", "image-blind", start, pretrain, more="--ablate image"),
        row("not pre-trained", "untrained", "--recipe vilbert.small"),
        row("pre-trained", "pretrained-grounding", start, pretrain),
    )
    number = f"{arguments.photographs:,} train photographs" if arguments.photographs else "all train photographs"
    facts = {
        "title": "Grounding of phrases in photographs",
        "data": f"Flickr8k with the boxes of Flickr30k Entities: {number}, 1,000 of val with 13,123 phrases",
        "first column": "ViLBERT small, 36 fixed boxes",
    }
    run("grounding", rows, COLUMNS, facts, arguments, {"flickr8k": arguments.data, "phrases": str(phrases)})


def scenes(arguments: argparse.Namespace) -> None:
    """The study on the built-in world."""
    data = f"scenes:{arguments.train_scenes}"
    training = f"--steps {arguments.steps or 2000} --seed {{seed}} --proposals true --optimizer.learning_rate 1e-3"

    def row(name: str, folder: str, more: str = "") -> Row:
        finetune = f"finetune grounding --recipe vilbert.small --data {data} {training} --workers 1 {more}"
        commands = (
            f"{' '.join(finetune.split())} --out {{out}}/{folder}-{{seed}}",
            f"evaluate {{out}}/{folder}-{{seed}} --proposals true --workers 0",
        )
        return Row(name, commands, f"{{out}}/{folder}-{{seed}}/evaluate-grounding-*proposals_true*")

    rows = (
        *blind_rows(data, "", "true boxes"),
        row("phrases hidden", "scenes-text-blind", "--ablate text"),
        row("ViLBERT small, not pre-trained", "scenes"),
    )
    facts = {
        "title": "Grounding of phrases in scenes, with true boxes as regions",
        "data": f"the built-in world: {arguments.train_scenes:,} train scenes, 1,000 of val with 4,000 phrases",
        "first column": "model",
    }
    run("grounding_scenes", rows, SCENE_COLUMNS, facts, arguments, {})


def run(
    name: str,
    rows: tuple[Row, ...],
    columns: tuple[Column, ...],
    facts: dict[str, str],
    arguments: argparse.Namespace,
    data: dict[str, str],
) -> None:
    """Runs a study and writes its table."""
    Study(name, rows, columns, arguments.seeds, arguments.out, facts, data).run()


def blind_rows(phrases: str, images_root: str, regions: str) -> tuple[Row, ...]:
    """A row for each choice of a region without a model; of the best region, which bounds any choice."""
    scores = baselines(Grounding(data=phrases, images_root=images_root))[regions]
    return tuple(Row(f"{name} of the {regions}", values={"accuracy": scores[name]}) for name in BLIND)


def subset(path: Path, out: Path, number: int) -> Path:
    """The rows of the first `number` train photographs by name, and all others; the file itself for 0."""
    if not number:
        return path
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    kept = set(sorted({row["image"] for row in rows if row["split"] == "train"})[:number])
    chosen = [line for line, row in zip(lines, rows, strict=True) if row["split"] != "train" or row["image"] in kept]
    (out / "phrases.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return out / "phrases.jsonl"


if __name__ == "__main__":
    main()
