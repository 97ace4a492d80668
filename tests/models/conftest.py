"""A small model with every feature of Gemma 3 on, and rows of random tokens for it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import init_params

SMALL = TransformerConfig(
  vocab_size=64,
  embed_dim=32,
  num_layers=4,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=48,
  query_scale=12**-0.5,
  attention_pattern=("local", "global"),
  sliding_window=5,
  rope_base_global=1000.0,
  rope_base_local=100.0,
  rope_scale_global=2.0,
  qk_norm=True,
  attention_softcap=20.0,
  final_softcap=10.0,
  post_norms=True,
  norm_plus_one=True,
  activation="gelu_tanh",
  scale_embeddings=True,
)


@pytest.fixture(scope="session")
def small() -> TransformerConfig:
  return SMALL


@pytest.fixture(scope="session")
def params():
  """Random weights of `small`; its norms too, which start at zero and would hide mistakes."""
  params = jax.jit(init_params, static_argnums=0)(SMALL, jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(1)
  return jax.tree.unflatten(
    tree, [leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
  )


@pytest.fixture(scope="session")
def llama_like() -> TransformerConfig:
  """What the other families need: biases, plain norms, SiLU, an untied head."""
  return dataclasses.replace(
    SMALL,
    attention_pattern=("global",),
    attention_bias=True,
    qk_norm=False,
    post_norms=False,
    norm_plus_one=False,
    activation="silu",
    scale_embeddings=False,
    tie_embeddings=False,
    attention_softcap=None,
    final_softcap=None,
  )


@pytest.fixture(scope="session")
def tokens():
  return jax.random.randint(jax.random.key(2), (3, 16), 1, SMALL.vocab_size, jnp.int32)
