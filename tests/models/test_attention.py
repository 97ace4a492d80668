import jax.numpy as jnp
import numpy as np

from pasmr_jax.models.attention import (
  attend,
  attend_by_group,
  attend_by_head,
  cache_mask,
  init_cache,
  segment_mask,
)


def test_segment_mask_is_the_worked_example():
  expected = [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [0, 0, 1, 0, 0],
    [0, 0, 1, 1, 0],
    [0, 0, 0, 0, 0],
  ]
  np.testing.assert_array_equal(segment_mask(jnp.array([[1, 1, 2, 2, 0]]))[0], expected)


def test_cache_mask_is_the_worked_example():
  mask = cache_mask(jnp.array([1, 0]), jnp.int32(2), length=2, slots=5)
  np.testing.assert_array_equal(mask[0], [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
  np.testing.assert_array_equal(mask[1], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])


def test_attend_equals_attention_written_out():
  rng = np.random.default_rng(0)
  queries = rng.normal(size=(2, 3, 4, 8)).astype(np.float32)
  keys, values = rng.normal(size=(2, 2, 2, 5, 8)).astype(np.float32)
  mask = rng.random((2, 3, 5)) < 0.7
  mask[..., 0] = True
  found = attend(jnp.array(queries), jnp.array(keys), jnp.array(values), jnp.array(mask), 3.0)
  for b in range(2):
    for t in range(3):
      for head in range(4):
        scores = keys[b, head // 2] @ queries[b, t, head]
        weights = np.where(mask[b, t], np.exp(3.0 * np.tanh(scores / 3.0)), 0.0)
        expected = weights / weights.sum() @ values[b, head // 2]
        np.testing.assert_allclose(found[b, t, head], expected, atol=1e-5)


def test_one_token_is_attended_the_same_by_head_and_by_group():
  rng = np.random.default_rng(1)
  queries = jnp.array(rng.normal(size=(3, 1, 6, 8)), jnp.float32)
  keys, values = jnp.array(rng.normal(size=(2, 3, 2, 5, 8)), jnp.float32)
  mask = jnp.array([[[1, 1, 0, 0, 0]], [[0, 0, 1, 1, 1]], [[1, 1, 1, 1, 1]]], bool)
  expected = attend_by_group(queries, keys, values, mask, 4.0)
  for found in (
    attend_by_head(queries, keys, values, mask, 4.0),
    attend(queries, keys, values, mask, 4.0),
  ):
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_query_with_nothing_to_see_gives_no_nan():
  ones = jnp.ones((1, 1, 2, 4))
  found = attend(
    ones, jnp.ones((1, 2, 3, 4)), jnp.ones((1, 2, 3, 4)), jnp.zeros((1, 1, 3), bool), None
  )
  assert np.isfinite(found).all()


def test_init_cache_is_empty_and_of_the_asked_dtype(small):
  cache = init_cache(small, batch=3, length=7, dtype="bfloat16")
  assert cache.keys.shape == cache.values.shape == (4, 3, 2, 7, 8)
  assert cache.keys.dtype == jnp.bfloat16
  assert cache.index == 0
  assert cache.start.tolist() == [0, 0, 0]
