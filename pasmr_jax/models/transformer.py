"""The decoder: tokens in, hidden states out; and from hidden states to logits.

The path of a token: its embedding, `num_layers` equal layers in one `nn.scan` (so that compiling
takes one layer's time and weights are stacked `[num_layers, ...]`), a final norm. Layers differ
only in two scanned numbers: whether they are local, and their index, which finds their slice of
the cache. Logits are a separate function because they are needed for few positions or in chunks:
`[batch, length, vocabulary]` must never exist.

Axes: B batch, T length, D embed, V vocabulary, S keys, L layers.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pasmr_jax.models.attention import MASKED, Attention, Cache, cache_mask, segment_mask
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.layers import GatedMLP, RMSNorm, rope_angles, split_rows, weight


class Layer(nn.Module):
  """Attention and MLP, each a normalised branch of the residual stream."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, carry, scanned, angles, mask, distance):
    config = self.config
    x, cache = carry
    layer, is_local = scanned
    mask &= ~is_local | (distance < config.sliding_window)
    angles = jnp.where(is_local, angles["local"], angles["global"])

    y, cache = Attention(config, name="attention")(
      RMSNorm(config, name="attention_norm")(x), angles, mask, layer, cache
    )
    if config.post_norms:
      y = RMSNorm(config, name="attention_post_norm")(y)
    x += y
    y = GatedMLP(config, name="mlp")(RMSNorm(config, name="mlp_norm")(x))
    if config.post_norms:
      y = RMSNorm(config, name="mlp_post_norm")(y)
    x = split_rows(x + y)
    return (x, cache), None


class Transformer(nn.Module):
  """`Transformer(config).apply({'params': params}, tokens, positions, segment_ids, cache)`."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    cache: Cache | None = None,
  ) -> tuple[Float[Array, "B T D"], Cache | None]:
    """Hidden states after the final norm, in the compute dtype, and the cache with T more slots.

    Without a cache a token attends to earlier tokens of its own segment (0 is padding). With one,
    the T tokens are written at slots `cache.index ..` and attend to every slot from their row's
    `cache.start` on; `positions` are slot - start. In the first call (index 0) the padding at
    the left of a row, segment 0, is added to `start`. Room for T more slots is the caller's duty.
    """
    config = self.config
    axes = ("vocab", "embed")
    shape = (config.vocab_size, config.embed_dim)
    init = nn.initializers.normal(config.embed_dim**-0.5)
    table = weight(self, "embedding", shape, axes, init, config)
    if not config.tie_embeddings:
      weight(self, "head", shape, axes, init, config)  # read by output_table
    x = jnp.take(table, tokens, axis=0)
    if config.scale_embeddings:
      x *= jnp.asarray(config.embed_dim**0.5, x.dtype)
    x = split_rows(x)

    mask, distance, cache = _visible(segment_ids, cache)
    angles = {kind: rope_angles(positions, config, kind) for kind in ("local", "global")}
    is_local = jnp.asarray([kind == "local" for kind in config.layer_kinds])
    layers = nn.scan(
      _rematerialised(config.remat),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
      length=config.num_layers,
      unroll=min(config.scan_unroll, config.num_layers),
      metadata_params={nn.PARTITION_NAME: "layers"},
    )(config, name="layers")
    scanned = (jnp.arange(config.num_layers, dtype=jnp.int32), is_local)
    (x, cache), _ = layers((x, cache), scanned, angles, mask, distance)
    if cache is not None:
      cache = cache.replace(index=cache.index + tokens.shape[1])
    return RMSNorm(config, name="final_norm")(x), cache


def _visible(
  segment_ids: Int[Array, "B T"], cache: Cache | None
) -> tuple[Bool[Array, "B T S"], Int[Array, "T S"], Cache | None]:
  """Which keys a global layer sees, how far back they are, and the cache with `start` settled."""
  length = segment_ids.shape[1]
  if cache is None:
    index = jnp.arange(length)
    return segment_mask(segment_ids), index[:, None] - index[None, :], None
  padding = jnp.sum(segment_ids == 0, axis=1, dtype=jnp.int32)
  start = jnp.where(cache.index == 0, jnp.maximum(cache.start, padding), cache.start)
  slots = cache.keys.shape[3]
  distance = cache.index + jnp.arange(length)[:, None] - jnp.arange(slots)[None, :]
  mask = cache_mask(start, cache.index, length, slots)
  return mask, distance, cache.replace(start=start)


def _rematerialised(remat: str) -> Any:
  if remat == "none":
    return Layer
  policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
  # Inside a scan the compiler cannot merge the recomputation with the original anyway.
  return nn.remat(Layer, policy=policy, prevent_cse=False)


def output_table(params: Any, config: TransformerConfig) -> Float[Array, "V D"]:
  """The table that logits are taken against: the embedding when tied, else the head."""
  return params["embedding" if config.tie_embeddings else "head"]


def logits(
  hidden: Float[Array, "... D"],
  table: Float[Array, "V D"],
  config: TransformerConfig,
  valid_vocab: int | None = None,
) -> Float[Array, "... V"]:
  """Float32 logits, soft-capped where the family does; ids >= valid_vocab are masked to -1e30."""
  table = table.astype(hidden.dtype)
  scores = jnp.einsum("...D,VD->...V", hidden, table, preferred_element_type=jnp.float32)
  if config.final_softcap is not None:
    scores = config.final_softcap * jnp.tanh(scores / config.final_softcap)
  if valid_vocab is not None and valid_vocab < config.vocab_size:
    scores = jnp.where(jnp.arange(config.vocab_size) < valid_vocab, scores, MASKED)
  return scores


def init_params(config: TransformerConfig, key: Array) -> Any:
  """Random weights, unboxed. Pure: jit it with `out_shardings` and they are born sharded."""
  return nn.meta.unbox(_boxed_params(config, key))


def param_shapes(config: TransformerConfig) -> Any:
  """The parameter tree with a jax.ShapeDtypeStruct for each leaf, nothing allocated."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def logical_axes(config: TransformerConfig) -> Any:
  """The parameter tree with a PartitionSpec of logical axis names for each leaf, nothing allocated.

  The names: layers, vocab, embed, heads, kv_heads, head_dim, mlp.
  """
  boxed = jax.eval_shape(functools.partial(_boxed_params, config), jax.random.key(0))
  return nn.get_partition_spec(boxed)


def _boxed_params(config: TransformerConfig, key: Array) -> Any:
  one = jnp.ones((1, 1), jnp.int32)
  return Transformer(config).init(key, one, one * 0, one)["params"]
