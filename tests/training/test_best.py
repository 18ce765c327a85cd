"""The best weights by a validation metric, and early stopping: compared, saved, resumed after a kill at any step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.config.training import Optimizer, Training
from diptych.training.best import BEST_FILE, BestWeights, best_summary, is_minimized
from diptych.training.checkpoint import CHECKPOINT, MODEL, is_finished, read_training_state
from diptych.training.distributed import Group, pick_device
from diptych.training.loop import fit
from tests.training.toy import Toy, settings, stream

VALUES = {2: 0.5, 4: 0.2, 6: float("nan"), 8: 0.3, 10: 0.25, 12: 0.1}  # val/itm by step; the best before the stop: 4
SETTINGS = dict(steps=12, checkpoint_every=5, evaluate_every=2, keep_best="itm")


class Killed(Exception):
    pass


def train(out: Path, training: Training, kill_at: int = -1, seen: dict | None = None) -> Path:
    """Trains a Toy with the validation losses of VALUES; raises Killed before the batch of step `kill_at`."""
    toy, batches = Toy(dropout=0.2, depth=2), stream(training)

    def evaluate(step: int) -> dict[str, float]:
        if seen is not None:
            seen[step] = toy.hidden.weight.detach().clone()
        return {"val/itm": VALUES.get(step, 1.0), "val/itm/accuracy": -VALUES.get(step, 1.0)}

    def steps(start: int):
        for step, batch in enumerate(batches(start), start):
            if step == kill_at:
                raise Killed
            yield batch

    return fit(toy, steps, training, out, evaluate=evaluate, group=Group(pick_device("cpu")))


def test_losses_are_minimized_and_accuracies_maximized():
    losses = ("itm", "mlm")
    assert is_minimized("itm", losses) and not is_minimized("itm/accuracy", losses)
    with pytest.raises(ValueError, match=r"keep_best: expected a loss \(itm, mlm\) or .* got 'wpa/matched'"):
        is_minimized("wpa/matched", losses)


def test_a_better_value_is_kept_and_nan_is_never_better():
    best = BestWeights("a/accuracy", minimized=False, stop_after=2)
    for step, value in enumerate([float("nan"), 0.4, 0.4, 0.6, 0.5]):
        best.update({"step": step, "val/a/accuracy": value}, lambda step=step: {"w": torch.tensor(step)})
    assert (best.step, best.value, best.last_value, best.without_improvement) == (3, 0.6, 0.5, 1)
    assert best.weights["w"] == 3 and not best.exhausted
    best.update({"step": 5, "val/a/accuracy": None}, dict)  # the log's NaN
    assert best.exhausted and best.last_value is None
    with pytest.raises(ValueError, match="no metric 'a/accuracy'; it has b"):
        best.update({"step": 6, "val/b": 1.0}, dict)


@pytest.mark.parametrize("stop_after", [0, 3])
def test_the_saved_weights_are_the_best_and_the_checkpoint_has_the_last(tmp_path, stop_after):
    seen: dict[int, torch.Tensor] = {}
    train(tmp_path, settings(**SETTINGS, stop_after=stop_after), seen=seen)
    end, chosen = (10, 4) if stop_after else (12, 12)
    assert max(seen) == end
    assert torch.equal(load_file(tmp_path / MODEL)["hidden.weight"], seen[chosen])
    assert torch.equal(load_file(tmp_path / CHECKPOINT)["weight/hidden.weight"], seen[end])
    best = json.loads((tmp_path / BEST_FILE).read_text())
    assert (best["step"], best["value"], best["last_step"]) == (chosen, VALUES[chosen], end)
    assert best["stopped_early"] is bool(stop_after)
    assert ("stopped early" in best_summary(tmp_path)) is bool(stop_after)
    state = read_training_state(tmp_path)
    assert state is not None and state["step"] == end and is_finished(state, 12)
    train(tmp_path, settings(**SETTINGS, stop_after=stop_after), kill_at=end)  # finished: no batch is read
    (tmp_path / MODEL).unlink()
    train(tmp_path, settings(**SETTINGS, stop_after=stop_after), kill_at=end)
    assert torch.equal(load_file(tmp_path / MODEL)["hidden.weight"], seen[chosen])


OPTIMIZERS = {
    "sgd": Optimizer(name="sgd", learning_rate=1e-2, momentum=0.9, decay_all=True),
    "drops": Optimizer(learning_rate=1e-2, schedule="drops", drops=(0.3, 0.6)),
    "per epoch": Optimizer(learning_rate=1e-2, schedule="cosine", final_rate=0.01, rate_per_epoch=True),
    "layers": Optimizer(learning_rate=1e-2, layer_decay=0.5),
    "parts": Optimizer(learning_rate=1e-2, part_rates=("heads=10", "hidden=0.1")),
}


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", (1, 4, 5, 6, 9))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_killed_before_any_step_resumes_exactly(tmp_path, name, kill_at):
    training = settings(**SETTINGS, epochs=4.0, stop_after=3, optimizer=OPTIMIZERS[name])
    train(tmp_path / "whole", training)
    with pytest.raises(Killed):
        train(tmp_path / "killed", training, kill_at)
    train(tmp_path / "killed", training)
    for file in (MODEL, CHECKPOINT):
        whole, resumed = load_file(tmp_path / "whole" / file), load_file(tmp_path / "killed" / file)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    assert (tmp_path / "whole" / BEST_FILE).read_text() == (tmp_path / "killed" / BEST_FILE).read_text()
