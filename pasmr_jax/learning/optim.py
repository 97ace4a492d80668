"""The optimizer of a stage, from its configuration; all of it is Optax.

A gradient is clipped by its global norm, turned into a direction (`_direction`: the algorithm),
decayed weights are added, and the schedule says how far to go. Moments are kept in
`optimizer.moment_dtype` and computed with in float32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pasmr_jax import Config
from pasmr_jax.models.lora import TARGETS

NAMES = ("adamw", "adafactor", "lion", "muon")
SCHEDULES = ("cosine", "linear", "constant")
DECAYED = ("matrices", "layers", "all")
MOMENT_DTYPES = ("", "float32", "bfloat16")


def make_schedule(config: Config, steps: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up from 0, then `config.schedule` down to `final_fraction`.

  Raises:
    ValueError: on an unknown schedule.
  """
  peak, final = config.learning_rate, config.learning_rate * config.final_fraction
  decay_steps = max(steps - config.warmup_steps, 1)
  if config.schedule == "cosine":
    decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_fraction)
  elif config.schedule == "linear":
    decay = optax.linear_schedule(peak, final, decay_steps)
  elif config.schedule == "constant":
    decay = optax.constant_schedule(peak)
  else:
    raise ValueError(f"optimizer.schedule is {config.schedule!r}; expected one of {SCHEDULES}")
  # The first update has count 0: start the warm-up at its first step, not at a rate of zero.
  warmup = lambda count: peak * (count + 1) / (config.warmup_steps + 1)  # noqa: E731
  return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
  """What turns gradients into updates.

  Args:
    config: one stage's `optimizer` keys (configs/base.py).
    steps: length of the stage, for the schedule.

  Raises:
    ValueError: on an unknown optimizer, schedule or choice of decayed weights.
  """
  if config.decayed not in DECAYED:
    raise ValueError(f"optimizer.decayed is {config.decayed!r}; expected one of {DECAYED}")
  parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
  parts.append(_direction(config))
  if config.weight_decay > 0:
    parts.append(optax.add_decayed_weights(config.weight_decay, _decayed(config.decayed)))
  parts.append(optax.scale_by_learning_rate(make_schedule(config, steps)))
  # Adafactor's moments are few, and its decay nears 1: in bfloat16 they would stop moving.
  dtype = "float32" if config.name == "adafactor" else config.moment_dtype
  return _keeping_moments(optax.chain(*parts), dtype)


def _direction(config: Config) -> optax.GradientTransformation:
  """The algorithm without rate and decay; what it gives is subtracted from the parameters."""
  if config.name == "adamw":
    return optax.scale_by_adam(config.b1, config.b2, config.epsilon)
  if config.name == "lion":
    return optax.scale_by_lion(config.b1, config.b2)
  if config.name == "adafactor":
    return optax.chain(optax.adafactor(learning_rate=None), optax.scale(-1.0))
  if config.name == "muon":
    orthogonal = optax.contrib.muon(
      1.0,
      beta=config.momentum,
      eps=config.epsilon,
      adam_b1=config.b1,
      adam_b2=config.b2,
      muon_weight_dimension_numbers=_matrices,
      # The root mean square of AdamW's updates, so that both learn at the same rates
      # (arXiv 2502.16982, section 2.2).
      consistent_rms=0.2,
    )
    return optax.chain(orthogonal, optax.scale(-1.0))
  raise ValueError(f"optimizer.name is {config.name!r}; expected one of {NAMES}")


def _matrices(params: Any) -> Any:
  """Which axes of a leaf are a matrix's rows and columns; None where AdamW steps in.

  Leaves of layers are stacks of matrices, whose rows or columns may be several axes: a query
  [L D N H] is L matrices of D rows and N * H columns. Tables and vectors are AdamW's.
  """

  def axes(path, leaf):
    names = [entry.key for entry in path]
    inputs = TARGETS.get(names[-1])
    if names[-1] in ("a", "b"):  # of an adapter: its rank is the only column, or the only row
      inputs = leaf.ndim - 2 if names[-1] == "a" else 1
    if inputs is None:
      return None
    rows = tuple(range(1, 1 + inputs))
    return optax.contrib.MuonDimensionNumbers(rows, tuple(range(1 + inputs, leaf.ndim)))

  return jax.tree_util.tree_map_with_path(axes, params)


def _decayed(which: str) -> Callable[[Any], Any]:
  """A function from parameters to the tree that says which of them decay."""

  def decays(path, _):
    names = [entry.key for entry in path]
    vector = any("norm" in name or name.endswith("bias") for name in names)
    if which == "layers":
      return not vector and names[0] == "layers"
    return which == "all" or not vector

  return lambda params: jax.tree_util.tree_map_with_path(decays, params)


def map_moments(
  function: Callable[[Any, Any], Any],
  opt_state: Any,
  params: Any,
  other: Callable[[Any], Any] = lambda leaf: leaf,
) -> Any:
  """`function(leaf, parameter)` of every leaf of an optimizer's state that belongs to a parameter.

  A state holds trees like the parameters': a leaf belongs to the parameter whose path its own path
  ends with. The leaves that belong to none, such as counters, go through `other`.
  """
  parameters = dict(jax.tree_util.tree_leaves_with_path(params))

  def apply(path, leaf):
    for start in range(len(path)):
      if path[start:] in parameters:
        return function(leaf, parameters[path[start:]])
    return other(leaf)

  return jax.tree_util.tree_map_with_path(apply, opt_state)


def _keeping_moments(
  inner: optax.GradientTransformation, dtype: str
) -> optax.GradientTransformation:
  """Keeps moments in `dtype`, or the parameters' if it is '', and computes in float32."""

  def init(params):
    state = inner.init(params)
    return map_moments(lambda moment, param: moment.astype(dtype or param.dtype), state, params)

  def update(updates, state, params=None):
    exact = map_moments(lambda moment, _: moment.astype(jnp.float32), state, params)
    as_float32 = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)  # noqa: E731
    updates, exact = inner.update(as_float32(updates), exact, as_float32(params))
    return updates, jax.tree.map(lambda new, old: new.astype(old.dtype), exact, state)

  return optax.GradientTransformation(init, update)
