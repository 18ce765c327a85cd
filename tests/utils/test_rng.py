"""Random numbers are a pure function of their key, uniform and uncorrelated."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.utils.rng import generator, permutation, random_words, uniform

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
any_int = st.integers(-(2**63), 2**63 - 1)


def mix(x: int) -> int:
    """SplitMix64's finaliser in Python integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def word(seed: int, step: int, sample: int, stream: str, index: int) -> int:
    key = zlib.crc32(stream.encode())
    for part in (seed, step, sample):
        key = mix((key * GOLDEN + part + GOLDEN) & MASK)
    return mix((key + (index + 1) * GOLDEN) & MASK)


@settings(max_examples=50, deadline=None)
@given(any_int, any_int, st.lists(any_int, max_size=3), st.text(max_size=5), st.integers(0, 4))
def test_random_words_equal_their_definition(seed: int, step: int, ids: list[int], stream: str, n: int):
    expected = [[word(seed, step, sample, stream, index) for index in range(n)] for sample in ids]
    assert random_words(seed, step, ids, stream, n).tolist() == expected


def test_words_never_change_between_versions():
    """A run that is resumed by a later version draws the same numbers."""
    assert random_words(0, 0, [0], "order", 2).tolist() == [[4943558698934468709, 17752700400811906267]]
    assert uniform(3, 14, [159], "masking: order", 1)[0, 0] == pytest.approx(0.74572164, abs=1e-8)


def test_a_draw_depends_on_its_sample_and_not_on_the_other_samples():
    single = uniform(1, 2, [40], "stream", 3)
    batched = uniform(1, 2, [7, 40, 3], "stream", 10)
    assert (batched[1, :3] == single[0]).all()


@pytest.mark.parametrize("change", [(2, 2, 3, "stream"), (1, 3, 3, "stream"), (1, 2, 4, "stream"), (1, 2, 3, "other")])
def test_any_part_of_the_key_changes_the_draw(change: tuple[int, int, int, str]):
    seed, step, sample, stream = change
    ours = uniform(1, 2, [3], "stream", 1000)[0]
    other = uniform(seed, step, [sample], stream, 1000)[0]
    assert (ours != other).all()
    assert abs(np.corrcoef(ours, other)[0, 1]) < 0.1


def test_seed_and_step_are_not_interchangeable():
    assert (random_words(1, 2, [3], "x", 4) != random_words(2, 1, [3], "x", 4)).all()


@pytest.mark.parametrize("along", ["samples", "places", "steps"])
def test_draws_are_uniform_along_every_axis(along: str):
    n = 20_000
    drawn = {
        "samples": lambda: uniform(5, 6, np.arange(n), "u", 1)[:, 0],
        "places": lambda: uniform(5, 6, [0], "u", n)[0],
        "steps": lambda: np.array([uniform(5, step, [0], "u", 1)[0, 0] for step in range(n // 10)]),
    }[along]()
    assert ((drawn >= 0) & (drawn < 1)).all()
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    expected = len(drawn) / 20
    assert ((counts - expected) ** 2 / expected).sum() < 44, "chi-squared, 19 degrees of freedom: 0.1 %"
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.08, "neighbours are correlated"


def test_generators_are_keyed_too():
    first = [generator(1, 2, sample, "augment").random() for sample in range(3)]
    assert first == [generator(1, 2, sample, "augment").random() for sample in range(3)]
    assert len(set(first)) == 3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 200))
def test_an_epoch_visits_every_sample_once(seed: int, epoch: int, n: int):
    assert sorted(permutation(seed, epoch, n).tolist()) == list(range(n))


def test_epochs_differ_in_their_order():
    assert (permutation(0, 0, 100) != permutation(0, 1, 100)).any()
    assert (permutation(0, 0, 100) == permutation(0, 0, 100)).all()
