import dataclasses
import functools
import http.client
import io
import urllib.error

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pasmr_jax.models.cache import init_cache, settle
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import (
  Transformer,
  decode_step,
  init_params,
  logits,
  output_table,
  unstacked,
)
from pasmr_jax.parallel import mesh as meshes
from pasmr_jax.parallel.rules import DECODING, TRAINING

CONFIG = TransformerConfig(
  vocab_size=64,
  embed_dim=32,
  num_layers=3,
  num_heads=4,
  num_kv_heads=1,  # not divisible by two devices: replicated
  head_dim=8,
  mlp_dim=48,
  query_scale=8**-0.5,
  attention_pattern=("local", "global"),
  sliding_window=4,
  qk_norm=True,
  post_norms=True,
  norm_plus_one=True,
  activation="gelu_tanh",
  scale_embeddings=True,
  remat="dots",
)


@pytest.fixture(scope="module", autouse=True)
def eight_devices():
  if jax.device_count() != 8:
    pytest.skip(f"needs 8 devices, found {jax.device_count()}")


@pytest.fixture(scope="module")
def mesh():
  return meshes.make_mesh(fsdp=-1, tensor=2)


@pytest.fixture(scope="module")
def batch():
  tokens = np.asarray(jax.random.randint(jax.random.key(1), (8, 12), 1, 64))
  segment_ids = np.ones_like(tokens)
  segment_ids[3, 9:] = 0
  return {"tokens": tokens, "segment_ids": segment_ids, "positions": np.tile(np.arange(12), (8, 1))}


init = jax.jit(init_params, static_argnums=0)


def loss(params, batch, config=CONFIG):
  hidden, _ = Transformer(config).apply(
    {"params": params}, batch["tokens"], batch["positions"], batch["segment_ids"]
  )
  logprobs = jax.nn.log_softmax(logits(hidden, output_table(params, config), config))
  chosen = jnp.take_along_axis(logprobs[:, :-1], batch["tokens"][:, 1:, None], axis=-1)[..., 0]
  return -jnp.mean(chosen * batch["segment_ids"][:, 1:]), hidden


def test_make_mesh_takes_what_is_left_and_names_what_does_not_fit(mesh):
  assert dict(mesh.shape) == {"replica": 1, "fsdp": 4, "tensor": 2}
  with pytest.raises(ValueError, match=r"mesh\.tensor: found 3, expected a divisor of the 8"):
    meshes.make_mesh(-1, 3)
  with pytest.raises(ValueError, match=r"mesh\.fsdp: found 3 with mesh\.tensor=2.*-1 or 4.*8"):
    meshes.make_mesh(3, 2)


def test_parameters_are_born_sharded_and_notes_say_what_is_not(mesh):
  shardings = meshes.param_shardings(CONFIG, mesh, TRAINING)
  born_sharded = jax.jit(functools.partial(init_params, CONFIG), out_shardings=shardings)
  params = born_sharded(jax.random.key(0))
  query = params["layers"]["attention"]["query"]
  assert query.sharding.spec == P(None, "fsdp", "tensor", None)
  assert query.addressable_shards[0].data.shape == (3, 8, 2, 8)
  expected = init(CONFIG, jax.random.key(0))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected)
  assert meshes.replication_notes(CONFIG, mesh, TRAINING) == (
    "kv_heads: 1 is not divisible by tensor=2, so it is replicated",
  )


@dataclasses.dataclass(frozen=True)
class Device:
  """A device of a TPU of several slices, as far as a mesh looks at it."""

  id: int
  slice_index: int
  platform: str = "tpu"


def test_replicas_are_slices_or_parts_of_them():
  assert meshes.mesh_shape(-1, 2, 8, replica=2) == (2, 2, 2)
  assert meshes.mesh_shape(-1, 1, 32, slices=2) == (2, 16, 1)
  assert meshes.mesh_shape(4, 2, 32, replica=4, slices=2) == (4, 4, 2)
  with pytest.raises(ValueError, match=r"mesh\.replica: found 3, expected .* of the 1 slices .* 8"):
    meshes.mesh_shape(-1, 1, 8, replica=3)
  with pytest.raises(ValueError, match=r"mesh\.replica: found 1, expected .* of the 2 slices .* 8"):
    meshes.mesh_shape(-1, 1, 8, replica=1, slices=2)
  with pytest.raises(ValueError, match=r"mesh\.tensor: found 8.*4 devices of each of 2 replicas"):
    meshes.mesh_shape(-1, 8, 8, replica=2)
  assert meshes.slice_count([Device(number, number // 2) for number in range(6)]) == 3
  assert meshes.slice_count(jax.devices()) == 1
  mesh = meshes.make_mesh(-1, 2, replica=2)
  # Neighbours of the fast network stand together: a replica is a block of devices.
  numbers = np.vectorize(lambda device: device.id)(mesh.devices)
  assert numbers.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
  assert meshes.row_axes(mesh) == ("replica", "fsdp")
  assert meshes.row_parts(mesh) == 4


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip of a TPU of several hosts, as far as a mesh looks at it."""

  id: int
  process_index: int
  coords: tuple[int, int, int]
  device_kind: str
  slice_index: int = 0
  core_on_chip: int = 0
  platform: str = "tpu"


def torus(kind, sides, slices=1, host=(2, 2, 1)):
  """Chips x first, as libtpu lists them; hosts of 2 x 2 chips, x first too."""
  hosts = [side // own for side, own in zip(sides, host, strict=True)]
  each = np.prod(hosts)
  made = []
  for number, (which, z, y, x) in enumerate(np.ndindex(slices, *sides[::-1])):
    block = [at // own for at, own in zip((x, y, z), host, strict=True)]
    process = which * each + block[0] + hosts[0] * (block[1] + hosts[1] * block[2])
    made.append(Chip(number, int(process), (x, y, z), kind, which))
  return made


V5E, V6E, V5P = "TPU v5 lite", "TPU v6 lite", "TPU v5"


def owners(mesh):
  return np.vectorize(lambda device: device.process_index)(mesh.devices)


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize(
  ("kind", "sides", "slices"),
  [
    (V5E, (4, 4, 1), 1),
    (V5E, (4, 8, 1), 1),
    (V6E, (4, 4, 1), 1),
    (V5P, (2, 2, 4), 1),
    (V5P, (4, 4, 4), 1),
    (V5E, (4, 4, 1), 2),
  ],
)
def test_rows_are_of_one_process_on_every_slice(kind, sides, slices, tensor):
  """What a process reads are its own rows, and each of them is on one host's neighbours."""
  chips = torus(kind, sides, slices)
  mesh = meshes.make_mesh(-1, tensor, chips)
  assert mesh.size == len(set(mesh.devices.flat)) == len(chips)
  assert mesh.shape["replica"] == slices
  of = owners(mesh)
  np.testing.assert_array_equal(of, np.broadcast_to(of[..., :1], of.shape))
  parts = np.unique(of[..., 0], return_counts=True)[1]
  assert set(parts) == {4 // tensor}  # as many in each process
  for group in mesh.devices.reshape(-1, tensor):
    assert np.prod(1 + np.ptp([chip.coords for chip in group], 0)) == tensor  # a block
  for which, replica in enumerate(mesh.devices):
    assert {chip.slice_index for chip in replica.flat} == {which}


def test_hosts_beside_each_other_follow_each_other():
  mesh = meshes.make_mesh(-1, 4, torus(V5E, (4, 8, 1)))
  assert owners(mesh)[0, :, 0].tolist() == [0, 1, 3, 2, 4, 5, 7, 6]
  assert [chip.coords[:2] for chip in mesh.devices[0, 1]] == [(2, 0), (3, 0), (3, 1), (2, 1)]


def test_rows_that_processes_would_share_are_refused():
  said = r"mesh\.tensor: found 8, expected a divisor of the 4 devices of each of 4 processes"
  for kind in (V5E, V6E):
    with pytest.raises(ValueError, match=said):
      meshes.make_mesh(-1, 8, torus(kind, (4, 4, 1)))
  mesh = meshes.make_mesh(-1, 8, torus(V5E, (2, 4, 1), host=(2, 4, 1)))  # a host of 8 chips
  assert dict(mesh.shape) == {"replica": 1, "fsdp": 1, "tensor": 8}


@pytest.mark.parametrize(
  "shape",
  [{"fsdp": 4, "tensor": 2}, {"fsdp": 8, "tensor": 1}, {"fsdp": 2, "tensor": 2, "replica": 2}],
)
def test_eight_devices_equal_one(batch, shape):
  mesh = meshes.make_mesh(**shape)
  params = init(CONFIG, jax.random.key(0))
  both = jax.value_and_grad(loss, has_aux=True)
  (expected, expected_hidden), expected_gradient = jax.jit(both)(params, batch)
  sharded = jax.device_put(params, meshes.param_shardings(CONFIG, mesh, TRAINING))
  with jax.set_mesh(mesh):
    (found, hidden), gradient = jax.jit(both)(sharded, meshes.shard_batch(batch, mesh))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_allclose(meshes.local_rows(hidden), expected_hidden, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected_gradient
  )


def test_every_replica_holds_all_parameters():
  mesh = meshes.make_mesh(fsdp=2, tensor=2, replica=2)
  query = meshes.param_shardings(CONFIG, mesh, TRAINING)["layers"]["attention"]["query"]
  assert query.spec == P(None, "fsdp", "tensor", None)
  held = query.devices_indices_map((3, 32, 4, 8))
  first, second = mesh.devices
  for one, other in zip(first.flat, second.flat, strict=True):
    assert held[one] == held[other]
  assert len({str(held[device]) for device in first.flat}) == 4


def test_rows_stay_split_over_fsdp(mesh, batch):
  """Left to itself the compiler splits the embedding dimension and computes all rows everywhere."""
  params = jax.device_put(
    init(CONFIG, jax.random.key(0)), meshes.param_shardings(CONFIG, mesh, TRAINING)
  )
  with jax.set_mesh(mesh):
    _, hidden = jax.jit(loss)(params, meshes.shard_batch(batch, mesh))
  assert hidden.addressable_shards[0].data.shape[0] == 2


def test_sharded_decode_equals_one_device(mesh, batch):
  params = init(CONFIG, jax.random.key(0))
  unmasked = batch | {"segment_ids": np.ones_like(batch["tokens"])}
  expected = jax.jit(loss)(params, unmasked)[1]
  apart = dataclasses.replace(CONFIG, stacked=False)
  sharded = jax.device_put(unstacked(params), meshes.param_shardings(apart, mesh, DECODING))

  @jax.jit
  def run(params, batch):
    cache, found = init_cache(apart, 8, 12, recent=4), []
    for column in range(11):
      hidden, cache = decode_step(params, batch["tokens"][:, column], cache, apart)
      cache = settle(cache) if column % 4 == 3 else cache
      found.append(hidden)
    return jnp.stack(found, axis=1), cache

  with jax.set_mesh(mesh):
    found, cache = run(sharded, meshes.shard_batch(batch, mesh))
  np.testing.assert_allclose(np.asarray(found), expected[:, :11], atol=1e-5)
  assert cache.index + cache.taken == 11


def test_rows_come_back_in_order(mesh):
  rows = np.arange(24, dtype=np.int32).reshape(8, 3)
  split = meshes.shard_batch({"rows": rows}, mesh)["rows"]
  assert split.sharding == meshes.batch_sharding(mesh)
  np.testing.assert_array_equal(meshes.local_rows(split), rows)
  whole = jax.device_put(rows, meshes.replicated(mesh))
  np.testing.assert_array_equal(meshes.local_rows(whole), rows)


def test_rows_that_do_not_divide_are_an_error(mesh):
  with pytest.raises(ValueError, match=r"shape \(6, 2\).*4 parts"):
    meshes.shard_batch(np.zeros((6, 2)), mesh)


def test_local_rows_refuses_what_is_split_otherwise(mesh):
  columns = jax.device_put(np.zeros((8, 4)), jax.NamedSharding(mesh, P(None, "tensor")))
  with pytest.raises(ValueError, match="splits more than the rows"):
    meshes.local_rows(columns)


def test_a_single_host_joins_nobody(monkeypatch):
  for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.delenv("MEGASCALE_NUM_SLICES", raising=False)
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  meshes.initialize_distributed()
  assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
  ("environment", "number"),
  [
    ({"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}, 4),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "tpu"}, None),
    ({"SLURM_STEP_NUM_TASKS": "2", "JAX_PLATFORMS": "cpu"}, None),
  ],
)
def test_several_hosts_are_joined(monkeypatch, environment, number):
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: calls.append(kwargs))
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  meshes.initialize_distributed()
  assert [call["num_processes"] for call in calls] == [number]


def test_one_tpu_host_is_not_several(monkeypatch):
  monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: pytest.fail("joined"))
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  meshes.initialize_distributed()


@pytest.mark.parametrize("missing", [urllib.error.URLError("404"), http.client.IncompleteRead(b"")])
@pytest.mark.parametrize(
  ("attributes", "joined"),
  [
    ({"worker-network-endpoints": "a:b:c"}, 0),
    ({"worker-network-endpoints": "a:b:c,d:e:f"}, 1),
    ({"worker-network-endpoints": "a:b:c", "tpu-env": "X: '7'\nMEGASCALE_NUM_SLICES: '2'\n"}, 1),
    ({"worker-network-endpoints": "a:b:c", "tpu-env": "MEGASCALE_NUM_SLICES: '1'\n"}, 0),
  ],
)
def test_a_tpu_vm_asks_the_metadata_server_for_its_neighbours(
  monkeypatch, attributes, joined, missing
):
  def answer(request, timeout):
    del timeout
    name = request.full_url.rpartition("/")[2]
    if name not in attributes:
      raise missing
    return io.BytesIO(attributes[name].encode())

  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: calls.append(kwargs))
  monkeypatch.setattr("urllib.request.urlopen", answer)
  monkeypatch.setattr("pathlib.Path.glob", lambda self, pattern: iter([self / "accel0"]))
  for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  for name in ("MEGASCALE_NUM_SLICES", "TPU_WORKER_HOSTNAMES"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  meshes.initialize_distributed()
  assert len(calls) == joined


@pytest.mark.parametrize(
  ("named", "found", "accepted"),
  [
    ("cuda,cpu", "cpu", False),
    ("gpu", "cpu", False),
    ("tpu,cpu", "cpu", False),
    ("tpu,cuda", "gpu", False),
    ("cuda,cpu", "gpu", True),
    ("rocm", "rocm", True),
    ("tpu,cpu", "tpu", True),
    ("cpu", "cpu", True),
    ("cpu,cuda", "cpu", True),
    ("", "cpu", True),
    (None, "cpu", True),
  ],
)
def test_an_accelerator_that_is_asked_for_is_there(monkeypatch, named, found, accepted):
  class Config:
    jax_platforms = named

  monkeypatch.setattr(jax, "config", Config)
  monkeypatch.setattr(jax, "default_backend", lambda: found)
  monkeypatch.setattr(meshes, "_several_hosts", lambda environment: False)
  if accepted:
    meshes.initialize_distributed()
  else:
    with pytest.raises(ValueError, match=rf"JAX_PLATFORMS is '{named}', .* would take {found};"):
      meshes.initialize_distributed()


def test_without_any_device_the_accelerator_is_named_too(monkeypatch):
  class Config:
    jax_platforms = "cuda"

  def nothing():
    raise AssertionError

  monkeypatch.setattr(jax, "config", Config)
  monkeypatch.setattr(jax, "default_backend", nothing)
  with pytest.raises(ValueError, match="JAX_PLATFORMS is 'cuda', but JAX found no cuda"):
    meshes.check_platform()
