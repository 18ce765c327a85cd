"""The training loop: steps, logging, evaluation, checkpoints, and exact resume.

It trains any `diptych.protocols.TrainStep`, a module from a batch to named losses; it does not depend on models,
objectives or tasks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, cast

from torch import Tensor, nn

from diptych.config.training import Training, identity, steps_of
from diptych.config.training import defaults as settings_defaults
from diptych.data.loader import Loaded, SkipCounter, Skipped
from diptych.data.sources.base import WorkerDied
from diptych.protocols import TrainStep
from diptych.training import checkpoint
from diptych.training.best import BestWeights, is_minimized
from diptych.training.diagnostics import MIN_PATIENCE, Diagnostics, Diverged, merge_findings
from diptych.training.distributed import Group, pick_device, unshard
from diptych.training.log import Log
from diptych.training.recovery import locked_run_folder, needs_weights
from diptych.training.signals import INTERRUPTED, StopRequest, stop_signal
from diptych.training.step import OptimizerStep
from diptych.utils.io import atomic_write

Stream = Callable[[int], Iterator[list[Loaded]]]  # first step → this rank's micro-batches of each step
Evaluate = Callable[[int], Mapping[str, float]]  # steps done → {"val/name": value}


class TrainingProgress:
    """The progress of a run: the training state of its checkpoint, and the running means for its next log row."""

    def __init__(
        self,
        optimizer_step: OptimizerStep,
        diagnostics: Diagnostics,
        settings: Training,
        out: Path,
        identity: dict[str, Any],
    ):
        self.optimizer_step, self.diagnostics = optimizer_step, diagnostics
        self.settings, self.out, self.identity = settings, out, identity
        self.group = optimizer_step.group
        self.skip_counter = SkipCounter(settings.max_skipped, planned=settings.steps * settings.batch_size)
        self.done, self.seconds = 0, 0.0  # steps, and the time they took
        self.sums: dict[str, float] = {}  # of losses, since the last row
        self.summed = 0  # steps in `sums`
        self.cursor: Mapping[str, list[int]] = {}
        self.clock = self.row_time = time.perf_counter()  # when `seconds` was last updated; when the last row was made
        self.wait_seconds, self.samples_since_row = 0.0, 0  # seconds waited for data, and samples, since the last row
        self.evaluation_pending = False  # whether the evaluation of the last step was interrupted
        self.saved_step, self.saved_at = -1, self.clock  # the step of the last checkpoint, and when it was made
        self.single_process = self.group.world == 1  # ranks must stop together, between two steps
        self.best: BestWeights | None = None
        if metric := settings.keep_best:
            minimized = is_minimized(metric, optimizer_step.step.weights)
            self.best = BestWeights(metric, minimized, settings.stop_after)

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or the run is stopped early (`stop_after`)."""
        return self.done >= self.settings.steps or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        return self.best is not None and self.best.exhausted

    def restore(self, state: dict[str, Any], best_weights: dict[str, Tensor]) -> None:
        """Continues from the training state of a checkpoint, and its best weights."""
        self.done, self.seconds, self.sums, self.summed = (state[k] for k in ("step", "seconds", "sums", "num_summed"))
        self.saved_step = self.done
        self.skip_counter.num_samples, self.skip_counter.num_skipped = state["num_samples"], state["num_skipped"]
        self.skip_counter.skipped = {s["id"]: Skipped(**s) for s in state["skipped"]}
        self.diagnostics.restore(state["findings"])
        self.evaluation_pending = state.get("evaluation_pending", False)
        if self.best is not None and "best" in state:
            self.best.restore(state["best"], best_weights)

    def save(self) -> None:
        """Writes a checkpoint and skipped.json. Every rank must call it."""
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        skipped = [asdict(s) for s in self.skip_counter.skipped.values()]
        state = {
            "step": self.done,
            "seconds": self.seconds,
            "sums": self.sums,
            "num_summed": self.summed,
            "num_samples": self.skip_counter.num_samples,
            "num_skipped": self.skip_counter.num_skipped,
            "skipped": skipped,
            "identity": self.identity,
            "findings": self.diagnostics.parameter_findings(),
            "evaluation_pending": self.evaluation_pending,
        }
        if self.best is not None:
            state |= {"best": self.best.state(), "stopped_early": self.best.exhausted}
        if self.cursor:  # each rank has the position in its own part of a stream
            cursors = self.group.gather(self.cursor)
            state["cursor"] = {name: position for cursor in cursors for name, position in cursor.items()}
        best = self.best.weights if self.best is not None else None
        checkpoint.save(
            self.out, self.optimizer_step.module, self.optimizer_step.optimizer, state, self.group.main, best
        )
        if self.group.main:
            if self.best is not None:
                self.best.save(self.out)
            with atomic_write(self.out / "skipped.json") as path:
                path.write_text(json.dumps(skipped, indent=1))
        self.saved_step, self.saved_at = self.done, time.perf_counter()
        self.group.wait()

    def train(self, stream: Stream, evaluate: Evaluate | None, log: Log | None, stop_request: StopRequest) -> None:
        """Runs the remaining steps, with logging, evaluation and checkpoints. `log` is None on ranks other than 0."""
        if log is not None:
            self.diagnostics.read(log.restored_rows)
        reported = len(self.diagnostics.findings)
        try:
            if self.evaluation_pending and evaluate is not None:
                self.finish_pending_evaluation(evaluate, log, stop_request)
            with stop_request.interruptible(self.single_process):
                batches = iter(()) if self.finished else stream(self.done)
            self.clock = self.row_time = time.perf_counter()
            if any(self.group.gather(stop_request.is_set())) and not self.finished:
                self.stop(log, "before a step was made")
            while not self.finished:
                stop, due = self.advance(batches, stop_request)
                last = self.done == self.settings.steps
                if log is not None and (last or self.done % self.settings.log_every == 0):
                    row = self.row()
                    log.row(row)
                    log.show(row, last)
                    self.diagnostics.watch(row)
                if evaluate is not None and self.settings.validates(self.done):
                    self.evaluate(evaluate, log, stop_request)
                if log is not None:
                    for finding in merge_findings(self.diagnostics.findings[reported:]):
                        log.print_line(finding)
                reported = len(self.diagnostics.findings)
                if stop or due or self.finished or self.settings.saves(self.done):
                    self.save()
                if stop and not self.finished:
                    self.stop(log, f"at step {self.done}, saved in {self.out}")
        except (WorkerDied, KeyboardInterrupt):  # perhaps by the signal that stops this process; no step is half done
            if not stop_request.is_set():
                raise
            if self.done == 0 or self.done == self.saved_step:
                self.stop(log, f"at step {self.done}, saved in {self.out}" if self.done else "before a step was made")
            if self.single_process:  # ranks save together, and the others may be waiting in this step
                self.save()
            saved = f"saved in {self.out}" if self.single_process else "not saved since a checkpoint"
            self.stop(log, f"at step {self.done}, {saved}")
        except Diverged as error:
            if log is not None:
                log.print_line(error)
            raise
        finally:
            if log is not None:
                self.diagnostics.save(self.out)

    def stop(self, log: Log | None, where: str) -> NoReturn:
        """Ends the process with status 130 after a signal."""
        if log is not None:
            log.print_line(f"stopped {where}: the same command resumes from here")
        raise SystemExit(INTERRUPTED)

    def advance(self, batches: Iterator[list[Loaded]], stop_request: StopRequest) -> tuple[bool, bool]:
        """Makes one optimizer step.

        Returns:
            Whether any rank received a signal to stop; whether a checkpoint is due by the clock.
        """
        began = time.perf_counter()
        with stop_request.interruptible(self.single_process):
            loaded = next(batches)
        self.wait_seconds += time.perf_counter() - began
        self.cursor = loaded[-1].cursor
        due = began - self.saved_at > 60 * self.settings.checkpoint_minutes
        row, skipped, any_stop, any_due = self.optimizer_step(
            self.done, loaded, self.diagnostics, stop_request.is_set(), due
        )
        samples = int(row.pop("samples"))
        self.samples_since_row += samples
        self.skip_counter.add(samples, skipped)
        self.done += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in row.items()}
        self.summed += 1
        return any_stop, any_due

    def row(self) -> dict[str, Any]:
        """The log row: means since the last row, counts, and speed. Starts the next row."""
        now = time.perf_counter()
        passed = max(now - self.row_time, 1e-9)
        row = {
            "step": self.done,
            **{name: total / self.summed for name, total in self.sums.items()},
            "samples": self.skip_counter.num_samples - self.skip_counter.num_skipped,
            "skipped": self.skip_counter.num_skipped,
            "seconds": self.seconds + now - self.clock,
            "samples_per_second": self.samples_since_row / passed,
            "waiting": self.wait_seconds / passed,
        }
        self.sums, self.summed, self.row_time, self.wait_seconds, self.samples_since_row = {}, 0, now, 0.0, 0
        return row

    def evaluate(self, evaluate: Evaluate, log: Log | None, stop_request: StopRequest) -> None:
        """Evaluates in eval mode and logs the metrics; stays pending if a signal interrupts it."""
        self.evaluation_pending = True
        self.optimizer_step.module.eval()
        with stop_request.interruptible(self.single_process):
            row = {"step": self.done, **evaluate(self.done)}
        self.optimizer_step.module.train()
        self.evaluation_pending = False
        self.compare(row)
        if log is not None:
            log.row(row)
            log.print_line("  ".join(f"{name} {value:.4g}" for name, value in row.items()))

    def compare(self, row: Mapping[str, Any]) -> None:
        """Compares a validation with the best one. Every rank must call it."""
        if self.best is not None:
            self.best.update(row, lambda: checkpoint.gathered_weights(self.optimizer_step.module, self.group.main))

    def finish_pending_evaluation(self, evaluate: Evaluate, log: Log | None, stop_request: StopRequest) -> None:
        """Makes the evaluation of the last step, which was interrupted, unless it has been logged since."""
        rows = log.restored_rows if log is not None else []
        logged = next((row for row in rows if row["step"] == self.done and "samples" not in row), None)
        logged = self.group.gather(logged)[0]
        if logged is None:
            self.evaluate(evaluate, log, stop_request)
        else:
            self.evaluation_pending = False
            self.compare(logged)
        self.save()


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
    """Trains `step` until `settings.steps`, resuming from the checkpoint in `out`; returns the weights file.

    `step` ends with the weights of that file: the last, or with `keep_best` the best.
    Resumed after a kill at any moment, a run on the CPU ends with the same bits as an uninterrupted one.

    Args:
        step: A `diptych.protocols.TrainStep`, with the same initial weights at every start.
        stream: This rank's micro-batches from a first step on; all its random draws must be keyed.
        settings: Steps, batch size, optimizer and so on.
        out: Gets the checkpoint, model.safetensors, metrics.jsonl, diagnostics.json, skipped.json, tensorboard/, and
            with `keep_best` best.json.
        evaluate: Called on every rank, with the steps done and the module in eval mode; its metrics are named with
            their split ("val/itm").
        fingerprint: Everything else that defines the run (model, data, objectives), as JSON. A run to resume must have
            the same fingerprint, and the same settings but for those in `config.training.CHANGEABLE`.
        defaults: Defaults of the fields of `fingerprint`: a run from before a field existed counts as having its
            default.
        group: By default this process only, on `settings.device`.

    Raises:
        CheckpointError: The checkpoint in `out` is of another run, or damaged.
        InUse: Another process trains in `out`.
        WriteError: A file cannot be written (a full disk).
        Diverged: A loss or gradient is not finite.
        DataError: Too many samples cannot be read.
        SystemExit: Status 130, after Ctrl-C or SIGTERM, once the step is done and saved.
    """
    group = group or Group(pick_device(settings.device))
    with locked_run_folder(out, group):
        run_identity = identity(settings) | dict(fingerprint or {})
        return _fit(step, stream, settings, out, evaluate, run_identity, defaults or {}, group)


def _fit(
    step: nn.Module,
    stream: Stream,
    settings: Training,
    out: Path,
    evaluate: Evaluate | None,
    run_identity: dict[str, Any],
    defaults: Mapping[str, Any],
    group: Group,
) -> Path:
    state = checkpoint.read_training_state(out, checkpoint.LOOP_STATE)
    if state is not None:
        all_defaults = settings_defaults(settings) | dict(defaults)
        checkpoint.check_same_settings(out, state["identity"], run_identity, all_defaults)

    optimizer_step = OptimizerStep(step, settings, group)
    diagnostics = Diagnostics(
        cast(TrainStep, step).chance_losses,
        max(MIN_PATIENCE, *(steps_of(n, settings.steps) for n in (settings.patience, settings.optimizer.warmup))),
    )
    run = TrainingProgress(optimizer_step, diagnostics, settings, out, run_identity)
    if state is not None:
        run.restore(state, checkpoint.load(out, step, optimizer_step.optimizer))
        if group.gather(group.main and needs_weights(out, run.finished))[0]:
            checkpoint.save_weights(out, step, group.main, run.best.weights if run.best is not None else None)
    group.wait()  # until every rank has read the files that rank 0 is about to write
    with Log(out, run.done, settings.steps) if group.main else nullcontext() as log, stop_signal() as stop_request:
        run.train(stream, evaluate, log, stop_request)
    if run.best is not None:
        checkpoint.load_saved_weights(out, step)  # the best; those of the last step are in memory
    if optimizer_step.is_sharded:
        unshard(step)  # only one rank writes the report
    return out / checkpoint.MODEL
