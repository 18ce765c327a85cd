"""One row's work: candidates that are compared first and then timed in turn."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bench.side_by_side import Timing, in_turn
from bench.speed.peers import BF16_WEIGHTS, Candidate, unless_missing, versions
from diptych.inference.loaded_model import LoadedModel
from diptych.modules.tokens import Tokens
from diptych.tasks.pair_scores import CrossEncoder

OURS = "Diptych"
PROFILED = 12  # operators with the largest share of a profile
Result = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """A difference of two results, and the limit up to which they count as equal; None: it is only reported."""

    measure: str
    value: float
    limit: float | None

    @property
    def passed(self) -> bool:
        return self.limit is None or self.value <= self.limit


@dataclass
class Work:
    """Candidates for the same work on the same inputs and weights.

    `peers`: by name, each a candidate or the reason why there is none. `compare`: the checks of our result beside a
    peer's.
    """

    ours: Candidate
    peers: dict[str, Candidate | str]
    compare: Callable[[Any, Any], list[Check]]

    def candidates(self) -> dict[str, Candidate]:
        """Ours and the peers that can be run."""
        return {OURS: self.ours} | {name: run for name, run in self.peers.items() if not isinstance(run, str)}


def autocast(precision: str) -> torch.autocast:
    """bf16 by autocast, on either side; fp32: without effect."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def inference(module: nn.Module, precision: str) -> Callable[[], AbstractContextManager[None]]:
    """The context in which Diptych's commands and Python API compute, of a model in evaluation mode."""
    loaded = LoadedModel(cast(Any, None), module, torch.device("cpu"))
    return lambda: loaded.computing(precision == "bf16")


def first_channel(pooled: Tensor) -> Tensor:
    """The score of a pair; heads are left out on both sides, as Hugging Face's has no log-odds of its own."""
    return pooled[:, 0]


def rerank_ours(model: Any, precision: str) -> Callable[[Tokens, Tokens], Tensor]:
    """The scores of encoded images with all texts."""
    computing = inference(model, precision)

    def scores(image: Tokens, text: Tokens) -> Tensor:
        with computing():
            return CrossEncoder(model, first_channel, [text]).score_all(image)

    return scores


def with_bf16_weights(precision: str, name: str, build: Callable[[], Candidate]) -> dict[str, Candidate | str]:
    """A further peer in bf16, whose model was converted as a whole: faster than autocast, and less precise."""
    return {name + BF16_WEIGHTS: unless_missing(build)} if precision == "bf16" else {}


def measure(work: Work, rounds: int) -> list[Result]:
    """One result per peer: checks first, then the times of `rounds` rounds in turn after a warm-up."""
    timings, first = in_turn(work.candidates(), rounds)
    results = []
    for name, run in work.peers.items():
        if isinstance(run, str):
            results.append({"peer": name, "versions": versions(name), "not_measured": run})
            continue
        checks = work.compare(first[OURS], first[name])
        ours, theirs = spread(timings[OURS]), spread(timings[name])
        results.append(
            {
                "peer": name,
                "versions": versions(name),
                "checks": [asdict(check) | {"passed": check.passed} for check in checks],
                "ours": ours,
                "theirs": theirs,
                "ratio": theirs["cpu"] / ours["cpu"],
                "rounds": rounds,
            }
        )
    return results


def spread(timing: Timing) -> dict[str, Any]:
    """Medians and ranges of seconds: of CPU time, and on the clock."""
    return {
        "cpu": median(timing.cpu),
        "cpu_range": [min(timing.cpu), max(timing.cpu)],
        "wall": median(timing.wall),
        "wall_range": [min(timing.wall), max(timing.wall)],
    }


def profiles(work: Work) -> dict[str, list[Result]]:
    """The operators of each candidate with the largest shares of its own CPU time, the largest first."""
    shares = {}
    for name, run in work.candidates().items():
        run(0)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            run(1)
        events = profiled.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        largest = sorted(events, key=lambda event: event.self_cpu_time_total, reverse=True)[:PROFILED]
        shares[name] = [
            {"operator": event.key, "share": event.self_cpu_time_total / total, "calls": event.count}
            for event in largest
        ]
    return shares


def peak_memory(work: Work, name: str) -> float:
    """Peak resident memory in GiB of this process, which runs one candidate once and then ends."""
    run = work.candidates()[name]
    work.ours, work.peers = run, {}  # frees the models of the others
    gc.collect()
    run(0)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss's unit
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def training_step(
    module: nn.Module, losses_of: Callable[[int], Mapping[str, Tensor]], weights: Mapping[str, float], precision: str
) -> Candidate:
    """A forward and backward pass; the losses and, in round 0, the norm of the gradient."""

    def run(number: int) -> dict[str, float]:
        module.zero_grad(set_to_none=True)
        with autocast(precision):
            losses = losses_of(number)
        torch.stack([weight * losses[name] for name, weight in weights.items()]).sum().backward()
        values = {name: losses[name].item() for name in weights}
        return values | ({"gradient": gradient_norm(module)} if number == 0 else {})

    return run


def gradient_norm(module: nn.Module) -> float:
    gradients = [parameter.grad.float().norm() for parameter in module.parameters() if parameter.grad is not None]
    return torch.stack(gradients).norm().item()


def compare_steps(precision: str, limit: float) -> Callable[[Any, Any], list[Check]]:
    """Checks of a training step: losses within `limit` in fp32, each relative to the loss where it is above 1."""

    def compare(ours: dict[str, float], theirs: dict[str, float]) -> list[Check]:
        relative = {name: abs(ours[name] - value) / max(1.0, abs(value)) for name, value in theirs.items()}
        gradient = abs(ours["gradient"] / theirs["gradient"] - 1)
        losses = torch.tensor([value for name, value in relative.items() if name != "gradient"]).max().item()  # or NaN
        fp32 = precision == "fp32"
        return [
            Check("losses, relative where above 1", losses, limit if fp32 else 2e-2),
            Check("norm of the gradient, relative", gradient, 1e-4 if fp32 else 5e-2),
        ]

    return compare


def compare_tensors(precision: str, measure: str, limit: float, bf16: float) -> Callable[[Any, Any], list[Check]]:
    """Check of the largest absolute difference of two tensors."""

    def compare(ours: Tensor, theirs: Tensor) -> list[Check]:
        difference = (ours.float() - theirs.float()).abs().max().item()
        return [Check(measure, difference, limit if precision == "fp32" else bf16)]

    return compare
