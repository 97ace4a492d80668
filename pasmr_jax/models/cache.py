"""Keys and values of the tokens that rows have behind them.

Rows begin whenever they like, but in one step all of them write the same column. The newest few are
written side by side (`recent`), and when those columns are full `settle` moves them into rings, to
column `index` modulo the ring's columns. Layers only read; what they computed of a token is written
when all are done. So nothing large is written or copied while decoding between two settlings. What
a row sees follows from a column's age in steps: everything that is no older than the row.

Every layer has a ring of its own with no more columns than it can ever see, so local layers hold
their window and nothing else. A row's prompt is computed elsewhere, without a cache, and
`begin_rows` puts it behind the index.

In int8 a head's key, or value, of a token is stored as whole numbers from -127 to 127 and a scale.
Tokens are stored so as soon as they are written, not when they settle: what a row sees must not
depend on when that is.

Axes: B rows, K key/value heads, S columns of a ring, T recent columns, H head_dim; P tokens of a
prompt, F prompts, N rows that begin.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from pasmr_jax.models.config import TransformerConfig


class KeyValues(flax.struct.PyTreeNode):
  """Rotated keys, and values, as one layer computes them."""

  keys: Float[Array, "B K P H"]
  values: Float[Array, "B K P H"]


class Stored(flax.struct.PyTreeNode):
  """The same in a cache. Keys lie as scores need them: a CPU takes a fifth of the time."""

  keys: Num[Array, "B K H S"]
  values: Num[Array, "B K S H"]
  key_scales: Float[Array, "B K S"] | None = None  # of integers; None: keys are what they are
  value_scales: Float[Array, "B K S"] | None = None


class Cache(flax.struct.PyTreeNode):
  """What decoding one token a row reads and writes."""

  rings: tuple[Stored, ...]  # of each layer
  recent: tuple[Stored, ...]  # with T for S
  index: Int[Array, ""]  # steps settled; the next goes to column index % S
  taken: Int[Array, ""]  # recent columns in use
  lengths: Int[Array, "B"]  # tokens of each row, the recent ones included


def init_cache(
  config: TransformerConfig,
  rows: int,
  length: int,
  recent: int,
  dtype: str | jnp.dtype | None = None,
) -> Cache:
  """An empty cache.

  Args:
    config: the model.
    rows: B.
    length: tokens that a row may have.
    recent: T, tokens written between two settlings.
    dtype: of keys and values, int8 among others; the compute dtype if None.
  """
  dtype = jnp.dtype(config.dtype if dtype is None else dtype)

  def empty(columns: int) -> Stored:
    shape = (rows, config.num_kv_heads, columns, config.head_dim)
    values = jnp.zeros(shape, dtype)
    scales = jnp.zeros(shape[:3], jnp.float32) if dtype == jnp.int8 else None
    return Stored(values.swapaxes(2, 3), values, scales, scales)

  columns = {"global": length, "local": min(length, config.sliding_window)}
  zero = jnp.zeros((), jnp.int32)
  return Cache(
    rings=tuple(empty(columns[kind]) for kind in config.layer_kinds),
    recent=tuple(empty(recent) for _ in config.layer_kinds),
    index=zero,
    taken=zero,
    lengths=jnp.zeros((rows,), jnp.int32),
  )


class Columns(flax.struct.PyTreeNode):
  """Those that the next token sees, besides itself."""

  ring: Bool[Array, "B 1 S"]
  recent: Bool[Array, "1 1 T"]


def visible(cache: Cache, config: TransformerConfig) -> dict[str, Columns]:
  """Columns that the next token sees, by kind of layer.

  In a ring of 4 columns at index 5 with 1 recent token, for rows of 2 and of 4 tokens in all:
    1 . . .   ring: column 0 is the last that was settled, 1 the first
    1 . 1 1
    1 . .     recent columns of both
  """
  masks = {}
  for kind in dict.fromkeys(config.layer_kinds):
    layer = config.layer_kinds.index(kind)
    columns, recent = cache.rings[layer].values.shape[2], cache.recent[layer].values.shape[2]
    settled = (cache.index - 1 - jnp.arange(columns)) % columns
    age = settled + 1 + cache.taken
    recent_age = cache.taken - jnp.arange(recent)
    window = config.sliding_window if kind == "local" else jnp.iinfo(jnp.int32).max
    ring = (age <= cache.lengths[:, None]) & (age < window)
    newest = (recent_age > 0) & (recent_age < window)
    masks[kind] = Columns(ring[:, None, :], newest[None, None, :])
  return masks


def stored(computed: KeyValues, dtype: jnp.dtype) -> Stored:
  """Keys and values as a cache of a dtype holds them; a head's largest number is 127 in int8."""
  if dtype != jnp.int8:
    return Stored(computed.keys.swapaxes(2, 3).astype(dtype), computed.values.astype(dtype))

  def quantized(array: Array) -> tuple[Array, Array]:
    array = array.astype(jnp.float32)
    scales = jnp.abs(array).max(-1) / 127
    whole = jnp.round(array / jnp.where(scales > 0, scales, 1)[..., None])
    return whole.astype(jnp.int8), scales

  (keys, key_scales), (values, value_scales) = quantized(computed.keys), quantized(computed.values)
  return Stored(keys.swapaxes(2, 3), values, key_scales, value_scales)


def _stored_in(cache: Cache, computed: Sequence[KeyValues]) -> tuple[Stored, ...]:
  return tuple(stored(one, cache.rings[0].keys.dtype) for one in computed)


def _by_columns(function: Callable[..., Array], *layers: tuple[Stored, ...]) -> tuple[Stored, ...]:
  """Calls the function with the axis of columns and the arrays of each layer."""

  def call(path: tuple[Any, ...], *arrays: Array) -> Array:
    return function(3 if path[-1].name == "keys" else 2, *arrays)

  return jax.tree.map_with_path(call, *layers)


def write(cache: Cache, newest: Sequence[KeyValues]) -> Cache:
  """The cache with one token a row more: its keys and values of each layer, [B K 1 H]."""

  def put(axis: int, array: Array, new: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, new, cache.taken, axis)

  recent = _by_columns(put, cache.recent, _stored_in(cache, newest))
  return cache.replace(recent=recent, taken=cache.taken + 1, lengths=cache.lengths + 1)


def settle(cache: Cache) -> Cache:
  """Moves the recent tokens into the rings."""

  def move(step: Array, rings: tuple[Stored, ...]) -> tuple[Stored, ...]:
    def put(axis: int, ring: Array, recent: Array) -> Array:
      new = jax.lax.dynamic_slice_in_dim(recent, step, 1, axis)
      column = (cache.index + step) % ring.shape[axis]
      return jax.lax.dynamic_update_slice_in_dim(ring, new, column, axis)

    return _by_columns(put, rings, cache.recent)

  rings = jax.lax.fori_loop(0, cache.taken, move, cache.rings)
  zero = jnp.zeros_like(cache.taken)
  return cache.replace(rings=rings, index=cache.index + cache.taken, taken=zero)


def begin_rows(
  cache: Cache,
  prompts: Sequence[KeyValues],
  lengths: Int[Array, " F"],
  rows: Int[Array, " N"],
  sources: Int[Array, " N"],
  count: Int[Array, ""] | int,
) -> Cache:
  """Puts prompts behind the index of rows that begin, whatever those rows held before.

  Args:
    cache: what the other rows go on with, settled.
    prompts: keys and values of each layer, from `Transformer(..., keep=True)`, [F K P H]; the last
      column is each prompt's last token.
    lengths: tokens of each prompt.
    rows: which rows begin.
    sources: the prompt of each.
    count: how many of `rows` and `sources` are meant; the others are not read.
  """

  prefix = _stored_in(cache, prompts)

  def begin(number: Array, cache: Cache) -> Cache:
    row, source = rows[number], sources[number]

    def put(axis: int, ring: Array, prompts: Array) -> Array:
      columns, length = ring.shape[axis], prompts.shape[axis]
      newest = min(columns, length)
      prompt = jax.lax.slice_in_dim(prompts[source][None], length - newest, length, axis=axis)
      # In a ring that starts with the prompt's first token, turned to end before the index.
      whole = jnp.zeros((1, *ring.shape[1:]), ring.dtype)
      whole = jax.lax.dynamic_update_slice_in_dim(whole, prompt, 0, axis)
      turned = jnp.roll(whole, (cache.index - newest) % columns, axis)
      return jax.lax.dynamic_update_slice_in_dim(ring, turned, row, axis=0)

    rings = _by_columns(put, cache.rings, prefix)
    return cache.replace(rings=rings, lengths=cache.lengths.at[row].set(lengths[source]))

  return jax.lax.fori_loop(0, count, begin, cache)
