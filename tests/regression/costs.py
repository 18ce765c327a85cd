"""What a training step and a generated token cost, counted: FLOPs, operators called, bytes copied.

    python -m tests.regression.costs --write      records tests/regression/costs.json

Counts do not depend on the machine or its load: a lost cache, a padded path or a needless copy shows in them. They do
depend on torch, whose version is recorded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from diptych.generation import BeamConfig, GenerationConfig, beam_search
from diptych.modules.tokens import packing
from diptych.planning.counting import Counter
from tests.generation.test_shared_keys import CONFIGS, END, PAD, case
from tests.models.systems.common import batch_of
from tests.models.test_battery import SYSTEMS, losses_of, step_of, total_of

RECORDED = Path(__file__).parent / "costs.json"
COPIES = {"copy_", "clone", "_to_copy", "index_select", "index", "cat", "index_copy", "index_copy_", "stack"}
FREE = {"view", "_unsafe_view", "detach", "empty", "empty_strided", "empty_like"}
BEAMS, SHORT, LONG = 3, 5, 6
Costs = dict[str, int]


class CostCounter(Counter):
    """Counts operators that compute or copy (views and allocations do not), and the bytes that copies write."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.bytes_copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_dispatch__(func, types, args, kwargs)
        name = func._schema.name.removeprefix("aten::")
        self.operators += not func.is_view and name not in FREE
        if name in COPIES and isinstance(output, torch.Tensor):
            self.bytes_copied += output.nbytes
        return output

    def costs(self) -> Costs:
        return {"flops": self.flops, "operators": self.operators, "bytes_copied": self.bytes_copied}


def step_cases() -> list[str]:
    """System, job and precision of every training step of the battery."""
    return [
        f"{name} | {job} | {precision}"
        for name, system in SYSTEMS.items()
        for job in system.jobs
        for precision in ("fp32", "bf16")
    ]


def step_costs(case_name: str) -> Costs:
    """The costs of a training step, forward and backward, on a batch of images and texts of different sizes."""
    name, job, precision = case_name.split(" | ")
    step, _ = step_of(name, job)
    batch = batch_of(6)
    for _ in range(2):  # the first step fills caches of frozen features
        step.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        with CostCounter() as counter:
            with packing(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                losses = losses_of(step, batch)
            total_of(step, losses).backward()
    return counter.costs()


def token_costs(name: str) -> Costs:
    """The costs of one more token for every beam: those of a longer text less those of a shorter one."""
    model, context, prompt = case(name)

    def decode(length: int) -> Costs:
        with torch.no_grad(), packing(False), CostCounter() as counter:
            beam_search(model, context, prompt, GenerationConfig(END, PAD, length, length), BeamConfig(BEAMS))
        return counter.costs()

    longer, shorter = decode(LONG), decode(SHORT)
    return {key: value - shorter[key] for key, value in longer.items()}


def all_costs() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "steps": {name: step_costs(name) for name in step_cases()},
        "tokens": {name: token_costs(name) for name in CONFIGS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.regression.costs", description=__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    RECORDED.write_text(json.dumps(all_costs(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
