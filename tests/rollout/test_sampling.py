"""Sampling: exact in distribution, truncated as asked, the right log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.rollout import sampling

LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))


def _settings(temperature=1.0, **truncation):
  return sampling.make_sampling(temperature, (1,), **truncation)


def _draw(logits, settings, draws, seed=0):
  keys = jax.random.split(jax.random.key(seed), draws)
  rows = jnp.broadcast_to(jnp.asarray(logits), (draws, len(logits)))
  return jax.tree.map(np.asarray, jax.jit(sampling.sample)(rows, keys, settings))


def _expected(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
  """The textbook definition, with a sort."""
  p = np.exp(logits / temperature - np.logaddexp.reduce(logits / temperature))
  keep = np.ones(len(p), bool)
  order = np.argsort(-p)
  if top_k:
    keep[order[top_k:]] = False
  if top_p < 1:
    kept = p * keep / (p * keep).sum()
    before = np.cumsum(kept[order]) - kept[order]
    keep[order[before >= top_p - 1e-6]] = False
  keep &= p >= min_p * p.max()
  return p * keep / (p * keep).sum()


@pytest.mark.parametrize(
  ("vocabulary", "size"),
  [(1, 1), (5, 4), (768, 32), (128_256, 32), (151_936, 16), (256_000, 256), (262_144, 512)],
)
def test_blocks_divide_over_eight_devices_where_ids_do(vocabulary, size):
  assert sampling.block_size(vocabulary) == size
  assert (vocabulary % (8 * size) == 0) == (vocabulary >= 768)


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 2},
    {"top_p": 0.65},
    {"top_p": 0.75},
    {"min_p": 0.3},
    {"top_k": 4, "top_p": 0.8, "temperature": 1.5},
  ],
)
def test_frequencies_are_those_of_the_textbook(settings):
  draws = 40_000
  tokens, _ = _draw(LOGITS, _settings(**settings), draws)
  frequency = np.bincount(tokens, minlength=5) / draws
  expected = _expected(LOGITS, **settings)
  assert frequency[expected == 0].sum() == 0
  # Five standard errors of a frequency.
  assert np.all(np.abs(frequency - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws))


def test_a_large_vocabulary_keeps_exactly_the_textbook_set():
  logits = np.random.default_rng(0).normal(size=5000).astype(np.float32) * 2
  tokens, _ = _draw(logits, _settings(top_k=300, top_p=0.6), 20_000)
  kept = _expected(logits, top_k=300, top_p=0.6) > 0
  assert kept[tokens].all()
  # Nearly every kept id is drawn at least once.
  assert len(np.unique(tokens)) > 0.9 * kept.sum()


def _shapes():
  random = np.random.default_rng(0)
  ids = 30_000
  flat = random.normal(size=ids)
  zipf = -np.log(np.arange(1, ids + 1))
  return {
    "nearly flat": flat * 0.3,
    "normal": flat * 2,
    "few that weigh all": zipf * 4,
    "a long tail": zipf + flat * 0.1,
    "two levels": np.where(random.random(ids) < 1e-3, 9.0, flat),
    "all the same": np.zeros(ids),
    "two values": np.where(random.random(ids) < 0.5, 1.0, 0.0),
    "one id": np.where(np.arange(ids) == 7, 0.0, -1e30),
  }


@pytest.mark.parametrize("name", _shapes())
def test_the_smallest_set_is_kept_whatever_the_shape_of_the_distribution(name):
  logits = np.float32(_shapes()[name])
  blocks = jnp.asarray(sampling._blocked(jnp.asarray(logits)[None]))
  weights = jnp.exp(blocks - logits.max())
  find = jax.jit(sampling.truncation_threshold)
  exact = np.sort(np.exp(np.float64(logits - logits.max())))[::-1]
  rounding = 3e-6 * exact.sum()
  for top_p in (0.05, 0.3, 0.7, 0.95, 0.999):
    least = find(weights, weights.sum((0, 2)), _settings(top_p=top_p).for_rows(1))
    kept = exact[exact >= float(least[0]) * (1 - 1e-6)]
    wanted = top_p * exact.sum()
    assert kept.sum() >= wanted - rounding
    # Without its least likely ids, all of them that weigh the same, it would not be enough.
    assert kept[kept > kept[-1] * (1 + 1e-6)].sum() < wanted + rounding
  for top_k in (1, 2, 40, 5_000):
    least = find(weights, weights.sum((0, 2)), _settings(top_k=top_k).for_rows(1))
    kept = np.asarray(weights)[np.asarray(weights) >= float(least[0])]
    kept = kept[kept > 0]
    wanted = min(top_k, int((np.asarray(weights) > 0).sum()))
    assert (kept > kept.min()).sum() < wanted <= len(kept)


def test_greedy_takes_the_likeliest_and_needs_no_noise():
  tokens, logprobs = _draw(LOGITS, _settings(0.0), 100)
  assert (tokens == 0).all()
  np.testing.assert_allclose(logprobs, np.log(0.4), rtol=1e-5)


def test_logprobs_are_of_the_tempered_policy_whatever_is_left_of_it():
  tokens, logprobs = _draw(LOGITS, _settings(0.7, top_k=2), 200)
  policy = np.log(_expected(LOGITS, temperature=0.7))
  np.testing.assert_allclose(logprobs, policy[tokens], rtol=1e-4)


def test_forbidden_ids_are_never_drawn():
  logits = np.full(1500, -1e30, np.float32)
  logits[[3, 700, 1499]] = 0.0
  tokens, _ = _draw(logits, _settings(), 3000)
  assert set(np.unique(tokens)) == {3, 700, 1499}


def test_a_row_depends_on_its_own_key_only():
  keys = jax.random.split(jax.random.key(0), 4)
  logits = jax.random.normal(jax.random.key(1), (4, 50))
  tokens, _ = sampling.sample(logits, keys, _settings())
  order = jnp.array([2, 0, 3, 1])
  shuffled, _ = sampling.sample(logits[order], keys[order], _settings())
  assert (tokens[order] == shuffled).all()


@pytest.mark.parametrize(
  ("settings", "named"),
  [
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_k": -1}, "top_k is -1"),
    ({"min_p": 1.0}, "min_p is 1.0"),
  ],
)
def test_bad_settings_are_named(settings, named):
  with pytest.raises(ValueError, match=named):
    _settings(**settings)


def test_changing_settings_does_not_recompile():
  traces = 0

  @jax.jit
  def compiled(*args):
    nonlocal traces
    traces += 1
    return sampling.sample(*args)

  keys = jax.random.split(jax.random.key(0), 2)
  for settings in (_settings(), _settings(0.0), _settings(0.3, top_k=3, top_p=0.5)):
    compiled(jnp.stack([LOGITS, LOGITS]), keys, settings)
  assert traces == 1
