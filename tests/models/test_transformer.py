import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.models.cache import begin_rows, init_cache, settle
from pasmr_jax.models.transformer import (
  Transformer,
  _look_up,
  decode_step,
  init_params,
  logical_axes,
  logits,
  output_table,
  unstacked,
)

LENGTHS = (16, 11, 4)  # of the rows of `tokens`; the last prompts below are shorter still


@pytest.fixture(scope="module", autouse=True)
def exact():
  with jax.default_matmul_precision("highest"):
    yield


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, tokens, positions=None, segment_ids=None):
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  if segment_ids is None:
    segment_ids = jnp.ones_like(tokens)
  return Transformer(config).apply({"params": params}, tokens, positions, segment_ids)[0]


@functools.partial(jax.jit, static_argnums=0)
def prefill(config, params, tokens, positions, segment_ids):
  model = Transformer(config, keep=True)
  return model.apply({"params": params}, tokens, positions, segment_ids)


@functools.partial(jax.jit, static_argnums=3)
def step(params, tokens, cache, config):
  hidden, cache = decode_step(params, tokens, cache, config)
  full = cache.taken == cache.recent[0].values.shape[2]
  return hidden, jax.lax.cond(full, lambda: settle(cache), lambda: cache)


def init(config, seed):
  return jax.jit(init_params, static_argnums=0)(config, jax.random.key(seed))


def decode(config, params, rows, prompt_lengths, slots):
  """Hidden states of every row's tokens through a cache: left-padded prompts, then one by one.

  Rows with fewer tokens than the longest go on with token 0, which nobody reads.
  """
  config, params = dataclasses.replace(config, stacked=False), unstacked(params)
  width, starts = max(prompt_lengths), [max(prompt_lengths) - n for n in prompt_lengths]
  prompts = jnp.array(
    [[0] * start + row[:n] for start, row, n in zip(starts, rows, prompt_lengths, strict=True)]
  )
  segment_ids = (jnp.arange(width) >= jnp.array(starts)[:, None]).astype(jnp.int32)
  positions = jnp.maximum(jnp.arange(width) - jnp.array(starts)[:, None], 0)
  cache = init_cache(config, len(rows), slots, recent=3)
  for _ in range(3):  # others have been here before
    _, cache = step(params, jnp.full(len(rows), 7), cache, config)
  hidden, prefix = prefill(config, params, prompts, positions, segment_ids)
  every = jnp.arange(len(rows))
  cache = begin_rows(cache, prefix, jnp.array(prompt_lengths), every, every, len(rows))
  found = [hidden]
  steps = max(len(row) - n for row, n in zip(rows, prompt_lengths, strict=True))
  for t in range(steps):
    tokens = jnp.array(
      [(row + [0] * steps)[n + t] for row, n in zip(rows, prompt_lengths, strict=True)]
    )
    hidden, cache = step(params, tokens, cache, config)
    found.append(hidden[:, None])
  assert cache.index + cache.taken == 3 + steps
  assert cache.lengths.tolist() == [n + steps for n in prompt_lengths]
  everything = jnp.concatenate(found, axis=1)
  return [
    everything[b, start : start + len(row)]
    for b, (start, row) in enumerate(zip(starts, rows, strict=True))
  ]


@pytest.mark.parametrize("unroll", [1, 2, 4])
def test_unrolled_layers_compute_the_same(small, params, tokens, unroll):
  config = dataclasses.replace(small, scan_unroll=unroll)
  expected = forward(small, params, tokens)
  np.testing.assert_allclose(forward(config, params, tokens), expected, atol=1e-5)
  apart = dataclasses.replace(small, stacked=False)
  np.testing.assert_allclose(forward(apart, unstacked(params), tokens), expected, atol=1e-5)


def test_cached_decode_equals_teacher_forcing_past_the_window(small, params, tokens):
  rows = [row[:n] for row, n in zip(tokens.tolist(), LENGTHS, strict=True)]
  found = decode(small, params, rows, prompt_lengths=(9, 3, 1), slots=24)
  assert min(len(row) for row in rows[:2]) > 2 * small.sliding_window
  for expected, hidden in zip(forward(small, params, tokens), found, strict=True):
    np.testing.assert_allclose(hidden, expected[: len(hidden)], atol=1e-5)


def test_cached_decode_of_the_other_families(llama_like, tokens):
  params = init(llama_like, 3)
  rows = [row[:n] for row, n in zip(tokens.tolist(), LENGTHS, strict=True)]
  found = decode(llama_like, params, rows, prompt_lengths=(7, 8, 2), slots=20)
  for expected, hidden in zip(forward(llama_like, params, tokens), found, strict=True):
    np.testing.assert_allclose(hidden, expected[: len(hidden)], atol=1e-5)


def test_packed_segments_equal_separate_rows(small, params, tokens):
  first, second, third = (row[:n] for row, n in zip(tokens.tolist(), (9, 12, 3), strict=True))
  packed = jnp.array([first + second + third + [0, 0]])
  segment_ids = jnp.array([[1] * 9 + [2] * 12 + [3] * 3 + [0, 0]])
  positions = jnp.array([[*range(9), *range(12), *range(3), 0, 0]])
  found = forward(small, params, packed, positions, segment_ids)[0]
  for expected, at, length in zip(
    forward(small, params, tokens), (0, 9, 21), (9, 12, 3), strict=True
  ):
    np.testing.assert_allclose(found[at : at + length], expected[:length], atol=1e-5)


def test_a_token_changes_nothing_before_it_and_local_layers_forget(small, params, tokens):
  changed = tokens.at[:, 6].set((tokens[:, 6] + 1) % small.vocab_size)
  moved = jnp.abs(forward(small, params, changed) - forward(small, params, tokens)).max((0, 2))
  assert (moved[:6] == 0).all()
  assert (moved[6:] > 1e-4).all()

  one = dataclasses.replace(small, attention_pattern=("local",), num_layers=1)
  first = {**params, "layers": jax.tree.map(lambda x: x[:1], params["layers"])}
  moved = jnp.abs(forward(one, first, changed) - forward(one, first, tokens)).max((0, 2))
  assert (moved[6 : 6 + small.sliding_window] > 1e-5).all()
  assert (moved[6 + small.sliding_window :] == 0).all()


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputing_changes_no_gradient(small, params, tokens, remat):
  def loss(params, config):
    return jnp.mean(jnp.square(forward(config, params, tokens) - 0.5))

  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  plain = gradient(params, small)
  recomputed = gradient(params, dataclasses.replace(small, remat=remat))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, recomputed)


def test_bfloat16_computation_stays_near_and_returns_its_dtype(small, params, tokens):
  config = dataclasses.replace(small, dtype="bfloat16")
  found = forward(config, params, tokens)
  expected = forward(small, params, tokens)
  assert found.dtype == jnp.bfloat16
  assert jnp.abs(found.astype(jnp.float32) - expected).mean() < 0.05 * jnp.abs(expected).mean()


def test_logits_are_float32_capped_and_masked(small, params, tokens):
  hidden = 100.0 * forward(small, params, tokens).astype(jnp.bfloat16)
  table = output_table(params, small)
  found = logits(hidden, table, small, valid_vocab=60)
  assert found.dtype == jnp.float32
  assert found.shape == (3, 16, 64)
  assert (found[..., 60:] == -1e30).all()
  assert jnp.abs(found[..., :60]).max() <= small.final_softcap
  uncapped = hidden.astype(jnp.float32) @ table.astype(jnp.bfloat16).astype(jnp.float32).T
  np.testing.assert_allclose(found[..., :60], 10 * np.tanh(uncapped / 10)[..., :60], atol=1e-3)


def test_output_table_is_the_embedding_or_the_head(small, params, llama_like):
  assert output_table(params, small) is params["embedding"]
  untied = init(llama_like, 0)
  assert output_table(untied, llama_like) is untied["head"]


def test_every_weight_names_its_axes(small):
  shapes = jax.eval_shape(lambda: init_params(small, jax.random.key(0)))
  axes = logical_axes(small)
  assert tuple(axes["embedding"]) == ("vocab", "embed")
  assert tuple(axes["layers"]["attention"]["query"]) == ("layers", "embed", "heads", "head_dim")
  assert tuple(axes["layers"]["attention"]["key"]) == ("layers", "embed", "kv_heads", "head_dim")
  assert tuple(axes["layers"]["mlp"]["down"]) == ("layers", "mlp", "embed")
  sizes = {
    "layers": 4,
    "vocab": 64,
    "embed": 32,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "mlp": 48,
  }
  named = jax.tree.map(
    lambda shape, names: shape.shape == tuple(sizes[name] for name in names), shapes, axes
  )
  assert all(jax.tree.leaves(named))


def test_initialisation_keeps_activations_of_order_one(small, tokens):
  config = dataclasses.replace(small, post_norms=False, embed_dim=256, mlp_dim=512, head_dim=64)
  params = init(config, 0)
  mlp = params["layers"]["mlp"]
  assert jnp.std(mlp["down"]) == pytest.approx(512**-0.5, rel=0.05)
  assert jnp.std(params["layers"]["attention"]["output"]) == pytest.approx(256**-0.5, rel=0.05)
  assert jnp.std(params["embedding"]) == pytest.approx(256**-0.5, rel=0.05)


def test_a_token_that_a_batch_has_often_counts_each_time():
  """Summed in bfloat16, which is computed in, the gradient of its row would be half of this."""
  tokens = np.full((64, 64), 3, np.int32)
  weights = np.random.default_rng(0).normal(0.5, 1, (64, 64, 16)).astype(np.float32)

  def loss(table):
    return (_look_up(table, tokens, "bfloat16").astype(jnp.float32) * weights).sum()

  gradient = jax.jit(jax.grad(loss))(jnp.zeros((8, 16)))
  expected = np.zeros((8, 16))
  expected[3] = weights.astype(jnp.bfloat16).astype(np.float64).sum((0, 1))
  np.testing.assert_allclose(gradient, expected, rtol=1e-4)
