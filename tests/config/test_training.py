from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from diptych.config.training import CHANGEABLE, Optimizer, Training, defaults, identity
from diptych.models.vilt import recipes as vilt


def test_defaults_are_collected_at_every_depth():
    changed = replace(Training(), steps=7, optimizer=Optimizer(learning_rate=3.0))
    assert defaults(changed) == asdict(Training())
    run = vilt.small()
    values = defaults(run)
    assert values["model"]["dim"] == 768 and asdict(run)["model"]["dim"] != 768
    assert values["training"]["steps"] == 1000 and values["objectives"]["itm"] is None and values["max_patches"] == 0


def test_settings_that_may_change_on_resume_are_not_part_of_the_identity():
    assert identity(Training()).keys() | CHANGEABLE == {"version"} | asdict(Training()).keys()
    assert identity(Training(workers=9)) == identity(Training()) != identity(Training(seed=9))


@pytest.mark.parametrize(
    ("epochs", "examples", "batch", "steps"),
    [(1, 10, 5, 2), (2, 11, 4, 6), (0.1, 30, 3, 1), (20, 7, 64, 3), (1, 1, 9, 1)],
)
def test_epochs_are_rounded_up_to_steps(epochs, examples, batch, steps):
    training = Training(epochs=epochs, batch_size=batch).for_examples(examples)
    assert (training.steps, training.epochs) == (steps, epochs)
    assert training.for_examples(examples) == training


def test_steps_give_epochs_only_where_a_setting_counts_them():
    assert Training(steps=6, batch_size=4).for_examples(8).epochs == 0
    assert Training(steps=6, batch_size=4, evaluate_epochs=1.0).for_examples(8).epochs == 3


def test_validations_are_due_by_steps_or_epochs_and_at_the_end():
    by_steps = Training(steps=10, evaluate_every=4)
    assert [n for n in range(1, 11) if by_steps.validates(n)] == [4, 8, 10]
    by_epochs = Training(epochs=3.0, batch_size=3, evaluate_epochs=1.0).for_examples(10)
    assert by_epochs.steps == 10 and [n for n in range(1, 11) if by_epochs.validates(n)] == [4, 7, 10]
    assert [n for n in range(1, 11) if Training(steps=10).validates(n)] == [10]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Training(stop_after=3), "stop_after is 3 and keep_best is empty"),
        (lambda: Optimizer(drops=(0.5,)), "need each other"),
        (lambda: Optimizer(schedule="drops"), "need each other"),
        (lambda: Optimizer(schedule="constant", final_rate=0.1), "final_rate is of linear and cosine"),
        (lambda: Optimizer(part_rates=("head",)), "expected PATTERN=FACTOR"),
        (lambda: Optimizer(part_rates=("head=x",)), "expected PATTERN=FACTOR"),
        (lambda: Optimizer(part_rates=("head=-1",)), "expected PATTERN=FACTOR"),
        (lambda: Optimizer(part_rates=("=2",)), "expected PATTERN=FACTOR"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change()
