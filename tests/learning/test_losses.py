"""Scoring against a direct computation, KL and the clipped objective by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.learning import losses
from pasmr_jax.models import transformer
from pasmr_jax.models.config import TransformerConfig

CONFIG = TransformerConfig(
  vocab_size=64,
  embed_dim=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=64,
  query_scale=8**-0.5,
  attention_pattern=("local", "global"),
  sliding_window=5,
  qk_norm=True,
)
VALID_VOCAB = 60


@pytest.fixture(scope="module")
def params():
  return jax.jit(lambda: transformer.init_params(CONFIG, jax.random.key(0)))()


def _rows(lengths=(11, 7), length=13, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, VALID_VOCAB, (len(lengths), length)).astype(np.int32)
  inside = np.arange(length) < np.array(lengths)[:, None]
  weights = inside & (np.arange(length) >= 3)
  return losses.Sequences(
    jnp.asarray(tokens * inside),
    jnp.broadcast_to(jnp.arange(length), tokens.shape),
    jnp.asarray(inside, jnp.int32),
    jnp.asarray(weights, jnp.float32),
  )


def _scored(params, rows, temperature=1.0, chunk=128):
  score = lambda params, rows: losses.token_logprobs(  # noqa: E731
    params, rows, CONFIG, valid_vocab=VALID_VOCAB, temperature=temperature, chunk=chunk
  )
  return jax.jit(score)(params, rows)


@jax.jit
def _direct(params, rows, temperature=1.0):
  hidden, _ = transformer.Transformer(CONFIG).apply(
    {"params": params}, rows.tokens, rows.positions, rows.segment_ids
  )
  logits = hidden @ transformer.output_table(params, CONFIG).T
  logits = logits[..., :VALID_VOCAB] / temperature
  logprobs = jax.nn.log_softmax(logits, axis=-1)
  chosen = jnp.take_along_axis(logprobs[:, :-1], rows.tokens[:, 1:, None], axis=-1)[..., 0]
  return jnp.pad(chosen, ((0, 0), (1, 0))) * (rows.segment_ids > 0)


@pytest.mark.parametrize("chunk", [1, 5, 12, 200])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chunked_scores_equal_the_whole_softmax(params, chunk, temperature):
  rows = _rows()
  found = _scored(params, rows, temperature, chunk)
  np.testing.assert_allclose(found, _direct(params, rows, temperature), atol=2e-5)


def test_gradients_equal_the_whole_softmax(params):
  rows = _rows()
  chunked = jax.jit(
    jax.grad(lambda p: losses.supervised_loss(_scored(p, rows, chunk=4), rows.weights))
  )(params)
  direct = jax.jit(jax.grad(lambda p: losses.supervised_loss(_direct(p, rows), rows.weights)))(
    params
  )
  for a, b in zip(jax.tree.leaves(chunked), jax.tree.leaves(direct), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_prompt_and_padding_have_zero_gradient(params):
  """The gradient is that of the weighted tokens only: other targets may be anything."""
  rows = _rows()
  logprobs = _scored(params, rows)
  gradient = jax.grad(losses.supervised_loss)(logprobs, rows.weights)
  assert (np.asarray(gradient)[np.asarray(rows.weights) == 0] == 0).all()
  assert (np.asarray(gradient)[np.asarray(rows.weights) > 0] != 0).all()
  # Changing what follows a row's end changes nothing.
  changed = rows.replace(tokens=jnp.where(rows.segment_ids > 0, rows.tokens, 9))
  np.testing.assert_array_equal(_scored(params, rows), _scored(params, changed))


def test_first_token_of_a_packed_segment_is_no_target(params):
  rows = _rows((12,), 12)
  packed = rows.replace(
    segment_ids=jnp.array([[1] * 5 + [2] * 7]),
    positions=jnp.array([[*range(5), *range(7)]]),
  )
  found = _scored(params, packed)
  assert found[0, 0] == 0
  assert found[0, 5] == 0
  second = losses.Sequences(
    rows.tokens[:, 5:], jnp.arange(7)[None], jnp.ones((1, 7), jnp.int32), rows.weights[:, 5:]
  )
  alone = _scored(params, second)
  np.testing.assert_allclose(found[0, 5:], alone[0], atol=1e-5)


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


def test_weights_normalize_to_one_and_nothing_stays_nothing():
  rows = _rows()
  assert float(losses.normalized(rows).weights.sum()) == pytest.approx(1.0)
  empty = rows.replace(weights=jnp.zeros_like(rows.weights))
  assert float(losses.normalized(empty).weights.sum()) == 0.0
