"""Adapters: what they add, that they merge exactly, and how they lie on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.models import lora, transformer
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.parallel import rules
from pasmr_jax.parallel.mesh import adapter_shardings, make_mesh

CONFIG = TransformerConfig(
  vocab_size=64,
  embed_dim=32,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=48,
  query_scale=8**-0.5,
  attention_pattern=("local", "global"),
  sliding_window=5,
  qk_norm=True,
)
ALL = lora.LoraSettings(rank=4, alpha=6.0, targets=tuple(lora.TARGETS))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 60, (2, 9)))
POSITIONS = jnp.broadcast_to(jnp.arange(9), TOKENS.shape)


def _adapters(settings, spread=0.3):
  shapes = lora.adapter_shapes(transformer.param_shapes(CONFIG), settings)
  made = lora.init_adapters(shapes, jax.random.key(1))
  keys = jax.random.split(jax.random.key(2), len(jax.tree.leaves(made)))
  keys = jax.tree.unflatten(jax.tree.structure(made), list(keys))
  return jax.tree.map(lambda x, k: x + spread * jax.random.normal(k, x.shape), made, keys)


@pytest.fixture(scope="module")
def base():
  return jax.jit(lambda: transformer.init_params(CONFIG, jax.random.key(0)))()


@jax.jit
def _hidden(params):
  model = transformer.Transformer(CONFIG)
  return model.apply(lora.variables(params), TOKENS, POSITIONS, jnp.ones_like(TOKENS))[0]


def test_new_adapters_add_nothing(base):
  adapters = _adapters(ALL, spread=0.0)
  found = _hidden(lora.Adapted(base, adapters, ALL.scale))
  np.testing.assert_array_equal(found, _hidden(base))
  # A is uniform in +-1 / sqrt(inputs): the output projection has 4 heads of 8.
  a = np.asarray(adapters["layers"]["attention"]["output"]["a"])
  assert a.shape == (3, 4, 8, 4)
  assert 0.9 * 32**-0.5 < np.abs(a).max() <= 32**-0.5
  layers = np.asarray(adapters["layers"]["mlp"]["down"]["a"])
  assert not np.array_equal(layers[0], layers[1])


@pytest.mark.parametrize("targets", [tuple(lora.TARGETS), ("value",), ("down", "query")])
def test_merged_weights_compute_what_adapters_do(base, targets):
  settings = lora.LoraSettings(rank=4, alpha=6.0, targets=targets)
  adapted = lora.Adapted(base, _adapters(settings), settings.scale)
  found, plain = _hidden(adapted), _hidden(base)
  assert float(jnp.abs(found - plain).max()) > 0.1
  merged = lora.merged(adapted)
  np.testing.assert_allclose(_hidden(merged), found, atol=3e-5)
  # Weights without adapters are the same arrays, not copies.
  assert merged["embedding"] is base["embedding"]
  changed = {
    path[-1].key
    for (path, one), other in zip(
      jax.tree_util.tree_leaves_with_path(merged), jax.tree.leaves(base), strict=True
    )
    if one is not other
  }
  assert changed == set(targets)


def test_merged_by_hand(base):
  settings = lora.LoraSettings(rank=4, alpha=6.0, targets=("output", "key"))
  adapters = _adapters(settings)
  merged = lora.merged(lora.Adapted(base, adapters, settings.scale), "bfloat16")
  pair, weight = adapters["layers"]["attention"]["output"], base["layers"]["attention"]["output"]
  expected = weight[1] + 1.5 * jnp.einsum("NHr,rD->NHD", pair["a"][1], pair["b"][1])
  found = merged["layers"]["attention"]["output"]
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(found[1].astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)
  pair, weight = adapters["layers"]["attention"]["key"], base["layers"]["attention"]["key"]
  expected = weight[2] + 1.5 * jnp.einsum("Dr,rKH->DKH", pair["a"][2], pair["b"][2])
  exact = lora.merged(lora.Adapted(base, adapters, settings.scale))["layers"]["attention"]["key"]
  np.testing.assert_allclose(exact[2], expected, atol=1e-6)


def test_parameters_without_adapters_stay_what_they_are(base):
  assert lora.merged(base) is base
  assert lora.base_of(base) is base
  assert lora.variables(base) == {"params": base}


def test_adapters_lie_as_their_weights_do():
  mesh = make_mesh(4, 2)
  shardings = adapter_shardings(CONFIG, mesh, rules.TRAINING, ALL)
  shapes = lora.adapter_shapes(transformer.param_shapes(CONFIG), ALL)
  assert jax.tree.structure(shardings) == jax.tree.structure(shapes)
  attention = shardings["layers"]["attention"]
  assert tuple(attention["query"]["a"].spec) == (None, "fsdp", None)
  assert tuple(attention["query"]["b"].spec) == (None, None, "tensor", None)
  assert tuple(attention["output"]["a"].spec) == (None, "tensor", None, None)
  assert tuple(attention["output"]["b"].spec) == (None, None, "fsdp")
  born = jax.jit(lambda: lora.init_adapters(shapes, jax.random.key(1)), out_shardings=shardings)()
  here = lora.init_adapters(shapes, jax.random.key(1))
  for one, other in zip(jax.tree.leaves(born), jax.tree.leaves(here), strict=True):
    np.testing.assert_array_equal(one, other)
