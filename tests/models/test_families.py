"""Every family against transformers, on the same tiny checkpoint with every feature on."""

import dataclasses
import json

import checkpoints  # beside this file; skips where torch is absent
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.models.cache import init_cache, settle
from pasmr_jax.models.families import FAMILIES
from pasmr_jax.models.pretrained import load_config, load_params
from pasmr_jax.models.stored import stored_tensors
from pasmr_jax.models.transformer import (
  Transformer,
  decode_step,
  logits,
  output_table,
  unstacked,
)

TOKENS = checkpoints.TOKENS


@pytest.fixture(scope="module", params=checkpoints.FAMILIES)
def checkpoint(request, tmp_path_factory):
  """A random model of transformers and the folder it is saved in, in several files."""
  model = checkpoints.random_model(request.param)
  folder = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder, max_shard_size="20KB")
  assert (folder / "model.safetensors.index.json").is_file()
  return request.param, model, folder


def test_the_table_has_a_checkpoint_for_every_family():
  assert set(FAMILIES) == set(checkpoints.FAMILIES)


LOCAL, GLOBAL = "local", "global"
EXPECTED = {
  "gemma2": {
    "attention_pattern": (LOCAL, GLOBAL),
    "attention_softcap": 5.0,
    "final_softcap": 3.0,
    "query_scale": 20**-0.5,
    "tie_embeddings": True,
  },
  "gemma3": {
    "attention_pattern": (LOCAL, LOCAL, GLOBAL),
    "rope_base_local": 500.0,
    "rope_base_global": 20_000.0,
    "rope_scale_global": 8.0,
    "rope_scale_local": 1.0,
    "qk_norm": True,
    "attention_softcap": None,
    "final_softcap": 3.0,
  },
  "llama": {
    "attention_pattern": (GLOBAL,),
    "rope_llama3_factor": 4.0,
    "rope_llama3_length": 64,
    "rope_scale_global": 1.0,
    "tie_embeddings": False,
    "norm_plus_one": False,
    "activation": "silu",
  },
  "mistral": {
    "attention_pattern": (LOCAL,),
    "sliding_window": 6,
    "rope_base_local": 500.0,
    "rope_scale_local": 2.0,
    "head_dim": 16,
  },
  "qwen2": {
    "attention_pattern": (GLOBAL, GLOBAL, LOCAL, LOCAL),
    "attention_bias": True,
    "qk_norm": False,
    "head_dim": 8,
    "norm_eps": 1e-5,
  },
  "qwen3": {
    "attention_pattern": (GLOBAL,),
    "attention_bias": False,
    "qk_norm": True,
    "query_scale": 16**-0.5,
    "tie_embeddings": True,
  },
}


def test_config_has_every_feature_of_the_checkpoint(checkpoint):
  family, _, folder = checkpoint
  config = load_config(folder)
  assert {name: getattr(config, name) for name in EXPECTED[family]} == EXPECTED[family]


@jax.jit(static_argnums=0)
def apply(config, params, tokens):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  ones = jnp.ones_like(tokens)
  hidden, _ = Transformer(config).apply({"params": params}, tokens, positions, ones)
  return logits(hidden, output_table(params, config), config)


@jax.jit(static_argnums=0)
def step(config, params, tokens, cache):
  hidden, cache = decode_step(params, tokens, cache, config)
  cache = settle(cache)
  return logits(hidden, output_table(params, config), config), cache


@jax.jit(static_argnums=0)
def loss_and_gradient(config, params, tokens):
  def loss(params):
    found = apply(config, params, tokens)
    logprobs = jax.nn.log_softmax(found[:, :-1])
    return -jnp.mean(jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)), found

  return jax.value_and_grad(loss, has_aux=True)(params)


def test_logits_gradients_and_cached_decoding_equal_those_of_transformers(checkpoint):
  _, model, folder = checkpoint
  config = load_config(folder)
  params = load_params(folder, config)

  expected = model(checkpoints.torch.from_numpy(TOKENS)).logits
  (_, found), gradients = loss_and_gradient(config, params, TOKENS)
  np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-4)

  targets = checkpoints.torch.from_numpy(TOKENS[:, 1:]).reshape(-1)
  flat = expected[:, :-1].reshape(-1, checkpoints.VOCABULARY)
  checkpoints.torch.nn.functional.cross_entropy(flat, targets).backward()
  theirs = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
  for path, tensor in stored_tensors(config).items():
    ours = gradients
    for key in path:
      ours = ours[key]
    layers = enumerate(ours) if path[0] == "layers" else [(None, ours)]
    for layer, gradient in layers:
      wanted = theirs.pop(tensor.hugging_face.format(layer))
      difference = np.abs(tensor.as_stored(np.asarray(gradient)) - wanted).max()
      assert difference < 1e-3 * max(1.0, np.abs(wanted).max()), (path, layer, difference)
  assert not theirs

  # Through the cache token by token; prompts of several are in test_transformer.py.
  config, apart = dataclasses.replace(config, stacked=False), unstacked(params)
  cache, decoded = init_cache(config, len(TOKENS), TOKENS.shape[1], recent=1), []
  for at in range(TOKENS.shape[1]):
    part, cache = step(config, apart, TOKENS[:, at], cache)
    decoded.append(part)
  np.testing.assert_allclose(np.stack(decoded, axis=1), found, atol=1e-4)


UNSUPPORTED = {
  "gemma2": [({"hidden_activation": "relu"}, "hidden_activation = 'relu' is not supported")],
  "gemma3": [
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
    ({"attention_bias": True}, "attention_bias = True is not supported"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported"),
  ],
  "llama": [
    ({"attention_bias": True}, "attention_bias = True is not supported, only False"),
    ({"mlp_bias": True}, "mlp_bias = True is not supported"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, only 'silu'"),
    ({"num_local_experts": 8}, r"num_local_experts = 8: a mixture of experts is not supported"),
    (
      {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
      "rope_type = 'dynamic' is not supported, only default, linear, llama3",
    ),
    (
      {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
      r"partial_rotary_factor = 0\.5 is not supported",
    ),
    ({"rope_parameters": {"rope_type": "linear"}}, r"config\.json: transformers cannot read it"),
    ({"model_type": "mamba"}, "model_type 'mamba', supported are gemma2, gemma3, gemma3_text"),
    ({"model_type": None}, "model_type None, supported are"),
    ({"hidden_size": "32"}, r"config\.json: transformers cannot read it"),
  ],
  "qwen2": [
    ({"layer_types": ["full_attention", "chunked_attention"] * 2}, "chunked_attention"),
    ({"model_type": "qwen2_moe", "num_experts": 60}, "num_experts = 60: a mixture of experts"),
  ],
  "qwen3": [({"attention_bias": True}, "attention_bias = True is not supported")],
}


@pytest.mark.parametrize(
  ("family", "change", "message"),
  [(family, *case) for family, cases in UNSUPPORTED.items() for case in cases],
)
def test_what_is_not_supported_is_refused_by_name_before_weights_are_read(
  tmp_path, family, change, message
):
  checkpoints.FAMILIES[family]().config.save_pretrained(tmp_path)
  file = tmp_path / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(ValueError, match=message):
    load_config(tmp_path)


def test_old_names_of_rotary_parameters_and_defaults_are_understood(tmp_path):
  """A config.json as Llama 3.1 was published with, and one of the very first Llamas."""
  scaling = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
  }
  written = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
  }
  file = tmp_path / "config.json"
  file.write_text(json.dumps(written | {"rope_theta": 500000.0, "rope_scaling": scaling}))
  config = load_config(tmp_path)
  assert (config.rope_base_global, config.rope_llama3_factor) == (500_000.0, 8.0)
  assert (config.num_kv_heads, config.head_dim, config.tie_embeddings) == (8, 8, False)
  file.write_text(json.dumps(written))
  config = load_config(tmp_path)
  assert (config.rope_base_global, config.rope_llama3_factor) == (10_000.0, 1.0)
  # Mistral from 0.2 on has no window.
  file.write_text(json.dumps(written | {"model_type": "mistral", "sliding_window": None}))
  assert load_config(tmp_path).attention_pattern == ("global",)


def test_mistrals_layers_may_have_kinds(tmp_path):
  """transformers takes such a file for Ministral's."""
  transformers = checkpoints.transformers
  config = transformers.MistralConfig(**checkpoints.SIZES, sliding_window=6).to_dict()
  kinds = ["full_attention", "sliding_attention"] * 2
  (tmp_path / "config.json").write_text(json.dumps(config | {"layer_types": kinds}))
  model = transformers.AutoModelForCausalLM.from_config(
    transformers.AutoConfig.from_pretrained(tmp_path)
  )
  model.save_pretrained(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(config | {"layer_types": kinds}))
  found = load_config(tmp_path)
  assert found.layer_kinds == ("global", "local") * 2
  scores = apply(found, load_params(tmp_path, found), jnp.asarray(TOKENS))
  with checkpoints.torch.no_grad():
    expected = model(checkpoints.torch.tensor(TOKENS)).logits.numpy()
  np.testing.assert_allclose(scores, expected, atol=1e-4)
