"""Keys and values of the tokens that rows have behind them.

Rows begin whenever they like, but in one step all of them write the same column. The newest few are
written side by side (`recent`), and when those columns are full `settle` moves them into rings, to
column `index` modulo the ring's columns. Layers only read; what they computed of a token is written
when all are done. So nothing large is written or copied while decoding between two settlings. What
a row sees follows from a column's age in steps: everything that is no older than the row.

Every layer has a ring of its own with no more columns than it can ever see, so local layers hold
their window and nothing else. A row's prompt is computed elsewhere, without a cache, and
`begin_rows` puts it behind the index.

Axes: B rows, K key/value heads, S columns of a ring, T recent columns, H head_dim; P tokens of a
prompt, F prompts, N rows that begin.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pasmr_jax.models.config import TransformerConfig


class KeyValues(flax.struct.PyTreeNode):
  """Rotated keys, and values, of one layer."""

  keys: Float[Array, "B K S H"]
  values: Float[Array, "B K S H"]


class Cache(flax.struct.PyTreeNode):
  """What decoding one token a row reads and writes."""

  rings: tuple[KeyValues, ...]  # [B K S H] of each layer
  recent: tuple[KeyValues, ...]  # [B K T H]
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
    dtype: of keys and values; the compute dtype if None.
  """
  dtype = jnp.dtype(config.dtype if dtype is None else dtype)

  def empty(columns: int) -> KeyValues:
    shape = (rows, config.num_kv_heads, columns, config.head_dim)
    return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

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
    columns, recent = cache.rings[layer].keys.shape[2], cache.recent[layer].keys.shape[2]
    settled = (cache.index - 1 - jnp.arange(columns)) % columns
    age = settled + 1 + cache.taken
    recent_age = cache.taken - jnp.arange(recent)
    window = config.sliding_window if kind == "local" else jnp.iinfo(jnp.int32).max
    ring = (age <= cache.lengths[:, None]) & (age < window)
    newest = (recent_age > 0) & (recent_age < window)
    masks[kind] = Columns(ring[:, None, :], newest[None, None, :])
  return masks


def write(cache: Cache, newest: Sequence[KeyValues]) -> Cache:
  """The cache with one token a row more: its keys and values of each layer, [B K 1 H]."""

  def put(array: Array, new: Array) -> Array:
    new = new.astype(array.dtype)
    return jax.lax.dynamic_update_slice(array, new, (0, 0, cache.taken, 0))

  recent = jax.tree.map(put, cache.recent, tuple(newest))
  return cache.replace(recent=recent, taken=cache.taken + 1, lengths=cache.lengths + 1)


def settle(cache: Cache) -> Cache:
  """Moves the recent tokens into the rings."""

  def move(step: Array, rings: tuple[KeyValues, ...]) -> tuple[KeyValues, ...]:
    def put(ring: Array, recent: Array) -> Array:
      new = jax.lax.dynamic_slice_in_dim(recent, step, 1, axis=2)
      column = (cache.index + step) % ring.shape[2]
      return jax.lax.dynamic_update_slice(ring, new, (0, 0, column, 0))

    return jax.tree.map(put, rings, cache.recent)

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

  def begin(number: Array, cache: Cache) -> Cache:
    row, source = rows[number], sources[number]

    def put(ring: Array, prompts: Array) -> Array:
      columns = ring.shape[2]
      newest = min(columns, prompts.shape[2])
      prompt = prompts[source, :, prompts.shape[2] - newest :]
      # In a ring that starts with the prompt's first token, turned to end before the index.
      whole = jnp.zeros((1, *ring.shape[1:]), ring.dtype)
      whole = whole.at[0, :, :newest].set(prompt.astype(ring.dtype))
      turned = jnp.roll(whole, (cache.index - newest) % columns, axis=2)
      return jax.lax.dynamic_update_slice(ring, turned, (row, 0, 0, 0))

    rings = jax.tree.map(put, cache.rings, tuple(prompts))
    return cache.replace(rings=rings, lengths=cache.lengths.at[row].set(lengths[source]))

  return jax.lax.fori_loop(0, count, begin, cache)
