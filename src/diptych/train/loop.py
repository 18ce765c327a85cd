"""The training loop. It knows a module from a batch to named losses, and nothing of models, objectives or tasks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, cast

from torch import nn

from diptych.data.source import WorkerDied
from diptych.data.tally import Loaded, Skipped, Tally
from diptych.step import Step
from diptych.train import checkpoint
from diptych.train.distributed import Group, pick_device
from diptych.train.doctor import Diverged, Doctor, folded
from diptych.train.log import Log
from diptych.train.settings import Training, identity, share, usually
from diptych.train.sharded import unite
from diptych.train.signals import stop_signal
from diptych.train.update import Update

Stream = Callable[[int], Iterator[list[Loaded]]]  # first step → this rank's micro-batches, step after step
Evaluate = Callable[[int], Mapping[str, float]]  # steps done → {"val/name": value}


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

    Raises CheckpointError (what stands in `out` is not this run), Diverged (a loss or gradient is not finite),
    DataError (too many bad samples), and SystemExit(130) after Ctrl-C or SIGTERM, once the step is done and saved.
    """
    group = group or Group(pick_device(settings.device))
    out.mkdir(parents=True, exist_ok=True)
    same = identity(settings) | dict(fingerprint or {})
    held = checkpoint.rest(out)
    if held is not None:
        usual = usually(settings) | dict(defaults or {}) | {"version": 1}
        checkpoint.refuse_other_settings(out, held["identity"], same, usual)

    update = Update(step, settings, group)
    doctor = Doctor(
        cast(Step, step).floors, max(share(n, settings.steps) for n in (settings.patience, settings.optimizer.warmup))
    )
    run = _Run(update, doctor, settings, out, same)
    if held is not None:
        checkpoint.load(out, step, update.optimizer)
        run.restore(held)
        # a kill between the two files left the weights of an older checkpoint
        checkpoint.save_weights(out, step, group.main)
    group.wait()  # all have read what rank 0 is about to write
    with Log(out, run.done, settings.steps) if group.main else nullcontext() as log, stop_signal() as told:
        run.train(stream, evaluate, log, told)
    if update.divided:
        unite(step)  # who writes the report computes alone
    return out / checkpoint.MODEL


class _Run:
    """Where a run stands: all that its checkpoint's JSON holds, and the means that its next row will give."""

    def __init__(self, update: Update, doctor: Doctor, settings: Training, out: Path, identity: dict[str, Any]):
        self.update, self.doctor, self.settings, self.out, self.identity = update, doctor, settings, out, identity
        self.group, self.tally = update.group, Tally(settings.max_skipped)
        self.done, self.seconds = 0, 0.0
        self.sums: dict[str, float] = {}  # since the last row
        self.summed = 0
        self.cursor: Mapping[str, list[int]] = {}
        self.clock = self.lap = time.perf_counter()  # of the last call to `elapse`; of the last row
        self.waited, self.fresh = 0.0, 0  # seconds waited for data, and samples, since the last row

    def restore(self, held: dict[str, Any]) -> None:
        self.done, self.seconds, self.sums, self.summed = (held[k] for k in ("step", "seconds", "sums", "summed"))
        self.tally.seen, self.tally.bad = held["seen"], held["bad"]
        self.tally.listed = {s["id"]: Skipped(**s) for s in held["skipped"]}
        self.doctor.restore(held.get("findings", ()))  # checkpoints of 0.1.0 had none at first

    def save(self) -> None:
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        skipped = [asdict(s) for s in self.tally.listed.values()]
        held = {"step": self.done, "seconds": self.seconds, "sums": self.sums, "summed": self.summed}
        held |= {"seen": self.tally.seen, "bad": self.tally.bad, "skipped": skipped, "identity": self.identity}
        held["findings"] = self.doctor.held()
        if self.cursor:  # of this rank's part of a stream
            held["cursor"] = {name: at for part in self.group.gather(self.cursor) for name, at in part.items()}
        checkpoint.save(self.out, self.update.module, self.update.optimizer, held, self.group.main)
        if self.group.main:
            with checkpoint.written_whole(self.out / "skipped.json") as path:
                path.write_text(json.dumps(skipped, indent=1))
        self.group.wait()

    def train(self, stream: Stream, evaluate: Evaluate | None, log: Log | None, told: threading.Event) -> None:
        if log is not None:
            self.doctor.read(log.kept)
        heard = len(self.doctor.findings)
        batches = stream(self.done) if self.done < self.settings.steps else iter(())
        self.clock = self.lap = time.perf_counter()
        try:
            if any(self.group.gather(told.is_set())) and self.done < self.settings.steps:
                self.stop(log, "before a step was made")
            while self.done < self.settings.steps:
                stop = self.advance(batches, told)
                last = self.done == self.settings.steps
                if log is not None and (last or self.done % self.settings.log_every == 0):
                    row = self.row()
                    log.row(row)
                    log.show(row, last)
                    self.doctor.watch(row)
                every = self.settings.evaluate_every
                if evaluate is not None and (last or (every and self.done % every == 0)):
                    self.evaluate(evaluate, log)
                if log is not None:
                    for finding in folded(self.doctor.findings[heard:]):
                        log.say(finding)
                heard = len(self.doctor.findings)
                if last or stop or self.done % self.settings.checkpoint_every == 0:
                    self.save()
                if stop and not last:
                    self.stop(log, f"at step {self.done}, saved in {self.out}")
        except WorkerDied:  # by the signal that ends this process too? No step has been begun
            if not told.is_set():
                raise
            # many save together: the others may wait for this one's batch
            saves = self.done > 0 and self.group.world == 1
            if saves:
                self.save()
            kept = f"saved in {self.out}" if saves else "not saved since a checkpoint"
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

    def advance(self, batches: Iterator[list[Loaded]], told: threading.Event) -> bool:
        """One optimizer step; whether any rank was told to stop."""
        began = time.perf_counter()
        loaded = next(batches)
        self.waited += time.perf_counter() - began
        self.cursor = loaded[-1].cursor
        row, skipped, stop = self.update(self.done, loaded, self.doctor, told.is_set())
        samples = int(row.pop("samples"))
        self.fresh += samples
        self.tally.add(samples, skipped)
        self.done += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in row.items()}
        self.summed += 1
        return stop

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

    def evaluate(self, evaluate: Evaluate, log: Log | None) -> None:
        self.update.module.eval()
        row = {"step": self.done, **evaluate(self.done)}
        self.update.module.train()
        if log is not None:
            log.row(row)
            log.say("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
