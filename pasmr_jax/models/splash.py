"""Attention of whole, packed rows by JAX's splash kernel, for TPUs.

The scores of XLA's attention, `[B, N, T, T]` in float32, are written to memory and read again. The
kernel computes a block of them at a time on the chip and skips the blocks that no query may see:
those above the diagonal, and in a local layer those behind the window. `model.attention` chooses:
`splash` takes the kernel wherever the program runs, off a TPU in Pallas' interpreter, which is slow
and for tests; `auto` takes it on TPUs for the head widths it compiles for, and XLA's elsewhere.

A kernel is a program of one device, so `shard_map` gives each device its rows and its heads. All
layers are one traced layer; whether it is local is a number at run time, which chooses between two
kernels.

Axes: B rows, T tokens, N heads, K key/value heads, H head_dim.
"""

import functools
import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.layers import traced_row_axes

_LANES = 128  # blocks are multiples of it
_BLOCKS = (512, 384, 256, 128)  # queries, and keys, at a time; larger ones do not fit on a v5e
_HEAD_DIMS = 64  # what the kernel is compiled for: multiples


def uses_splash(config: TransformerConfig) -> bool:
  """Whether the program that is being traced computes whole rows by the kernel."""
  if config.attention == "auto":
    return _platform() == "tpu" and config.head_dim % _HEAD_DIMS == 0
  return config.attention == "splash"


def _platform() -> str:
  """Of the devices of the current mesh, which may be a TPU's that is only compiled for."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def splash_attend(
  queries: Float[Array, "B T N H"],
  keys: Float[Array, "B K T H"],
  values: Float[Array, "B K T H"],
  segment_ids: Int[Array, "B T"],
  is_local: Bool[Array, ""],
  config: TransformerConfig,
) -> Float[Array, "B T N H"]:
  """Causal attention inside each segment, in float32. Queries are scaled already.

  Equal to `attention.attend` with `attention.segment_mask`, but for padding (segment 0), whose
  tokens see each other here and whose results nobody reads.
  """
  mesh = jax.sharding.get_abstract_mesh()
  attend = functools.partial(_attend, config=config, interpret=_platform() != "tpu")
  if mesh.empty:
    return attend(queries, keys, values, segment_ids, is_local)
  rows, heads = traced_row_axes(mesh, queries.shape[0]), None
  tensor, kv_heads = mesh.shape.get("tensor", 1), keys.shape[1]
  if tensor > 1 and queries.shape[2] % tensor == 0:
    # Every device needs the keys of its heads: fewer keys than devices are repeated.
    heads, copies = "tensor", math.lcm(kv_heads, tensor) // kv_heads
    keys, values = (jnp.repeat(array, copies, axis=1) for array in (keys, values))
  by_head = PartitionSpec(rows, heads)
  by_token = PartitionSpec(rows, None, heads)
  return jax.shard_map(
    attend,
    in_specs=(by_token, by_head, by_head, PartitionSpec(rows), PartitionSpec()),
    out_specs=by_token,
    check_vma=False,  # kernels do not say what varies over the mesh
  )(queries, keys, values, segment_ids, is_local)


def _attend(queries, keys, values, segment_ids, is_local, config, interpret):
  """One device's rows and heads, padded to whole blocks."""
  length = queries.shape[1]
  pad = -length % _LANES
  queries = jnp.pad(queries.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, pad), (0, 0)))
  keys, values = (jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0))) for x in (keys, values))
  segment_ids = jnp.pad(segment_ids, ((0, 0), (0, pad)))

  def by(kind: str) -> Callable[..., Array]:
    kernel = _kernel(config, kind, queries.shape[1], length + pad, interpret)
    return lambda *arrays: cast(Array, jax.vmap(kernel)(*arrays))  # it says more for residuals

  kinds = set(config.layer_kinds)
  if config.sliding_window >= length:
    kinds = {"global"}  # the window sees the whole row
  arguments = (queries, keys, values, splash.SegmentIds(segment_ids, segment_ids))
  if len(kinds) == 1:
    mixed = by(kinds.pop())(*arguments)
  else:
    mixed = jax.lax.cond(is_local, by("local"), by("global"), *arguments)
  return mixed[:, :, :length].transpose(0, 2, 1, 3)


def _kernel(config: TransformerConfig, kind: str, heads: int, length: int, interpret: bool):
  """The kernel of one row, `[N T H], [K T H], [K T H], ids -> [N T H]`."""
  shape = (length, length)
  if kind == "local":
    mask = splash.LocalMask(shape, (config.sliding_window - 1, 0), offset=0)
  else:
    mask = splash.CausalMask(shape)
  block = next(size for size in _BLOCKS if length % size == 0)
  return splash.make_splash_mha(
    splash.MultiHeadMask([mask] * heads),
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    attn_logits_soft_cap=config.attention_softcap,
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
