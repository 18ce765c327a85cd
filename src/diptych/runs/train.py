"""Training of one module into a run folder: what pre-training and fine-tuning share.

Start or resume, log line at the start, micro-batches, validation during training, report at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from diptych.batch import Batch
from diptych.config import training as train_settings
from diptych.config.run import Finetune, Pretrain
from diptych.config.serialization import to_json
from diptych.config.training import defaults
from diptych.data.examples import Examples
from diptych.data.loader import Loaded, Shuffled, evaluation_loader
from diptych.data.sources.base import NoSplit
from diptych.data.sources.division import division_of, say_division
from diptych.data.tokenizers.tokenizer import vocabulary_file_name, vocabulary_in
from diptych.inference.embedders import augmentation_warning
from diptych.inference.feature_extractors import check_frozen_features
from diptych.inference.saved_model import RunError, read_config
from diptych.modules.tokens import packing
from diptych.objectives.gather import without_gathering
from diptych.protocols import TrainStep, student_of
from diptych.runs import report
from diptych.runs.check_init import check_same_vocabulary
from diptych.runs.check_objectives import MIN_COMPARED, check_samples, compares_samples
from diptych.runs.run_folder import ancestors, check_same_model, read_run, write_run
from diptych.runs.training_data import TrainingData, batches, data_size, describe_data
from diptych.training import checkpoint
from diptych.training.best import best_summary
from diptych.training.distributed import Group, uses_bf16
from diptych.training.loop import fit
from diptych.utils.terminal import echo

VALIDATION_EXAMPLES = 512  # of the val split, in each validation during training


def train(
    run: Pretrain | Finetune,
    module: nn.Module,
    data: TrainingData,
    val: Callable[[], Examples],
    facts: Mapping[str, Any],
    out: Path,
    group: Group,
    labels: Sequence[str] = (),
) -> None:
    """Trains `module` on `data` into the folder `out`, or resumes it there.

    Writes config.json, run.json, metrics.jsonl, checkpoints, model.safetensors and report.html.

    Args:
        val: opens the val split. Raises NoSplit if the data has none; training then runs without validation.
        facts: what was counted in the data, for run.json.
        labels: answers of vqa, or classes of classification, in the order of the head's outputs.

    Raises:
        RunError: `out` contains weights without a checkpoint, another kind of run, or one of other frozen features.
        CheckpointError: `out` contains a checkpoint of other settings.
        Whatever `training.loop.fit` raises.
    """
    settings, resumed = run.training, checkpoint.read_training_state(out)
    check_same_vocabulary(run)
    check_samples(module, settings, group.world, run.teacher.queue_size if isinstance(run, Pretrain) else 0)
    if resumed is None and (out / checkpoint.MODEL).exists():
        raise RunError(f"{out} contains {checkpoint.MODEL} but no checkpoint to resume from; give another --out")
    recorded_facts = {} if resumed is None else _check_resumable(out, run, module, resumed)
    precision = _precision(out, run, module, recorded_facts, group)
    fingerprint = identity(run) | {
        "precision": settings.precision,
        "examples": data_size(data),
        "labels": list(labels),
    }
    if resumed is None and (out / "run.json").is_file():
        message = restart_message(out, run, fingerprint)
        if group.main:
            echo(message)
    if group.main and resumed is None:  # a resumed run keeps its first run.json, also if it is refused below
        student = student_of(module)
        levels = cast(TrainStep, student).chance_losses
        chance_losses = {name: {"value": level.value, "name": level.name} for name, level in levels.items()}
        recorded = dict(facts) | {"chance_losses": chance_losses, "precision": precision}
        write_run(out, run, recorded, _heads(module), tuple(labels))

    settings = replace(settings, precision=precision)

    def stream(first: int) -> Iterator[list[Loaded]]:
        if group.main:
            echo(start_message(run, module, data, first, group, precision))
            if warning := augmentation_warning(run):
                echo(warning)
        return batches(data, settings, group, first, (resumed or {}).get("cursor", {}))

    if group.main:
        say_division(data)
    evaluate = _validation(run, module, data, val, settings, group)
    with packing():
        fit(
            module,
            stream,
            settings,
            out,
            evaluate=evaluate,
            fingerprint=fingerprint,
            defaults=defaults(run),
            group=group,
        )
    if group.main:
        if resumed and checkpoint.is_finished(resumed, settings.steps) and not resumed.get("evaluation_pending"):
            echo(f"{out} has already finished its {resumed['step']} steps: only the report is regenerated")
        _write_report(module, out)


def _check_resumable(
    out: Path, run: Pretrain | Finetune, module: nn.Module, resumed: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Facts of the run in `out`, whose training state is `resumed`. Raises RunError, CheckpointError if `run` cannot
    resume it.
    """
    recorded_run, facts = read_run(out)
    if type(recorded_run) is not type(run):
        kinds = type(recorded_run).__name__, type(run).__name__
        raise RunError(f"{out} contains a {kinds[0]} run, this is a {kinds[1]} run; give another --out")
    saved = read_config(out)
    check_frozen_features(saved)
    recorded, wanted = (identity(one) | train_settings.identity(one.training) for one in (recorded_run, run))
    checkpoint.check_same_settings(out, recorded, wanted, defaults(run))  # run.json may be another run's
    labels = resumed.get("identity", {}).get("labels", saved.labels)
    check_same_model(out, saved, recorded_run, _heads(module), tuple(labels))
    return facts


def _heads(module: nn.Module) -> tuple[str, ...]:
    """The names of the pre-training heads of a training step."""
    return tuple(getattr(student_of(module), "heads", ()))


def _precision(
    out: Path, run: Pretrain | Finetune, module: nn.Module, recorded_facts: Mapping[str, Any], group: Group
) -> str:
    """Precision of this run, "bf16" or "fp32". With `auto` a resumed run keeps the precision it was started in."""
    chosen = "bf16" if uses_bf16(group.device, run.training.precision, module) else "fp32"
    recorded = recorded_facts.get("precision", chosen)
    if run.training.precision != "auto" or recorded == chosen:
        return chosen
    if group.main:
        echo(f"{out} was started in {recorded} and resumes in it, although auto is {chosen} on this machine")
    return recorded


def _validation(
    run: Pretrain | Finetune,
    module: nn.Module,
    data: TrainingData,
    val: Callable[[], Examples],
    settings: train_settings.Training,
    group: Group,
) -> Callable[[int], Mapping[str, float]] | None:
    """Validation during training, step → {"val/NAME": mean}; None without validation data.

    Its batches are loaded at the first call and kept.
    """
    fewest = MIN_COMPARED if compares_samples(module) else 1
    open_split = no_validation_split if run.split == "val" else val
    examples = open_validation(open_split, not group.main, fewest, division_of(data))
    if examples is None:
        if settings.keep_best:
            raise RunError(
                f"keep_best is {settings.keep_best}, and there is no validation during training: set keep_best to ''"
            )
        return None
    held: list[Batch] = []

    def load() -> None:
        if group.main:
            echo(f"loading {min(VALIDATION_EXAMPLES, len(examples))} validation examples, once")
        held.extend(validation_batches(examples, max(fewest, settings.batch_size), settings.seed))

    if settings.keep_best:  # a metric that does not exist is reported before the first step
        load()
        names = cast(TrainStep, module).num_terms(held[0])
        if settings.keep_best not in names:
            raise RunError(
                f"keep_best: no validation metric is called {settings.keep_best}; they are {', '.join(names)}"
            )

    def evaluate(_: int) -> Mapping[str, float]:
        if not held:
            load()
        means = validation_means(cast(TrainStep, module), held, group, settings.precision)
        return {f"val/{name}": value for name, value in means.items()}

    return evaluate


def _write_report(module: nn.Module, out: Path) -> None:
    """Writes report.html and prints which weights are the best, the skipped samples, and the paths of both files."""
    if best := best_summary(out):
        echo(best)
    page = report.write(out, student_of(module).get_submodule("model"))
    if skipped := report.continue_on_error("the list of skipped samples", lambda: report.skipped(out), ""):
        echo(skipped)
    echo("; ".join([*([str(page)] if page else []), f"weights: {out / checkpoint.MODEL}"]))


def restart_message(out: Path, run: Pretrain | Finetune, fingerprint: Mapping[str, Any]) -> str:
    """Log line for a folder whose run was stopped before its first checkpoint.

    Raises:
        CheckpointError: that run logged steps with other settings, so its metrics.jsonl is not this run's.
    """
    recorded_run, facts = read_run(out)
    logged = out / "metrics.jsonl"
    if logged.is_file() and logged.stat().st_size:
        labels = list(read_config(out).labels)
        recorded = identity(recorded_run) | {"examples": facts.get("examples"), "labels": labels}
        wanted = dict(fingerprint) | train_settings.identity(run.training)
        recorded |= train_settings.identity(recorded_run.training)
        checkpoint.check_same_settings(out, recorded, wanted, defaults(run))
    return f"{out} contains a run that was stopped before its first checkpoint: starting again from step 0"


def identity(run: Pretrain | Finetune) -> dict[str, Any]:
    """Settings that a resumed run must share with the run it resumes: all but the recipe's name and `training`.

    `training` has an identity of its own (`config.training.identity`). A vocabulary file counts by its content, not by
    its path.
    """
    record = to_json(run)
    if run.vocabulary:
        record["vocabulary"] = vocabulary_file_name(Path(run.vocabulary), vocabulary_in(Path(run.vocabulary)))
    for name in ("recipe", "training", "corpus"):  # `corpus` documents a recipe and changes no computation
        record.pop(name, None)
    return record


def start_message(
    run: Pretrain | Finetune, module: nn.Module, data: TrainingData, done: int, group: Group, precision: str
) -> str:
    """Log line at the start: model size, data and loading speed, batch size, device, precision and steps."""
    settings = run.training
    name = f"{run.task} on {run.recipe or 'a model'}" if isinstance(run, Finetune) else run.recipe or "pre-training"
    millions = sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6
    initial = f" from {ancestors(run)}" if run.init_from else ""
    epochs = f" ({settings.epochs:.4g} epochs)" if settings.epochs else ""
    steps = f"resumes at step {done} of {settings.steps}" if done else f"{settings.steps} steps{epochs}{initial}"
    data_text = describe_data(data, run.data, run.split, settings.workers)
    ranks = f" x {group.world}" if group.world > 1 else ""
    device = f"{group.device.type}{ranks}, {precision}"
    return f"{name}: {millions:.1f} M parameters; {data_text}; batch {settings.batch_size}; {device}; {steps}"


def no_validation_split() -> Examples:
    """Raises NoSplit: a run that trains on the val split has no validation data."""
    raise NoSplit("the run trains on the val split itself")


def open_validation(
    val: Callable[[], Examples], quiet: bool, fewest: int = 1, already_printed: str = ""
) -> Examples | None:
    """The val split, or None (with a log line) if the data has none or it has fewer than `fewest` examples.

    Args:
        quiet: print nothing, as on ranks other than 0.
        already_printed: line on the division of the training split; the same line is not printed again for val.

    Raises:
        DataError: the val split cannot be used.
    """
    try:
        examples = val()
        if len(examples) < fewest:
            raise NoSplit(f"the val split has {len(examples)} examples, and losses compare at least {fewest}")
        if not quiet:
            say_division(examples, but=already_printed)
        return examples
    except NoSplit as error:
        if not quiet:
            echo(f"no validation during training: {error}")
        return None


def validation_batches(val: Examples, batch_size: int, seed: int) -> list[Batch]:
    """Batches of about `VALIDATION_EXAMPLES` examples drawn from the whole val split; the same for the same seed."""
    held: list[Batch] = []
    for loaded in evaluation_loader(Shuffled(val, seed), min(batch_size, 64), seed=seed + 1, workers=0):
        held.append(loaded.batch)
        if sum(map(len, held)) >= VALIDATION_EXAMPLES:
            break
    return held


def validation_means(step: TrainStep, held: list[Batch], group: Group, precision: str) -> dict[str, float]:
    """Mean of every loss and metric over all batches of `held`, the same on any number of ranks.

    Every rank computes whole batches, so that losses that compare samples see the same candidates.
    """
    own = held[group.rank :: group.world]
    with without_gathering():
        totals, counts = sums(step, own, group.device, precision)
        if len(own) * group.world < len(held):  # other ranks have one batch more, and FSDP gathers weights on all ranks
            sums(step, held[:1], group.device, precision)
    names = step.num_terms(held[0].to(group.device))  # a rank without a batch has no names of its own
    reduced = [group.sum({name: torch.tensor(part.get(name, 0.0)) for name in names}) for part in (totals, counts)]
    return ratios(*({name: value.item() for name, value in part.items()} for part in reduced))


@torch.no_grad()
def sums(
    step: TrainStep, held: Iterable[Batch], device: torch.device, precision: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Totals of every loss and metric over the batches, and the number of terms of each."""
    return add_sums(batch_sums(step, batch.to(device), device, precision) for batch in held)


Sums = Mapping[str, tuple[float, float]]
"""The total of every loss and metric over the samples, and the number of its terms."""


def batch_sums(step: TrainStep, batch: Batch, device: torch.device, precision: str) -> Sums:
    """The sums over a batch on the device."""
    count = step.num_terms(batch)
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, precision)):
        means = step(batch, count)
    return {name: ((mean.float() * count[name]).item(), count[name].item()) for name, mean in means.items()}


def add_sums(batches: Iterable[Sums]) -> tuple[dict[str, float], dict[str, float]]:
    """The totals over all batches, and the numbers of terms."""
    totals: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    for batch in batches:
        for name, (total, count) in batch.items():
            totals[name] += total
            counts[name] += count
    return totals, counts


def ratios(totals: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """Means: totals divided by counts, 0 if there are no terms."""
    return {name: total / max(counts[name], 1.0) for name, total in totals.items()}
