"""Intervals against closed forms and simulation, and votes by hand."""

import numpy as np
import pytest

from pasmr_jax.experiment.statistics import Bootstrap, Interval, majority_share, wilson


def test_the_bootstrap_of_a_share_is_close_to_the_normal_interval():
  values = np.zeros((400, 1))
  values[:100] = 1
  interval = Bootstrap(values).interval([0])
  half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
  assert interval.low == pytest.approx(0.25 - half, abs=0.006)
  assert interval.high == pytest.approx(0.25 + half, abs=0.006)


def test_it_covers_the_truth_in_about_95_of_100_evaluations():
  rng = np.random.default_rng(1)
  covered = 0
  for _ in range(200):
    interval = Bootstrap((rng.random((60, 1)) < 0.4).astype(float)).interval([0])
    covered += interval.low <= 0.4 <= interval.high
  assert 180 <= covered <= 199


def test_the_same_values_have_the_same_interval_and_the_seed_matters():
  values = np.arange(50.0)[:, None] % 7
  assert Bootstrap(values).interval([0]) == Bootstrap(values).interval([0])
  assert Bootstrap(values).interval([0]) != Bootstrap(values, seed=1).interval([0])


def test_questions_are_drawn_with_all_their_languages():
  """Parallel questions that are right or wrong together are one piece of evidence, not many."""
  one = (np.arange(100) % 2).astype(float)
  together = Bootstrap(np.stack([one] * 4, axis=1)).interval(range(4))
  alone = Bootstrap(one[:, None]).interval([0])
  assert together.high - together.low == pytest.approx(alone.high - alone.low, abs=1e-12)
  apart = np.stack([np.roll(one, shift) for shift in (0, 1, 0, 1)], axis=1)
  # Here each question is right in two languages of four: the average cannot vary.
  interval = Bootstrap(apart).interval(range(4))
  assert (interval.low, interval.high) == pytest.approx((0.5, 0.5))


def test_missing_questions_leave_a_language_its_own_mean():
  values = np.full((30, 2), np.nan)
  values[:20, 0] = 1.0
  values[10:, 1] = 0.0
  bootstrap = Bootstrap(values)
  assert bootstrap.interval([0]) == Interval(1.0, 1.0)
  assert bootstrap.interval([1]) == Interval(0.0, 0.0)
  assert bootstrap.interval([0, 1]) == Interval(0.5, 0.5)


def test_all_wrong_is_not_certainly_zero():
  interval = Bootstrap(np.zeros((50, 1))).share_interval([0])
  assert interval == wilson(0, 50)
  assert interval.low == 0
  assert interval.high == pytest.approx(0.0713, abs=1e-3)  # z**2 / (n + z**2)
  assert Bootstrap(np.ones((50, 3))).share_interval([0, 1, 2]) == wilson(1, 50)
  assert Bootstrap(np.zeros((50, 1))).interval([0]) == Interval(0.0, 0.0)


@pytest.mark.parametrize("values", [np.array([[1.0, 0.0]]), np.full((40, 1), 0.5)])
def test_questions_that_are_all_alike_do_not_make_it_certain(values):
  """One question that is right in one of two languages; one right sample of two of each."""
  found = Bootstrap(values).share_interval(range(values.shape[1]))
  assert found == wilson(0.5, len(values))
  assert found.low < 0.4 < 0.6 < found.high


def test_wilson_at_a_known_value():
  interval = wilson(0.5, 100)
  assert interval.low == pytest.approx(0.40383, abs=1e-4)
  assert interval.high == pytest.approx(0.59617, abs=1e-4)
  with pytest.raises(ValueError, match="expected at least 1"):
    wilson(0.5, 0)


@pytest.mark.parametrize("values", [np.zeros((0, 1)), np.array([[1.0, np.nan]])])
def test_a_language_without_questions_is_an_error(values):
  with pytest.raises(ValueError, match="expected a value in every column"):
    Bootstrap(values)


@pytest.mark.parametrize(
  ("answers", "expected"),
  [
    ([("5", True), ("5", True), ("6", False)], 1.0),
    ([("6", False), ("6", False), ("5", True)], 0.0),
    ([("5", True), ("6", False)], 0.5),  # as drawing by lot does on average
    ([("5", True), ("6", False), ("7", False)], pytest.approx(1 / 3)),
    ([(None, False), (None, False), ("5", True)], 1.0),  # no answer is no vote
    ([(None, False)], 0.0),
  ],
)
def test_majority_of_samples(answers, expected):
  assert majority_share(answers) == expected


def test_differences_that_leave_out_zero():
  assert Interval(0.01, 0.2).excludes_zero()
  assert Interval(-0.2, -0.01).excludes_zero()
  assert not Interval(-0.01, 0.2).excludes_zero()
  assert not Interval(0.0, 0.2).excludes_zero()
  assert not Interval(1e-17, 0.2).excludes_zero()  # rounding
