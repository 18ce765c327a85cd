"""The training loop. It knows a module from a batch to named losses, and nothing of models, objectives or tasks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from torch import nn

from diptych.step import Step
from diptych.train import checkpoint
from diptych.train.distributed import Group, pick_device
from diptych.train.doctor import Doctor
from diptych.train.log import Log
from diptych.train.recovery import claimed, lacks_weights
from diptych.train.running import Evaluate, Running, Stream
from diptych.train.settings import Training, identity, share, usually
from diptych.train.sharded import unite
from diptych.train.signals import stop_signal
from diptych.train.update import Update


def fit(
    step: nn.Module,
    stream: Stream,
    settings: Training,
    out: Path,
    *,
    evaluate: Evaluate | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    group: Group | None = None,
) -> Path:
    """Trains `step` (a `diptych.step.Step`) until `settings.steps`, going on where `out` stands; gives model.safetensors.

    Continued after a kill at any moment, a run on CPU ends in the same bits as one never stopped. Every random draw of
    the data must be keyed, and `step` must start from the same weights each time. `evaluate` is called on every rank
    with the steps done, the module in eval mode; its names carry their split ("val/itm"). `fingerprint` is whatever
    else makes this run (model, data, objectives), as JSON: a run that differs in it is refused, and so is one that
    differs in `settings` outside CHANGEABLE. `defaults` are what its fields are usually: a run from before a field
    existed is taken to have had its default.

    `out` receives checkpoint.safetensors, model.safetensors, metrics.jsonl, doctor.json, skipped.json, tensorboard/.

    Raises CheckpointError (what stands in `out` is not this run, or damaged), InUse (another process trains there),
    NotWritten (a full disk), Diverged (a loss or gradient is not finite), DataError (too many bad samples), and
    SystemExit(130) after Ctrl-C or SIGTERM, once the step is done and saved.
    """
    group = group or Group(pick_device(settings.device))
    with claimed(out, group):
        same = identity(settings) | dict(fingerprint or {})
        return _fit(step, stream, settings, out, evaluate, same, defaults or {}, group)


def _fit(
    step: nn.Module, stream: Stream, settings: Training, out: Path, evaluate: Evaluate | None, same: dict[str, Any],
    defaults: Mapping[str, Any], group: Group,
) -> Path:  # fmt: skip
    held = checkpoint.rest(out, checkpoint.STATE)
    if held is not None:
        usual = usually(settings) | dict(defaults) | {"version": 1}
        checkpoint.refuse_other_settings(out, held["identity"], same, usual)

    update = Update(step, settings, group)
    doctor = Doctor(
        cast(Step, step).floors, max(share(n, settings.steps) for n in (settings.patience, settings.optimizer.warmup))
    )
    run = Running(update, doctor, settings, out, same)
    if held is not None:
        checkpoint.load(out, step, update.optimizer)
        run.restore(held)
        if group.gather(group.main and lacks_weights(out, run.done >= settings.steps))[0]:
            checkpoint.save_weights(out, step, group.main)
    group.wait()  # all have read what rank 0 is about to write
    with Log(out, run.done, settings.steps) if group.main else nullcontext() as log, stop_signal() as told:
        run.train(stream, evaluate, log, told)
    if update.divided:
        unite(step)  # who writes the report computes alone
    return out / checkpoint.MODEL
