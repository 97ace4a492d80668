"""Reads the scheduled HLO of a compiled program.

The text of `compiled.as_text()` is the schedule of one device: every fusion, copy and collective in
order, each array with the memory it lives in (on a TPU a layout with `S(1)` is VMEM, other numbers
are smaller memories, none is HBM). `parse` reads it into computations, and `executions`
says how often each of them runs. `cost.py` counts with both.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

ITEM_BITS = {
  "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
  "s64": 64, "u64": 64, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64,
  "c64": 64,
}  # fmt: skip

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a type: its dimensions, bytes, and whether it lives in HBM."""

  dims: tuple[int, ...]
  bytes: int
  in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    return arrays_of(self.type)

  @functools.cached_property
  def hbm(self) -> int:
    return sum(array.bytes for array in self.arrays if array.in_hbm)

  @property
  def size(self) -> int:
    """Bytes of the result wherever it lives."""
    return sum(array.bytes for array in self.arrays)

  def called(self, *names: str) -> list[str]:
    """Computations named by attributes such as `calls=%a` or `branch_computations={%a, %b}`."""
    found = re.findall(rf"\b(?:{'|'.join(names)})=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
    return [name for group in found for name in _NAME.findall(group)]


class Computation:
  """Instructions in order, with what is looked up in them."""

  def __init__(self, instructions: list[Instruction]):
    self.instructions = instructions
    self.by_name = {one.name: one for one in instructions}
    self.parameters: dict[int, str] = {}
    self.users: dict[str, list[tuple[Instruction, int]]] = collections.defaultdict(list)
    for one in instructions:
      if one.opcode == "parameter":
        self.parameters[int(one.attributes.partition(")")[0])] = one.name
      for place, operand in enumerate(one.operands):
        self.users[operand].append((one, place))

  @functools.cached_property
  def root(self) -> Instruction:
    return next(one for one in self.instructions if one.root)


@dataclasses.dataclass(frozen=True)
class Module:
  """A parsed program."""

  computations: Mapping[str, Computation]
  entry: str


def arrays_of(type_text: str) -> tuple[Array, ...]:
  """The arrays of a type such as `(bf16[8,128]{1,0:T(8,128)S(1)}, u32[])`."""
  found = []
  for kind, dims_text, layout in _ARRAY.findall(type_text):
    if kind in ITEM_BITS:
      dims = tuple(int(size) for size in dims_text.split(",") if size)
      found.append(Array(dims, math.prod(dims) * ITEM_BITS[kind] // 8, "S(" not in layout))
  return tuple(found)


def parse(text: str) -> Module:
  """Reads `compiled.as_text()`.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations: dict[str, list[Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if not line.startswith(" "):
      header = _COMPUTATION.match(line)
      if header:
        current = computations.setdefault(header[2], [])
        entry = header[2] if header[1] else entry
      continue
    start = _INSTRUCTION.match(line)
    if start and current is not None:
      current.append(_instruction(line[start.end() :], start[2], bool(start[1])))
  if not entry:
    raise ValueError("expected the text of a compiled program, found no ENTRY computation")
  return Module({name: Computation(lines) for name, lines in computations.items()}, entry)


def _instruction(text: str, name: str, root: bool) -> Instruction:
  """`TYPE OPCODE(OPERANDS), ATTRIBUTES`; a tuple's type has brackets and blanks of its own."""
  end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
  opcode, _, rest = text[end:].lstrip().partition("(")
  operands = rest[: _closing("(" + rest) - 1]
  return Instruction(name, text[:end], opcode, tuple(_NAME.findall(operands)), rest, root)


def _closing(text: str) -> int:
  """Where the bracket that the text begins with closes."""
  depth = 0
  for place, character in enumerate(text):
    depth += (character == "(") - (character == ")")
    if depth == 0:
      return place
  return len(text)


def trips(module: Module, loop: Instruction) -> int | None:
  """How often the body of a `while` runs, or None if that is decided while it runs.

  A `lax.scan` compiles to a counter from 0 that is compared with a constant; a loop that may stop
  early (decoding) compares more than that. For GPUs the compiler writes down what it knows.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  (condition,) = loop.called("condition")
  computation = module.computations[condition]
  root = computation.root
  constants = [
    int(one.attributes.partition(")")[0])
    for one in computation.instructions
    if one.opcode == "constant" and re.match(r"-?\d+\)", one.attributes)
  ]
  if root.opcode == "fusion":
    inner = module.computations[root.called("calls")[0]]
    if inner.root.opcode != "compare":
      return None
  elif root.opcode != "compare":
    return None
  return constants[0] if len(constants) == 1 else None


def executions(
  module: Module, dynamic_trips: float, fusions: bool, branches: bool = False
) -> dict[str, float]:
  """How often each computation runs.

  Of a conditional the branches count as never run: where programs sample they hold only optional
  truncation and work that one platform does not do. With `branches` the longest one counts as run:
  in an update that is the optimizer's work, or a microbatch, beside a branch that does nothing; and
  of attention's two kernels, local and global, which move the same, each layer takes one. `fusions`
  also visits the insides of fusions, where collectives may stand.
  """
  times: dict[str, float] = collections.defaultdict(float)

  def visit(name: str, count: float) -> None:
    times[name] += count
    for one in module.computations[name].instructions:
      if one.opcode == "while":
        (condition,), (body,) = one.called("condition"), one.called("body")
        known = trips(module, one)
        runs = count * (dynamic_trips if known is None else known)
        visit(body, runs)
        visit(condition, runs)
      elif one.opcode == "conditional" and branches:
        names = ("branch_computations", "true_computation", "false_computation")
        callees = one.called(*names)
        longest = max(callees, key=lambda callee: len(module.computations[callee].instructions))
        for callee in callees:
          visit(callee, count if callee == longest else 0)
      elif one.opcode == "call" or (one.opcode == "fusion" and fusions):
        for callee in one.called("to_apply", "calls"):
          visit(callee, count)
      elif one.opcode == "async-start" and fusions:
        for callee in one.called("calls"):
          visit(callee, count)

  visit(module.entry, 1)
  return times


def scheduled_arrays(module: Module) -> Iterator[Array]:
  """Every array in HBM that an instruction of the schedule makes (not those inside fusions)."""
  for name in executions(module, dynamic_trips=1, fusions=False, branches=True):
    for one in module.computations[name].instructions:
      yield from (array for array in one.arrays if array.in_hbm)
