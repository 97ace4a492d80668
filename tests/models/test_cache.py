"""The rings, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pasmr_jax.models.cache import (
  Cache,
  KeyValues,
  Stored,
  begin_rows,
  init_cache,
  settle,
  stored,
  visible,
  write,
)


def test_an_empty_cache_holds_a_window_for_local_layers_only(small):
  cache = init_cache(small, rows=3, length=70, recent=4, dtype="bfloat16")
  for kind, ring, recent in zip(small.layer_kinds, cache.rings, cache.recent, strict=True):
    columns = small.sliding_window if kind == "local" else 70
    assert (ring.keys.shape, ring.values.shape) == ((3, 2, 8, columns), (3, 2, columns, 8))
    assert (recent.keys.shape, recent.values.shape) == ((3, 2, 8, 4), (3, 2, 4, 8))
    assert ring.keys.dtype == recent.values.dtype == jnp.bfloat16
  assert {*small.layer_kinds} == {"local", "global"}
  assert cache.lengths.tolist() == [0, 0, 0]
  short = init_cache(small, 3, 2, 1)
  assert all(ring.keys.shape[3] == 2 for ring in short.rings)


def test_whole_numbers_are_half_a_scale_off_at_most():
  keys, values = jax.random.normal(jax.random.key(0), (2, 3, 2, 5, 8)) * 7
  keys = keys.at[1, 1, 2].set(0)
  found = stored(KeyValues(keys, values), jnp.dtype("int8"))
  assert found.keys.dtype == found.values.dtype == jnp.int8
  for whole, scale, exact in (
    (found.keys.swapaxes(2, 3), found.key_scales, keys),
    (found.values, found.value_scales, values),
  ):
    assert scale is not None
    off = jnp.abs(whole * scale[..., None] - exact)
    assert (off <= 0.5001 * scale[..., None]).all()
    assert off.max() > 0
    np.testing.assert_allclose(scale, jnp.abs(exact).max(-1) / 127, rtol=1e-6)


def test_whole_numbers_begin_and_settle_with_their_scales(small):
  cache = init_cache(small, rows=2, length=8, recent=2, dtype="int8")
  prompt = jax.random.normal(jax.random.key(1), (small.num_layers, 2, 1, 2, 5, 8))
  prompts = [KeyValues(*layer) for layer in prompt]
  numbers = jnp.array([1]), jnp.array([0])
  cache = begin_rows(cache, prompts, jnp.array([5]), *numbers, count=1)
  newest = [KeyValues(*(jnp.full((2, 2, 1, 8), 3.0 + n),) * 2) for n in range(small.num_layers)]
  settled = settle(write(cache, newest))
  for layer, ring in enumerate(settled.rings):
    assert ring.keys.dtype == ring.values.dtype == jnp.int8
    columns = ring.values.shape[2]
    found = ring.values[1] * ring.value_scales[1][..., None]
    np.testing.assert_allclose(found[:, 0], 3.0 + layer, rtol=1e-6)  # index 0
    np.testing.assert_allclose(found[:, columns - 1], prompt[layer, 1, 0, :, 4], atol=0.02)
    assert not ring.values[0, :, 1:].any()


def _cache(columns, recent, index, taken, lengths):
  def empty(columns):
    values = jnp.zeros((2, 1, columns, 2))
    return (Stored(values.swapaxes(2, 3), values),)

  lengths = jnp.array(lengths)
  return Cache(empty(columns), empty(recent), jnp.int32(index), jnp.int32(taken), lengths)


def test_visible_is_the_worked_example(small):
  config = dataclasses.replace(small, num_layers=1, attention_pattern=("global",))
  cache = _cache(columns=4, recent=3, index=5, taken=1, lengths=[2, 4])
  columns = visible(cache, config)["global"]
  np.testing.assert_array_equal(columns.ring[:, 0], [[1, 0, 0, 0], [1, 0, 1, 1]])
  np.testing.assert_array_equal(columns.recent[0, 0], [1, 0, 0])


def test_a_local_layer_sees_its_window_of_both(small):
  """A window of 3 with 2 recent tokens and its own: nothing of the ring is left."""
  config = dataclasses.replace(small, num_layers=1, attention_pattern=("local",), sliding_window=3)
  cache = _cache(columns=3, recent=4, index=7, taken=2, lengths=[9, 9])
  columns = visible(cache, config)["local"]
  assert not columns.ring.any()
  assert columns.recent[0, 0].tolist() == [True, True, False, False]
  later = visible(cache.replace(taken=jnp.int32(3)), config)["local"]
  assert later.recent[0, 0].tolist() == [False, True, True, False]
  earlier = visible(cache.replace(taken=jnp.int32(1)), config)["local"]
  # Steps 4, 5 and 6 are in columns 1, 2 and 0.
  assert earlier.ring[0, 0].tolist() == [True, False, False]


def test_what_was_written_is_settled_where_it_belongs(small):
  cache = init_cache(small, rows=2, length=9, recent=3)
  cache = cache.replace(index=jnp.int32(small.sliding_window - 1))
  for step in range(2):
    newest = [jnp.full((2, 2, 1, 8), 10.0 * step + n) for n in range(small.num_layers)]
    cache = write(cache, [KeyValues(new, -new) for new in newest])
  assert cache.lengths.tolist() == [2, 2]
  settled = settle(cache)
  assert (settled.index, settled.taken) == (cache.index + 2, 0)
  for layer, ring in enumerate(settled.rings):
    expected = np.zeros(ring.values.shape, np.float32)
    for step in range(2):
      expected[:, :, (int(cache.index) + step) % ring.values.shape[2]] = 10 * step + layer
    np.testing.assert_array_equal(ring.keys, expected.swapaxes(2, 3))
    np.testing.assert_array_equal(ring.values, -expected)


def test_rows_that_begin_get_their_prompt_behind_the_index_and_others_keep_theirs(small):
  cache = init_cache(small, rows=3, length=7, recent=2)
  cache = cache.replace(index=jnp.int32(9), lengths=jnp.array([4, 5, 6]))
  cache = cache.replace(rings=jax.tree.map(lambda ring: ring + 1, cache.rings))
  # Token j of prompt f is 10 f + j, plus the layer over 100.
  tokens = 10 * jnp.arange(2)[:, None] + jnp.arange(5)
  tokens = jnp.broadcast_to(tokens[:, None, :, None], (2, 2, 5, 8))
  prompts = [KeyValues(tokens + n / 128, -tokens - n / 128) for n in range(small.num_layers)]
  begun = begin_rows(
    cache,
    prompts,
    lengths=jnp.array([5, 3]),
    rows=jnp.array([2, 0, 1]),
    sources=jnp.array([1, 0, 0]),
    count=2,
  )
  assert begun.lengths.tolist() == [5, 5, 3]
  for layer, ring in enumerate(begun.rings):
    columns = ring.values.shape[2]
    assert (ring.keys[1] == 1).all()
    for row, source in ((2, 1), (0, 0)):
      for back in range(min(5, columns)):  # the token that many steps before the newest
        column, expected = (9 - 1 - back) % columns, 10 * source + 4 - back + layer / 128
        assert (ring.keys[row, :, :, column] == expected).all()
        assert (ring.values[row, :, column] == -expected).all()
