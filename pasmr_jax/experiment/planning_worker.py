"""Plans in a process of its own: `python -m pasmr_jax.experiment.planning_worker REQUEST ANSWER`.

`planning.py` starts it with the variables that make libtpu compile without a TPU, which must be set
before jax is imported. REQUEST and ANSWER are JSON files; an error that a user can mend is answered
as `{"error": ...}`.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from pasmr_jax import Config
from pasmr_jax.experiment import setup, validation
from pasmr_jax.experiment.planning import UnsuitableError
from pasmr_jax.experiment.planning_compile import compile_program
from pasmr_jax.experiment.planning_cost import CHIPS
from pasmr_jax.experiment.planning_programs import Planner
from pasmr_jax.experiment.planning_sizes import published
from pasmr_jax.experiment.planning_workload import adjust, workload
from pasmr_jax.models import pretrained
from pasmr_jax.models.config import COMPUTED, TransformerConfig
from pasmr_jax.models.transformer import param_shapes
from pasmr_jax.parallel.mesh import make_mesh, mesh_shape


def as_config(values: dict[str, Any]) -> Config:
  return ConfigDict(values)


def topology_devices(name: str) -> list[Any]:
  """The devices of `v5e:4x8`.

  Raises:
    ValueError: there is no such topology.
  """
  whole = {"chips_per_host_bounds": [1, 1, 1]} if name.endswith(":1x1") else {}
  try:
    return list(topologies.get_topology_desc(topology_name=name, platform="tpu", **whole).devices)
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"--topology={name}: libtpu does not know it: {error}") from error


def model_sizes(config: Config) -> tuple[TransformerConfig, str]:
  """The model, and where its sizes are from.

  Raises:
    ValueError: a hub id that cannot be read and is not in the table of published sizes.
  """
  settings = config.model
  computed = {name: settings[name] for name in COMPUTED}
  if not settings.pretrained:
    with tempfile.TemporaryDirectory() as folder:
      tokenizer = setup.make_tokenizer(config, pathlib.Path(folder))
    return setup.model_config(config, tokenizer), "the sizes in config.model"
  source = setup.source(settings)
  try:
    found, place = pretrained.load_config(source), f"config of {source}"
  except OSError as error:  # no such folder, no network, no access, nothing in the cache
    listed = published(settings.pretrained)
    if listed is None:
      raise ValueError(
        f"model.pretrained is {source!r}: cannot read its config ({error}), and there are no"
        " published sizes of it in planning_sizes.py; name a folder that has its config.json"
      ) from error
    found, place = listed, f"published sizes of {settings.pretrained}, for the hub was not read"
  return dataclasses.replace(found, **computed), place


def largest(fits: Callable[[int], bool], start: int, limit: int = 4096) -> int:
  """The largest number that fits, to an eighth; 0 if not even 1 does. What fits is monotonic."""
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


@dataclasses.dataclass
class Worker:
  """One configuration on one topology."""

  config: Config
  topology: str
  fill: float
  quick: bool

  def __post_init__(self):
    self.chip = CHIPS[self.topology.partition(":")[0]]
    devices = topology_devices(self.topology)
    mesh = self.config.mesh
    self.mesh = make_mesh(mesh.fsdp, mesh.tensor, devices)
    self.model, self.source = model_sizes(self.config)

  def planner(self, config: Config) -> Planner:
    fsdp = self.mesh.shape["fsdp"]
    return Planner(config, self.model, self.mesh, workload(config, fsdp, self.fill))

  def plan(self, stop_early: bool) -> dict[str, Any]:
    """Every program, or those up to the first that does not fit."""
    planner = self.planner(self.config)
    programs = []
    for program in planner.programs():
      programs.append(self._compile(program))
      if stop_early and not programs[-1]["fits"]:
        break
    return {
      "parameters": setup.parameter_count(param_shapes(self.model)),
      "sizes_from": self.source,
      "mesh": dict(self.mesh.shape),
      "limit_bytes": self.chip.hbm_limit,
      "workload": dataclasses.asdict(planner.workload),
      "fill": self.fill,
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
    settings.batch_size = rows * settings.microbatches * self.mesh.shape["fsdp"]
    return self._compile(self.planner(config).supervised(stage), f" {rows} rows")["fits"]

  def _fits_policy(self, rows: int) -> bool:
    srl = self.config.srl
    planner = self.planner(self.config)
    total = rows * srl.microbatches * self.mesh.shape["fsdp"]
    load = dataclasses.replace(planner.workload, update_rows=total)
    program = dataclasses.replace(planner, workload=load).policy()
    return self._compile(program, f" {rows} rows")["fits"]

  def _fits_decode(self, slots: int) -> bool:
    planner = self.planner(self.config)
    load = dataclasses.replace(planner.workload, slots=slots * self.mesh.shape["fsdp"])
    program = dataclasses.replace(planner, workload=load).decode()
    return self._compile(program, f" {slots} slots")["fits"]

  def _compile(self, program: Any, note: str = "") -> dict[str, Any]:
    print(f"{self.topology}: compiling {program.name}{note}", file=sys.stderr, flush=True)
    with jax.set_mesh(self.mesh):
      return compile_program(program, self.mesh.size, self.chip, self.quick)


def answer(request: dict[str, Any]) -> dict[str, Any]:
  """What `planning.py` asked for.

  Raises:
    UnsuitableError: the configuration cannot be run on so many devices.
    ValueError: the topology or the model cannot be planned.
  """
  config = as_config(request["config"])
  devices = len(topology_devices(request["topology"]))
  try:
    fsdp, _ = mesh_shape(config.mesh.fsdp, config.mesh.tensor, devices)
    changed = adjust(config, fsdp)
    validation.check(config, fsdp)
  except ValueError as error:
    raise UnsuitableError(str(error)) from error
  worker = Worker(config, request["topology"], request["fill"], request["quick"])
  if request["max_batch"]:
    return {"max_batch": worker.max_batch(), "mesh": dict(worker.mesh.shape)}
  return worker.plan(request["stop_early"]) | {"adjusted": changed}


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
