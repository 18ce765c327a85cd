"""What should a pair be ranked against? ViLBERT fine-tuned for retrieval with negatives of several kinds.

    python -m bench.retrieval_training --data flickr8k/ --out retrieval_training/

For each seed `vilbert.small` is pre-trained, then fine-tuned with each kind of negatives, with the same number of
scored pairs in each: 15 negative texts (ViLT), 3 negative texts, and ViLBERT's 4-way choice of the pair, a random text,
a random image and a hard negative, which is a caption of one of the 100 nearest images (official code) or such an image
itself. The pre-trained run is evaluated as well (zero-shot, by its ITM head). Every stage is resumed where it stopped.
The table goes to docs/results/retrieval_training.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.result_pages import machine, write
from diptych.config.tasks import Retrieval, RetrievalOptions
from diptych.config.training import Optimizer
from diptych.runs.evaluate import evaluate, name_of
from diptych.runs.finetune import finetune, named_run
from diptych.runs.pretrain import pretrain
from diptych.runs.recipes import recipe

ARMS = {
    "zero-shot": None,
    "15 negative texts": RetrievalOptions(negative_texts=15),
    "3 negative texts": RetrievalOptions(negative_texts=3),
    "4-way, hard text": RetrievalOptions(negative_texts=1, negative_images=1, hard_texts=1),
    "4-way, hard image": RetrievalOptions(negative_texts=1, negative_images=1, hard_images=1),
}
MEASURES = [f"{direction} R@{k}" for direction in ("image to text", "text to image") for k in (1, 5, 10)]


@dataclass(frozen=True)
class Study:
    """The command-line settings."""

    data: str
    out: Path
    steps: int
    pairs: int
    learning_rate: float
    gallery: int
    captions: int
    seeds: Sequence[int]


def main() -> None:
    study = parse_arguments()
    table: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in ARMS}
    for seed in study.seeds:
        for arm, options in ARMS.items():
            table[arm][seed] = scores(study, options, seed)
            write("retrieval_training", record(study, table))


def parse_arguments() -> Study:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="captioned photographs with train and val splits")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60, help="of each fine-tuning")
    parser.add_argument("--pairs", type=int, default=256, help="pairs scored in a step, true and negative")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="of each fine-tuning")
    parser.add_argument("--gallery", type=int, default=200, help="images of val")
    parser.add_argument("--captions", type=int, default=1, help="captions of each image of the gallery")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    return Study(**vars(parser.parse_args()))


def scores(study: Study, options: RetrievalOptions | None, seed: int) -> dict[str, float]:
    """The metrics of a run fine-tuned with these negatives, or of the pre-trained run."""
    start = study.out / f"pretrained-{seed}"
    run = recipe("vilbert.small")
    pretrain(replace(run, data=study.data, training=replace(run.training, seed=seed)), start)
    folder = start if options is None else finetuned(study, options, start, seed)
    task = Retrieval(data=study.data, gallery=study.gallery, captions=study.captions, workers=0)
    done = folder / name_of(task, study.data) / "metrics.json"
    return json.loads(done.read_text())["metrics"] if done.is_file() else evaluate(folder, task)


def finetuned(study: Study, options: RetrievalOptions, start: Path, seed: int) -> Path:
    """The folder of the pre-trained run `start` after fine-tuning."""
    run = named_run("retrieval", {"init_from": str(start), "data": study.data})
    optimizer = Optimizer(learning_rate=study.learning_rate, betas=(0.9, 0.999), weight_decay=0.01, warmup=0.1)
    training = replace(
        run.training,
        steps=study.steps,
        batch_size=study.pairs // (1 + options.num_negatives),
        seed=seed,
        workers=0,
        optimizer=optimizer,
    )
    kinds = (options.negative_texts, options.negative_images, options.hard_texts, options.hard_images)
    out = study.out / f"finetuned-{'-'.join(map(str, kinds))}-{seed}"
    finetune(replace(run, options=options, training=training), out)
    return out


def record(study: Study, table: dict[str, dict[int, dict[str, float]]]) -> dict[str, object]:
    """The results file: means in percent with half their range over the seeds that are done, and the sum of recalls."""
    rows: list[list[object]] = []
    for arm, runs in table.items():
        recalls = [[100 * run[name] for run in runs.values()] for name in MEASURES]
        columns = [*recalls, [sum(values) for values in zip(*recalls, strict=True)]]
        spread = [[(min(c) + max(c)) / 2, (max(c) - min(c)) / 2] if c else None for c in columns]
        cells = [cell and (cell if len(runs) > 1 else cell[0]) for cell in spread]
        rows.append([arm, ", ".join(map(str, runs)) or None, *cells])
    first = next(iter(table["zero-shot"].values()))
    chance = [100 * first[f"{name}, chance"] for name in MEASURES]
    rows.append(["chance", None, *chance, sum(chance)])
    images, texts = int(first["images"]), int(first["texts"])
    return {
        "columns": [["trained with", 0], ["seeds", 0], *([name, 1] for name in MEASURES), ["rsum", 1]],
        "rows": rows,
        "figure": {
            "columns": ["rsum"],
            "axis": f"sum of the six recalls in percent; a gallery of {images} images and {texts} texts",
            "title": "Fine-tuning for retrieval with negatives of several kinds",
        },
        "command": f"python -m bench.retrieval_training --data {Path(study.data).name}/ --out DIR --steps {study.steps}",
        "data": f"{Path(study.data).name} val, the first {images} images with {texts // images} caption each; "
        f"{study.steps} steps of {study.pairs} scored pairs in each fine-tuning",
        "seeds": "± is half the range of the seeds",
        **machine(torch.__version__),
    }


if __name__ == "__main__":
    main()
