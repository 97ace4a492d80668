"""Compiles a small model's gradient for four TPU chips and prints which attention is in it."""

import json
import re

import jax
import jax.numpy as jnp

from pasmr_jax.experiment.planning.worker import topology_devices
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import Transformer, param_shapes
from pasmr_jax.parallel.mesh import abstract, batch_sharding, make_mesh, param_shardings
from pasmr_jax.parallel.rules import TRAINING

ROWS, LENGTH = 4, 512
CONFIG = TransformerConfig(
  vocab_size=256,
  embed_dim=128,
  num_layers=2,
  num_heads=4,
  num_kv_heads=1,  # fewer than the devices that heads are split over
  head_dim=64,
  mlp_dim=256,
  query_scale=64**-0.5,
  attention_pattern=("local", "global"),
  sliding_window=128,
  attention_softcap=20.0,
  dtype="bfloat16",
  attention="auto",
)


def gradient(params, tokens):
  def loss(params):
    hidden, _ = Transformer(CONFIG).apply({"params": params}, tokens, tokens, tokens)
    return jnp.mean(jnp.square(hidden.astype(jnp.float32)))

  return jax.grad(loss)(params)


def main() -> None:
  mesh = make_mesh(2, 2, topology_devices("v5e:2x2"))
  params = abstract(param_shapes(CONFIG), param_shardings(CONFIG, mesh, TRAINING))
  tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=batch_sharding(mesh))
  with jax.set_mesh(mesh):
    lowered = jax.jit(gradient).lower(params, tokens)
    jax.config.update("jax_optimization_level", "O1")
    text = lowered.compile().as_text()
  names = set(re.findall(r"splash_\w+?_(fwd|dq|dkv)", text))
  scores = re.findall(rf"\w+\[[\d,]*{LENGTH},{LENGTH}\]", text)
  print(json.dumps({"kernels": sorted(names), "scores": sorted(set(scores))}))


if __name__ == "__main__":
  main()
