"""Does a configuration fit a TPU slice, or GPUs, and how fast can it be: asked before renting.

`plan` answers for one topology, `smallest` for a TPU generation, `max_batch` for the largest
microbatch. Each question is put to a process of its own (`worker.py`), because libtpu
reads how to compile without a TPU from variables that must stand before jax is imported, and
because a compiler that dies must not take the answers before it along. Answers are kept as JSON in
a folder, named by a digest of the question, of what compiles and the variables that it reads, and
of this package.

This file and `table.py`, which prints, do without jax.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from pasmr_jax import Config
from pasmr_jax.experiment.planning.cost import CHIPS, GIB
from pasmr_jax.experiment.planning.gpus import GPUS

# What decides about no program, and may change without compiling again. What were forgotten here
# would only be compiled once more.
_DECIDES_NOTHING = (
  *("seed", "init_from", "data", "reward", "evaluation", "checkpoint", "guard", "log"),
)
_VARIABLES = ("JAX_", "LIBTPU_", "XLA_")  # of the environment, which say how to compile
_VERSIONS = ("jax", "jaxlib", "flax", "optax")
_CUDA = ("jax-cuda13-plugin", "jax-cuda12-plugin")  # each with a jax-cuda1X-pjrt
_TENSORS = (1, 2, 4, 8)  # times mesh.tensor: what `smallest` tries
MOST_ROWS = 4096  # on a device, that `max_batch` tries
# So that libtpu neither looks for a TPU's host nor claims one, and two plans may run at a time.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "TPU_LOG_DIR": "disabled",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TF_CPP_MIN_LOG_LEVEL": "3",
}


class PlanError(Exception):
  """What keeps a plan from being made, said for the user."""


class UnsuitableError(PlanError):
  """The configuration cannot be run on so many devices."""


@dataclasses.dataclass(frozen=True)
class Planning:
  """A configuration to plan, and how."""

  config: Config
  cache: pathlib.Path  # folder of answers
  fill: float = 1.0  # mean length of prompt and response over their limits
  quick: bool = False  # compile with little effort
  num_slices: int = 1  # of the topology, joined by the data-centre network
  programs: tuple[str, ...] = ()  # the ones to plan; all if empty

  def plan(self, topology: str, stop_early: bool = False) -> dict[str, Any]:
    """The report of one topology such as `v5e:4x8` or `h100:1`.

    Where batches do not divide over its devices, microbatches and padding are changed so that they
    do, and the report says which keys that took.

    Args:
      topology: generation and shape.
      stop_early: leave out the programs after the first that does not fit.

    Raises:
      PlanError: what compiles is missing, the topology or the configuration is wrong, or compiling
        failed.
    """
    self._check_topology(topology)
    question = {"stop_early": stop_early, "programs": list(self.programs)}
    return {"topology": topology} | self._ask({"ask": "plan", "topology": topology} | question)

  def max_batch(self, topology: str) -> dict[str, Any]:
    """The largest rows a device in a microbatch, found by compiling; raises as `plan`."""
    self._check_topology(topology)
    if self.programs:
      raise PlanError(f"--programs: expected none with --max_batch, found {self.programs}")
    return self._ask({"ask": "max_batch", "topology": topology})

  def smallest(self, generation: str) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    """The report of the smallest slice that fits, and why each smaller one does not.

    Weights are whole on each device while sampling but for `mesh.tensor`, so it is doubled, up to
    eight times, where they are too many. What holds too much is not compiled.
    """
    refused = []
    for topology, options in itertools.groupby(self.weigh(generation), lambda one: one["topology"]):
      reason = ""
      for option in options:
        report, why = self._tried(option)
        if report is not None:
          return report, refused
        reason = why if option["fits"] else reason or why
      refused.append((topology, reason))
    return None, refused

  def weigh(self, generation: str) -> list[dict[str, Any]]:
    """What each slice, with each `mesh.tensor`, would hold by shapes alone: quick, and too little.

    Returns:
      An option each, smallest slice first: its `topology`, `tensor`, whether it `fits` and if not
      `why`; the `program` that holds most and its `held_bytes`, where batches divide. Slices after
      the first that could fit are taken to fit, and have no more than that.
    """
    topologies = [f"{generation}:{shape}" for shape in CHIPS[generation].slices]
    tensors = [self.config.mesh.tensor * times for times in _TENSORS]
    question = {"ask": "weigh", "topologies": topologies, "tensors": tensors}
    return self._ask(question | {"programs": list(self.programs)})["weighed"]

  def _check_topology(self, name: str) -> None:
    """Raises PlanError unless it is a TPU generation and a shape, or a GPU and a number of them."""
    generation, _, shape = name.partition(":")
    sides = shape.split("x")
    if generation in GPUS:
      counts = GPUS[generation].chip.slices
      if shape not in counts:
        raise PlanError(f"--topology={name}: expected {generation}: and {', '.join(counts)}")
      if self.num_slices > 1:
        raise PlanError(f"--num_slices={self.num_slices}: {name} is one host; expected 1")
    elif generation not in CHIPS or not all(side.isdecimal() and int(side) > 0 for side in sides):
      examples = [f"{known}:{CHIPS[known].slices[1]}" for known in CHIPS]
      examples += [f"{known}:1" for known in GPUS]
      expected = ", ".join(examples)
      raise PlanError(f"--topology={name}: expected 'auto' or a slice such as {expected}")

  def _tried(self, option: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The report of a topology with a mesh.tensor; None and why if it does not fit."""
    if not option["fits"]:
      return None, option["why"]
    config: Config = ConfigDict(self.config.to_dict())
    changed = option["tensor"] != config.mesh.tensor
    config.mesh.tensor = option["tensor"]
    try:
      report = dataclasses.replace(self, config=config).plan(option["topology"], stop_early=True)
    except UnsuitableError as error:
      return None, str(error).splitlines()[-1].strip()
    if report["fits"]:
      flags = [f"--config.mesh.tensor={option['tensor']}"] if changed else []
      return report | {"adjusted": [*flags, *report["adjusted"]]}, ""
    worst = max(report["programs"], key=lambda program: program["over_bytes"])
    over = worst["over_bytes"] / GIB
    return None, f"{worst['program']} is {over:.2f} GiB over with mesh.tensor={option['tensor']}"

  def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
    config = self.config.to_dict()
    given = {"fill": self.fill, "quick": self.quick, "num_slices": self.num_slices}
    request = {**question, **given}
    topology = question.get("topology") or question["topologies"][0]
    versions = compiler_versions(topology.partition(":")[0])
    decides = {
      "config": {name: part for name, part in config.items() if name not in _DECIDES_NOTHING},
      "files": _files(self.config.model.pretrained) + _files(self.config.tokenizer.path),
      "environment": {k: v for k, v in _environment().items() if k.startswith(_VARIABLES)},
      "versions": versions,
      "code": _code(),
    }
    kept = self.cache / f"{_digest(request | decides)}.json"
    if kept.exists():
      return json.loads(kept.read_text("utf-8"))
    found = _in_a_process(request | {"config": config})
    if "unsuitable" in found:
      raise UnsuitableError(found["unsuitable"])
    if "error" in found:
      raise PlanError(found["error"])
    asked = {"num_slices": self.num_slices, "quick": self.quick, "versions": versions}
    found = asked | found
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(found, indent=1), "utf-8")
    partial.replace(kept)
    return found


def compiler_versions(generation: str) -> dict[str, str]:
  """Versions of what compiles for a TPU generation or a GPU.

  Raises:
    PlanError: libtpu, or JAX's CUDA plugin, is not installed.
  """
  if generation in GPUS:
    plugins = [name for name in _CUDA if importlib.util.find_spec(name.replace("-", "_"))]
    if not plugins:
      raise PlanError(
        "plans for GPUs are compiled with JAX's CUDA plugin, which is not installed here. No GPU"
        " and nothing else of CUDA is needed: pip install -r requirements-cuda.txt"
      )
    compilers = (*plugins, *(name.replace("plugin", "pjrt") for name in plugins))
  elif importlib.util.find_spec("libtpu") is None:
    raise PlanError(
      "plans are compiled with libtpu, which is not installed here. It comes with jax[tpu] on"
      " Linux x86-64: pip install -r requirements.txt"
    )
  else:
    compilers = ("libtpu",)
  return {name: importlib.metadata.version(name) for name in (*_VERSIONS, *compilers)}


def _environment() -> dict[str, str]:
  """Of the process that compiles."""
  return os.environ | _ENVIRONMENT


def _in_a_process(request: Mapping[str, Any]) -> dict[str, Any]:
  with tempfile.TemporaryDirectory() as folder:
    asked, answered = pathlib.Path(folder) / "request.json", pathlib.Path(folder) / "answer.json"
    asked.write_text(json.dumps(request), "utf-8")
    root = str(pathlib.Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    worker = "pasmr_jax.experiment.planning.worker"
    finished = subprocess.run(
      [sys.executable, "-m", worker, str(asked), str(answered)],
      env=_environment() | {"PYTHONPATH": path},
      check=False,
    )
    if not answered.exists():
      raise PlanError(
        f"compiling for {request.get('topology', 'TPUs')} ended with exit code"
        f" {finished.returncode} and no answer; what it said is above"
      )
    return json.loads(answered.read_text("utf-8"))


def _files(name: str) -> list[Any]:
  """Each file of a local folder, or the file itself, with its size and when it was written."""
  if not name:
    return []
  path = pathlib.Path(name)
  found = [(one, one.stat()) for one in sorted([path, *path.glob("*")]) if one.is_file()]
  return [(one.name, stat.st_size, stat.st_mtime_ns) for one, stat in found]


def _code() -> str:
  """A digest of this package: another program must not be answered from the cache."""
  digest = hashlib.sha256()
  for path in sorted(pathlib.Path(__file__).resolve().parents[2].rglob("*.py")):
    digest.update(path.read_bytes())
  return digest.hexdigest()


def _digest(request: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:24]
