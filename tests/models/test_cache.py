"""The rings, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pasmr_jax.models.cache import (
  Cache,
  KeyValues,
  begin_rows,
  init_cache,
  settle,
  visible,
  write,
)


def test_an_empty_cache_holds_a_window_for_local_layers_only(small):
  cache = init_cache(small, rows=3, length=70, recent=4, dtype="bfloat16")
  for kind, ring, recent in zip(small.layer_kinds, cache.rings, cache.recent, strict=True):
    columns = small.sliding_window if kind == "local" else 70
    assert ring.keys.shape == ring.values.shape == (3, 2, columns, 8)
    assert recent.keys.shape == recent.values.shape == (3, 2, 4, 8)
    assert ring.keys.dtype == recent.values.dtype == jnp.bfloat16
  assert {*small.layer_kinds} == {"local", "global"}
  assert cache.lengths.tolist() == [0, 0, 0]
  short = init_cache(small, 3, 2, 1)
  assert all(ring.keys.shape[2] == 2 for ring in short.rings)


def _cache(columns, recent, index, taken, lengths):
  def empty(columns):
    return (KeyValues(*(jnp.zeros((2, 1, columns, 2)),) * 2),)

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
    expected = np.zeros(ring.keys.shape, np.float32)
    for step in range(2):
      expected[:, :, (int(cache.index) + step) % ring.keys.shape[2]] = 10 * step + layer
    np.testing.assert_array_equal(ring.keys, expected)
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
    columns = ring.keys.shape[2]
    assert (ring.keys[1] == 1).all()
    for row, source in ((2, 1), (0, 0)):
      for back in range(min(5, columns)):  # the token that many steps before the newest
        column, expected = (9 - 1 - back) % columns, 10 * source + 4 - back + layer / 128
        assert (ring.keys[row, :, column] == expected).all()
        assert (ring.values[row, :, column] == -expected).all()
