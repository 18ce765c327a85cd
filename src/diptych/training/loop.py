"""Where a run stands, and how it advances step by step.

The training loop. It knows a module from a batch to named losses, and nothing of models, objectives or tasks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, cast

from torch import nn

from diptych.config.training import Training, identity, steps_of
from diptych.config.training import defaults as settings_defaults
from diptych.data.loader import Loaded, SkipCounter, Skipped
from diptych.data.sources.base import WorkerDied
from diptych.protocols import TrainStep
from diptych.training import checkpoint
from diptych.training.diagnostics import Diagnostics, Diverged, merged
from diptych.training.distributed import Group, pick_device, unshard
from diptych.training.log import Log
from diptych.training.recovery import claimed, lacks_weights
from diptych.training.signals import Stop, stop_signal
from diptych.training.step import OptimizerStep
from diptych.utils.io import atomic_write

Stream = Callable[[int], Iterator[list[Loaded]]]  # first step → this rank's micro-batches, step after step
Evaluate = Callable[[int], Mapping[str, float]]  # steps done → {"val/name": value}


class TrainingRun:
    """Where a run stands: all that its checkpoint's JSON holds, and the means that its next row will give."""

    def __init__(
        self, update: OptimizerStep, doctor: Diagnostics, settings: Training, out: Path, identity: dict[str, Any]
    ):
        self.update, self.doctor, self.settings, self.out, self.identity = update, doctor, settings, out, identity
        self.group, self.tally = update.group, SkipCounter(settings.max_skipped)
        self.done, self.seconds = 0, 0.0
        self.sums: dict[str, float] = {}  # since the last row
        self.summed = 0
        self.cursor: Mapping[str, list[int]] = {}
        self.clock = self.lap = time.perf_counter()  # of the last call to `elapse`; of the last row
        self.waited, self.fresh = 0.0, 0  # seconds waited for data, and samples, since the last row
        self.owes = False  # the evaluation of the last step, which was interrupted
        self.saved, self.saved_at = -1, self.clock  # the step of the last checkpoint, and when it was made
        self.alone = self.group.world == 1  # many ranks stop together, between two steps

    def restore(self, held: dict[str, Any]) -> None:
        self.done, self.seconds, self.sums, self.summed = (held[k] for k in ("step", "seconds", "sums", "summed"))
        self.saved = self.done
        self.tally.seen, self.tally.bad = held["seen"], held["bad"]
        self.tally.listed = {s["id"]: Skipped(**s) for s in held["skipped"]}
        self.doctor.restore(held.get("findings", ()))  # checkpoints of 0.1.0 had none at first
        self.owes = held.get("owes", False)

    def save(self) -> None:
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        skipped = [asdict(s) for s in self.tally.listed.values()]
        held = {"step": self.done, "seconds": self.seconds, "sums": self.sums, "summed": self.summed}
        held |= {"seen": self.tally.seen, "bad": self.tally.bad, "skipped": skipped, "identity": self.identity}
        held |= {"findings": self.doctor.held(), "owes": self.owes}
        if self.cursor:  # of this rank's part of a stream
            held["cursor"] = {name: at for part in self.group.gather(self.cursor) for name, at in part.items()}
        checkpoint.save(self.out, self.update.module, self.update.optimizer, held, self.group.main)
        if self.group.main:
            with atomic_write(self.out / "skipped.json") as path:
                path.write_text(json.dumps(skipped, indent=1))
        self.saved, self.saved_at = self.done, time.perf_counter()
        self.group.wait()

    def train(self, stream: Stream, evaluate: Evaluate | None, log: Log | None, told: Stop) -> None:
        if log is not None:
            self.doctor.read(log.kept)
        heard = len(self.doctor.findings)
        try:
            if self.owed(log) and evaluate is not None:
                self.evaluate(evaluate, log, told)
                self.save()
            with told.at_once(self.alone):
                batches = stream(self.done) if self.done < self.settings.steps else iter(())
            self.clock = self.lap = time.perf_counter()
            if any(self.group.gather(told.is_set())) and self.done < self.settings.steps:
                self.stop(log, "before a step was made")
            while self.done < self.settings.steps:
                stop, due = self.advance(batches, told)
                last = self.done == self.settings.steps
                if log is not None and (last or self.done % self.settings.log_every == 0):
                    row = self.row()
                    log.row(row)
                    log.show(row, last)
                    self.doctor.watch(row)
                every = self.settings.evaluate_every
                if evaluate is not None and (last or (every and self.done % every == 0)):
                    self.evaluate(evaluate, log, told)
                if log is not None:
                    for finding in merged(self.doctor.findings[heard:]):
                        log.say(finding)
                heard = len(self.doctor.findings)
                if stop or due or self.settings.saves(self.done):
                    self.save()
                if stop and not last:
                    self.stop(log, f"at step {self.done}, saved in {self.out}")
        except (WorkerDied, KeyboardInterrupt):  # by the signal that ends this process too? No step has been begun
            if not told.is_set():
                raise
            if self.done == 0 or self.done == self.saved:
                self.stop(log, f"at step {self.done}, saved in {self.out}" if self.done else "before a step was made")
            if self.alone:  # many save together: the others may wait for this one's batch
                self.save()
            kept = f"saved in {self.out}" if self.alone else "not saved since a checkpoint"
            self.stop(log, f"at step {self.done}, {kept}")
        except Diverged as error:
            if log is not None:
                log.say(error)
            raise
        finally:
            if log is not None:
                self.doctor.save(self.out)

    def stop(self, log: Log | None, where: str) -> NoReturn:
        if log is not None:
            log.say(f"stopped {where}: the same command goes on from here")
        raise SystemExit(130)

    def advance(self, batches: Iterator[list[Loaded]], told: Stop) -> tuple[bool, bool]:
        """One optimizer step; whether any rank received a signal to stop, and whether a checkpoint is due by the clock."""
        began = time.perf_counter()
        with told.at_once(self.alone):
            loaded = next(batches)
        self.waited += time.perf_counter() - began
        self.cursor = loaded[-1].cursor
        late = began - self.saved_at > 60 * self.settings.checkpoint_minutes
        row, skipped, stop, due = self.update(self.done, loaded, self.doctor, told.is_set(), late)
        samples = int(row.pop("samples"))
        self.fresh += samples
        self.tally.add(samples, skipped)
        self.done += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in row.items()}
        self.summed += 1
        return stop, due

    def row(self) -> dict[str, Any]:
        """Means since the last row, and what time it took; begins the next."""
        now = time.perf_counter()
        means = {name: total / self.summed for name, total in self.sums.items()}
        passed = max(now - self.lap, 1e-9)
        row = {"step": self.done, **means, "samples": self.tally.seen - self.tally.bad, "skipped": self.tally.bad}
        row |= {"seconds": self.seconds + now - self.clock, "samples_per_second": self.fresh / passed}
        row["waiting"] = self.waited / passed
        self.sums, self.summed, self.lap, self.waited, self.fresh = {}, 0, now, 0.0, 0
        return row

    def evaluate(self, evaluate: Evaluate, log: Log | None, told: Stop) -> None:
        self.owes = True
        self.update.module.eval()
        with told.at_once(self.alone):
            row = {"step": self.done, **evaluate(self.done)}
        self.update.module.train()
        self.owes = False
        if log is not None:
            log.row(row)
            log.say("  ".join(f"{name} {value:.4g}" for name, value in row.items()))

    def owed(self, log: Log | None) -> bool:
        """Whether the last step's evaluation was interrupted, and has not been logged since."""
        logged = log is not None and any(row["step"] == self.done and "samples" not in row for row in log.kept)
        return self.group.gather(self.owes and not logged)[0]


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
    """Trains `step` (a `diptych.protocols.Step`) until `settings.steps`, going on where `out` stands; gives model.safetensors.

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
        usual = settings_defaults(settings) | dict(defaults) | {"version": 1}
        checkpoint.refuse_other_settings(out, held["identity"], same, usual)

    update = OptimizerStep(step, settings, group)
    doctor = Diagnostics(
        cast(TrainStep, step).chance_losses,
        max(steps_of(n, settings.steps) for n in (settings.patience, settings.optimizer.warmup)),
    )
    run = TrainingRun(update, doctor, settings, out, same)
    if held is not None:
        checkpoint.load(out, step, update.optimizer)
        run.restore(held)
        if group.gather(group.main and lacks_weights(out, run.done >= settings.steps))[0]:
            checkpoint.save_weights(out, step, group.main)
    group.wait()  # all have read what rank 0 is about to write
    with Log(out, run.done, settings.steps) if group.main else nullcontext() as log, stop_signal() as told:
        run.train(stream, evaluate, log, told)
    if update.divided:
        unshard(step)  # who writes the report computes alone
    return out / checkpoint.MODEL
