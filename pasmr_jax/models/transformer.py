"""The decoder: tokens in, hidden states out; and from hidden states to logits.

The path of a token: its embedding, `num_layers` equal layers in one `nn.scan` (so that compiling
takes one layer's time and weights are stacked `[num_layers, ...]`), a final norm. Layers differ
only in a scanned number, whether they are local. For sampling the layers are taken apart
(`unstacked`), each with its own cache: a loop over stacked arrays would copy their slices. Logits
are a separate function because they are needed for few positions or in chunks: `[batch, length,
vocabulary]` must never exist.

Axes: B batch, T length, D embed, V vocabulary, S keys, L layers.
"""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pasmr_jax.models import lora
from pasmr_jax.models.attention import MASKED, Attention, Sight, segment_mask
from pasmr_jax.models.cache import Cache, KeyValues, visible, write
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.layers import GatedMLP, RMSNorm, rope_angles, split_rows, stored_weight
from pasmr_jax.models.splash import uses_splash


class Layer(nn.Module):
  """Attention and MLP, each a normalised branch of the residual stream."""

  config: TransformerConfig
  keep: bool  # whether to return keys and values

  @nn.compact
  def __call__(self, x, is_local, angles, sight):
    config = self.config
    angles = jnp.where(is_local, angles["local"], angles["global"])

    y, computed = Attention(config, name="attention")(
      RMSNorm(config, name="attention_norm")(x), angles, sight, is_local
    )
    if config.post_norms:
      y = RMSNorm(config, name="attention_post_norm")(y)
    x += y
    y = GatedMLP(config, name="mlp")(RMSNorm(config, name="mlp_norm")(x))
    if config.post_norms:
      y = RMSNorm(config, name="mlp_post_norm")(y)
    x = split_rows(x + y)
    return x, computed if self.keep else None


class Transformer(nn.Module):
  """`Transformer(config).apply({'params': params}, tokens, positions, segment_ids, cache)`."""

  config: TransformerConfig
  keep: bool = False

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    cache: Cache | None = None,
  ) -> tuple[Float[Array, "B T D"], tuple[KeyValues, ...] | None]:
    """Hidden states after the final norm, in the compute dtype.

    Without a cache a token attends to earlier tokens of its own segment (0 is padding). With one T
    is 1, a row's token sees those that the row has in the cache, and `positions` are
    `cache.lengths`. With `keep` the keys and values of each layer, [B K T H], come with them. Both
    are for a model that is not stacked.
    """
    config = self.config
    axes = ("vocab", "embed")
    shape = (config.vocab_size, config.embed_dim)
    init = nn.initializers.normal(config.embed_dim**-0.5)
    table = stored_weight(self, "embedding", shape, axes, init, config)
    if not config.tie_embeddings:
      stored_weight(self, "head", shape, axes, init, config)  # read by output_table
    x = cast(Array, _look_up(table, tokens, config.dtype))
    if config.scale_embeddings:
      x *= jnp.asarray(config.embed_dim**0.5, x.dtype)
    x = split_rows(x)

    mask = segment_mask(segment_ids) if cache is None and not uses_splash(config) else None
    sight = Sight(segment_ids, mask)
    angles = {kind: rope_angles(positions, config, kind) for kind in ("local", "global")}
    is_local = jnp.asarray([kind == "local" for kind in config.layer_kinds])
    layer = _rematerialised(config.remat)
    if config.stacked:
      layers = nn.scan(
        layer,
        variable_axes={"params": 0, lora.COLLECTION: 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
        length=config.num_layers,
        unroll=min(config.scan_unroll, config.num_layers),
        metadata_params={nn.PARTITION_NAME: "layers"},
      )(config, False, name="layers")
      x, _ = layers(x, is_local, angles, sight)
      return RMSNorm(config, name="final_norm")(x), None
    columns = None if cache is None else visible(cache, config)
    computed = []
    for number, kind in enumerate(config.layer_kinds):
      if cache is not None and columns is not None:
        ring, recent, seen = cache.rings[number], cache.recent[number], columns[kind]
        sight = sight.replace(past=((ring, seen.ring), (recent, seen.recent)))
      one = layer(config, self.keep, name=f"layer_{number}")
      x, own = one(x, is_local[number], angles, sight)
      computed.append(own)
    kept = tuple(computed) if self.keep else None
    return RMSNorm(config, name="final_norm")(x), kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _look_up(table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: str) -> Array:
  """The tokens' rows, [B T D] in `dtype`.

  A row's gradient is summed over its tokens in the dtype of the parameters, whatever that of the
  computation is: in bfloat16 those of a token that a batch has hundreds of times stop counting.
  """
  return jnp.take(table.astype(dtype), tokens, axis=0)


def _look_up_forward(table, tokens, dtype):
  return _look_up(table, tokens, dtype), (table, tokens)


def _look_up_backward(dtype, kept, gradient):
  del dtype
  table, tokens = kept
  return jnp.zeros_like(table).at[tokens].add(gradient.astype(table.dtype)), None


_look_up.defvjp(_look_up_forward, _look_up_backward)


def decode_step(
  params: Any, tokens: Int[Array, " B"], cache: Cache, config: TransformerConfig
) -> tuple[Float[Array, "B D"], Cache]:
  """Hidden states of one more token a row, and the cache with it.

  To `settle` the cache before its recent columns run out is the caller's duty.
  """
  tokens = tokens[:, None]
  positions, ones = cache.lengths[:, None], jnp.ones_like(tokens)
  model = Transformer(config, keep=True)
  stepped = model.apply({"params": params}, tokens, positions, ones, cache)
  hidden, newest = cast(tuple[Array, tuple[KeyValues, ...]], stepped)
  return hidden[:, 0], write(cache, newest)


def _rematerialised(remat: str) -> Any:
  if remat == "none":
    return Layer
  policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
  # Inside a scan the compiler cannot merge the recomputation with the original anyway.
  return nn.remat(Layer, policy=policy, prevent_cse=False)


def unstacked(params: Any) -> Any:
  """Parameters of a model with `stacked` as one without takes them."""
  layers = params["layers"]
  count = len(jax.tree.leaves(layers)[0])
  apart = {
    f"layer_{layer}": jax.tree.map(lambda leaf, layer=layer: leaf[layer], layers)
    for layer in range(count)
  }
  return {name: leaf for name, leaf in params.items() if name != "layers"} | apart


def output_table(params: Any, config: TransformerConfig) -> Float[Array, "V D"]:
  """The table that logits are taken against: the embedding when tied, else the head."""
  return lora.base_of(params)["embedding" if config.tie_embeddings else "head"]


def logits(
  hidden: Float[Array, "... D"],
  table: Float[Array, "V D"],
  config: TransformerConfig,
  valid_vocab: int | None = None,
) -> Float[Array, "... V"]:
  """Float32 logits, soft-capped where the family does; ids >= valid_vocab are masked to -1e30."""
  table = table.astype(hidden.dtype)
  if hidden.ndim == 2:
    products = jax.lax.platform_dependent(hidden, table, cpu=_table_first, default=_hidden_first)
  else:
    products = _hidden_first(hidden, table)
  return finish_logits(products, config, valid_vocab)


def _hidden_first(hidden: Float[Array, "... D"], table: Float[Array, "V D"]) -> Array:
  return jnp.einsum("...D,VD->...V", hidden, table, preferred_element_type=jnp.float32)


def _table_first(hidden: Float[Array, "R D"], table: Float[Array, "V D"]) -> Array:
  """The same for few rows on CPUs, where the product takes half the time this way round."""
  product = jnp.einsum("VD,RD->VR", table, hidden, preferred_element_type=jnp.float32)
  return jax.lax.optimization_barrier(product).T  # or the compiler would turn it back


def finish_logits(
  scores: Float[Array, "... V"], config: TransformerConfig, valid_vocab: int | None = None
) -> Float[Array, "... V"]:
  """Logits of the products of hidden states and output table: `logits` after its product."""
  if config.final_softcap is not None:
    scores = config.final_softcap * jnp.tanh(scores / config.final_softcap)
  if valid_vocab is not None and valid_vocab < config.vocab_size:
    scores = jnp.where(jnp.arange(config.vocab_size) < valid_vocab, scores, MASKED)
  return scores


def as_computed(params: Any, config: TransformerConfig) -> Any:
  """The same function with weights in the compute dtype, for parameters that are not trained.

  A forward pass casts them anyway, except for the scales of norms, which stay as they are.
  """

  def cast(path, leaf):
    return leaf if path[-1].key == "scale" else leaf.astype(config.dtype)

  return jax.tree_util.tree_map_with_path(cast, params)


def init_params(config: TransformerConfig, key: Array) -> Any:
  """Random weights, unboxed. Pure: jit it with `out_shardings` and they are born sharded."""
  return nn.meta.unbox(_boxed_params(config, key))


@functools.lru_cache(maxsize=8)  # tracing a model of many layers takes seconds
def param_shapes(config: TransformerConfig) -> Any:
  """The parameter tree with a jax.ShapeDtypeStruct for each leaf, nothing allocated."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


@functools.lru_cache(maxsize=8)
def logical_axes(config: TransformerConfig) -> Any:
  """The parameter tree with a PartitionSpec of logical axis names for each leaf, nothing allocated.

  The names: layers, vocab, embed, heads, kv_heads, head_dim, mlp.
  """
  boxed = jax.eval_shape(lambda: _boxed_params(config, jax.random.key(0)))
  return nn.get_partition_spec(boxed)


def _boxed_params(config: TransformerConfig, key: Array) -> Any:
  one = jnp.ones((1, 1), jnp.int32)
  return Transformer(config).init(key, one, one * 0, one)["params"]
