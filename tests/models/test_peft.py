"""Adapters as PEFT adds them to a Hugging Face model's matrices."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from pasmr_jax.models import lora, transformer
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.peft import write_adapters
from pasmr_jax.models.stored import stored_tensors

CONFIG = TransformerConfig(
  vocab_size=64,
  embed_dim=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  mlp_dim=20,
  query_scale=1.0,
)
SETTINGS = lora.LoraSettings(rank=3, alpha=6.0, targets=tuple(lora.TARGETS))


def test_the_sum_is_that_of_merged_weights(tmp_path):
  base = transformer.init_params(CONFIG, jax.random.key(0))
  shapes = lora.adapter_shapes(transformer.param_shapes(CONFIG), SETTINGS)
  adapters = lora.init_adapters(shapes, jax.random.key(1))
  adapters = jax.tree.map(
    lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), adapters
  )
  merged = lora.merged(lora.Adapted(base, adapters, SETTINGS.scale))
  write_adapters(tmp_path, adapters, SETTINGS, CONFIG, "owner/model")

  found = load_file(tmp_path / "adapter_model.safetensors")
  assert len(found) == 2 * 7 * CONFIG.num_layers
  for path, stored in stored_tensors(CONFIG).items():
    if path[-1] not in lora.TARGETS:
      continue
    block, name = path[1:]
    for layer in range(CONFIG.num_layers):
      place = "base_model.model." + stored.hugging_face.format(layer).removesuffix(".weight")
      a, b = found[f"{place}.lora_A.weight"], found[f"{place}.lora_B.weight"]
      assert a.shape[0] == b.shape[1] == SETTINGS.rank
      added = 6.0 / 3 * b @ a
      whole, before = (
        stored.as_stored(np.asarray(tree["layers"][block][name][layer])) for tree in (merged, base)
      )
      np.testing.assert_allclose(before + added, whole, atol=1e-5)
  config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
  assert (config["r"], config["lora_alpha"], config["peft_type"]) == (3, 6.0, "LORA")
  assert config["base_model_name_or_path"] == "owner/model"
  assert set(config["target_modules"]) == {
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
  }


def test_only_the_targets_are_written(tmp_path):
  settings = dataclasses.replace(SETTINGS, targets=("down",))
  shapes = lora.adapter_shapes(transformer.param_shapes(CONFIG), settings)
  adapters = lora.init_adapters(shapes, jax.random.key(1))
  write_adapters(tmp_path, adapters, settings, CONFIG, "owner/model")
  assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2 * CONFIG.num_layers
  config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
  assert config["target_modules"] == ["down_proj"]
