"""Grouped-query attention over whole rows, or of one token a row over a cache.

A layer projects its input to queries, keys and values, normalises and rotates them, and mixes the
values, those in the cache too where there is one, by softmax of the masked scores.
Which keys a query may see is decided by `segment_mask` for whole (packed) rows, which leaves the
sliding window to the layer, and by `cache.visible` for a token against the columns of a cache.

Axes: B batch, T new tokens, S keys (tokens, or columns of the cache), D embed, N heads,
K key/value heads, G = N / K queries to a key/value head, H head_dim, R = H / 2 rotations, L layers.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pasmr_jax.models.cache import KeyValues, Stored
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.layers import RMSNorm, fan_in, rotate, weight
from pasmr_jax.models.lora import adapt
from pasmr_jax.models.splash import splash_attend

MASKED = -1e30  # finite, so that a row with nothing to see (padding) gives no NaN


class Sight(flax.struct.PyTreeNode):
  """What the tokens of a call see: whole rows by a mask or by segments, or one token's past."""

  segment_ids: Int[Array, "B T"]
  mask: Bool[Array, "B T T"] | None  # of whole rows, windows aside; None: the kernel of splash.py
  past: Sequence[tuple[Stored, Array]] | None = None  # parts, see `attend_parts`


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


def attend(
  queries: Float[Array, "B T N H"],
  keys: Float[Array, "B K S H"],
  values: Float[Array, "B K S H"],
  mask: Bool[Array, "B T S"],
  softcap: float | None,
) -> Float[Array, "B T N H"]:
  """Softmax attention in float32. Queries are scaled already."""
  batch, length, heads, head_dim = queries.shape
  kv_heads = keys.shape[1]
  grouped = queries.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
  scores = jnp.einsum("BTKGH,BKSH->BKGTS", grouped, keys, preferred_element_type=jnp.float32)
  scores = jnp.where(mask[:, None, None], _capped(scores, softcap), MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
  mixed = jnp.einsum("BKGTS,BKSH->BTKGH", weights, values)
  return mixed.reshape(batch, length, heads, head_dim).astype(queries.dtype)


def attend_parts(
  queries: Float[Array, "B 1 N H"],
  parts: Sequence[tuple[Stored, Array]],
  softcap: float | None,
) -> Float[Array, "B 1 N H"]:
  """The same of one token a row over keys that lie in several arrays.

  Args:
    queries: scaled already.
    parts: keys and values as a cache stores them, and the mask [B 1 S] of each; some key must be
      seen.
    softcap: scores become cap * tanh(scores / cap).
  """
  batch, _, heads, head_dim = queries.shape
  kv_heads = parts[0][0].keys.shape[1]
  grouped = queries.reshape(batch, kv_heads, heads // kv_heads, head_dim)
  scores = []
  for own, (past, mask) in zip(_apart(grouped, len(parts)), parts, strict=True):
    found = jnp.einsum(
      "BKGH,BKHS->BKGS",
      own,
      _readable(past.keys, grouped),
      preferred_element_type=jnp.float32,
    )
    if past.key_scales is not None:
      found *= past.key_scales[:, :, None, :]
    scores.append(jnp.where(mask[:, None], _capped(found, softcap), MASKED))
  top = functools.reduce(jnp.maximum, [one.max(-1, keepdims=True) for one in scores])
  weights = [jnp.exp(one - top) for one in scores]
  products = []
  for one, (past, _) in zip(weights, parts, strict=True):
    values = _readable(past.values, grouped)
    if past.value_scales is not None:
      one *= past.value_scales[:, :, None, :]
    products.append(
      jnp.einsum(
        "BKGS,BKSH->BKGH", one.astype(values.dtype), values, preferred_element_type=jnp.float32
      )
    )
  totals = [one.sum(-1, keepdims=True) for one in weights]
  mixed = functools.reduce(jnp.add, products) / functools.reduce(jnp.add, totals)
  return mixed.reshape(batch, 1, heads, head_dim).astype(queries.dtype)


def _apart(queries: Array, parts: int) -> list[Array]:
  """The same for each part; XLA for GPUs would copy keys side by side to multiply them by one."""
  copies = [queries] * parts
  return jax.lax.platform_dependent(
    copies, cuda=jax.lax.optimization_barrier, default=lambda copies: copies
  )


def _readable(stored: Array, queries: Array) -> Array:
  """Integers as numbers that can be multiplied; their scales are multiplied later."""
  return stored.astype(queries.dtype) if stored.dtype == jnp.int8 else stored


def _capped(scores, softcap):
  return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


class Attention(nn.Module):
  """One layer's attention, and the keys and values that it computed, [B K T H]."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    angles: Float[Array, "B T R"],
    sight: Sight,
    is_local: Bool[Array, ""],
  ) -> tuple[Float[Array, "B T D"], KeyValues]:
    config = self.config
    queries, keys, values = self._project(x)
    queries = rotate(queries, angles) * jnp.asarray(config.query_scale, queries.dtype)
    keys = rotate(keys, angles).transpose(0, 2, 1, 3)
    values = values.transpose(0, 2, 1, 3)
    if sight.past is not None:
      own = (Stored(keys.swapaxes(2, 3), values), jnp.ones((1, 1, 1), bool))
      mixed = attend_parts(queries, (*sight.past, own), config.attention_softcap)
    elif sight.mask is None:
      mixed = splash_attend(queries, keys, values, sight.segment_ids, is_local, config)
    else:
      index = jnp.arange(x.shape[1])
      near = index[:, None] - index[None, :] < config.sliding_window
      mask = sight.mask & (~is_local | near)
      mixed = attend(queries, keys, values, mask, config.attention_softcap)
    shape, axes = (config.num_heads, config.head_dim, config.embed_dim), ("heads", "head_dim")
    output = weight(self, "output", shape, (*axes, "embed"), fan_in(2), config)
    # As matrices: with two axes summed, a CPU would turn the weight around for every token.
    flat, matrix = mixed.reshape(*x.shape[:2], -1), output.reshape(-1, config.embed_dim)
    projected = jnp.einsum("BTX,XD->BTD", flat, matrix)
    return adapt(self, "output", mixed, projected), KeyValues(keys, values)

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
      y = adapt(self, name, x, y)
      if config.attention_bias:
        zeros = nn.initializers.zeros
        y += weight(self, f"{name}_bias", shape[1:], axes[1:], zeros, config)
      if config.qk_norm and name != "value":
        y = RMSNorm(config, axis="head_dim", name=f"{name}_norm")(y)
      projected.append(y)
    return projected
