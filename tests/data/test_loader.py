from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diptych.data.examples import PairExamples
from diptych.data.images.transforms import ImageSettings
from diptych.data.loader import Loaded, Shuffled, SkipCounter, Skipped, evaluation_loader, rate, training_loader
from diptych.data.sources.base import DataError, WorkerDied
from diptych.data.tokenizers.tokenizer import Tokenizer
from tests.data.tiny_data import Colours

SMALL = ImageSettings(shorter_side=16, patch_size=16)
TOKENIZER = Tokenizer(16)


def pairs(n: int = 20, bad: frozenset[int] = frozenset(), matching: float = 0.5) -> PairExamples:
    return PairExamples(Colours(n, bad), TOKENIZER, SMALL, matching)


def run(examples: PairExamples, **options) -> list[list[Loaded]]:
    return list(
        training_loader(examples, **{"batch_size": 8, "seed": 3, "start": 0, "steps": 6, "workers": 0} | options)
    )


def ids(steps: list[list[Loaded]]) -> list[list[int]]:
    return [[i for part in step for i in part.batch.ids.tolist()] for step in steps]


def equal(one: Loaded, other: Loaded) -> bool:
    """Whether two batches are bitwise equal."""
    a, b = one.batch, other.batch
    assert a.image and b.image and a.text and b.text and a.matching and b.matching
    tensors = [
        (a.ids, b.ids),
        (a.image.pixels, b.image.pixels),
        (a.text.ids, b.text.ids),
        (a.matching.image.pixels, b.matching.image.pixels),
        (a.matching.matched, b.matching.matched),
    ]
    return a.step == b.step and one.skipped == other.skipped and all(torch.equal(x, y) for x, y in tensors)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    examples = pairs(bad=frozenset({4}))
    in_process, in_workers = run(examples), run(examples, workers=workers)
    assert len(in_process) == len(in_workers) == 6
    assert all(equal(a, b) for x, y in zip(in_process, in_workers, strict=True) for a, b in zip(x, y, strict=True))


def test_a_loader_started_later_continues_as_if_never_stopped():
    whole, rest = run(pairs()), run(pairs(), start=4)
    assert ids(rest) == ids(whole)[4:] and rest[0][0].batch.step == 4
    assert equal(rest[0][0], whole[4][0])


def test_ranks_and_micro_batches_divide_the_global_batch():
    examples = pairs(bad=frozenset({4, 9}))
    whole = ids(run(examples))
    ranks = [ids(run(examples, rank=r, world=2, grad_accum=2)) for r in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    assert [len(step) for step in run(examples, world=2, grad_accum=4)] == [4] * 6
    with pytest.raises(DataError, match="8 must be a multiple of 3 ranks x 1"):
        run(examples, world=3)


def test_a_bad_sample_is_replaced_and_reported():
    steps = run(pairs(bad=frozenset({4})), steps=5)
    skipped = [s for step in steps for part in step for s in part.skipped]
    assert {s.id for s in skipped} <= {8, 9} and skipped
    assert skipped[0].where == "image 4" and skipped[0].why == "broken"
    assert all(len(part.batch) == 8 and not {8, 9} & set(part.batch.ids.tolist()) for step in steps for part in step)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_readable_images_is_a_one_line_error(workers):
    with pytest.raises(DataError, match=r"17 samples in a row could not be used \(last: image \d+: broken\)") as caught:
        run(pairs(4, frozenset(range(4)), matching=0.0), batch_size=4, workers=workers)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_opening_a_loader_does_not_use_torchs_random_state():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    run(pairs(), steps=1, workers=1)
    assert torch.equal(torch.get_rng_state(), state)


class Interrupting(Colours):
    def image(self, index: int):
        os.kill(os.getpid(), signal.SIGINT)
        if not getattr(self, "signalled", False):
            self.signalled = True
            os.kill(os.getpid(), signal.SIGTERM)
        return super().image(index)


@pytest.mark.slow
def test_workers_leave_ctrl_c_and_a_first_sigterm_to_the_main_process():
    examples = PairExamples(Interrupting(20), TOKENIZER, SMALL, 0.0)
    assert len(run(examples, steps=1, workers=1)) == 1


@pytest.mark.slow
def test_an_uncaught_error_ends_the_process_and_its_workers():
    code = """if __name__ == "__main__":
    from diptych.data import loader
    made = loader.run(range(100), range(100), 2)
    next(made)
    raise ValueError("of a step")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "ValueError: of a step"


class Dying(Colours):
    """Reading its fourth image ends the process, as a second SIGTERM does."""

    def image(self, index: int) -> Pillow.Image:
        if index == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return super().image(index)


@pytest.mark.slow
def test_a_dead_worker_raises_when_the_next_batch_is_requested():
    made = training_loader(
        PairExamples(Dying(20), TOKENIZER, SMALL, 0.0), batch_size=8, seed=3, start=0, steps=60, workers=1
    )
    with pytest.raises(WorkerDied, match="lower --workers"):
        for _ in made:
            end = time.monotonic() + 0.05
            while time.monotonic() < end:  # no exception is raised here
                pass


@pytest.mark.quick("2")
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.slow
def test_an_evaluation_pass_gives_every_example_once(world):
    examples = pairs(11)
    parts = [list(evaluation_loader(examples, 4, rank=r, world=world, workers=0)) for r in range(world)]
    ids = [i for part in parts for loaded in part for i in loaded.batch.ids.tolist()]
    assert sorted(ids) == list(range(22))
    if world == 1:
        assert ids == sorted(ids)


@pytest.mark.slow
def test_shuffling_keeps_all_examples_and_separates_captions_of_an_image():
    plain = pairs(40)
    mixed = Shuffled(plain, 1)
    ids = [i for x in evaluation_loader(mixed, 8, workers=0) for i in x.batch.ids.tolist()]
    assert sorted(ids) == list(range(80)) and ids != sorted(ids)
    together = sum(a // 2 == b // 2 for a, b in pairwise(ids))
    assert together < 10, "40 in the order of the data"
    batch = next(evaluation_loader(mixed, 8, seed=5, workers=0)).batch
    order = batch.ids.tolist()
    again = plain.collate([plain.load(i, 5, 0) for i in order], order, 5, 0)
    assert equal(Loaded(batch), Loaded(again)) and [mixed.length(0)] == [plain.length(order[0])]


def test_the_last_batch_of_a_pass_never_has_one_example():
    sizes = {
        n: [len(x.batch) for x in evaluation_loader(pairs(n), 3, workers=0)] for n in (1, 2, 3, 4, 5)
    }  # two captions per image
    assert sizes == {1: [2], 2: [4], 3: [3, 3], 4: [3, 3, 2], 5: [3, 3, 4]}
    assert [len(x.batch) for x in evaluation_loader(pairs(2), 1, workers=0)] == [1, 1, 1, 1]


@pytest.mark.slow
def test_an_evaluation_pass_omits_bad_samples_and_reports_each():
    swept = list(evaluation_loader(pairs(12, frozenset({0, 1, 5, 10, 11})), 4, workers=1))
    assert sum(len(x.batch) for x in swept) == 24 - 10
    assert sorted(s.id for x in swept for s in x.skipped) == [0, 1, 2, 3, 10, 11, 20, 21, 22, 23]
    with pytest.raises(DataError, match="none of 4 examples can be used"):
        list(evaluation_loader(pairs(2, frozenset({0, 1})), 4, workers=0))


def test_rate_gives_workers_and_speed():
    assert rate(pairs(bad=frozenset({1})), workers=2).endswith("samples/s per worker (2 workers)")
    assert rate(pairs(), workers=0).endswith("samples/s in the main process")


BROKEN = [Skipped(0, "row 0", "broken")]


def test_a_skip_counter_stops_a_run_at_its_limit():
    counter = SkipCounter(limit=0.01)
    for _ in range(10):
        counter.add(20, BROKEN)  # ten bad ones in 210: fewer than 1 % of the first thousand
    assert (counter.num_samples, counter.num_skipped, list(counter.skipped)) == (210, 10, [0])
    with pytest.raises(DataError, match=r"11 of 231 .* more than 1.0% \(first: row 0: broken\)"):
        counter.add(20, BROKEN)
    with pytest.raises(DataError):
        counter.check()


def test_a_short_run_stops_at_the_share_of_its_own_samples():
    counter = SkipCounter(limit=0.01, planned=64)
    counter.add(32, [])
    with pytest.raises(DataError, match="1 of 64"):
        counter.add(31, BROKEN)


def test_a_skip_counter_accepts_good_data():
    counter = SkipCounter(limit=0.05)
    counter.add(20, BROKEN)
    counter.check()
    assert np.isclose(counter.num_skipped / counter.num_samples, 1 / 21)
