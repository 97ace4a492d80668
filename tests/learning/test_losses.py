"""KL and the clipped objective by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.learning import losses


def test_kl_estimators_by_hand():
  logprobs, reference = jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.25]]))
  values = {
    name: float(losses.kl_divergence(logprobs, reference, name)[0, 0])
    for name in losses.KL_ESTIMATORS
  }
  assert values["k1"] == pytest.approx(np.log(2), rel=1e-5)
  assert values["k2"] == pytest.approx(np.log(2) ** 2 / 2, rel=1e-5)
  assert values["k3"] == pytest.approx(0.5 - 1 + np.log(2), rel=1e-5)
  with pytest.raises(ValueError, match="'k4'"):
    losses.kl_divergence(logprobs, reference, "k4")


def test_the_gradient_of_each_kl_estimator_knows_the_reference():
  """The mean gradient over the tokens of a policy of three, as they are drawn: without one."""
  policy = jnp.array([0.3, -1.0, 2.0])
  reference = jax.nn.log_softmax(jnp.array([2.0, 0.0, -1.0]))

  def exact(logits, reference=reference):
    logprobs = jax.nn.log_softmax(logits)
    return (jnp.exp(logprobs) * (logprobs - reference)).sum()

  def reverse(logits):
    return (jnp.exp(reference) * (reference - jax.nn.log_softmax(logits))).sum()

  def estimated(logits, estimator, reference=reference):
    drawn = jax.lax.stop_gradient(jax.nn.softmax(logits))
    logprobs = jax.nn.log_softmax(logits)
    return (drawn * losses.kl_divergence(logprobs[None], reference[None], estimator)).sum()

  expected = {"k1": exact, "k2": exact, "k3": reverse}
  for estimator in losses.KL_ESTIMATORS:
    found = jax.grad(estimated)(policy, estimator)
    np.testing.assert_allclose(found, jax.grad(expected[estimator])(policy), atol=1e-6)
    still = jax.grad(estimated)(policy, estimator, jax.nn.log_softmax(policy))
    np.testing.assert_allclose(still, 0, atol=1e-6)
  for unbiased in ("k1", "k3"):
    assert float(estimated(policy, unbiased)) == pytest.approx(float(exact(policy)), rel=1e-5)


def _policy(logprobs, advantages, old=None, sampler=None, reference=None, **settings):
  """The policy loss of tokens given as flat lists, each of the same weight."""
  array = lambda values: jnp.asarray([values], jnp.float32)  # noqa: E731
  weights = jnp.full((1, len(advantages)), 1 / len(advantages))
  zeros = jnp.zeros((1, len(advantages)), jnp.int32)
  batch = losses.PolicyBatch(
    losses.Sequences(zeros, zeros, zeros, weights),
    array(advantages),
    array(sampler if sampler is not None else logprobs),
    None if old is None else array(old),
    None if reference is None else array(reference),
  )
  defaults = {"clip_low": 0.2, "clip_high": 0.3, "kl_coef": 0.0, "importance_cap": 2.0}
  settings = losses.PolicySettings(**{**defaults, **settings}, temperature=1.0, kl_estimator="k3")
  return losses.policy_loss(array(logprobs), batch, settings)


def test_ratio_is_one_at_the_first_inner_step():
  loss, parts = _policy([-1.0, -2.0], [3.0, -1.0])
  assert float(parts["ratio_mean"]) == 1
  assert float(parts["ratio_max"]) == 1
  assert float(parts["clip_share"]) == 0
  assert float(loss) == -1.0


def test_clipping_by_hand():
  old = [0.0, 0.0, 0.0, 0.0]
  logprobs = np.log([1.5, 1.5, 0.5, 0.5])
  loss, parts = _policy(logprobs, [1.0, -1.0, 1.0, -1.0], old=old, sampler=old)
  # min(1.5, 1.3), min(-1.5, -1.3), min(0.5, 0.8), min(-0.5, -0.8)
  assert float(loss) == pytest.approx(-(1.3 - 1.5 + 0.5 - 0.8) / 4, rel=1e-5)
  assert float(parts["clip_share"]) == 1.0
  assert float(parts["ratio_max"]) == pytest.approx(1.5)


def test_importance_weight_is_truncated():
  old = np.log([0.9, 0.3])
  loss, parts = _policy(old, [1.0, 1.0], old=old, sampler=np.log([0.3, 0.6]))
  # 0.9 / 0.3 is cut to 2; 0.3 / 0.6 stays.
  assert float(loss) == pytest.approx(-(2.0 + 0.5) / 2, rel=1e-5)
  assert float(parts["mismatch_max"]) == pytest.approx(3.0, rel=1e-5)


def test_kl_term_pulls_towards_the_reference():
  loss, parts = _policy(np.log([0.5]), [0.0], reference=np.log([0.25]), kl_coef=0.1)
  assert float(parts["kl"]) == pytest.approx(np.log(2) - 0.5, rel=1e-5)
  assert float(loss) == pytest.approx(0.1 * (np.log(2) - 0.5), rel=1e-5)


@pytest.mark.parametrize("estimator", losses.KL_ESTIMATORS)
@pytest.mark.parametrize("unlikely", [-90.0, -500.0, -np.inf])  # expm1(90) is infinite in float32
def test_a_token_without_a_weight_leaves_no_trace_however_unlikely_it_is(estimator, unlikely):
  batch = losses.PolicyBatch(
    losses.Sequences(*[jnp.zeros((1, 2), jnp.int32)] * 3, jnp.array([[1.0, 0.0]])),
    advantages=jnp.zeros((1, 2)),
    sampler_logprobs=jnp.array([[-1.0, 0.0]]),
    old_logprobs=None,
    reference_logprobs=jnp.array([[-2.0, 0.0]]),
  )
  settings = losses.PolicySettings(0.2, 0.2, 1.0, 2.0, temperature=1.0, kl_estimator=estimator)

  def loss(second):
    return losses.policy_loss(jnp.stack([jnp.float32(-1), second])[None], batch, settings)

  (value, parts), slope = jax.value_and_grad(loss, has_aux=True)(jnp.float32(unlikely))
  likely, expected = loss(jnp.float32(-1.0))
  assert float(value) == float(likely) != 0
  assert jax.tree.map(float, parts) == jax.tree.map(float, expected)
  assert float(slope) == 0
