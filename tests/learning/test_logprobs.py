"""Scoring, and the loss with its gradient, against a direct computation."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.learning import losses
from pasmr_jax.learning.logprobs import Scoring, Sequences, token_logprobs, token_loss
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
  return Sequences(
    jnp.asarray(tokens * inside),
    jnp.broadcast_to(jnp.arange(length), tokens.shape),
    jnp.asarray(inside, jnp.int32),
    jnp.asarray(weights, jnp.float32),
  )


def _scored(params, rows, temperature=1.0, chunk=0, where=None):
  scoring = Scoring(CONFIG, VALID_VOCAB, temperature, chunk)
  return jax.jit(lambda params, rows: token_logprobs(params, rows, scoring, where))(params, rows)


def _loss(params, rows, chunk=0):
  """The supervised loss as an update computes it."""

  def loss(logprobs, weights):
    return losses.supervised_loss(logprobs, weights), {"largest_max": (weights * logprobs**2).max()}

  return token_loss(params, rows, rows.weights, loss, Scoring(CONFIG, VALID_VOCAB, chunk=chunk))


def _entropy(logits, temperature):
  """- sum p log p in float64, of logits of which only the valid ones are given."""
  logits = np.asarray(logits, np.float64) / temperature
  logits -= logits.max(axis=-1, keepdims=True)
  p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  return -(p * np.log(p)).sum(axis=-1)


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


@pytest.mark.parametrize(("chunk", "temperature"), [(1, 1.0), (5, 0.6), (26, 1.0), (0, 0.6)])
def test_chunked_scores_equal_the_whole_softmax(params, chunk, temperature):
  rows = _rows()
  found = _scored(params, rows, temperature, chunk)
  np.testing.assert_allclose(found, _direct(params, rows, temperature), atol=2e-5)


@pytest.mark.parametrize("chunk", [3, 0])
def test_gradients_equal_the_whole_softmax(params, chunk):
  rows = _rows()
  chunked = jax.jit(jax.value_and_grad(lambda p: _loss(p, rows, chunk), has_aux=True))
  direct = jax.jit(
    jax.value_and_grad(lambda p: losses.supervised_loss(_direct(p, rows), rows.weights))
  )
  ((found, parts), gradients), (expected, wanted) = chunked(params), direct(params)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  largest = (rows.weights * _direct(params, rows) ** 2).max()
  np.testing.assert_allclose(parts["largest_max"], largest, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("chunk", "temperature"), [(1, 1.0), (5, 0.6), (0, 1.7)])
def test_exact_entropy_equals_the_whole_softmax(params, chunk, temperature, softcap):
  """Of each token by itself; what is padding or prompt has no part in it, whatever it holds."""
  config = dataclasses.replace(CONFIG, final_softcap=softcap)
  rows = _rows()
  # More peaked than random weights are, so that entropies differ from each other and from log 60.
  params = params | {"final_norm": {"scale": params["final_norm"]["scale"] + 24}}
  hidden, _ = transformer.Transformer(config).apply(
    {"params": params}, rows.tokens, rows.positions, rows.segment_ids
  )
  products = hidden @ transformer.output_table(params, config).T
  logits = transformer.finish_logits(products, config, VALID_VOCAB)[..., :VALID_VOCAB]
  expected = np.pad(_entropy(logits, temperature)[:, :-1], ((0, 0), (1, 0)))
  scoring = Scoring(config, VALID_VOCAB, temperature, chunk, entropy=True)

  @jax.jit
  def entropy(params, rows):
    def loss(logprobs, weights):
      return losses.supervised_loss(logprobs, weights), {}

    return token_loss(params, rows, rows.weights, loss, scoring)[1]["exact_entropy"]

  changed = rows.replace(tokens=jnp.where(rows.segment_ids > 0, rows.tokens, 9))
  weighted = np.asarray(rows.weights) > 0
  assert np.ptp(expected[weighted]) > 0.2
  for row, place in np.argwhere(weighted):
    one = np.zeros_like(rows.weights)
    one[row, place] = 0.5
    found = entropy(params, rows.replace(weights=one))
    assert float(found) == pytest.approx(0.5 * expected[row, place], abs=1e-5)
  whole = (np.asarray(rows.weights) * expected).sum()
  assert float(entropy(params, changed)) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("chunk", [3, 0])
def test_reporting_entropy_changes_no_gradient(params, chunk):
  rows = _rows()
  found = {}
  for on in (False, True):
    scoring = Scoring(CONFIG, VALID_VOCAB, chunk=chunk, entropy=on)

    def loss(params, scoring=scoring):
      def supervised(logprobs, weights):
        return losses.supervised_loss(logprobs, weights), {"sum": logprobs.sum()}

      return token_loss(params, rows, rows.weights, supervised, scoring)

    found[on] = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  ((total, parts), gradients), ((same, more), others) = found[False], found[True]
  assert parts.keys() == {"sum"}
  assert more.keys() == {"sum", "exact_entropy"}
  np.testing.assert_allclose((total, parts["sum"]), (same, more["sum"]), rtol=1e-6)
  for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-7, rtol=1e-6)


def test_a_loss_may_be_scaled_and_added_to(params):
  """What is around `token_loss` has its gradient too."""
  rows = _rows()
  once = jax.jit(jax.grad(lambda p: _loss(p, rows)[0]))(params)
  scaled = jax.jit(jax.grad(lambda p: 3 * _loss(p, rows)[0] + p["final_norm"]["scale"].sum()))
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(scaled(params)), jax.tree.leaves(once), strict=True
  ):
    added = 1.0 if path[0].key == "final_norm" else 0.0
    np.testing.assert_allclose(a, 3 * b + added, atol=1e-5, rtol=1e-5)


def test_prompt_and_padding_leave_no_trace(params):
  """The loss and its gradient are those of the weighted tokens only: others may be anything."""
  rows = _rows()
  weighted = np.asarray(rows.weights) > 0
  logprobs = _scored(params, rows, where=weighted)
  assert (np.asarray(logprobs)[~weighted] == 0).all()
  np.testing.assert_allclose(
    np.asarray(logprobs)[weighted], np.asarray(_direct(params, rows))[weighted], atol=2e-5
  )
  # Changing what follows a row's end changes nothing, but for its padding's own hidden states.
  changed = rows.replace(tokens=jnp.where(rows.segment_ids > 0, rows.tokens, 9))
  np.testing.assert_array_equal(_scored(params, rows), _scored(params, changed))
  gradient = jax.jit(jax.grad(lambda p, rows: _loss(p, rows)[0]))
  for a, b in zip(
    jax.tree.leaves(gradient(params, rows)),
    jax.tree.leaves(gradient(params, changed)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("chunk", [5, 26])
def test_tokens_that_fill_a_chunk_may_be_of_any_probability(params, chunk):
  """A loss that hides its infinite values alone would have slopes that are no numbers."""
  rows = _rows()

  def hiding(logprobs, weights):
    infinite = jnp.expm1(-1e4 * jnp.where(weights > 0, 0.0, logprobs))
    return -jnp.where(weights > 0, weights * logprobs, 0 * infinite).sum(), {}

  def gradient(params):
    scoring = Scoring(CONFIG, VALID_VOCAB, chunk=chunk)
    return token_loss(params, rows, rows.weights, hiding, scoring)[0]

  expected = jax.jit(jax.grad(lambda p: _loss(p, rows, chunk)[0]))(params)
  for a, b in zip(
    jax.tree.leaves(jax.jit(jax.grad(gradient))(params)), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("entropy", [False, True])
def test_no_program_has_the_logits_of_all_tokens(entropy):
  """In what is compiled no array has a number for each token of the rows and the vocabulary."""
  config = dataclasses.replace(CONFIG, vocab_size=96)
  params = jax.jit(lambda: transformer.init_params(config, jax.random.key(0)))()
  rows, chunk = _rows((40, 33), 40), 8
  scoring = Scoring(config, VALID_VOCAB, chunk=chunk, entropy=entropy)

  def loss(params):
    def supervised(logprobs, weights):
      return losses.supervised_loss(logprobs, weights), {}

    return token_loss(params, rows, rows.weights, supervised, scoring)

  score = jax.jit(lambda params: token_logprobs(params, rows, scoring))
  for function in (score, jax.jit(jax.value_and_grad(loss, has_aux=True))):
    hlo = function.lower(params).compile().as_text()
    found = (dims.split(",") for dims in re.findall(r"\[([\d,]+)\]", hlo))
    sizes = {math.prod(map(int, dims)) for dims in found if str(config.vocab_size) in dims}
    # A chunk's logits, the table and its gradient; the logits of all 80 tokens would be more.
    assert chunk * config.vocab_size in sizes
    assert max(sizes) == config.embed_dim * config.vocab_size


def test_first_token_of_a_packed_segment_is_no_target(params):
  rows = _rows((12,), 12)
  packed = rows.replace(
    segment_ids=jnp.array([[1] * 5 + [2] * 7]),
    positions=jnp.array([[*range(5), *range(7)]]),
  )
  found = _scored(params, packed)
  assert found[0, 0] == 0
  assert found[0, 5] == 0
  second = Sequences(
    rows.tokens[:, 5:], jnp.arange(7)[None], jnp.ones((1, 7), jnp.int32), rows.weights[:, 5:]
  )
  alone = _scored(params, second)
  np.testing.assert_allclose(found[0, 5:], alone[0], atol=1e-5)


def test_weights_normalize_to_one_and_nothing_stays_nothing():
  rows = _rows()
  assert float(losses.normalized(rows).weights.sum()) == pytest.approx(1.0)
  empty = rows.replace(weights=jnp.zeros_like(rows.weights))
  assert float(losses.normalized(empty).weights.sum()) == 0.0
