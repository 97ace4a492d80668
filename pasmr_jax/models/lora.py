"""Low-rank adapters beside frozen weights (LoRA, arXiv 2106.09685): y = x W + scale (x A) B.

`init_adapters` makes A and B for the weights that `LoraSettings` names, as a tree of their own that
follows the parameters' paths. `Adapted` puts such a tree on its base for a forward pass: the layers
find A and B in a Linen collection (`variables`) and add what they make of an input (`adapt`), so
that no W + A B exists while training. `merged` adds them up for sampling and export.

Google's qwix, which adapts Linen models from outside, was looked at and not taken: it replaces the
code of `jnp.einsum` for the whole process while a model is applied, refers to JAX by private names,
keeps adapters among the base weights, and tells a cast weight from another by its shape.

Axes: L layers, D the weight's inputs (one axis or several), O its outputs, R rank.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

COLLECTION = "adapters"  # of Linen, beside `params`
# The weights that may be adapted, and how many of their axes (without `layers`) are inputs.
TARGETS: Mapping[str, int] = {
  "query": 1,
  "key": 1,
  "value": 1,
  "output": 2,
  "gate": 1,
  "up": 1,
  "down": 1,
}


@dataclasses.dataclass(frozen=True)
class LoraSettings:
  """Which weights have adapters, and of what size."""

  rank: int
  alpha: float
  targets: tuple[str, ...]  # of TARGETS

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


class Frozen(flax.struct.PyTreeNode):
  """The weights under adapters in training."""

  params: Any
  settings: LoraSettings = flax.struct.field(pytree_node=False)
  origin: str = flax.struct.field(pytree_node=False)  # names these weights in checkpoints


class Adapted(flax.struct.PyTreeNode):
  """Weights and the adapters on them: stands where a forward pass takes parameters."""

  base: Any
  adapters: Any
  scale: float = flax.struct.field(pytree_node=False)


def base_of(params: Any) -> Any:
  """The parameter tree itself, or that under adapters."""
  return params.base if isinstance(params, Adapted) else params


def variables(params: Any) -> dict[str, Any]:
  """What `Transformer.apply` takes, of a parameter tree or of `Adapted`."""
  if not isinstance(params, Adapted):
    return {"params": params}
  scaled = _map_pairs(lambda pair: pair | {"b": params.scale * pair["b"]}, params.adapters)
  return {"params": params.base, COLLECTION: scaled}


def adapt(
  module: nn.Module, name: str, x: Float[Array, "... D"], y: Float[Array, "... O"]
) -> Float[Array, "... O"]:
  """y = x W of a module's weight `name`, and what the weight's adapter adds if it has one."""
  if not module.has_variable(COLLECTION, name):
    return y
  pair = module.get_variable(COLLECTION, name)
  a, b = pair["a"].astype(x.dtype), pair["b"].astype(x.dtype)
  return y + jnp.tensordot(jnp.tensordot(x, a, axes=a.ndim - 1), b, axes=1)


def adapter_shapes(weights: Any, settings: LoraSettings) -> Any:
  """The tree of adapters with a float32 jax.ShapeDtypeStruct for each leaf.

  A pair stands where its weight stands: `{"a": [L, *D, R], "b": [L, R, *O]}`.

  Args:
    weights: `transformer.param_shapes` of the model.
    settings: which weights.
  """

  def pair(name, leaf):
    a, b = _factors(leaf.shape, name, settings.rank)
    return {"a": jax.ShapeDtypeStruct(a, jnp.float32), "b": jax.ShapeDtypeStruct(b, jnp.float32)}

  return _pairs_of(weights, settings, pair)


def adapter_axes(weights: Any, settings: LoraSettings) -> Any:
  """The same tree with a PartitionSpec of logical axis names for each leaf.

  Args:
    weights: `transformer.logical_axes` of the model.
    settings: which weights.
  """

  def pair(name, leaf):
    a, b = _factors(tuple(leaf), name, "rank")
    return {"a": PartitionSpec(*a), "b": PartitionSpec(*b)}

  return _pairs_of(weights, settings, pair)


def init_adapters(shapes: Any, key: Array) -> Any:
  """Adapters that add nothing yet: A uniform in +-1 / sqrt(inputs), B zero.

  Pure: jit it with `out_shardings` and they are born sharded.
  """
  keys = iter(jax.random.split(key, len(jax.tree.leaves(shapes))))

  def pair(of):
    shape, dtype = of["a"].shape, of["a"].dtype
    bound = math.prod(shape[1:-1]) ** -0.5
    a = jax.random.uniform(next(keys), shape, dtype, -bound, bound)
    return {"a": a, "b": jnp.zeros(of["b"].shape, of["b"].dtype)}

  return _map_pairs(pair, shapes)


def merged(params: Any, dtype: str | None = None) -> Any:
  """Parameters without adapters that compute the same: W + scale A B where there are any.

  Summed in float32, a weight at a time; weights without adapters are not copied.

  Args:
    params: `Adapted`, or a parameter tree, which is returned as it is.
    dtype: of the merged weights, if not their own.
  """
  if not isinstance(params, Adapted):
    return params

  def merge(weights, adapters):
    if set(adapters) == {"a", "b"}:
      return _merged_weight(weights, adapters, params.scale, dtype or weights.dtype.name)
    return {
      name: merge(leaf, adapters[name]) if name in adapters else leaf
      for name, leaf in weights.items()
    }

  return merge(params.base, params.adapters)


@functools.partial(jax.jit, static_argnames="dtype")
def _merged_weight(weight, pair, scale, dtype):
  products = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1))(pair["a"], pair["b"])
  return (weight.astype(jnp.float32) + scale * products).astype(dtype)


def _factors(whole: tuple, name: str, inner: Any) -> tuple[tuple, tuple]:
  """Of a weight's [L, *D, *O] those of A and B."""
  inputs = 1 + TARGETS[name]
  return (*whole[:inputs], inner), (whole[0], inner, *whole[inputs:])


def _pairs_of(weights: Any, settings: LoraSettings, pair: Any) -> Any:
  found = {
    block: {name: pair(name, leaf) for name, leaf in leaves.items() if name in settings.targets}
    for block, leaves in weights["layers"].items()
  }
  return {"layers": {block: leaves for block, leaves in found.items() if leaves}}


def _map_pairs(function: Any, adapters: Any) -> Any:
  return jax.tree.map(
    function, adapters, is_leaf=lambda one: isinstance(one, dict) and "a" in one and "b" in one
  )
