"""Checkpoints: an exact round trip, which ones are kept, and the refusal of another model's."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from configs import base as base_config
from pasmr_jax.experiment.checkpoint import Checkpoints, Progress
from pasmr_jax.learning.update import Learner
from pasmr_jax.models.transformer import init_params
from pasmr_jax.parallel import rules
from pasmr_jax.parallel.mesh import abstract, make_mesh, param_shardings
from tests.small_model import MODEL

DATA = {"batches": {"position": 7, "waiting": [1, 2]}}


@pytest.fixture(scope="module")
def state():
  shardings = param_shardings(MODEL, make_mesh(4, 2), rules.TRAINING)
  params = jax.jit(lambda: init_params(MODEL, jax.random.key(3)), out_shardings=shardings)()
  return Learner(MODEL, optax.adamw(1e-3), valid_vocab=32).init(params, average=True)


def _at(state, step):
  one = jax.device_put(np.int32(step), state.step.sharding)
  return state.replace(step=one)


def _open(folder, **changes):
  config = base_config.checkpoint()
  config.update(changes)
  return Checkpoints(folder, "pam", config)


def _same(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def test_round_trip(state, tmp_path):
  checkpoints = _open(tmp_path)
  progress = Progress(best=0.5, evaluations_since=2)
  checkpoints.save(_at(state, 5), DATA, progress, MODEL, 0.5)
  checkpoints.wait()
  empty = jax.tree.map(lambda x: x * 0, state)
  restored, data, found = _open(tmp_path).restore(empty, MODEL)
  _same(restored, _at(state, 5))
  assert (data, found) == (DATA, progress)


def test_parameters_alone_to_another_layout(state, tmp_path):
  checkpoints = _open(tmp_path)
  checkpoints.save(_at(state, 5), DATA, Progress(), MODEL, None)
  checkpoints.wait()
  shardings = param_shardings(MODEL, make_mesh(8, 1), rules.TRAINING)
  params = checkpoints.restore_params(abstract(state.params, shardings), MODEL, 5)
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
    np.testing.assert_array_equal(a, b)
  assert params["embedding"].sharding.mesh.shape["fsdp"] == 8


def test_a_whole_state_to_more_devices_and_another_mesh(state, tmp_path):
  checkpoints = _open(tmp_path)
  checkpoints.save(_at(state, 5), DATA, Progress(), MODEL, None)
  checkpoints.wait()
  for mesh in (make_mesh(8, 1), make_mesh(1, 2, devices=jax.devices()[:2])):
    shardings = param_shardings(MODEL, mesh, rules.TRAINING)
    params = jax.jit(lambda: init_params(MODEL, jax.random.key(4)), out_shardings=shardings)()
    learner = Learner(MODEL, optax.adamw(1e-3), valid_vocab=32)
    other = learner.init(params, average=True)
    shapes = learner.abstract(abstract(params, shardings), average=True)
    for wanted in (other, shapes):
      restored, data, _ = _open(tmp_path).restore(wanted, MODEL)
      assert data == DATA
      assert jax.tree.structure(restored) == jax.tree.structure(other)
      for a, b, new in zip(*map(jax.tree.leaves, (restored, _at(state, 5), other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sharding.is_equivalent_to(new.sharding, a.ndim)
        assert (a.dtype, a.weak_type) == (new.dtype, new.weak_type)


def test_the_newest_and_the_best_are_kept_also_after_a_restart(state, tmp_path):
  metrics = {1: 0.1, 2: 0.9, 3: None, 4: 0.3}
  checkpoints = _open(tmp_path, keep=2)
  for step, metric in metrics.items():
    checkpoints.save(_at(state, step), DATA, Progress(), MODEL, metric)
  checkpoints.wait()
  checkpoints.close()
  again = _open(tmp_path, keep=2)
  for step, metric in {5: None, 6: 0.2}.items():
    again.save(_at(state, step), DATA, Progress(), MODEL, metric)
  again.wait()
  assert again.steps() == [2, 5, 6]
  assert (again.find("best"), again.find("last"), again.find("5")) == (2, 6, 5)
  with pytest.raises(ValueError, match=r"expected a checkpoint '4', found steps \[2, 5, 6\]"):
    again.find("4")


def test_another_models_checkpoint_is_refused_with_every_difference(state, tmp_path):
  checkpoints = _open(tmp_path)
  checkpoints.save(_at(state, 1), DATA, Progress(), MODEL, None)
  checkpoints.wait()
  other = dataclasses.replace(MODEL, mlp_dim=24, qk_norm=True, remat="full")
  with pytest.raises(ValueError, match=r"another model: .*mlp_dim is 16, expected 24") as raised:
    checkpoints.restore(state, other)
  assert "qk_norm is False, expected True" in str(raised.value)
  assert "remat" not in str(raised.value)


def test_a_window_that_no_layer_has_is_no_difference(state, tmp_path):
  """Random models had one of 128, which none of their layers knew."""
  checkpoints = _open(tmp_path)
  checkpoints.save(
    _at(state, 1), DATA, Progress(), dataclasses.replace(MODEL, sliding_window=128), None
  )
  checkpoints.wait()
  _same(checkpoints.restore(state, MODEL)[0], _at(state, 1))
  with_one = dataclasses.replace(MODEL, attention_pattern=("local",), sliding_window=6)
  with pytest.raises(ValueError, match=r"pattern is \['global'\].* sliding_window is 128"):
    checkpoints.restore(state, with_one)


def test_progress_counts_evaluations_without_a_new_best():
  progress = Progress()
  for metric in (0.2, 0.3, 0.3, 0.1):
    progress.record(metric)
  assert (progress.best, progress.evaluations_since) == (0.3, 2)
