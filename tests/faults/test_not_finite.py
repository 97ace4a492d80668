"""A loss or gradient that is not finite changes nothing; after too many the run stops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pasmr_jax.learning import losses
from pasmr_jax.learning.update import Learner
from pasmr_jax.models.transformer import init_params
from tests.faults.test_checkpoints import MODEL

pytestmark = pytest.mark.faults

KEPT = ("params", "opt_state", "average")


@pytest.fixture(scope="module")
def learner():
  return Learner(MODEL, optax.adamw(1e-2), valid_vocab=32, average_decay=0.9)


def _state(learner):
  params = jax.jit(lambda key: init_params(MODEL, key))(jax.random.key(3))
  return learner.init(params, average=True)


def _batch(weight=1.0):
  tokens = np.arange(16, dtype=np.int32).reshape(2, 8) % 32
  return losses.Sequences(
    jnp.asarray(tokens),
    jnp.tile(jnp.arange(8, dtype=jnp.int32), (2, 1)),
    jnp.ones((2, 8), jnp.int32),
    jnp.full((2, 8), weight, jnp.float32),
  )


def _copied(state):
  """Apart from the buffers that an update takes over."""
  return {name: jax.tree.map(np.array, getattr(state, name)) for name in KEPT}


def _equal(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_skipped_update_leaves_all_but_the_step(learner, value):
  state, _ = learner.update_supervised(_state(learner), _batch())
  before = _copied(state)
  state, metrics = learner.update_supervised(state, _batch(value))
  assert metrics["skipped_updates"] == 1
  assert not np.isfinite(metrics["loss"])
  assert int(state.step) == 2
  for name in KEPT:
    _equal(getattr(state, name), before[name])


def test_the_next_update_is_as_if_there_had_been_none(learner):
  skipped, _ = learner.update_supervised(_state(learner), _batch(np.nan))
  skipped, metrics = learner.update_supervised(skipped, _batch())
  whole, _ = learner.update_supervised(_state(learner), _batch())
  assert metrics["skipped_updates"] == 0
  for name in KEPT:
    _equal(getattr(skipped, name), getattr(whole, name))


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is(learner):
  state = _state(learner)
  # The square of a gradient of 1e30 is beyond float32, its loss is not.
  huge = jax.tree.map(lambda x: x * 1e30, state.params)
  before = jax.tree.map(np.array, huge)
  state, metrics = learner.update_supervised(state.replace(params=huge), _batch())
  assert metrics["skipped_updates"] == 1
  _equal(state.params, before)


def _rollout(**changes):
  """Two responses whose second half is learned from."""
  sequences = _batch().replace(weights=jnp.where(jnp.arange(8) < 4, 0.0, jnp.ones((2, 8))))
  drawn = jnp.full((2, 8), -3.0)
  given = dict.fromkeys(("sampler_logprobs", "old_logprobs", "reference_logprobs"), drawn)
  return losses.PolicyBatch(
    sequences=sequences, advantages=jnp.tile(jnp.array([[1.0], [-1.0]]), (1, 8)), **given | changes
  )


def _update_policy(learner, state, batch):
  settings = losses.PolicySettings(0.2, 0.2, 0.1, 2.0, 1.0, kl_estimator="k3")
  return learner.update_policy(state, batch, None, settings, jnp.float32(0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 5), (1, 5)])  # of a good and of a bad response
@pytest.mark.parametrize("which", ["sampler_logprobs", "old_logprobs", "reference_logprobs"])
def test_a_log_probability_that_is_not_finite_is_skipped(learner, which, place, value):
  state, _ = _update_policy(learner, _state(learner), _rollout())
  before = _copied(state)
  broken = jnp.full((2, 8), -3.0).at[place].set(value)
  state, metrics = _update_policy(learner, state, _rollout(**{which: broken}))
  assert metrics["skipped_updates"] == 1
  for name in KEPT:
    _equal(getattr(state, name), before[name])


def test_one_that_is_not_learned_from_does_not_matter(learner):
  broken = jnp.full((2, 8), -3.0).at[:, :4].set(-jnp.inf)
  given = dict.fromkeys(("sampler_logprobs", "old_logprobs", "reference_logprobs"), broken)
  found, metrics = _update_policy(learner, _state(learner), _rollout(**given))
  expected, _ = _update_policy(learner, _state(learner), _rollout())
  assert metrics["skipped_updates"] == 0
  for name in KEPT:
    _equal(getattr(found, name), getattr(expected, name))
