"""The mesh, and everything that depends on where arrays live.

One process a host, one mesh over all devices with the axes `replica`, `fsdp` and `tensor`.
Parameters are split over the last two by a table of `rules.py` and whole in every replica; batches
are split by rows over the first two, each process holding the rows it read. Devices of a `tensor`
group hold the same rows, so they are always of one process. Slices of a TPU that only the
data-centre network joins are replicas: what crosses it are sums of gradients.
"""

import http.client
import math
import os
import pathlib
import re
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pasmr_jax.models import lora
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import logical_axes, param_shapes
from pasmr_jax.parallel.rules import TRAINING, Rules, partition_specs

AXES = ("replica", "fsdp", "tensor")
_ACCELERATORS = {
  "cuda": "gpu",
  "rocm": "gpu",
  "gpu": "gpu",
  "tpu": "tpu",
}  # JAX's names: their kind


def initialize_distributed() -> None:
  """Joins the processes of a job of several hosts, and checks that the accelerator is there.

  Call it before anything else touches JAX. Several hosts are recognised as JAX itself does: by the
  variables of its own launcher, of Slurm, Open MPI and TPU pods, or by a TPU VM's metadata. On a
  single host nobody is joined.

  Raises:
    ValueError: what `check_platform` raises.
  """
  if not jax.distributed.is_initialized() and _several_hosts(os.environ):
    number, process = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    jax.distributed.initialize(
      num_processes=None if number is None else int(number),
      process_id=None if process is None else int(process),
    )
  check_platform()


def check_platform() -> None:
  """Raises ValueError if JAX does not compute on the accelerator that JAX_PLATFORMS names first.

  Where no NVIDIA GPU is visible JAX passes over `cuda` without a word, and takes the next.
  """
  named = getattr(jax.config, "jax_platforms", None) or ""
  first = named.partition(",")[0]
  if first not in _ACCELERATORS:
    return
  try:
    found = jax.default_backend()
  except AssertionError:  # nothing is named but what it passed over
    found = "nothing"
  if _ACCELERATORS.get(found) != _ACCELERATORS[first]:
    raise ValueError(
      f"JAX_PLATFORMS is {named!r}, but JAX found no {first} to compute on and would take {found};"
      " expected a machine where it is visible (nvidia-smi lists GPUs) and its plugin installed,"
      " or JAX_PLATFORMS=cpu"
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
  if "," in _metadata("worker-network-endpoints"):
    return True
  slices = re.search(r"MEGASCALE_NUM_SLICES: *'?(\d+)", _metadata("tpu-env"))
  return slices is not None and int(slices[1]) > 1


def _metadata(attribute: str) -> str:
  """Of this virtual machine; '' where there is no such attribute, or no metadata server."""
  request = urllib.request.Request(
    f"http://metadata.google.internal/computeMetadata/v1/instance/attributes/{attribute}",
    headers={"Metadata-Flavor": "Google"},
  )
  try:
    with urllib.request.urlopen(request, timeout=5) as response:
      return response.read().decode("utf-8", "replace")
  except (http.client.HTTPException, OSError):
    return ""  # not a TPU VM, so nobody to join


def make_mesh(
  fsdp: int, tensor: int, devices: Sequence[Any] | None = None, replica: int = -1
) -> Mesh:
  """A mesh of all devices with axes ('replica', 'fsdp', 'tensor'), in this order of neighbourhood.

  Args:
    fsdp: devices that a replica's parameters and rows are split over; -1 takes what is left.
    tensor: devices that heads, MLP and vocabulary are split over.
    devices: others than this job's, such as those of a TPU that is only compiled for.
    replica: groups that each hold all parameters; -1 is one a slice. A group never spans slices.

  Raises:
    ValueError: naming mesh.replica, mesh.fsdp or mesh.tensor, if they do not multiply to the number
      of devices, if replicas would span slices, or a `tensor` group processes.
  """
  available = jax.devices() if devices is None else devices
  slices = slice_count(available)
  shape = mesh_shape(fsdp, tensor, len(available), replica, slices)
  in_slice = (shape[0] // slices, *shape[1:])
  if slices == 1:
    placed = mesh_utils.create_device_mesh(in_slice, available, allow_split_physical_axes=True)
  else:
    placed = mesh_utils.create_hybrid_device_mesh(
      in_slice, (slices, 1, 1), available, allow_split_physical_axes=True
    )
  owners = np.vectorize(lambda device: device.process_index, otypes=[int])(placed)
  if (owners != owners[..., :1]).any():  # a torus is laid out whatever hosts it has
    placed = _host_by_host(available, shape)
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _host_by_host(devices: Sequence[Any], shape: tuple[int, int, int]) -> np.ndarray:
  """Devices in the shape of a mesh whose `tensor` groups are each of one process.

  A line winds through each host's block of the torus, from neighbour to neighbour, and another
  through the hosts of a slice; groups are pieces of it.

  Raises:
    ValueError: naming mesh.tensor, if it does not divide the devices of each process.
  """
  hosts: dict[tuple[int, int], list[Any]] = {}
  for device in devices:
    hosts.setdefault((getattr(device, "slice_index", 0), device.process_index), []).append(device)
  possible = math.gcd(*(len(own) for own in hosts.values()))
  if possible % shape[-1]:
    raise ValueError(
      f"mesh.tensor: found {shape[-1]}, expected a divisor of the {possible} devices of each of"
      f" {len(hosts)} processes: devices of a group share rows, and a process has rows of its own"
    )
  corners = {host: np.min([_place(device) for device in own], 0) for host, own in hosts.items()}
  lines = [sorted({corner[axis] for corner in corners.values()}) for axis in range(3)]

  def turn(host):
    return host[0], _winding(
      *(line.index(at) for line, at in zip(lines, corners[host], strict=True))
    )

  def turn_in_host(device):
    return _winding(*_place(device)), getattr(device, "core_on_chip", 0)

  ordered = [
    device for host in sorted(hosts, key=turn) for device in sorted(hosts[host], key=turn_in_host)
  ]
  placed = np.empty(len(ordered), dtype=object)
  placed[:] = ordered
  return placed.reshape(shape)


def _place(device: Any) -> tuple[int, ...]:
  """Where a device is in its slice's torus; by its number where there is no torus."""
  return tuple(getattr(device, "coords", None) or (device.id, 0, 0))


def _winding(x: int, y: int, z: int) -> tuple[int, int, int]:
  """Sorts places so that each is next to the one before: 2 x 2 are (0,0) (1,0) (1,1) (0,1)."""
  return z, -y if z % 2 else y, -x if (y + z) % 2 else x


def slice_count(devices: Sequence[Any]) -> int:
  """How many slices the devices are of; everything but a TPU is one."""
  of_tpus = (device for device in devices if device.platform == "tpu")
  return len({getattr(device, "slice_index", 0) for device in of_tpus}) or 1


def mesh_shape(
  fsdp: int, tensor: int, devices: int, replica: int = -1, slices: int = 1
) -> tuple[int, int, int]:
  """Sizes of the axes of `make_mesh`; raises as it does."""
  if replica == -1:
    replica = slices
  if replica < 1 or replica % slices or devices % replica:
    raise ValueError(
      f"mesh.replica: found {replica}, expected -1 or a multiple of the {slices} slices that"
      f" divides the {devices} devices"
    )
  each = devices // replica
  of = f"{devices} devices" if replica == 1 else f"{each} devices of each of {replica} replicas"
  if tensor < 1 or each % tensor:
    raise ValueError(f"mesh.tensor: found {tensor}, expected a divisor of the {of}")
  if fsdp == -1:
    fsdp = each // tensor
  if fsdp < 1 or fsdp * tensor != each:
    raise ValueError(
      f"mesh.fsdp: found {fsdp} with mesh.tensor={tensor}, expected -1 or {each // tensor}, "
      f"so that they multiply to the {of}"
    )
  return replica, fsdp, tensor


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
  return partition_specs(logical_axes(config), param_shapes(config), mesh.shape, rules)


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


def abstract(shapes: Any, shardings: Any) -> Any:
  """Shapes and dtypes of arrays, and where they shall live: a tree of jax.ShapeDtypeStruct."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
  )


def shard_batch(tree: Any, mesh: Mesh) -> Any:
  """Global arrays from each process's own rows (numpy, rows first), split by `batch_sharding`.

  Raises ValueError if the rows of all processes do not divide over the mesh, or it is not one of
  `make_mesh`, where each process has rows of its own.
  """
  sharding = batch_sharding(mesh)
  parts = row_parts(mesh)

  def place(rows):
    rows = np.asarray(rows)
    if rows.ndim == 0 or rows.shape[0] * jax.process_count() % parts:
      raise ValueError(
        f"a batch array of shape {rows.shape} in each of {jax.process_count()} processes does not "
        f"divide by rows over {parts} parts (mesh.replica x mesh.fsdp)"
      )
    # Left to infer it, JAX takes rows that processes share as one, and makes a smaller batch.
    shape = (rows.shape[0] * jax.process_count(), *rows.shape[1:])
    return jax.make_array_from_process_local_data(sharding, rows, shape)

  return jax.tree.map(place, tree)


def local_rows(array: jax.Array) -> np.ndarray:
  """This process's rows of an array split by `batch_sharding`, in order.

  Of one process they are all rows, also of an array that each device has whole.

  Raises:
    ValueError: more than the rows are split; or there are several processes, and each has all rows.
  """
  if jax.process_count() > 1 and array.is_fully_replicated:
    raise ValueError(f"an array of shape {array.shape} is whole in each process; expected its rows")
  shards = {}
  for shard in array.addressable_shards:
    if shard.data.shape[1:] != array.shape[1:]:
      raise ValueError(f"{array.sharding} splits more than the rows of shape {array.shape}")
    shards.setdefault(shard.index[0].start or 0, shard.data)  # copies over `tensor` are equal
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
