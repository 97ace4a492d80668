"""Adapters as PEFT adds them to a Hugging Face model's matrices."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from pasmr_jax.models import lora, transformer
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.peft import Base, write_adapters
from pasmr_jax.models.pretrained import is_multimodal, load_config
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
  write_adapters(tmp_path, adapters, SETTINGS, CONFIG, Base("owner/model", "v2"))

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
  assert (config["base_model_name_or_path"], config["revision"]) == ("owner/model", "v2")
  assert set(config["target_modules"]) == {
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
  }


def test_only_the_targets_are_written(tmp_path):
  settings = dataclasses.replace(SETTINGS, targets=("down",))
  shapes = lora.adapter_shapes(transformer.param_shapes(CONFIG), settings)
  adapters = lora.init_adapters(shapes, jax.random.key(1))
  write_adapters(tmp_path, adapters, settings, CONFIG, Base("owner/model"))
  assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2 * CONFIG.num_layers
  config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
  assert config["target_modules"] == ["down_proj"]


@pytest.fixture(scope="module")
def gemma():
  """Gemma 3 as it is from 4b on: with a vision model, whose projections have the same names."""
  pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  sizes = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2}
  text = sizes | {"vocab_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 8}
  vision = sizes | {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
  config = transformers.Gemma3Config(
    text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_index=60
  )
  return transformers.Gemma3ForConditionalGeneration(config)


def test_of_a_multimodal_model_the_text_model_alone_is_adapted(gemma, tmp_path):
  gemma.config.save_pretrained(tmp_path)
  config = load_config(tmp_path)
  shapes = lora.adapter_shapes(transformer.param_shapes(config), SETTINGS)
  adapters = lora.init_adapters(shapes, jax.random.key(1))
  base = Base("owner/model", multimodal=is_multimodal(tmp_path))
  write_adapters(tmp_path, adapters, SETTINGS, config, base)

  modules = dict(gemma.named_modules())
  tensors = load_file(tmp_path / "adapter_model.safetensors")
  written = {re.sub(r"\.lora_[AB]\.weight", "", name) for name in tensors}
  targets = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))["target_modules"]
  # PEFT matches a pattern with whole names.
  adapted = {name for name in modules if re.fullmatch(targets, name)}
  assert written == {f"base_model.model.{name}" for name in adapted}
  assert len(adapted) == 7 * config.num_layers
  for name in adapted:
    a, b = (tensors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    assert (b @ a).shape == modules[name].weight.shape
