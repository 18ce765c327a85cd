"""Probe, fine-tuned and zero-shot classification of the CIFAR-100 subset: python -m bench.classification --data DIR

MAE's encoder pre-trained on Flickr8k's photographs and not, its trunk frozen (linear probe) or not; a ViT from scratch;
and CLIP on frozen features of an ImageNet CNN, probed and by prompts alone. The CNN was trained with ImageNet's labels,
which include many of CIFAR-100's classes: the last rows are not zero-shot in the strict sense.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.task_study import Column, Row, Study

CHANCE = {"accuracy": 0.01, "accuracy at 5": 0.05}
TEST = "--split test --workers 0 --device cpu"
STEPS = "--batch_size 64 --steps {steps} --workers 0 --device cpu --seed {{seed}}"
PROBE = "--optimizer.learning_rate 3e-3"


def study(data: Path, out: Path, seeds: tuple[int, ...]) -> Study:
    """The rows of the study, in the order in which they are run."""
    mae, clip = "{out}/mae-{seed}", "{out}/clip-{seed}"
    pretrained_mae = (
        f"pretrain mae.small --data {{flickr8k}} --out {mae} --steps 200 --batch_size 64 --workers 0 --device cpu "
        "--seed {seed}"
    )
    pretrained_clip = (
        f"pretrain clip.small --data {{flickr8k}} --out {clip} --steps 100 --workers 0 --device cpu --seed {{seed}}"
    )
    rows = [
        Row("chance", values=CHANCE),
        _trained("`vit.small` from scratch", "vit", "--recipe vit.small", 200),
        _trained("`mae.small` fine-tuned", "mae-tuned", f"--from {mae}", 150, pretrained_mae),
        _trained("`mae.small`'s ViT fine-tuned, not pre-trained", "mae-scratch", "--recipe mae.small", 150),
        _trained(
            "`mae.small`, linear probe",
            "mae-probe",
            f"--from {mae} --freeze patches.* blocks.* norm.* {PROBE}",
            150,
        ),
        _trained(
            "`mae.small`'s ViT, linear probe, not pre-trained",
            "mae-random",
            f"--recipe mae.small --freeze patches.* blocks.* norm.* {PROBE}",
            150,
        ),
        Row(
            "`clip.small` on ImageNet CNN features, zero-shot",
            (pretrained_clip, f"evaluate {clip} --task classification --data {{cifar}} {TEST}"),
            "clip-{seed}/evaluate-classification-*",
        ),
        _trained(
            "`clip.small` on ImageNet CNN features, linear probe",
            "clip-probe",
            f"--from {clip} --freeze * {PROBE}",
            150,
        ),
    ]
    return Study(
        "classification",
        rows,
        [Column("top-1", "accuracy"), Column("top-5", "accuracy at 5")],
        seeds,
        out,
        {
            "data": "CIFAR-100, a subset: 3,600 train, 400 val and 1,000 test images; pre-training on Flickr8k's 6,000 "
            "train photographs",
            "first column": "model",
        },
        {"cifar": str(data / "cifar-100-python"), "flickr8k": str(data / "flickr8k")},
    )


def _trained(name: str, folder: str, start: str, steps: int, *before: str) -> Row:
    """A row that is fine-tuned on CIFAR-100's train split and scored on its test split."""
    run = f"{{out}}/{folder}-{{seed}}"
    train = f"finetune classification {start} --data {{cifar}} --out {run} {STEPS.format(steps=steps)}"
    return Row(
        name,
        (*before, train, f"evaluate {run} {TEST}"),
        f"{folder}-{{seed}}/evaluate-classification-*",
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.classification", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar-100-python and flickr8k")
    parser.add_argument("--out", type=Path, default=Path("runs/classification"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further row after this time")
    arguments = parser.parse_args()
    study(arguments.data, arguments.out.resolve(), tuple(arguments.seeds)).run(arguments.minutes)


if __name__ == "__main__":
    main()
