"""The parts of a layer that know nothing of attention: norm, rotary positions, gated MLP.

Axes: B batch, T length, D embed, F mlp, H head_dim, R = H / 2 rotations.
"""

import math
from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.lora import adapt


def weight(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  axes: tuple[str, ...],
  init: Callable,
  config: TransformerConfig,
) -> Array:
  """One weight with a logical axis name beside each of its dimensions, in the compute dtype."""
  stored = stored_weight(module, name, shape, axes, init, config)
  return gathered(stored.astype(config.dtype), axes)


def stored_weight(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  axes: tuple[str, ...],
  init: Callable,
  config: TransformerConfig,
) -> Array:
  """The same in the dtype it is stored in."""
  boxed = nn.with_logical_partitioning(init, axes)
  return cast(Array, module.param(name, boxed, shape, jnp.dtype(config.param_dtype)))


def gathered(weight: Array, axes: tuple[str, ...]) -> Array:
  """A layer's weight with its embed dimension whole on every device, its gradient split again.

  Left to itself the compiler gathers a weight anew for each product it stands in: forward, in the
  recomputation, and for the gradient of the product's input. Tables are too large to be whole, and
  other weights have no such dimension.
  """
  fsdp = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1)
  if fsdp == 1 or "vocab" in axes or "embed" not in axes:
    return weight
  place = axes.index("embed")
  if weight.shape[place] % fsdp:
    return weight
  others = [PartitionSpec.UNCONSTRAINED] * len(axes)
  whole = PartitionSpec(*others[:place], None, *others[place + 1 :])
  split = PartitionSpec(*others[:place], "fsdp", *others[place + 1 :])

  @jax.custom_vjp
  def gather(weight):
    return jax.lax.with_sharding_constraint(weight, whole)

  def backward(_, gradient):
    return (jax.lax.with_sharding_constraint(gradient, split),)

  gather.defvjp(lambda weight: (gather(weight), None), backward)
  return gather(weight)


def split_rows(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
  """Holds the rows of x split over every axis of the current mesh but `tensor`.

  Without it the compiler, which also sees the weights split over `fsdp`, was found to split the
  embedding dimension instead and to compute every row on every device. Does nothing outside of
  `jax.set_mesh`, or where the rows do not divide.
  """
  axes = traced_row_axes(jax.sharding.get_abstract_mesh(), x.shape[0])
  return x if axes is None else jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def traced_row_axes(mesh: AbstractMesh, rows: int) -> tuple[str, ...] | None:
  """The axes of a mesh that so many rows are split over; None if they do not divide.

  Rows of one replica alone, in a `vmap` over replicas, are split over the others.
  """
  axes = tuple(axis for axis in mesh.axis_names if axis != "tensor" and not is_mapped(axis))
  if not axes or rows % math.prod(mesh.shape[axis] for axis in axes):
    return None
  return axes


def is_mapped(axis: str) -> bool:
  """Whether this is traced inside a `vmap` or `shard_map` over the axis of this name."""
  try:
    jax.lax.axis_size(axis)
  except NameError:
    return False
  return True


def fan_in(num_in: int) -> Callable:
  """Truncated normal of variance 1 / (product of the first `num_in` dimensions)."""

  def init(key, shape, dtype):
    inputs = 1
    for size in shape[:num_in]:
      inputs *= size
    # 0.8796 is the standard deviation of a unit normal cut at two standard deviations.
    stddev = inputs**-0.5 / 0.87962566103423978
    return (jax.random.truncated_normal(key, -2.0, 2.0, shape) * stddev).astype(dtype)

  return init


class RMSNorm(nn.Module):
  """x / rms(x) * (1 + weight), or * weight. Computed in float32, returned in the input's dtype."""

  config: TransformerConfig
  axis: str = "embed"  # logical name of the last dimension

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    config = self.config
    ones_or_zeros = nn.initializers.zeros if config.norm_plus_one else nn.initializers.ones
    shape, axes = (x.shape[-1],), (self.axis,)
    scale = stored_weight(self, "scale", shape, axes, ones_or_zeros, config)
    scale = scale.astype(jnp.float32) + (1.0 if config.norm_plus_one else 0.0)
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean_square + config.norm_eps) * scale).astype(x.dtype)


def rope_angles(
  positions: Int[Array, "B T"], config: TransformerConfig, kind: str
) -> Float[Array, "B T R"]:
  """Rotary angles in radians, float32, of the layers of a kind ('local' or 'global').

  angle[i] = position / scale * base ** (-2 i / head_dim), and Llama 3's divisor where it has one.
  """
  local = kind == "local"
  base = config.rope_base_local if local else config.rope_base_global
  scale = config.rope_scale_local if local else config.rope_scale_global
  exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
  frequencies = base**-exponents
  if config.rope_llama3_factor != 1.0:
    frequencies /= llama3_divisors(frequencies, config)
  return positions.astype(jnp.float32)[..., None] * (frequencies / scale)


def llama3_divisors(frequencies: Float[Array, "R"], config: TransformerConfig) -> Float[Array, "R"]:
  """What Llama 3.1 divides each rotation's frequency by (its model card's `apply_scaling`)."""
  low, high = config.rope_llama3_low_freq, config.rope_llama3_high_freq
  turns = config.rope_llama3_length * frequencies / (2 * math.pi)
  kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return 1.0 / ((1.0 - kept) / config.rope_llama3_factor + kept)


def rotate(x: Float[Array, "B T N H"], angles: Float[Array, "B T R"]) -> Float[Array, "B T N H"]:
  """Rotates entry i with entry i + H/2 by angle i (the half-split pairing of Hugging Face)."""
  sin, cos = jnp.sin(angles)[:, :, None], jnp.cos(angles)[:, :, None]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)


class GatedMLP(nn.Module):
  """down(activation(gate(x)) * up(x))."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    config = self.config
    d, f = config.embed_dim, config.mlp_dim
    gate = weight(self, "gate", (d, f), ("embed", "mlp"), fan_in(1), config)
    up = weight(self, "up", (d, f), ("embed", "mlp"), fan_in(1), config)
    down = weight(self, "down", (f, d), ("mlp", "embed"), fan_in(1), config)
    gated = adapt(self, "gate", x, jnp.einsum("BTD,DF->BTF", x, gate))
    gated = nn.gelu(gated, approximate=True) if config.activation == "gelu_tanh" else nn.silu(gated)
    hidden = gated * adapt(self, "up", x, jnp.einsum("BTD,DF->BTF", x, up))
    return adapt(self, "down", hidden, jnp.einsum("BTF,FD->BTD", hidden, down))
