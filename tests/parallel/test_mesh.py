import dataclasses
import functools

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
  assert dict(mesh.shape) == {"fsdp": 4, "tensor": 2}
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


@pytest.mark.parametrize("shape", [(4, 2), (8, 1)])
def test_eight_devices_equal_one(batch, shape):
  mesh = meshes.make_mesh(*shape)
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
  with pytest.raises(ValueError, match=r"shape \(6, 2\).*mesh\.fsdp=4"):
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
