"""The kernel, in Pallas' interpreter, against XLA's attention: values, gradients, sharded too."""

import dataclasses
import itertools
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.experiment.planning import plan
from pasmr_jax.models import splash
from pasmr_jax.models.attention import attend, segment_mask
from pasmr_jax.models.splash import splash_attend, uses_splash
from pasmr_jax.models.transformer import Transformer
from pasmr_jax.parallel.mesh import make_mesh
from tests import runs

WINDOW = 40
LENGTH = 300  # three blocks of the kernel, the last one padded


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """So that short rows have several, and some are skipped."""
  monkeypatch.setattr(splash, "_BLOCKS", (128,))


@pytest.fixture(scope="module")
def config(small):
  return dataclasses.replace(small, head_dim=16, sliding_window=WINDOW, attention="splash")


@pytest.fixture(scope="module")
def arrays():
  """Queries, keys and values of 4 and 2 heads; two rows, of segments with padding behind them."""
  rng = np.random.default_rng(0)
  queries = rng.normal(size=(2, LENGTH, 4, 16)).astype(np.float32)
  keys, values = rng.normal(size=(2, 2, 2, LENGTH, 16)).astype(np.float32)
  segments = np.zeros((2, LENGTH), np.int32)
  for row, stops in enumerate(((5, 100, 130, 290), (128, 256))):
    for number, (start, stop) in enumerate(itertools.pairwise((0, *stops)), 1):
      segments[row, start:stop] = number
  return tuple(map(jnp.asarray, (queries, keys, values, segments)))


def by_xla(queries, keys, values, segments, is_local, config):
  at = jnp.arange(LENGTH)
  mask = segment_mask(segments) & (~is_local | (at[:, None] - at < config.sliding_window))
  return attend(queries, keys, values, mask, config.attention_softcap)


def loss_and_gradients(function, arrays, is_local, config):
  queries, keys, values, segments = arrays
  weights = np.cos(np.arange(queries.size, dtype=np.float32)).reshape(queries.shape)
  weights *= (segments > 0)[..., None, None]  # padding is not read

  def loss(queries, keys, values):
    found = function(queries, keys, values, segments, is_local, config)
    return jnp.sum(weights * found), weights * found

  return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(queries, keys, values)


@pytest.mark.parametrize(("is_local", "softcap"), [(False, None), (True, 2.0)])
def test_the_kernel_equals_xla_forward_and_backward(config, arrays, is_local, softcap):
  config = dataclasses.replace(config, attention_softcap=softcap)
  is_local = jnp.array(is_local)
  (_, found), gradients = loss_and_gradients(splash_attend, arrays, is_local, config)
  (_, expected), wanted = loss_and_gradients(by_xla, arrays, is_local, config)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  for ours, theirs in zip(gradients, wanted, strict=True):
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=3e-5)


def test_rows_and_heads_are_split_over_the_mesh(config, arrays):
  """Over four devices each of the two key/value heads is there twice."""
  is_local = jnp.array(True)
  expected = loss_and_gradients(splash_attend, arrays, is_local, config)
  with jax.set_mesh(make_mesh(-1, 4)):
    found = loss_and_gradients(splash_attend, arrays, is_local, config)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), found, expected)


def test_a_model_learns_the_same_by_either(small, params):
  """Through the loop of local and global layers, recomputed in the backward pass."""
  rng = np.random.default_rng(1)
  tokens = jnp.array(rng.integers(1, small.vocab_size, (2, 150)))
  segments = jnp.array([[1] * 150, [1] * 70 + [2] * 60 + [0] * 20])
  positions = jnp.array([[*range(150)], [*range(70), *range(60), *range(20)]])

  @jax.jit(static_argnums=0)
  def loss_and_gradient(config, params):
    def loss(params):
      hidden, _ = Transformer(config).apply({"params": params}, tokens, positions, segments)
      return jnp.mean(jnp.square(hidden - 0.5) * (segments > 0)[..., None])

    return jax.value_and_grad(loss)(params)

  def by(attention):
    return loss_and_gradient(dataclasses.replace(small, remat="full", attention=attention), params)

  found, expected = by("splash"), by("xla")
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_auto_is_the_kernel_on_tpus_for_the_widths_it_compiles_for(config):
  auto = dataclasses.replace(config, attention="auto", head_dim=128)
  assert not uses_splash(auto)
  assert uses_splash(config)
  tpu = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
  mesh = jax.sharding.AbstractMesh((2, 1), ("fsdp", "tensor"), abstract_device=tpu)
  with jax.sharding.use_abstract_mesh(mesh):
    assert uses_splash(auto)
    assert not uses_splash(dataclasses.replace(auto, head_dim=32))
    assert not uses_splash(dataclasses.replace(auto, attention="xla"))


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_it_compiles_for_tpus_and_no_scores_are_kept():
  """Local and global layers, forward and backward, rows and heads split over four chips."""
  pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed")
  environment = os.environ | plan._ENVIRONMENT | {"PYTHONPATH": str(runs.ROOT), "XLA_FLAGS": ""}
  program = str(pathlib.Path(__file__).with_name("compiling.py"))
  finished = runs.run([sys.executable, program], environment)
  assert finished.returncode == 0, finished.stderr[-3000:]
  found = json.loads(finished.stdout.splitlines()[-1])
  assert found == {"kernels": ["dkv", "dq", "fwd"], "scores": []}
