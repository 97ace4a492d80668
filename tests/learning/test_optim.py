"""Each optimizer's first steps by hand, its moments' dtype, and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base as base_config
from pasmr_jax.learning.optim import NAMES, make_optimizer, make_schedule, map_moments

RATE = 1e-2


def _settings(**changes):
  settings = base_config.optimizer(RATE)
  settings.update({"warmup_steps": 0, "schedule": "constant", "clip_norm": 0.0, **changes})
  return settings


def _params(dtype=jnp.float32):
  """Names as the model's: a table, a stack of two matrices of each kind, a norm, an adapter."""
  shapes = {
    "embedding": (6, 4),
    "final_norm": {"scale": (4,)},
    "layers": {
      "attention": {"query": (2, 4, 2, 3), "query_bias": (2, 2, 3), "output": (2, 2, 3, 4)},
      "mlp": {"down": {"a": (2, 5, 3), "b": (2, 3, 4)}},
    },
  }
  leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda one: isinstance(one, tuple))
  keys = jax.random.split(jax.random.key(0), len(leaves))
  made = [
    jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, made)


def _gradients(dtype=jnp.float32):
  return jax.tree.map(lambda leaf: (leaf * 3 + 0.5).astype(dtype), _params())


def _updates(settings, steps=1, dtype=jnp.float32):
  optimizer = make_optimizer(settings, 100)
  params, state = _params(dtype), optimizer.init(_params(dtype))
  step = jax.jit(optimizer.update)
  for _ in range(steps):
    updates, state = step(_gradients(dtype), state, params)
  return updates, state


def _named(tree):
  return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_adamw_by_hand():
  updates, _ = _updates(_settings(weight_decay=0.1))
  params, gradients = _named(_params()), _named(_gradients())
  for name, update in _named(updates).items():
    # The first step's corrected moments are the gradient and its square.
    decay = 0.0 if "norm" in name or "bias" in name else 0.1 * params[name]
    expected = -RATE * (jnp.sign(gradients[name]) + decay)
    np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-7)


def test_lion_by_hand():
  settings = _settings(name="lion", b1=0.9, b2=0.99)
  updates, state = _updates(settings, steps=2)
  for name, update in _named(updates).items():
    np.testing.assert_allclose(update, -RATE * jnp.sign(_named(_gradients())[name]), rtol=1e-6)
  moments = _named(optax.tree_utils.tree_get(state, "mu"))
  for name, moment in moments.items():
    np.testing.assert_allclose(moment, 0.0199 * _named(_gradients())[name], rtol=1e-5)


def test_adafactor_moves_by_a_share_of_the_weights_size():
  updates, _ = _updates(_settings(name="adafactor"))
  params, gradients = _named(_params()), _named(_gradients())
  for name, update in _named(updates).items():
    size = float(jnp.sqrt(jnp.mean(params[name] ** 2)))
    np.testing.assert_allclose(update, -RATE * size * jnp.sign(gradients[name]), rtol=1e-4)


def _matrices(name, leaf):
  """A leaf as [matrices, rows, columns]."""
  leaf = np.asarray(leaf)
  if "output" in name:
    return leaf.reshape(2, 6, 4)
  return leaf.reshape(2, leaf.shape[1], -1)


def test_muon_makes_each_layers_matrix_orthogonal():
  updates, state = _updates(_settings(name="muon"))
  gradients = _named(_gradients())
  found = {name: leaf for name, leaf in _named(updates).items() if "layers" in name}
  for name, update in found.items():
    if "bias" in name:
      continue
    for matrix, gradient in zip(
      _matrices(name, update), _matrices(name, gradients[name]), strict=True
    ):
      # The nearest orthogonal matrix, which five Newton-Schulz iterations come near to.
      left, _, right = np.linalg.svd(gradient, full_matrices=False)
      scale = -RATE * 0.2 * max(matrix.shape) ** 0.5
      found_values = np.linalg.svd(matrix / scale, compute_uv=False)
      assert ((found_values > 0.6) & (found_values < 1.3)).all(), name
      assert np.sum(matrix / scale * (left @ right)) > 0.9 * np.sum(found_values)
  # Tables, norms and biases are AdamW's, in Optax's muon with Nesterov's momentum.
  for name in ("['embedding']", "['final_norm']['scale']", "['layers']['attention']['query_bias']"):
    expected = -RATE * (1 + 0.9 * 0.1 / (1 - 0.9**2)) * np.sign(gradients[name])
    np.testing.assert_allclose(_named(updates)[name], expected, rtol=1e-3, atol=1e-7)
  assert len(jax.tree.leaves(optax.tree_utils.tree_get(state, "nu"))) == 3


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_kept_in_their_dtype_and_computed_in_float32(name):
  coarse = _settings(name=name, moment_dtype="bfloat16")
  kept = "float32" if name == "adafactor" else "bfloat16"  # whatever is asked of adafactor
  kinds = {}

  def note(moment, param):
    kinds.setdefault((moment.dtype.name, param.dtype.name), 0)
    return moment

  updates, state = _updates(coarse, steps=3)
  map_moments(note, state, _params())
  assert set(kinds) == {(kept, "float32")}
  assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
  exact, _ = _updates(_settings(name=name), steps=3)
  for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(exact), strict=True):
    np.testing.assert_allclose(one, other, rtol=0.1, atol=2e-4)

  kinds.clear()
  _, state = _updates(_settings(name=name), dtype=jnp.bfloat16)
  map_moments(note, state, _params(jnp.bfloat16))
  assert set(kinds) == {(kept, "bfloat16")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
  ("decayed", "unchanged"),
  [("matrices", ("norm", "bias")), ("layers", ("norm", "bias", "embedding")), ("all", ())],
)
def test_what_decays(name, decayed, unchanged):
  optimizer = make_optimizer(_settings(name=name, weight_decay=0.5, decayed=decayed), 10)
  params = _params()
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
  for path, update in _named(updates).items():
    kept = any(part in path for part in unchanged)
    expected = 0.0 if kept else -RATE * 0.5 * _named(params)[path]
    np.testing.assert_allclose(update, expected * jnp.ones_like(update), atol=1e-7, rtol=1e-5)


def test_clipping_is_by_the_norm_of_all_gradients():
  large = make_optimizer(_settings(name="lion", b1=0.0, b2=0.0, clip_norm=0.01), 10)
  params = _params()
  _, state = jax.jit(large.update)(_gradients(), large.init(params), params)
  norm = optax.tree.norm(optax.tree_utils.tree_get(state, "mu"))
  assert float(norm) == pytest.approx(0.01, rel=1e-4)


def test_unknown_choices_are_named():
  with pytest.raises(ValueError, match="'sgd'; expected one of"):
    make_optimizer(_settings(name="sgd"), 10)
  with pytest.raises(ValueError, match="'half'; expected one of"):
    make_optimizer(_settings(decayed="half"), 10)


def test_schedule():
  cosine = make_schedule(_settings(schedule="cosine", warmup_steps=4, final_fraction=0.1), 24)
  # The first step already learns; the peak comes after the warm-up; the end is a tenth.
  np.testing.assert_allclose([cosine(0), cosine(3), cosine(4)], [2e-3, 8e-3, 1e-2], rtol=1e-5)
  np.testing.assert_allclose([cosine(14), cosine(24)], [5.5e-3, 1e-3], rtol=1e-5)
  linear = make_schedule(_settings(schedule="linear", warmup_steps=0), 10)
  np.testing.assert_allclose(linear(5), 5e-3, rtol=1e-5)
  with pytest.raises(ValueError, match="'step'; expected one of"):
    make_schedule(_settings(schedule="step"), 10)
