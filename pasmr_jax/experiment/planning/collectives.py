"""What the devices of a compiled program send each other.

`collectives` lists every collective of the schedule, loop bodies times their trips. Devices of one
slice are joined by the fast interconnect, slices by the data-centre network: what crosses that one
has a kind of its own, NETWORK.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

from pasmr_jax.experiment.planning.hlo import Computation, Instruction, Module, executions

COLLECTIVES = (
  "all-gather",
  "reduce-scatter",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "ragged-all-to-all",
  "collective-broadcast",
)
NETWORK = "from other slices"
_WHOLE = ("collective-permute", "collective-broadcast", NETWORK)  # all of it reaches a device


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of the program: what it is and how much of it."""

  kind: str  # of COLLECTIVES, or NETWORK
  bytes: int  # of the whole array: gathered, or before it is scattered
  devices: int  # in one of its groups
  times: float

  @property
  def received(self) -> float:
    """Bytes that must reach each device, whatever the algorithm."""
    if self.kind in _WHOLE:
      return self.times * self.bytes
    share = (self.devices - 1) / self.devices
    return self.times * self.bytes * (2 * share if self.kind == "all-reduce" else share)


def collectives(
  module: Module, dynamic_trips: float = 0, branches: bool = False
) -> list[Collective]:
  """Every collective, once a channel: the parts of an asynchronous one share their channel.

  Args:
    module: the program.
    dynamic_trips: of loops whose number of trips is decided while they run.
    branches: as in `hlo.executions`.

  Raises:
    ValueError: the groups of one are written in a form that is not known.
  """
  found: dict[str, Collective] = {}
  for name, times in executions(module, dynamic_trips, True, branches).items():
    computation = module.computations[name]
    for one in computation.instructions:
      made = _collective(name, computation, one, times)
      if made is None or not times:
        continue
      channel = re.search(r"channel_id=(\d+)", one.attributes)
      key = channel[1] if channel else f"{name}/{one.name}"
      if key not in found or found[key].received < made.received:
        found[key] = made
  return list(found.values())


def _collective(
  name: str, computation: Computation, one: Instruction, times: float
) -> Collective | None:
  if one.opcode == "recv" and "megascale" in one.attributes:
    # Between slices the compiler sums inside of each, and hosts exchange the devices' parts.
    return Collective(NETWORK, one.arrays[0].bytes, 1, times)
  kind = one.opcode.removesuffix("-start")
  if kind not in COLLECTIVES:
    return None
  devices, size = 1 if kind in _WHOLE else _group_size(one.attributes), one.size
  if one.opcode.endswith("-start") and kind != "all-reduce":
    size -= sum(computation.by_name[operand].size for operand in one.operands)
  if kind == "reduce-scatter":
    size *= devices  # its result is one device's part
  elif kind == "all-reduce" and "all-reduce-scatter" in name:
    kind = "reduce-scatter"
  return Collective(kind, size, devices, times)


def received_bytes(found: Sequence[Collective]) -> dict[str, float]:
  """Bytes that reach one device, by kind."""
  totals: dict[str, float] = collections.defaultdict(float)
  for one in found:
    totals[one.kind] += one.received
  return {kind: total for kind, total in totals.items() if total}


def _group_size(attributes: str) -> int:
  """Devices a group: of `{{0,1},{2,3}}`, of `[2,4]<=[8]`, or of `mesh['a'=4,'b'=2] {'a'}`.

  A mesh may say in between how its devices are ordered: `, device_ids=([4,2]T(1,0))`.
  """
  mesh = re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=[^{]*)? \{('\w+'(?:, ?'\w+')*)\}", attributes
  )
  if mesh:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
    return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", mesh[2]))
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
  if listed:
    return len(listed[1].split(","))
  iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
  if iota:
    return int(iota[2])
  raise ValueError(
    f"a collective has replica_groups of a form that is not known: {attributes[:300]}"
  )
