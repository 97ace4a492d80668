"""Grouped-query attention, its masks and its key/value cache.

A layer projects its input to queries, keys and values, normalises and rotates them, puts keys and
values into the cache when there is one, and mixes the values by softmax of the masked scores.
Which keys a query may see is decided twice: `segment_mask` for whole (packed) rows, `cache_mask`
for new tokens against the slots of a cache. Both leave the sliding window to the layer, which
knows its kind.

Axes: B batch, T new tokens, S keys (tokens, or slots of the cache), D embed, N heads,
K key/value heads, G = N / K queries to a key/value head, H head_dim, R = H / 2 rotations, L layers.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.layers import RMSNorm, fan_in, rotate, weight

MASKED = -1e30  # finite, so that a row with nothing to see (padding) gives no NaN


class Cache(flax.struct.PyTreeNode):
  """Keys and values of the tokens seen so far; rows are left padded and advance together."""

  keys: Float[Array, "L B K S H"]
  values: Float[Array, "L B K S H"]
  start: Int[Array, "B"]  # slot of each row's first real token
  index: Int[Array, ""]  # next slot to write


def init_cache(
  config: TransformerConfig, batch: int, length: int, dtype: str | jnp.dtype | None = None
) -> Cache:
  """An empty cache of `length` slots a row, in `dtype` (the compute dtype if None)."""
  shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_dim)
  dtype = jnp.dtype(config.dtype if dtype is None else dtype)
  return Cache(
    keys=jnp.zeros(shape, dtype),
    values=jnp.zeros(shape, dtype),
    start=jnp.zeros((batch,), jnp.int32),
    index=jnp.zeros((), jnp.int32),
  )


def segment_mask(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
  """Causal attention inside each packed segment; segment 0 is padding.

  For segment_ids [1 1 2 2 0], query down, key across:
    1 . . . .
    1 1 . . .
    . . 1 . .
    . . 1 1 .
    . . . . .
  """
  index = jnp.arange(segment_ids.shape[1])
  causal = index[:, None] >= index[None, :]
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  return causal & same & (segment_ids != 0)[:, :, None]


def cache_mask(
  start: Int[Array, "B"], index: Int[Array, ""], length: int, slots: int
) -> Bool[Array, "B T S"]:
  """Slots visible to `length` new tokens written at slots index .. index + length - 1.

  For a row with start 1, index 2, two new tokens and five slots:
    . 1 1 . .     the token in slot 2 sees slots 1 and 2
    . 1 1 1 .     the token in slot 3 sees slots 1 to 3
  """
  slot = jnp.arange(slots)
  query = index + jnp.arange(length)
  causal = slot[None, :] <= query[:, None]
  return causal[None] & (slot[None, :] >= start[:, None])[:, None]


def attend(
  queries: Float[Array, "B T N H"],
  keys: Float[Array, "B K S H"],
  values: Float[Array, "B K S H"],
  mask: Bool[Array, "B T S"],
  softcap: float | None,
) -> Float[Array, "B T N H"]:
  """Softmax attention in float32. Queries are scaled already."""
  if queries.shape[1] == 1:
    # One token against a cache: the same sums in the order that suits the platform compiled for.
    return jax.lax.platform_dependent(
      queries,
      keys,
      values,
      mask,
      cpu=functools.partial(attend_by_head, softcap=softcap),
      default=functools.partial(attend_by_group, softcap=softcap),
    )
  return attend_by_group(queries, keys, values, mask, softcap)


def attend_by_group(queries, keys, values, mask, softcap):
  """All query heads of a key/value head in one product, so that keys and values are read once."""
  batch, length, heads, head_dim = queries.shape
  kv_heads = keys.shape[1]
  grouped = queries.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
  scores = jnp.einsum("BTKGH,BKSH->BKGTS", grouped, keys, preferred_element_type=jnp.float32)
  weights = _masked_softmax(scores, mask[:, None, None], softcap).astype(values.dtype)
  mixed = jnp.einsum("BKGTS,BKSH->BTKGH", weights, values)
  return mixed.reshape(batch, length, heads, head_dim).astype(queries.dtype)


def attend_by_head(queries, keys, values, mask, softcap):
  """One token, one query head of every group at a time: products of a matrix and a vector.

  On CPU these take half the time of the many small matrix products of `attend_by_group`.
  """
  batch, _, heads, head_dim = queries.shape
  kv_heads = keys.shape[1]
  grouped = queries.reshape(batch, kv_heads, heads // kv_heads, head_dim)
  mixed = []
  for head in range(heads // kv_heads):
    one = grouped[:, :, head]
    scores = jnp.einsum("BKH,BKSH->BKS", one, keys, preferred_element_type=jnp.float32)
    weights = _masked_softmax(scores, mask, softcap).astype(values.dtype)
    mixed.append(jnp.einsum("BKS,BKSH->BKH", weights, values))
  return jnp.stack(mixed, axis=2).reshape(batch, 1, heads, head_dim).astype(queries.dtype)


def _masked_softmax(scores, mask, softcap):
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)


class Attention(nn.Module):
  """One layer's attention. With a cache, writes slice `layer` of it and reads the slice back."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    angles: Float[Array, "B T R"],
    mask: Bool[Array, "B T S"],
    layer: Int[Array, ""],
    cache: Cache | None,
  ) -> tuple[Float[Array, "B T D"], Cache | None]:
    config = self.config
    queries, keys, values = self._project(x)
    queries = rotate(queries, angles) * jnp.asarray(config.query_scale, queries.dtype)
    keys = rotate(keys, angles).transpose(0, 2, 1, 3)
    values = values.transpose(0, 2, 1, 3)
    if cache is not None:
      # The whole cache travels with the layer loop and only the new slots are written. Passed
      # layer by layer as the loop's inputs and outputs, every token would rewrite all of it.
      at = (layer, 0, 0, cache.index, 0)
      cache = cache.replace(
        keys=jax.lax.dynamic_update_slice(cache.keys, keys[None].astype(cache.keys.dtype), at),
        values=jax.lax.dynamic_update_slice(
          cache.values, values[None].astype(cache.values.dtype), at
        ),
      )
      keys = jax.lax.dynamic_index_in_dim(cache.keys, layer, keepdims=False)
      values = jax.lax.dynamic_index_in_dim(cache.values, layer, keepdims=False)
    mixed = attend(queries, keys, values, mask, config.attention_softcap)
    shape, axes = (config.num_heads, config.head_dim, config.embed_dim), ("heads", "head_dim")
    output = weight(self, "output", shape, (*axes, "embed"), fan_in(2), config)
    return jnp.einsum("BTNH,NHD->BTD", mixed, output), cache

  def _project(self, x):
    """Queries [B T N H], keys and values [B T K H]; biases and norms where the family has them."""
    config = self.config
    projected = []
    for name, heads, axis in (
      ("query", config.num_heads, "heads"),
      ("key", config.num_kv_heads, "kv_heads"),
      ("value", config.num_kv_heads, "kv_heads"),
    ):
      shape, axes = (config.embed_dim, heads, config.head_dim), ("embed", axis, "head_dim")
      y = jnp.einsum("BTD,DNH->BTNH", x, weight(self, name, shape, axes, fan_in(1), config))
      if config.attention_bias:
        zeros = nn.initializers.zeros
        y += weight(self, f"{name}_bias", shape[1:], axes[1:], zeros, config)
      if config.qk_norm and name != "value":
        y = RMSNorm(config, axis="head_dim", name=f"{name}_norm")(y)
      projected.append(y)
    return projected
