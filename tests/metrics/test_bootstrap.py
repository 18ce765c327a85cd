"""Confidence intervals: computed by hand, with the right coverage, and of photographs, not of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.metrics.bootstrap import (
    FEWEST,
    Resampled,
    Scores,
    columns,
    draws,
    intervals,
    joined_means,
    means,
    means_of_rows,
    with_interval,
)


def test_an_interval_has_the_quantiles_of_the_means_of_all_draws():
    values = np.array([0.0, 0.2, 0.9, 1.0, 0.3, 0.3])
    rng = np.random.default_rng(3)
    by_hand = [values[rng.integers(6, size=6)].mean() for _ in range(1000)]
    found = intervals(means_of_rows(range(6), {"mean": values.tolist()}), seed=3)
    assert found["mean"] == pytest.approx(np.quantile(by_hand, (0.025, 0.975)))


def test_equal_values_have_an_interval_without_width():
    assert intervals(means_of_rows(range(9), {"a": [0.25] * 9})) == {"a": (0.25, 0.25)}


def test_each_draw_has_as_many_photographs_and_the_seed_repeats_it(monkeypatch: pytest.MonkeyPatch):
    counts = np.concatenate(list(draws(7, 100, 0)))
    assert counts.shape == (100, 7) and (counts.sum(1) == 7).all() and counts.min() == 0
    monkeypatch.setattr("diptych.metrics.bootstrap._AT_ONCE", 21)  # 3 draws at a time
    np.testing.assert_array_equal(np.concatenate(list(draws(7, 100, 0))), counts)
    assert (np.concatenate(list(draws(7, 100, 1))) != counts).any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=5, max_size=40), st.integers(2, 6))
def test_rows_of_a_photograph_are_drawn_together(values: list[int], copies: int):
    """Further questions with the same outcome about a photograph say nothing new: the interval stays as wide."""
    once = means_of_rows(range(len(values)), {"a": values})
    often = means_of_rows(list(range(len(values))) * copies, {"a": values * copies})
    assert intervals(often)["a"] == pytest.approx(intervals(once)["a"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([None, 0.0, 0.3, 1.0])), min_size=1), st.data())
def test_resampled_means_are_those_of_the_rows_repeated(rows: list[tuple[int, float | None]], data: st.DataObject):
    resampled = means_of_rows([photograph for photograph, _ in rows], {"a": [value for _, value in rows]})
    order = list(dict.fromkeys(photograph for photograph, _ in rows))
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(order), max_size=len(order)))
    repeated = [x for photograph, x in rows if x is not None for _ in range(counts[order.index(photograph)])]
    (value,) = resampled.metrics(np.array([counts]))["a"]
    assert np.isnan(value) if not repeated else value == pytest.approx(np.mean(repeated))


@pytest.mark.slow
def test_19_of_20_intervals_contain_the_true_rate():
    """Photographs with 1 to 4 questions each, whose outcomes agree within a photograph."""
    rng, hits, trials = np.random.default_rng(0), 0, 300
    for trial in range(trials):
        outcome, questions = rng.random(80) < 0.35, rng.integers(1, 5, size=80)
        owner = np.repeat(np.arange(80), questions)
        low, high = intervals(means_of_rows(owner.tolist(), {"a": outcome[owner].tolist()}), seed=trial)["a"]
        hits += low <= 0.35 <= high
    assert 0.915 <= hits / trials <= 0.98  # two standard errors around 95 %, and what the percentile method lacks


def test_tables_of_the_same_photographs_are_resampled_together():
    joined = joined_means(("xyz", {"images": [1, 0, 1]}), ("yyz", {"texts": [1, 0, 1]}))
    values = joined.metrics(np.array([[1, 1, 1], [0, 2, 1]]))
    np.testing.assert_allclose(values["images"], [2 / 3, 1 / 3])
    np.testing.assert_allclose(values["texts"], [2 / 3, 3 / 5])


def test_a_metric_that_some_draws_lack_has_the_interval_of_the_others():
    found = intervals(means_of_rows(range(6), {"all": [1] * 6, "rare": [0.5, *[None] * 5], "none": [None] * 6}))
    assert found == {"all": (1, 1), "rare": (0.5, 0.5)}


def test_of_few_photographs_no_interval_is_computed_and_the_reason_is_given():
    few = FEWEST - 1
    scores = Scores.of({"a": 1.0, "images": few}, means_of_rows(range(few), {"a": [1] * few}))
    assert scores == {"a": 1.0, "images": few} and not scores.intervals
    assert scores.resampling == "no intervals: 4 photographs, and at least 5 are needed"


def test_scores_are_a_dict_with_intervals_of_what_depends_on_the_draw():
    scores = Scores.of({"images": 5.0, "a": 0.4}, means_of_rows(range(5), {"a": [1, 0, 1, 0, 0]}))
    assert scores == {"images": 5.0, "a": 0.4} and scores.intervals.keys() == {"a"}
    low, high = scores.intervals["a"]
    assert low < 0.4 < high and with_interval(scores, "a") == f"0.4 [{low:.3g}, {high:.3g}]"
    assert with_interval(scores, "images") == "5"
    assert "1000 draws of 5 photographs" in scores.resampling
    assert Scores.of({"a": 1.0}, None).resampling == ""


def test_resampled_metrics_that_are_not_those_measured_are_refused():
    with pytest.raises(ValueError, match=r"a: resampled 0\.5 of each photograph once, and 0\.6 measured"):
        Scores.of({"a": 0.6}, means_of_rows(range(6), {"a": [1, 0] * 3}))
    with pytest.raises(ValueError, match="and None measured"):
        Scores.of({}, Resampled(6, lambda counts: {"b": np.ones(len(counts))}))


def test_columns_and_means_of_rows_that_lack_some_metrics():
    values = columns([{"b": 1.0}, {"a": 0.5, "b": 0.0}])
    assert values == {"a": [None, 0.5], "b": [1.0, 0.0]} and list(values) == ["a", "b"]
    assert means(values) == {"a": 0.5, "b": 0.5}
