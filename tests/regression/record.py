"""Regression record: losses, metrics and generated ids of every recipe at toy size, compared after each change.

    python -m tests.regression.record --write FILE        records
    python -m tests.regression.record --compare FILE      compares (1e-6 on one machine); exit status 1 on a difference

For each recipe: the losses of three optimizer steps and the sum of the weights' magnitudes after them (without key
biases), held-out means, the metrics of one evaluation on synthetic scenes, and the token ids that a captioner
generates. fp32, one thread, fixed seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor

from diptych.batch import Batch
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import EVALUATIONS, GalleryEvaluation
from diptych.config.training import Optimizer
from diptych.generation import BeamConfig, GenerationConfig, beam_search
from diptych.objectives.definition import any_needs
from diptych.objectives.pretraining import Pretraining
from diptych.protocols import TextDecoder, TrainStep, student_of
from diptych.runs import build as building
from diptych.runs.evaluate import evaluate
from diptych.runs.recipes import recipe, recipes
from diptych.tasks.common import encode_images
from diptych.training.optimizer import build_optimizer
from tests.models import test_finetuning_recipes as test_finetuning
from tests.models import test_first_step
from tests.runs.tiny_runs import write_model

RECORDED = Path(__file__).parent / "recorded.json"
STEPS = 3
OPTIMIZER = Optimizer(learning_rate=1e-3, warmup=0.0)
WORDS = 6  # tokens that a captioner generates


def names() -> list[str]:
    """Every recipe of both kinds except those of the demo, which are other recipes with fewer steps."""
    return [name for kind in ("Pretrain", "Finetune") for name in recipes(kind) if not name.startswith("demo.")]


def numbers(name: str) -> dict[str, Any]:
    """All numbers of one recipe, as JSON values."""
    torch.manual_seed(0)
    cnn = patch.object(building, "frozen_cnn", test_first_step.FakeCNN)  # the CNN is an optional dependency
    with tempfile.TemporaryDirectory() as folder, one_thread(), cnn:
        if name in recipes("Finetune"):
            return _finetuning(name, Path(folder))
        return _pretraining(name, Path(folder))


class one_thread:
    """A context in which PyTorch computes on one thread."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def _pretraining(name: str, folder: Path) -> dict[str, Any]:
    run = test_first_step.toy(recipe(name))
    if any_needs(run.objectives, lambda needs: needs.visual_tokenizer):
        run = replace(run, visual_tokenizer=_tokenizer(folder / "tokenizer"))
    batch = test_first_step.batch(run)
    module = building.with_teacher(building.build(run), run)
    recorded = _trained(cast(TrainStep, module), batch)
    student = cast(Pretraining, student_of(module)).eval()
    if isinstance(student.model, TextDecoder) and {"lm", "masked_captions"} & set(student.weights):
        recorded["generated"] = _generated(student.model, batch)
    if (
        batch.image is not None and batch.text is not None
    ):  # the scenes have pixels: models of regions are not evaluated
        tasks = ["matching"] if "itm" in student.weights else []
        tasks += ["retrieval"] if {"itm", "itc"} & set(student.weights) else []
        recorded |= _evaluated(run, student, (), folder, tasks)
    return recorded


def _finetuning(name: str, folder: Path) -> dict[str, Any]:
    run, batch = test_finetuning.small(recipe(name, "Finetune"))
    module = test_finetuning.task_of(run)
    recorded = _trained(cast(TrainStep, module), batch)
    if batch.image is not None and run.task in ("vqa", "retrieval"):
        recorded |= _evaluated(run, module.eval(), test_finetuning.labels_of(run), folder, [run.task])
    return recorded


def _tokenizer(folder: Path) -> str:
    """The run folder of a visual tokenizer whose codes are all in use."""
    run = test_first_step.toy(recipe("beit3.small_visual_tokenizer"))
    module = building.build(run)
    module.get_buffer("model.codebook.idle").zero_()
    return str(write_model(folder, run, module))


def _trained(module: Any, batch: Batch) -> dict[str, Any]:
    """Losses of a few steps, the sum of the weights' magnitudes after them, and held-out means.

    Key biases are left out of the sum: they shift all scores of a query alike, which the softmax cancels, so that their
    gradient is rounding error, and AdamW makes whole steps of it.
    """
    module.train()
    optimizer = build_optimizer(module, OPTIMIZER)
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)  # dropout
        step_batch = replace(batch, step=step)
        begin = getattr(module, "begin", None)  # a momentum teacher updates once per optimizer step
        if begin is not None:
            begin(step)
        values = module(step_batch, module.num_terms(step_batch))
        torch.stack([weight * values[loss] for loss, weight in module.weights.items()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append({loss: value.item() for loss, value in values.items()})
    student: Any = student_of(module).eval()
    with torch.no_grad():
        reseeded = replace(batch, seed=1)
        means = {loss: value.item() for loss, value in student(reseeded, student.num_terms(reseeded)).items()}
    weights = sum(
        without_key_bias(name, p.detach()).double().abs().sum().item() for name, p in student.named_parameters()
    )
    return {"losses": losses, "weights": weights, "held out": means}


def without_key_bias(name: str, parameter: Tensor) -> Tensor:
    """The parameter; of a bias of queries, keys and values together, the part of queries and values; of a key's, none.

    A multiway transformer (`qkv.text.bias`) has one key bias for each modality, which the softmax does not cancel.
    """
    if name.endswith(".qkv.bias"):
        query, _, value = parameter.chunk(3)
        return torch.cat([query, value])
    return parameter[:0] if name.endswith(".key.bias") else parameter


@torch.no_grad()
def _generated(model: Any, batch: Batch) -> list[list[int]]:
    begin = torch.full((len(batch), 1), 2)
    return beam_search(
        model, encode_images(model, batch), begin, GenerationConfig(3, 0, WORDS), BeamConfig(2)
    ).ids.tolist()


def _evaluated(
    run: Pretrain | Finetune, module: Any, labels: tuple[str, ...], folder: Path, tasks: list[str]
) -> dict[str, Any]:
    """Metrics of evaluations on synthetic scenes, from a run folder as `diptych pretrain` writes it."""
    images = replace(run.images, shorter_side=32, patch_size=16, square=True, augment=False)
    write_model(folder, replace(run, images=images, data="scenes:8"), module, labels)
    metrics = {}
    for task in tasks:
        gallery = {"gallery": 6, "captions": 2} if issubclass(EVALUATIONS[task], GalleryEvaluation) else {}
        settings: dict[str, Any] = {"split": "train", "device": "cpu", "precision": "fp32", "workers": 0, **gallery}
        metrics[task] = evaluate(folder, EVALUATIONS[task](**settings))
    return {"evaluation": metrics} if metrics else {}


def differences(recorded: Any, now: Any, tolerance: float, where: str = "") -> Iterator[str]:
    """One line for each number that differs by more than `tolerance` of its size (or of 1); integers must be equal."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for key in sorted(recorded.keys() | now.keys()):
            if key not in recorded or key not in now:
                yield f"{where}/{key}: {'new' if key in now else 'missing'}"
            else:
                yield from differences(recorded[key], now[key], tolerance, f"{where}/{key}")
    elif isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        for i, (a, b) in enumerate(zip(recorded, now, strict=True)):
            yield from differences(a, b, tolerance, f"{where}[{i}]")
    elif isinstance(recorded, float) and isinstance(now, float | int):
        if not abs(recorded - now) <= tolerance * max(1.0, abs(recorded)):
            yield f"{where}: {recorded!r} recorded, {now!r} now"
    elif recorded != now:
        yield f"{where}: {recorded!r} recorded, {now!r} now"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-6)
    options = parser.parse_args()
    now = {}
    for name in names():
        print(name, file=sys.stderr, flush=True)
        now[name] = numbers(name)
    if options.write:
        options.write.write_text(json.dumps(now, indent=1) + "\n")
    lines = (
        list(differences(json.loads(options.compare.read_text()), now, options.tolerance)) if options.compare else []
    )
    print(*lines, f"{len(now)} recipes, {len(lines)} differences", sep="\n")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
