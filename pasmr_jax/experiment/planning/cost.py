"""What a program costs: operations from its jaxpr, bytes from its scheduled HLO, and a floor.

- `flops` counts the matrix products of a traced function, times the lengths of its scans.
- `hbm_bytes` walks the compiled schedule of one device, loop bodies times their trips. Arrays in
  on-chip memory are free, slices and updates in place count at the slice's size, layout padding is
  not counted. `collectives.py` does the same for what devices send each other.
- `floor` divides each by what the chip can do at best: no step can be faster than the largest.

Every figure is a lower bound. XLA's own `cost_analysis` is not used: it counts a loop's body once.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from pasmr_jax.experiment.planning.collectives import COLLECTIVES, NETWORK
from pasmr_jax.experiment.planning.hlo import Computation, Instruction, Module, executions

# Instructions that move nothing: names for what is there already, what holds other computations,
# or the end of a transfer that was counted at its start.
_FREE = {
  *("parameter", "constant", "iota", "get-tuple-element", "tuple", "bitcast", "after-all"),
  *("partition-id", "replica-id", "opt-barrier", "while", "call", "conditional"),
  *("copy-done", "slice-done", "async-done", "async-update", "send-done", "recv-done"),
  *(f"{kind}-done" for kind in COLLECTIVES),
}
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one device, of a TPU generation or a GPU (gpus.py), can do at best."""

  kind: str  # JAX's device_kind
  flops: float  # bfloat16 multiplications and additions a second
  hbm_bandwidth: float  # bytes a second
  ici_bandwidth: float  # bytes a second that reach it from its neighbours, over all links
  network_bandwidth: float  # bytes a second that reach it from other slices
  hbm_limit: float  # bytes that the compiler lets a program use
  slices: tuple[str, ...]  # rented sizes, smallest first
  platform: str = "tpu"  # as JAX names it, or cuda


GIB = 2**30
# Peak bf16 compute, HBM bandwidth, half the bidirectional ICI bandwidth and the data-centre
# network's bandwidth a chip, from Google's pages on each generation
# (docs.cloud.google.com/tpu/docs/v5e, v6e, v5p-training). The limits are those that libtpu 0.0.42's
# compiler states when a program exceeds them.
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CHIPS = {
  "v5e": Chip("TPU v5 lite", 197e12, 819e9, 200e9, 3.125e9, 15.75 * GIB, _SQUARES),
  "v6e": Chip("TPU v6 lite", 918e12, 1638e9, 400e9, 12.5e9, 31.25 * GIB, _SQUARES),
  "v5p": Chip(
    "TPU v5",
    459e12,
    2765e9,
    600e9,
    6.25e9,
    95.74 * GIB,
    ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
  ),
}


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one device does in one call of a program."""

  flops: float
  hbm_bytes: float
  collective_bytes: dict[str, float]  # that reach the device, by kind of collective


def floor(cost: Cost, chip: Chip) -> tuple[dict[str, float], str]:
  """Seconds that each of a chip's resources needs at best, and which needs most."""
  moved, across = cost.collective_bytes, cost.collective_bytes.get(NETWORK, 0.0)
  seconds = {
    "compute": cost.flops / chip.flops,
    "memory": cost.hbm_bytes / chip.hbm_bandwidth,
    "interconnect": (sum(moved.values()) - across) / chip.ici_bandwidth,
    "network": across / chip.network_bandwidth,
  }
  return seconds, max(seconds, key=seconds.__getitem__)


# Operations.


def flops(jaxpr: Any, dynamic_trips: float = 0, branches: bool = False) -> float:
  """Floating-point operations of all matrix products of a jaxpr, over all devices.

  A product of [m, k] and [k, n] is 2 m k n operations. Scans count their length times, branches as
  the cheapest one (with `branches` the dearest), Pallas kernels by the estimate they carry (or
  their inside, once a grid cell).

  Args:
    jaxpr: `jax.jit(f).trace(...).jaxpr`, or any jaxpr.
    dynamic_trips: of `while` loops, whose trips a jaxpr does not tell.
    branches: whether what a condition decides is part of the step, as in `hlo.executions`.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    inside = [flops(inner, dynamic_trips, branches) for inner in _inner(params)]
    if name == "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
      total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
    elif name == "scan":
      total += params["length"] * sum(inside)
    elif name == "while":
      total += dynamic_trips * flops(params["body_jaxpr"], dynamic_trips, branches)
    elif name == "cond":
      total += max(inside) if branches else min(inside)
    elif name == "shard_map":
      mesh = params["mesh"]
      axes = params.get("newly_manual_axes", mesh.axis_names)
      total += math.prod(mesh.shape[axis] for axis in axes) * sum(inside)
    elif name == "pallas_call":
      estimate = params.get("cost_estimate")
      cells = math.prod(params["grid_mapping"].grid)
      always = cells * sum(flops(inner, dynamic_trips) for inner in _inner(params))
      total += always if estimate is None else estimate.flops
    else:
      total += sum(inside)
  return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The jaxprs among an equation's parameters."""
  for value in params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      if hasattr(getattr(one, "jaxpr", one), "eqns"):
        yield one


# Bytes through HBM.


def hbm_bytes(module: Module, dynamic_trips: float = 0, branches: bool = False) -> float:
  """Bytes that one device reads from and writes to HBM.

  Args:
    module: the program.
    dynamic_trips: of loops whose number of trips is decided while they run.
    branches: as in `hlo.executions`.
  """
  total = 0
  for name, count in executions(module, dynamic_trips, False, branches).items():
    computation = module.computations[name]
    if count:
      total += count * sum(_traffic(module, computation, one) for one in computation.instructions)
  return total


def _traffic(module: Module, computation: Computation, one: Instruction) -> int:
  if one.opcode in _FREE:
    return 0
  operands = [computation.by_name[name] for name in one.operands if name in computation.by_name]
  if one.opcode == "fusion":
    fused = module.computations[one.called("calls")[0]]
    read = sum(
      _read(module, fused, fused.parameters[place], operand.hbm)
      for place, operand in enumerate(operands)
      if place in fused.parameters
    )
    return read + min(_written(module, fused, fused.root), one.hbm)
  if one.opcode in _SLICES:
    return (one.size if operands and operands[0].hbm else 0) + one.hbm
  if one.opcode == "dynamic-update-slice":
    return operands[1].hbm + (operands[1].size if one.hbm else 0)
  if one.opcode in ("copy-start", "slice-start", "async-start"):
    return _transfer(one)
  if one.opcode == "custom-call" and 'custom_call_target="AllocateBuffer"' in one.attributes:
    return 0
  return one.hbm + sum(operand.hbm for operand in operands)


def _transfer(one: Instruction) -> int:
  """A copy or slice that runs beside other work; its type is (destination, source, context)."""
  arrays = [array for array in one.arrays if array.bytes > 8] or list(one.arrays)
  moved = min(array.bytes for array in arrays)
  return moved * max(1, sum(array.in_hbm for array in arrays[:2]))


def _read(module: Module, fused: Computation, name: str, full: int) -> int:
  """Bytes a fusion reads of one operand: all of it, or only what it slices out."""
  if not full or name == fused.root.name:
    return full
  read = 0
  for user, place in fused.users[name]:
    if user.opcode in _SLICES:
      read += user.size if place == 0 else 0
    elif user.opcode == "bitcast":
      read += _read(module, fused, user.name, full)
    elif user.opcode == "fusion":
      inner = module.computations[user.called("calls")[0]]
      read += _read(module, inner, inner.parameters[place], full)
    elif not (user.opcode == "dynamic-update-slice" and place == 0):
      return full
  return min(read, full)


def _written(module: Module, fused: Computation, one: Instruction) -> int:
  """Bytes a fusion writes: of an update in place only the slice."""
  if one.opcode == "dynamic-update-slice":
    return fused.by_name[one.operands[1]].size
  if one.opcode == "bitcast":
    return _written(module, fused, fused.by_name[one.operands[0]])
  if one.opcode == "tuple":
    return sum(_written(module, fused, fused.by_name[name]) for name in one.operands)
  if one.opcode == "fusion":
    inner = module.computations[one.called("calls")[0]]
    return _written(module, inner, inner.root)
  return one.size
