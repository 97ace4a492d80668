"""Writing models: what comes in goes out, transformers reads the same, misfits are named."""

import dataclasses
import json

import checkpoints  # beside this file; skips where torch is absent
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from pasmr_jax.models import writing
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.pretrained import load_config, load_params, stated_config
from pasmr_jax.models.transformer import Transformer, init_params, logits, output_table
from pasmr_jax.models.writing import find_layout, write_model

torch, transformers = checkpoints.torch, checkpoints.transformers
TOKENS = checkpoints.TOKENS


def tensors(folder):
  found = {}
  for file in sorted(folder.glob("*.safetensors")):
    found |= load_file(file)
  return found


def transformers_model(folder, dtype="auto"):
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, attn_implementation="eager", dtype=dtype
  )


@pytest.fixture(scope="module", params=checkpoints.FAMILIES)
def checkpoint(request, tmp_path_factory):
  """In bfloat16, as most models are published."""
  model = checkpoints.random_model(request.param).to(torch.bfloat16)
  folder = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder)
  config = load_config(folder)
  return model, folder, config, load_params(folder, config)


def test_what_comes_in_goes_out_to_the_bit(checkpoint, tmp_path, monkeypatch):
  model, folder, config, params = checkpoint
  monkeypatch.setattr(writing, "MAX_SHARD_BYTES", 20_000)
  layout = find_layout(config, config.vocab_size, stated_config(folder), "bfloat16")
  write_model(tmp_path, layout, params, "bfloat16")
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  files = sorted(tmp_path.glob("*.safetensors"))
  assert len(files) > 3
  assert set(index["weight_map"].values()) == {file.name for file in files}
  assert max(file.stat().st_size for file in files) < 25_000
  found, expected = tensors(tmp_path), tensors(folder)
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    assert found[name].dtype == values.dtype
    np.testing.assert_array_equal(found[name].view(np.uint16), values.view(np.uint16), name)
  written, read = (json.loads((place / "config.json").read_text()) for place in (tmp_path, folder))
  assert written == read
  # And transformers computes the same with it.
  loaded, again = transformers_model(folder), transformers_model(tmp_path)
  assert type(again) is type(loaded) is type(model)
  with torch.no_grad():
    ids = torch.from_numpy(TOKENS)
    assert torch.equal(again(ids).logits, loaded(ids).logits)


def test_config_json_is_written_anew_where_there_was_none(checkpoint, tmp_path):
  """As for a GGUF file: only our config says what the model is."""
  _, folder, config, params = checkpoint
  layout = find_layout(config, config.vocab_size, {"max_position_embeddings": 128}, "float32")
  write_model(tmp_path, layout, params, "float32")
  assert load_config(tmp_path) == config
  loaded, again = transformers_model(folder, torch.float32), transformers_model(tmp_path)
  assert type(again) is type(loaded)
  with torch.no_grad():
    ids = torch.from_numpy(TOKENS)
    assert torch.equal(again(ids).logits, loaded(ids).logits)


def test_a_randomly_initialised_model_is_a_qwen3_in_other_words(tmp_path):
  """The shape that setup.model_config gives: Gemma's norms and scaled, tied embeddings."""
  config = TransformerConfig(
    vocab_size=128,
    embed_dim=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    query_scale=8**-0.5,
    sliding_window=128,
    qk_norm=True,
    norm_plus_one=True,
    scale_embeddings=True,
    activation="gelu_tanh",
  )
  params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
  noise = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: leaf + 0.1 * noise.normal(size=leaf.shape).astype(np.float32), params
  )
  layout = find_layout(config, 96, {"max_position_embeddings": 64}, "float32")
  assert layout.family.model_types == ("qwen3",)
  write_model(tmp_path, layout, params, "float32")
  loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  assert loaded.lm_head.weight.shape == (96, 32)
  with torch.no_grad():
    expected = loaded(torch.from_numpy(TOKENS)).logits.numpy()

  @jax.jit
  def all_logits(params, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    ones = jnp.ones_like(tokens)
    hidden, _ = Transformer(config).apply({"params": params}, tokens, positions, ones)
    return logits(hidden, output_table(params, config), config)

  np.testing.assert_allclose(all_logits(params, TOKENS)[..., :96], expected, atol=1e-4)


def test_a_model_that_no_family_has_is_refused_naming_what_differs(checkpoint):
  _, _, config, _ = checkpoint
  for change in ({"query_scale": 0.123456789}, {"qk_norm": True, "attention_bias": True}):
    other = dataclasses.replace(config, final_softcap=None, **change)
    if config.post_norms and "query_scale" in change:
      continue  # Gemma says its query scale
    with pytest.raises(ValueError, match="no family has exactly this model's features") as error:
      find_layout(other, config.vocab_size, {}, "float32")
    assert any(name in str(error.value) for name in change)
