"""Every estimator by hand, groups with invalid responses, credit, row selection."""

import numpy as np
import pytest

from pasmr_jax.learning import advantages

REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]], np.float32)
VALID = np.ones((2, 4), bool)


@pytest.mark.parametrize(
  ("estimator", "first_row"),
  [
    ("dr_grpo", [0.5, -0.5, -0.5, 0.5]),
    ("grpo", [1.0, -1.0, -1.0, 1.0]),  # deviation of the group is 0.5
    ("rloo", [2 / 3, -2 / 3, -2 / 3, 2 / 3]),  # 1 - 1/3 and 0 - 2/3
    # Centred rewards of both groups: mean 0, variance (4 * 0.25 + 4 * 0) / 8.
    ("reinforce_pp", [2**0.5, -(2**0.5), -(2**0.5), 2**0.5]),
  ],
)
def test_estimators(estimator, first_row):
  found = advantages.estimate(REWARDS, VALID, estimator)
  np.testing.assert_allclose(found[0], first_row, rtol=1e-5)
  np.testing.assert_allclose(found[1], 0, atol=1e-6)


@pytest.mark.parametrize("estimator", advantages.ESTIMATORS)
def test_invalid_responses_have_no_advantage_and_no_say_in_the_baseline(estimator):
  valid = np.array([[True, True, False, True]])
  found = advantages.estimate(np.array([[1.0, 0.0, 9.0, 0.5]]), valid, estimator)
  alone = advantages.estimate(np.array([[1.0, 0.0, 0.5]]), np.ones((1, 3), bool), estimator)
  np.testing.assert_allclose(found[0, [0, 1, 3]], alone[0], rtol=1e-6)
  assert found[0, 2] == 0
  nothing = advantages.estimate(np.ones((1, 4)), np.zeros((1, 4), bool), estimator)
  assert not nothing.any()


def test_rloo_of_a_single_valid_response_is_zero():
  found = advantages.estimate(np.array([[3.0, 1.0]]), np.array([[True, False]]), "rloo")
  assert not found.any()


def test_unknown_estimator_is_named():
  with pytest.raises(ValueError, match="'ppo'; expected one of"):
    advantages.estimate(REWARDS, VALID, "ppo")


def test_zero_variance():
  assert advantages.zero_variance(REWARDS, VALID).tolist() == [False, True]
  assert advantages.zero_variance(REWARDS, np.zeros((2, 4), bool)).all()


def test_credit():
  both = advantages.token_advantages(1.0, -2.0, 5, 3, "all")
  assert both.tolist() == [1, 1, 1, 1, 1]
  split = advantages.token_advantages(1.0, -2.0, 5, 3, "split")
  assert split.tolist() == [-2, -2, -2, 1, 1]
  malformed = advantages.token_advantages(1.0, -2.0, 2, 0, "split")
  assert malformed.tolist() == [1, 1]


def test_the_strongest_rows_keep_their_order():
  values = np.array([0.1, 0.9, -1.0, 0.5, 0.5, 0.0], np.float32)
  assert advantages.strongest(values, 3).tolist() == [1, 3, 4]
  assert advantages.strongest(values, 5).tolist() == [0, 1, 3, 4, 5]
  assert advantages.strongest(values, 0).tolist() == [0, 1, 2, 3, 4, 5]
