"""Compiles one program for a TPU or a GPU: what it needs and what it costs, read from the result.

`compile_program` gives a plain dictionary, ready for JSON: whether it fits, what fills the memory
of one device while it runs, the operations, the bytes, and the time that no run can beat.
"""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from pasmr_jax.experiment.planning import cost as costs
from pasmr_jax.experiment.planning.collectives import collectives, received_bytes
from pasmr_jax.experiment.planning.cost import GIB, Chip, Cost
from pasmr_jax.experiment.planning.hlo import Array, Module, parse, scheduled_arrays

REST = "activations and the rest"


@dataclasses.dataclass(frozen=True)
class Program:
  """A jitted function with the abstract arguments that training calls it with."""

  name: str
  function: Any
  arguments: tuple[Any, ...]
  keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # trees it holds, by name
  resident: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # trees held beside it
  working: int = 0  # bytes on one device of what else must be there at one moment of it
  vocabulary: int = 0  # logits of a token on one device
  logits: int = 0  # of all tokens that one device has logits of at a time
  calls: int = 1  # a step
  tokens: int = 0  # a call
  model_flops: float = 0  # of an update: what its forward and backward pass take at least
  branches: bool = False  # whether what a condition decides is done in every step
  trips: float = 0  # of loops that may stop early: tokens a row, or chunks of scored tokens


def compile_program(program: Program, devices: int, chip: Chip, quick: bool) -> dict[str, Any]:
  """What one device holds and does. What holds too much before it begins is not compiled.

  Args:
    program: what to compile; the caller has set its mesh.
    devices: how many there are.
    chip: their kind.
    quick: compile with little effort: four times as fast, other figures for memory.

  Raises:
    jax.errors.JaxRuntimeError: compiling fails for another reason than memory.
  """
  if held_bytes(program) > chip.hbm_limit:
    return too_much(program, chip)
  started = time.perf_counter()
  traced = program.function.trace(*program.arguments, **program.keywords)
  jax.config.update("jax_optimization_level", "O1" if quick else "UNKNOWN")
  resident = {name: device_bytes(tree) for name, tree in program.resident.items()}
  report: dict[str, Any] = {"program": program.name, "calls": program.calls, "compiled": True}
  try:
    compiled = _compiled(traced, chip)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    peak, module = _needed(str(error), program, chip), None
  else:
    peak = compiled.memory_analysis().peak_memory_in_bytes
    module = parse(compiled.as_text())
  total = peak + sum(resident.values())
  report |= {
    "fits": module is not None and total <= chip.hbm_limit,
    "held_bytes": held_bytes(program),
    "peak_bytes": total,
    "over_bytes": max(0, math.ceil(total - chip.hbm_limit)),
    "filled_by": filled_by(program, peak, module) | {k: v for k, v in resident.items() if v},
    "compile_seconds": round(time.perf_counter() - started, 1),
  }
  if module is not None:
    report["parts"] = _parts(program, traced.jaxpr, module, devices, chip)
    sizes = (math.prod(array.dims) for array in _with_vocabulary(program, module))
    report["largest_with_vocabulary"] = max(sizes, default=0)
  return report


def _compiled(traced: Any, chip: Chip) -> Any:
  """The compiled program.

  XLA for a GPU times several kernels for each product, where there is one, and leaves out those
  that cannot be made. Without a GPU it takes the first; if that cannot be made, cuBLAS does it.
  """
  lowered = traced.lower()
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if chip.platform != "cuda" or not str(error).startswith("INTERNAL"):
      raise
  return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})


def held_bytes(program: Program) -> int:
  """Bytes that one device holds of what is known by its shape: less than the program needs."""
  held = [tree for name, tree in program.parts.items() if name != "gradients"]
  return sum(map(device_bytes, (*held, *program.resident.values()))) + program.working


def too_much(program: Program, chip: Chip) -> dict[str, Any]:
  """The report of a program that cannot fit, whatever the compiler does."""
  trees = {**program.parts, **program.resident}
  filled = {name: device_bytes(tree) for name, tree in trees.items() if name != "gradients"}
  filled[REST] = program.working
  held = held_bytes(program)
  return {
    "program": program.name,
    "calls": program.calls,
    "fits": False,
    "compiled": False,
    "held_bytes": held,
    "peak_bytes": held,
    "over_bytes": math.ceil(held - chip.hbm_limit),
    "filled_by": {name: size for name, size in filled.items() if size},
    "compile_seconds": 0.0,
  }


def device_bytes(tree: Any) -> int:
  """Bytes of a tree of sharded abstract arrays on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def filled_by(program: Program, peak: int, module: Module | None) -> dict[str, int]:
  """The peak by what fills it, in bytes.

  Trees count by their shapes, gradients as one tree more; logits as the largest such array of the
  schedule. What is left has the name `REST`.
  """
  filled = {name: device_bytes(tree) for name, tree in program.parts.items()}
  if module is not None:
    arrays = _with_vocabulary(program, module)
    logits = [array.bytes for array in arrays if math.prod(array.dims) == program.logits]
    filled["logits"] = max(logits, default=0)
  # Gradients are not all alive at once if the optimizer consumes some early.
  filled[REST] = peak - sum(filled.values())
  if filled[REST] < 0 and "gradients" in filled:
    filled["gradients"] = max(0, filled["gradients"] + filled[REST])
    filled[REST] = peak - sum(size for name, size in filled.items() if name != REST)
  return {name: size for name, size in filled.items() if size > 0}


def _with_vocabulary(program: Program, module: Module) -> list[Array]:
  """Arrays in HBM that have a number for each token of the vocabulary: tables and logits."""
  return [
    array for array in scheduled_arrays(module) if {program.vocabulary} & set(array.dims) - {0}
  ]


def _needed(message: str, program: Program, chip: Chip) -> int:
  """Bytes that a program which does not fit would take, from the compiler's refusal.

  It says how much is used in all, or how much the temporaries need beside the arguments.
  """
  units = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
  used = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
  temporaries = re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds", message)
  if used:
    return math.ceil(float(used[1]) * units[used[2]])
  if temporaries:
    held = (tree for name, tree in program.parts.items() if name != "gradients")
    beside = sum(map(device_bytes, held))
    return math.ceil(float(temporaries[1]) * units[temporaries[2]]) + beside
  return math.ceil(chip.hbm_limit) + 1  # more than there is; how much is not said


def _parts(
  program: Program, jaxpr: Any, module: Module, devices: int, chip: Chip
) -> list[dict[str, Any]]:
  moved = received_bytes(collectives(module, program.trips, program.branches))
  cost = Cost(
    costs.flops(jaxpr, program.trips, program.branches) / devices,
    costs.hbm_bytes(module, program.trips, program.branches),
    moved,
  )
  seconds, bound = costs.floor(cost, chip)
  floor, tokens = seconds[bound], program.tokens
  possible = floor * chip.flops * devices
  part = {
    "part": program.name,
    "calls": program.calls,
    "flops": cost.flops,
    "hbm_bytes": cost.hbm_bytes,
    "collective_bytes": cost.collective_bytes,
    "seconds": seconds,
    "floor_seconds": floor,
    "bound": bound,
    "tokens": tokens,
    "tokens_per_second": tokens / floor if floor else 0.0,
  }
  if program.model_flops:
    part["model_flops_share"] = program.model_flops / possible
  return [part]
