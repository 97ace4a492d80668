"""The mesh, and everything that depends on where arrays live.

One process a host, one mesh over all devices with the axes `fsdp` and `tensor`. Parameters are
split by a table of `rules.py`; batches by rows over `fsdp`, each process holding the rows it read.
"""

import math
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pasmr_jax.models import lora
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import logical_axes, param_shapes
from pasmr_jax.parallel.rules import TRAINING, Rules, partition_specs

AXES = ("fsdp", "tensor")


def initialize_distributed() -> None:
  """Joins the processes of a job of several hosts; on a single host does nothing.

  Call it before anything else touches JAX. Several hosts are recognised as JAX itself does: by the
  variables of its own launcher, of Slurm, Open MPI and TPU pods, or by a TPU VM's metadata.
  """
  if jax.distributed.is_initialized() or not _several_hosts(os.environ):
    return
  number, process = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
  jax.distributed.initialize(
    num_processes=None if number is None else int(number),
    process_id=None if process is None else int(process),
  )


def _several_hosts(environment: Mapping[str, str]) -> bool:
  if environment.get("JAX_COORDINATOR_ADDRESS"):
    return True
  for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES"):
    if int(environment.get(name) or 1) > 1:
      return True
  if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
    return False
  if "TPU_WORKER_HOSTNAMES" in environment:
    return "," in environment["TPU_WORKER_HOSTNAMES"]
  return _tpu_vm_of_a_pod()


def _tpu_vm_of_a_pod() -> bool:
  """A TPU VM outside Kubernetes knows its neighbours only from the metadata server."""
  devices = pathlib.Path("/dev")
  if not any(devices.glob("accel[0-9]*")) and not any(devices.glob("vfio/[0-9]*")):
    return False
  request = urllib.request.Request(
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints",
    headers={"Metadata-Flavor": "Google"},
  )
  try:
    with urllib.request.urlopen(request, timeout=5) as response:
      return b"," in response.read()
  except (urllib.error.URLError, TimeoutError):
    return False  # no metadata server: not a TPU VM, so nobody to join


def make_mesh(fsdp: int, tensor: int, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh of all devices with axes ('fsdp', 'tensor'); fsdp = -1 takes what tensor leaves.

  `devices` are others than this job's, such as those of a TPU that is only compiled for.

  Raises ValueError, naming mesh.fsdp or mesh.tensor, if they do not multiply to the device count.
  """
  available = jax.devices() if devices is None else devices
  shape = mesh_shape(fsdp, tensor, len(available))
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=available)


def mesh_shape(fsdp: int, tensor: int, devices: int) -> tuple[int, int]:
  """Sizes of the axes of `make_mesh`; raises as it does."""
  if tensor < 1 or devices % tensor:
    raise ValueError(f"mesh.tensor: found {tensor}, expected a divisor of the {devices} devices")
  if fsdp == -1:
    fsdp = devices // tensor
  if fsdp < 1 or fsdp * tensor != devices:
    raise ValueError(
      f"mesh.fsdp: found {fsdp} with mesh.tensor={tensor}, expected -1 or {devices // tensor}, "
      f"so that they multiply to the {devices} devices"
    )
  return fsdp, tensor


def param_shardings(config: TransformerConfig, mesh: Mesh, rules: Rules) -> Any:
  """The parameter tree with a NamedSharding for each leaf; nothing is allocated."""
  specs, _ = _param_specs(config, mesh, rules)
  return _named(specs, mesh)


def adapter_shardings(
  config: TransformerConfig, mesh: Mesh, rules: Rules, settings: lora.LoraSettings
) -> Any:
  """The tree of adapters with a NamedSharding for each leaf; each is split as its weight is."""
  shapes = lora.adapter_shapes(param_shapes(config), settings)
  axes = lora.adapter_axes(logical_axes(config), settings)
  return _named(partition_specs(axes, shapes, mesh.shape, rules)[0], mesh)


def _named(specs: Any, mesh: Mesh) -> Any:
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
  )


def replication_notes(config: TransformerConfig, mesh: Mesh, rules: Rules) -> tuple[str, ...]:
  """What the rules would split but the sizes do not let them, a sentence each."""
  return _param_specs(config, mesh, rules)[1]


def _param_specs(config, mesh, rules):
  shapes = param_shapes(config)
  return partition_specs(logical_axes(config), shapes, mesh.shape, rules)


def row_axes(mesh: Mesh) -> tuple[str, ...]:
  """The axes that rows are split over: every one but `tensor`."""
  return tuple(axis for axis in TRAINING["batch"] if axis in mesh.shape)


def row_parts(mesh: Mesh) -> int:
  """Into how many parts rows are split."""
  return math.prod(mesh.shape[axis] for axis in row_axes(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows, the leading axis, over `row_axes`."""
  return NamedSharding(mesh, PartitionSpec(row_axes(mesh)))


def replicated(mesh: Mesh) -> NamedSharding:
  """Everything on every device."""
  return NamedSharding(mesh, PartitionSpec())


def shard_batch(tree: Any, mesh: Mesh) -> Any:
  """Global arrays from each process's own rows (numpy, rows first), split by `batch_sharding`.

  Raises ValueError if the rows of all processes do not divide over the mesh.
  """
  sharding = batch_sharding(mesh)
  parts = row_parts(mesh)

  def place(rows):
    rows = np.asarray(rows)
    if rows.ndim == 0 or rows.shape[0] * jax.process_count() % parts:
      raise ValueError(
        f"a batch array of shape {rows.shape} in each of {jax.process_count()} processes does not "
        f"divide by rows over mesh.fsdp={parts}"
      )
    return jax.make_array_from_process_local_data(sharding, rows)

  return jax.tree.map(place, tree)


def local_rows(array: jax.Array) -> np.ndarray:
  """This process's rows of an array split by `batch_sharding` (or replicated), in order."""
  shards = {}
  for shard in array.addressable_shards:
    if shard.data.shape[1:] != array.shape[1:]:
      raise ValueError(f"{array.sharding} splits more than the rows of shape {array.shape}")
    shards.setdefault(shard.index[0].start or 0, shard.data)  # copies over `tensor` are equal
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
