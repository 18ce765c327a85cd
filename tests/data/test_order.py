from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.loader import BatchSampler
from diptych.data.sources.base import DataError


def lengths(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(3, 40, n)


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 6), st.integers(0, 3))
@settings(deadline=None)
@pytest.mark.slow
def test_an_epoch_visits_each_example_once_except_for_the_remainder(n, batch, pool, epoch):
    if n < batch:
        return
    order = BatchSampler(lengths(n), 1, batch, pool)
    ids = np.concatenate([order.ids_of(epoch * order.per_epoch + k) for k in range(order.per_epoch)])
    assert len(ids) == n // batch * batch == len(set(ids.tolist())) and ids.min() >= 0 and ids.max() < n


def test_any_batch_is_computed_without_the_ones_before():
    one, other = BatchSampler(lengths(100), 5, 8), pickle.loads(pickle.dumps(BatchSampler(lengths(100), 5, 8)))
    forward = [one.ids_of(k).tolist() for k in range(60)]
    assert [other.ids_of(k).tolist() for k in reversed(range(60))] == forward[::-1]
    assert [BatchSampler(lengths(100), 6, 8).ids_of(k).tolist() for k in range(60)] != forward


def test_epochs_differ_and_omitted_examples_come_later():
    order = BatchSampler(lengths(20), 0, 8)
    assert sorted(order.ids_of(0)) != sorted(order.ids_of(2))
    assert len({i for k in range(20) for i in order.ids_of(k).tolist()}) == 20


def test_batches_contain_texts_of_similar_length():
    n = 2000
    order = BatchSampler(lengths(n), 0, 20)
    spread = np.mean([np.ptp(lengths(n)[order.ids_of(k)]) for k in range(order.per_epoch)])
    unsorted = np.mean([np.ptp(lengths(n)[order._plan(0).flatten()[k::100]]) for k in range(100)])
    assert spread < 0.2 * unsorted


def test_batches_are_not_ordered_by_length():
    order = BatchSampler(lengths(2000), 0, 20)
    means = [lengths(2000)[order.ids_of(k)].mean() for k in range(order.per_epoch)]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.3


def test_a_batch_larger_than_the_data_raises():
    with pytest.raises(DataError, match="batch size, 9, exceeds the 8 examples"):
        BatchSampler(lengths(8), 0, 9)
