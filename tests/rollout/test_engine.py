"""The sampling loop against the scorer, and what must not change a sample."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.learning import losses
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import Transformer, init_params, output_table
from pasmr_jax.parallel import mesh as meshes
from pasmr_jax.parallel import rules
from pasmr_jax.parallel.mesh import make_mesh, param_shardings
from pasmr_jax.rollout.engine import Engine, left_padded
from pasmr_jax.rollout.sampling import make_sampling

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
  sliding_window=6,
  qk_norm=True,
)
VALID_VOCAB = 60
STOPS = (1, 7)
PROMPTS = [[5, 9, 12], [8, 8, 30, 31, 32, 33, 34, 35], [40], [11, 2, 3, 4]]
NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(-1, 2)  # 4 x 2


def _shardings(mesh):
  return param_shardings(CONFIG, mesh, rules.DECODING)


@pytest.fixture(scope="module")
def params(mesh):
  initialize = jax.jit(lambda key: init_params(CONFIG, key), out_shardings=_shardings(mesh))
  return initialize(jax.random.key(0))


@pytest.fixture(scope="module")
def engine(mesh):
  return Engine(CONFIG, mesh, _shardings(mesh), VALID_VOCAB, prompt_bucket=8, max_rows=0)


def _generate(
  engine, params, prompts=PROMPTS, names=NAMES, seed=0, temperature=1.0, samples=3, **kw
):
  sampling = make_sampling(temperature, STOPS, **kw)
  with jax.set_mesh(engine.mesh):
    return engine.generate(
      params,
      prompts,
      names,
      jax.random.key(seed),
      sampling,
      samples=samples,
      max_new_tokens=24,
      max_prompt_length=8,
    )


@pytest.fixture(scope="module")
def rollouts(engine, params):
  return _generate(engine, params)


def test_shapes_stops_and_truncation(rollouts):
  assert rollouts.tokens.shape == (12, 24)
  for tokens, length, truncated in zip(
    rollouts.tokens, rollouts.lengths, rollouts.truncated, strict=True
  ):
    inside, after = tokens[:length], tokens[length:]
    assert truncated == (inside[-1] not in STOPS)
    assert not np.isin(inside[:-1], STOPS).any()
    assert not after.any()
    assert length == 24 or not truncated
  assert rollouts.truncated.any()
  assert not rollouts.truncated.all()
  assert (rollouts.tokens < VALID_VOCAB).all()
  # Both stop ids end rows.
  ends = rollouts.tokens[np.arange(12), rollouts.lengths - 1][~rollouts.truncated]
  assert set(ends) == set(STOPS)


def _scored(params, prompt, tokens, temperature=1.0):
  row = np.array([[*prompt, *tokens]], np.int32)
  ones = np.ones_like(row)
  rows = losses.Sequences(row, np.arange(row.shape[1])[None], ones, ones.astype(np.float32))
  score = functools.partial(losses.token_logprobs, config=CONFIG, valid_vocab=VALID_VOCAB)
  scored = jax.jit(score)(params, rows, temperature=temperature)
  return np.asarray(scored)[0, len(prompt) :]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampler_and_scorer_agree(engine, params, temperature):
  """Also past the sliding window, with ragged prompts: positions and masks are right."""
  rollouts = _generate(engine, params, temperature=temperature)
  for row in range(0, 12, 2):
    length = rollouts.lengths[row]
    expected = _scored(params, PROMPTS[row // 3], rollouts.tokens[row, :length], temperature)
    np.testing.assert_allclose(rollouts.logprobs[row, :length], expected, atol=1e-4)


def test_noise_differs_by_row_and_step_and_returns(engine, params, rollouts):
  first_tokens = rollouts.tokens[:3]
  assert not (first_tokens[0] == first_tokens[1]).all()
  again, other = _generate(engine, params), _generate(engine, params, seed=1)
  np.testing.assert_array_equal(again.tokens, rollouts.tokens)
  assert not (other.tokens == rollouts.tokens).all(axis=1).any()


def test_order_and_chunks_do_not_change_a_row(engine, params, rollouts):
  order = [2, 0, 3, 1]
  small = dataclasses.replace(engine, max_rows=12)  # chunks of 4 prompts: the fsdp axis
  prompts = [PROMPTS[i] for i in order] + [[50, 51]]
  names = [NAMES[i] for i in order] + ["e"]
  shuffled = _generate(small, params, prompts, names)
  for place, original in enumerate(order):
    mine, theirs = slice(3 * place, 3 * place + 3), slice(3 * original, 3 * original + 3)
    np.testing.assert_array_equal(shuffled.tokens[mine], rollouts.tokens[theirs])
    np.testing.assert_allclose(shuffled.logprobs[mine], rollouts.logprobs[theirs], atol=1e-5)


def test_one_device_equals_eight(params, rollouts):
  one = jax.sharding.Mesh(
    np.array(jax.devices()[:1]).reshape(1, 1),
    ("fsdp", "tensor"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  alone = Engine(CONFIG, one, _shardings(one), VALID_VOCAB, prompt_bucket=8, max_rows=0)
  local = jax.device_put(jax.device_get(params), jax.devices()[0])
  found = _generate(alone, local)
  np.testing.assert_array_equal(found.tokens, rollouts.tokens)
  np.testing.assert_allclose(found.logprobs, rollouts.logprobs, atol=1e-5)


def test_greedy_is_the_scorers_argmax(engine, params):
  rollouts = _generate(engine, params, temperature=0.0, samples=1)
  prompt, length = PROMPTS[1], rollouts.lengths[1]
  tokens = rollouts.tokens[1, :length]
  row = jnp.array([[*prompt, *tokens]], jnp.int32)
  hidden, _ = Transformer(CONFIG).apply(
    {"params": params}, row, jnp.arange(row.shape[1])[None], jnp.ones_like(row)
  )
  logits = np.asarray(hidden @ output_table(params, CONFIG).T)[0, :, :VALID_VOCAB]
  np.testing.assert_array_equal(logits.argmax(-1)[len(prompt) - 1 : -1], tokens)


def test_settings_and_lengths_within_a_bucket_do_not_recompile(engine, params):
  from pasmr_jax.rollout import engine as module

  _generate(engine, params)
  traces = []
  original = module.transformer.output_table

  def counted(*args):
    traces.append(1)
    return original(*args)

  module.transformer.output_table = counted
  try:
    _generate(engine, params, temperature=0.3, top_k=5, top_p=0.9)
    _generate(engine, params, temperature=0.0)
    _generate(engine, params, prompts=[[5], [6, 7], [8], [9]])
    assert not traces
    _generate(engine, params, samples=2)
    assert traces  # the count does count
  finally:
    module.transformer.output_table = original


def test_no_prompts_no_rollouts(engine, params):
  empty = _generate(engine, params, prompts=[], names=[])
  assert empty.tokens.shape == (0, 24)


def test_prompts_that_do_not_fit_are_refused(engine, params):
  with pytest.raises(ValueError, match="'a' has 9 tokens; expected 1 to 8"):
    _generate(engine, params, prompts=[[3] * 9], names=["a"])
  with pytest.raises(ValueError, match="'b' has 0 tokens"):
    _generate(engine, params, prompts=[[]], names=["b"])


def test_left_padding():
  tokens, starts = left_padded([[1, 2], [3]], 3)
  assert tokens.tolist() == [[0, 1, 2], [0, 0, 3]]
  assert starts.tolist() == [1, 2]


@pytest.mark.parametrize(
  ("prompts", "decoded"), [(1, [4]), (5, [8]), (9, [16]), (32, [32]), (33, [32, 4])]
)
def test_few_prompts_are_not_decoded_as_many(engine, params, monkeypatch, prompts, decoded):
  """Of 32 prompts a chunk: a power of two for each of the four devices that share the rows."""
  from pasmr_jax.rollout import engine as module

  sizes = []

  def recorded(params, tokens, starts, keys, sampling, **settings):
    sizes.append(tokens.shape[0])
    shape = (tokens.shape[0] * settings["samples"], settings["max_new_tokens"])
    ids, floats = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    rollouts = module.Rollouts(ids, floats, floats, ids[:, 0], ids[:, 0] > 0)
    return meshes.shard_batch(rollouts, engine.mesh)

  monkeypatch.setattr(module, "generate", recorded)
  chunked = dataclasses.replace(engine, max_rows=96)
  rollouts = _generate(chunked, params, [[5]] * prompts, ["a"] * prompts)
  assert sizes == decoded
  assert len(rollouts.lengths) == 3 * prompts
