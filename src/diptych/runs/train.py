"""What every training job shares: its line at the start, its batches, its held-out means, and the folder it fills."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from diptych.batch import Batch
from diptych.config import training as train_settings
from diptych.config.run import Finetune, Pretrain
from diptych.config.training import defaults
from diptych.data.examples import Examples
from diptych.data.loader import Loaded, Shuffled, evaluation_loader
from diptych.data.sources.base import NoSplit
from diptych.data.tokenizers.tokenizer import called, held_in
from diptych.modules.tokens import packing
from diptych.objectives.gather import without_gathering
from diptych.protocols import TrainStep, student_of
from diptych.runs import report
from diptych.runs.compatibility import FEWEST, check_samples, compares
from diptych.runs.embedders import unused_region_settings
from diptych.runs.feature_extractors import check_given, frozen_sources
from diptych.runs.run_folder import RunError, ancestors, read_run, write_run
from diptych.runs.tokenizer import check_pieces
from diptych.runs.training_data import TrainingData, batches, describe_data, division_of, say_division, size_text
from diptych.training import checkpoint
from diptych.training.distributed import Group, takes_bf16
from diptych.training.loop import fit
from diptych.utils.terminal import echo

HELD_OUT = 512  # examples of the val split that an evaluation during training looks at


def train(
    run: Pretrain | Finetune, module: nn.Module, food: TrainingData, val: Callable[[], Examples], facts: Mapping[str, Any],
    out: Path, group: Group,
) -> None:  # fmt: skip
    """Trains `module` on `food`, going on where `out` stands; writes run.json, metrics.jsonl, model.safetensors, report.html.

    Raises what `train.loop.fit` does, and RunError where `out` holds weights that were not trained there.
    """
    settings, before = run.training, checkpoint.rest(out)
    check_pieces(run)
    check_samples(module, settings, group.world, run.teacher.queue_size if isinstance(run, Pretrain) else 0)
    if before is None and (out / checkpoint.MODEL).exists():
        raise RunError(f"{out} holds weights but no checkpoint to go on from; give another --out")
    told: Mapping[str, Any] = {}
    if before is not None:
        there, told = read_run(out)
        if type(there) is not type(run):
            raise RunError(f"{out} holds another kind of run; give another --out")
        check_given(there, told)
        recorded, wanted = (identity(one) | train_settings.identity(one.training) for one in (there, run))
        checkpoint.refuse_other_settings(out, recorded, wanted, defaults(run))  # run.json may be another run's
    precision = "bf16" if takes_bf16(group.device, settings.precision) else "fp32"
    if settings.precision == "auto" and before is not None and told.get("precision", precision) != precision:
        if group.main:
            echo(
                f"{out} was begun in {told['precision']} and goes on in it, though auto is {precision} on this machine"
            )
        precision = told["precision"]
    same = identity(run) | {
        "precision": settings.precision,
        "examples": size_text(food),
        "answers": list(facts.get("answers", [])),
    }
    if before is None and (out / "run.json").is_file() and (said := resumes(out, run, same)) and group.main:
        echo(said)
    if group.main and before is None:  # a run that goes on keeps its first one, also where it is refused below
        write_run(out, run, dict(facts) | {"given": frozen_sources(run), "precision": precision})

    settings = replace(settings, precision=precision)

    def stream(first: int) -> Iterator[list[Loaded]]:
        if group.main:
            echo(opening(run, module, food, first, group, precision))
            if said := unused_region_settings(run):
                echo(said)
        return batches(food, settings, group, first, (before or {}).get("cursor", {}))

    if group.main:
        say_division(food)
    fewest = FEWEST if compares(module) else 1
    aside = opened(none_left if run.split == "val" else val, not group.main, fewest, division_of(food))
    held: list[Batch] = []

    def evaluate(_: int) -> Mapping[str, float]:
        if not held and aside is not None:
            if group.main:
                echo(f"loading {min(HELD_OUT, len(aside))} held-out examples, once")
            held.extend(held_out(aside, max(fewest, settings.batch_size), settings.seed))
        found = held_out_means(cast(TrainStep, module), held, group, settings.precision)
        return {f"val/{name}": value for name, value in found.items()}

    with packing():
        evaluated = evaluate if aside is not None else None
        fit(module, stream, settings, out, evaluate=evaluated, fingerprint=same, defaults=defaults(run), group=group)
    if group.main:
        if before and before["step"] >= settings.steps and not before.get("owes"):
            echo(f"{out} is finished already, {settings.steps} steps: only its report is made again")
        page = report.write(out, run, student_of(module))
        if said := report.report_errors("the list of skipped samples", lambda: report.skipped(out), ""):
            echo(said)
        echo("; ".join([*([str(page)] if page else []), f"weights: {out / checkpoint.MODEL}"]))


def resumes(out: Path, run: Pretrain | Finetune, same: Mapping[str, Any]) -> str:
    """What is said of a folder with a run that was stopped before its first checkpoint. Raises CheckpointError where that one has
    logged steps, and had other settings.
    """
    there, facts = read_run(out)
    logged = out / "metrics.jsonl"
    if logged.is_file() and logged.stat().st_size:
        held = identity(there) | {"examples": facts.get("examples"), "answers": facts.get("answers", [])}
        asked = dict(same) | train_settings.identity(run.training)
        checkpoint.refuse_other_settings(out, held | train_settings.identity(there.training), asked, defaults(run))
    return f"{out} holds a run that was stopped before its first checkpoint: starting again from step 0"


def identity(run: Pretrain | Finetune) -> dict[str, Any]:
    """What a run that goes on must share with the one that began: all but its name; a vocabulary is one wherever it lies. The loop
    compares `training`.
    """
    told = asdict(run)
    if run.vocabulary:
        told["vocabulary"] = called(Path(run.vocabulary), held_in(Path(run.vocabulary)))
    for name in ("recipe", "training", "corpus"):  # `corpus` is said of a recipe, and computes nothing
        told.pop(name, None)
    return told


def opening(
    run: Pretrain | Finetune, module: nn.Module, food: TrainingData, done: int, group: Group, precision: str
) -> str:
    """The line that a run begins with: what is trained, on what, how fast its data comes, where, and from which step."""
    settings = run.training
    name = f"{run.task} on {run.recipe or 'a model'}" if isinstance(run, Finetune) else run.recipe or "pre-training"
    size = sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6
    begun = f" from {ancestors(run)}" if run.init_from else ""
    where = f"goes on at step {done} of {settings.steps}" if done else f"{settings.steps} steps{begun}"
    data = describe_data(food, run.data, run.split, settings.workers)
    ranks = f" x {group.world}" if group.world > 1 else ""
    how = f"{group.device.type}{ranks}, {precision}"
    return f"{name}: {size:.1f} M parameters; {data}; batch {settings.batch_size}; {how}; {where}"


def none_left() -> Examples:
    """Raises NoSplit: what is trained on is not held out."""
    raise NoSplit("the run learns from val itself")


def opened(val: Callable[[], Examples], quiet: bool, fewest: int = 1, printed: str = "") -> Examples | None:
    """The val split; None, which is printed, where the data has no such split, or fewer than `fewest` examples in it. How it was
    divided is printed, unless that is the line that was `printed` for the training split. Raises DataError where it cannot be used.
    """
    try:
        found = val()
        if len(found) < fewest:
            raise NoSplit(f"the val split has {len(found)} examples, and losses compare at least {fewest}")
        if not quiet:
            say_division(found, but=printed)
        return found
    except NoSplit as error:
        if not quiet:
            echo(f"nothing is held out: {error}")
        return None


def held_out(val: Examples, batch: int, seed: int) -> list[Batch]:
    """A few batches from all over the val split, the same each time."""
    batches: list[Batch] = []
    for loaded in evaluation_loader(Shuffled(val, seed), min(batch, 64), seed=seed + 1, workers=0):
        batches.append(loaded.batch)
        if sum(map(len, batches)) >= HELD_OUT:
            break
    return batches


def held_out_means(step: TrainStep, held: list[Batch], group: Group, precision: str) -> dict[str, float]:
    """Every loss and metric over all of `held`, each rank doing its share of whole batches: the same on any number of ranks."""
    mine = held[group.rank :: group.world]
    with without_gathering():
        totals, counts = sums(step, mine, group.device, precision)
        if len(mine) * group.world < len(held):  # the others have one more, for which divided weights must meet
            sums(step, held[:1], group.device, precision)
    names = step.num_terms(held[0].to(group.device))  # a rank may have no batch, and so no names of its own
    everyone = [group.sum({name: torch.tensor(part.get(name, 0.0)) for name in names}) for part in (totals, counts)]
    return ratios(*({name: value.item() for name, value in part.items()} for part in everyone))


@torch.no_grad()
def sums(
    step: TrainStep, batches: Iterable[Batch], device: torch.device, precision: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Totals of every loss and metric over `batches`, and how many terms each has."""
    totals: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    for batch in batches:
        batch = batch.to(device)
        count = step.num_terms(batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=takes_bf16(device, precision)):
            means = step(batch, count)
        for name, mean in means.items():
            totals[name] += (mean.float() * count[name]).item()
            counts[name] += count[name].item()
    return totals, counts


def ratios(totals: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    return {name: total / max(counts[name], 1.0) for name, total in totals.items()}
