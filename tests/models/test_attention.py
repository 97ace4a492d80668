import jax.numpy as jnp
import numpy as np

from pasmr_jax.models.attention import (
  attend,
  attend_parts,
  segment_mask,
)
from pasmr_jax.models.cache import Stored


def test_segment_mask_is_the_worked_example():
  expected = [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [0, 0, 1, 0, 0],
    [0, 0, 1, 1, 0],
    [0, 0, 0, 0, 0],
  ]
  np.testing.assert_array_equal(segment_mask(jnp.array([[1, 1, 2, 2, 0]]))[0], expected)


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


def test_keys_in_several_arrays_are_attended_as_if_they_were_in_one():
  rng = np.random.default_rng(1)
  queries = jnp.array(rng.normal(size=(3, 1, 6, 8)), jnp.float32)
  keys, values = jnp.array(rng.normal(size=(2, 3, 2, 6, 8)), jnp.float32)
  mask = jnp.array([[[1, 1, 0, 0, 0, 1]], [[0, 0, 1, 1, 1, 1]], [[0, 0, 0, 0, 0, 1]]], bool)
  expected = attend(queries, keys, values, mask, 4.0)
  cuts = (slice(0, 4), slice(4, 6))
  turned = keys.swapaxes(2, 3)
  parts = [(Stored(turned[..., cut], values[:, :, cut]), mask[..., cut]) for cut in cuts]
  np.testing.assert_allclose(attend_parts(queries, parts, 4.0), expected, atol=1e-6)


def test_whole_numbers_with_scales_are_attended_as_what_they_stand_for():
  rng = np.random.default_rng(2)
  queries = jnp.array(rng.normal(size=(2, 1, 4, 8)), jnp.float32)
  keys, values = jnp.array(rng.integers(-127, 128, (2, 2, 2, 5, 8)), jnp.int8)
  key_scales, value_scales = jnp.array(rng.random((2, 2, 2, 5)) / 40, jnp.float32)
  mask = jnp.array([[[1, 1, 0, 0, 1]], [[0, 1, 1, 1, 1]]], bool)
  meant = keys * key_scales[..., None], values * value_scales[..., None]
  expected = attend(queries, *meant, mask, 4.0)
  parts = [(Stored(keys.swapaxes(2, 3), values, key_scales, value_scales), mask)]
  np.testing.assert_allclose(attend_parts(queries, parts, 4.0), expected, atol=1e-5)


def test_a_query_with_nothing_to_see_gives_no_nan():
  ones = jnp.ones((1, 1, 2, 4))
  found = attend(
    ones, jnp.ones((1, 2, 3, 4)), jnp.ones((1, 2, 3, 4)), jnp.zeros((1, 1, 3), bool), None
  )
  assert np.isfinite(found).all()
