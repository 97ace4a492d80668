"""Plans in a process of its own: `python -m pasmr_jax.experiment.planning.worker REQUEST ANSWER`.

`plan.py` starts it with the variables that make libtpu compile without a TPU, and JAX's CUDA plugin
without a GPU, which must be set before jax is imported. REQUEST and ANSWER are JSON files; an error
that a user can mend is answered as `{"error": ...}`.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from pasmr_jax import Config
from pasmr_jax.experiment import origins, setup, validation
from pasmr_jax.experiment.planning.compiling import Program, compile_program, held_bytes
from pasmr_jax.experiment.planning.cost import GIB, Chip
from pasmr_jax.experiment.planning.dividing import adjust
from pasmr_jax.experiment.planning.gpus import GPUS, chip
from pasmr_jax.experiment.planning.plan import MOST_ROWS, UnsuitableError
from pasmr_jax.experiment.planning.programs import Planner
from pasmr_jax.experiment.planning.sizes import published
from pasmr_jax.experiment.planning.workload import workload
from pasmr_jax.models import pretrained
from pasmr_jax.models.config import COMPUTED, TransformerConfig
from pasmr_jax.models.transformer import param_shapes
from pasmr_jax.parallel.mesh import make_mesh, mesh_shape, row_parts

# Chips of a host where a slice is one; hosts of larger slices have 2x2.
_ONE_HOST = {"1x1": [1, 1, 1], "2x4": [2, 4, 1]}
Sizes = tuple[TransformerConfig, str]  # of a model, and where they are from


def as_config(values: dict[str, Any]) -> Config:
  return ConfigDict(values)


def topology_devices(name: str, num_slices: int = 1) -> list[Any]:
  """The devices of `v5e:4x8`, or of so many of them; of `h100:8`, GPUs of one host.

  Raises:
    ValueError: there is no such topology.
  """
  generation, _, shape = name.partition(":")
  settings: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
  if generation in GPUS:
    # Slices, hosts of each, and GPUs of each host.
    settings = {"topology": f"1x1x{shape}", "target_config": GPUS[generation].target()}
  elif shape in _ONE_HOST:
    settings["chips_per_host_bounds"] = _ONE_HOST[shape]
  platform = chip(name).platform
  try:
    found = topologies.get_topology_desc(topology_name=name, platform=platform, **settings)
    return list(found.devices)
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"--topology={name}: the compiler does not know it: {error}") from error


def model_sizes(config: Config) -> Sizes:
  """The sizes of a configuration's model.

  Raises:
    ValueError: a hub id that cannot be read and is not in the table of published sizes.
  """
  settings = config.model
  computed = {name: settings[name] for name in COMPUTED}
  if not settings.pretrained:
    with tempfile.TemporaryDirectory() as folder:
      tokenizer = setup.make_tokenizer(config, pathlib.Path(folder))
    return setup.model_config(config, tokenizer), "the sizes in config.model"
  source = origins.source(settings)
  try:
    found, place = pretrained.load_config(source), f"config of {source}"
  except OSError as error:  # no such folder, no network, no access, nothing in the cache
    listed = published(settings.pretrained)
    if listed is None:
      raise ValueError(
        f"model.pretrained is {source!r}: cannot read its config ({error}), and there are no"
        " published sizes of it in planning/sizes.py; name a folder that has its config.json"
      ) from error
    found, place = listed, f"published sizes of {settings.pretrained}, for the hub was not read"
  return dataclasses.replace(found, **computed), place


def largest(fits: Callable[[int], bool], start: int, limit: int = MOST_ROWS) -> int:
  """The largest number that fits, to an eighth; 0 if not even 1 does. What fits is monotonic.

  More than `limit` are not tried.
  """
  low, high = 0, start
  while high <= limit and fits(high):
    low, high = high, 2 * high
  if low == 0:
    high = start
    while high > 1:
      high, above = high // 2, high
      if fits(high):
        low, high = high, above
        break
    else:
      return 0
  while high - low > max(1, low // 8) and low < limit:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low


@dataclasses.dataclass(frozen=True)
class Worker:
  """One configuration on one topology."""

  config: Config
  topology: str
  fill: float
  quick: bool
  num_slices: int
  mesh: jax.sharding.Mesh
  sizes: Sizes
  adjusted: tuple[str, ...]  # flags of the keys that were changed so that batches divide

  @property
  def chip(self) -> Chip:
    return chip(self.topology)

  @property
  def parts(self) -> int:
    return row_parts(self.mesh)

  def planner(self, config: Config) -> Planner:
    return Planner(config, self.sizes[0], self.mesh, workload(config, self.parts, self.fill))

  def programs(self, names: Sequence[str]) -> list[Program]:
    """Those that are named, or all.

    Raises:
      ValueError: the configuration has no program of a name.
    """
    planned = list(self.planner(self.config).programs())
    known = [program.name for program in planned]
    if unknown := [name for name in names if name not in known]:
      raise ValueError(f"--programs: no {', '.join(unknown)}; expected some of {', '.join(known)}")
    return [program for program in planned if not names or program.name in names]

  def plan(self, stop_early: bool, names: Sequence[str]) -> dict[str, Any]:
    """Every program, or those that are named, or those up to the first that does not fit."""
    planned = self.programs(names)
    order = [program.name for program in planned]
    if stop_early:  # updates first: they compile soonest, and need most
      planned.sort(key=lambda program: not program.name.endswith("update"))
    programs = []
    for program in planned:
      programs.append(self._compile(program))
      if stop_early and not programs[-1]["fits"]:
        break
    programs.sort(key=lambda program: order.index(program["program"]))
    return {
      "parameters": setup.parameter_count(param_shapes(self.sizes[0])),
      "sizes_from": self.sizes[1],
      "mesh": dict(self.mesh.shape),
      "limit_bytes": self.chip.hbm_limit,
      "workload": dataclasses.asdict(self.planner(self.config).workload),
      "fill": self.fill,
      "adjusted": self.adjusted,
      "fits": all(program["fits"] for program in programs),
      "programs": programs,
    }

  def max_batch(self) -> dict[str, int]:
    """Rows a device in one microbatch of each update, and rows decoded together on one device."""
    found = {}
    for stage in self.config.stages:
      if stage == "srl":
        found["srl.microbatches"] = largest(self._fits_policy, 1)
        found["rollout.slots"] = largest(self._fits_decode, 1)
      else:
        found[f"{stage}.microbatches"] = largest(lambda n, s=stage: self._fits_update(s, n), 1)
    return found

  def _fits_update(self, stage: str, rows: int) -> bool:
    config = as_config(self.config.to_dict())
    settings = config[stage]
    settings.batch_size = rows * settings.microbatches * self.parts
    return self._compile(self.planner(config).supervised(stage), f" {rows} rows")["fits"]

  def _fits_policy(self, rows: int) -> bool:
    config = as_config(self.config.to_dict())
    srl = config.srl
    srl.row_bucket = rows * srl.microbatches * self.parts
    planner = self.planner(config)
    load = dataclasses.replace(planner.workload, update_rows=srl.row_bucket)
    planner = dataclasses.replace(planner, workload=load)
    program = planner.longest_policy() if planner.has_longer_rows else planner.policy()
    return self._compile(program, f" {rows} rows")["fits"]

  def _fits_decode(self, slots: int) -> bool:
    planner = self.planner(self.config)
    load = dataclasses.replace(planner.workload, slots=slots * self.parts)
    program = dataclasses.replace(planner, workload=load).decode()
    return self._compile(program, f" {slots} slots")["fits"]

  def _compile(self, program: Program, note: str = "") -> dict[str, Any]:
    print(f"{self.topology}: compiling {program.name}{note}", file=sys.stderr, flush=True)
    with jax.set_mesh(self.mesh):
      return compile_program(program, self.mesh.size, self.chip, self.quick)


def make_worker(
  request: dict[str, Any], topology: str, sizes: Sizes, tensor: int | None = None
) -> Worker:
  """A worker whose configuration has batches that divide over the topology's devices.

  Args:
    request: of `plan.py`.
    topology: such as `v5e:4x8`.
    sizes: of the model.
    tensor: mesh.tensor, if not the configuration's.

  Raises:
    UnsuitableError: the configuration cannot be run on so many devices.
    ValueError: there is no such topology.
  """
  config, slices = as_config(request["config"]), request["num_slices"]
  mesh = config.mesh
  mesh.tensor = tensor or mesh.tensor
  devices = topology_devices(topology, slices)
  try:
    replica, fsdp, _ = mesh_shape(mesh.fsdp, mesh.tensor, len(devices), mesh.replica, slices)
    adjusted = adjust(config, replica * fsdp)
    validation.check(config, replica * fsdp)
    made = make_mesh(mesh.fsdp, mesh.tensor, devices, mesh.replica)
  except ValueError as error:
    raise UnsuitableError(str(error)) from error
  return Worker(
    config, topology, request["fill"], request["quick"], slices, made, sizes, tuple(adjusted)
  )


def weigh(request: dict[str, Any], sizes: Sizes) -> list[dict[str, Any]]:
  """Whether a topology could fit, with each mesh.tensor, and if not why.

  What a program holds is known by its shapes, without compiling; it needs more. Of the topologies
  after the first that could fit nothing is found out.

  Raises:
    ValueError: the configuration has no program of a name.
  """
  found: list[dict[str, Any]] = []
  for topology in request["topologies"]:
    known = any(option["fits"] for option in found)
    for tensor in request["tensors"]:
      option: dict[str, Any] = {"topology": topology, "tensor": tensor, "fits": known}
      if known:
        found.append(option)
        continue
      try:
        worker = make_worker(request, topology, sizes, tensor)
      except UnsuitableError as error:
        found.append(option | {"why": str(error).splitlines()[-1].strip()})
        continue
      heaviest = max(worker.programs(request["programs"]), key=held_bytes)
      held = held_bytes(heaviest)
      over = held - worker.chip.hbm_limit
      option |= {"fits": over <= 0, "program": heaviest.name, "held_bytes": held}
      if over > 0:
        much = f"{over / GIB:.2f} GiB too much"
        option["why"] = f"{heaviest.name} holds {much} with mesh.tensor={tensor}"
      found.append(option)
  return found


def answer(request: dict[str, Any]) -> dict[str, Any]:
  """What `plan.py` asked for; raises as `model_sizes` and `make_worker` do."""
  sizes = model_sizes(as_config(request["config"]))
  if request["ask"] == "weigh":
    return {"weighed": weigh(request, sizes)}
  worker = make_worker(request, request["topology"], sizes)
  if request["ask"] == "max_batch":
    return {"max_batch": worker.max_batch(), "row_parts": worker.parts}
  return worker.plan(request["stop_early"], request["programs"])


def main(request: str, answered: str) -> None:
  try:
    made = answer(json.loads(pathlib.Path(request).read_text("utf-8")))
  except UnsuitableError as error:
    made = {"unsuitable": str(error)}
  except ValueError as error:
    made = {"error": str(error)}
  pathlib.Path(answered).write_text(json.dumps(made), "utf-8")


if __name__ == "__main__":
  main(*sys.argv[1:])
