"""Reading checkpoints: parity with transformers on tiny ones made here, with every feature on."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.models.pretrained import load_config, load_params
from pasmr_jax.models.stored import stored_tensors
from pasmr_jax.models.transformer import Transformer, logits, output_table
from pasmr_jax.parallel.mesh import make_mesh, param_shardings
from pasmr_jax.parallel.rules import TRAINING

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

SIZES = {
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "query_pre_attn_scalar": 20,
  "sliding_window": 6,
  "max_position_embeddings": 128,
  "final_logit_softcapping": 3.0,
  "attn_implementation": "eager",  # the only one that caps attention scores
}
TOKENS = np.random.default_rng(0).integers(3, 96, (2, 40))


def gemma2():
  return transformers.Gemma2ForCausalLM(
    transformers.Gemma2Config(**SIZES, attn_logit_softcapping=5.0)
  )


def gemma3():
  local, full = "sliding_attention", "full_attention"
  config = transformers.Gemma3TextConfig(
    **SIZES,
    layer_types=[local, local, full, local],
    rope_parameters={
      local: {"rope_type": "default", "rope_theta": 500.0},
      full: {"rope_type": "linear", "factor": 8.0, "rope_theta": 20_000.0},
    },
  )
  return transformers.Gemma3ForCausalLM(config)


@pytest.fixture(scope="module", params=[gemma2, gemma3], ids=["gemma2", "gemma3"])
def checkpoint(request, tmp_path_factory):
  """A random model of transformers, norms included, and the folder it is saved in."""
  torch.manual_seed(0)
  model = request.param().eval()
  with torch.no_grad():
    for weight in model.parameters():
      weight.normal_(std=0.3)
  folder = tmp_path_factory.mktemp(request.param.__name__)
  model.save_pretrained(folder, max_shard_size="20KB")
  return model, folder


@jax.jit(static_argnums=0)
def all_logits(config, params, tokens):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden, _ = Transformer(config).apply(
    {"params": params}, tokens, positions, jnp.ones_like(tokens)
  )
  return logits(hidden, output_table(params, config), config)


def test_config_has_every_feature_of_the_checkpoint(checkpoint):
  model, folder = checkpoint
  config = load_config(folder)
  assert config.query_scale == 20**-0.5
  assert config.final_softcap == 3.0
  assert config.sliding_window == 6
  if model.config.model_type == "gemma2":
    assert config.attention_pattern == ("local", "global")
    assert (config.rope_base_local, config.rope_base_global) == (10_000.0, 10_000.0)
    assert not config.qk_norm
    assert config.attention_softcap == 5.0
  else:
    assert config.attention_pattern == ("local", "local", "global")
    assert (config.rope_base_local, config.rope_base_global) == (500.0, 20_000.0)
    assert config.rope_scale_global == 8.0
    assert config.qk_norm
    assert config.attention_softcap is None


def test_logits_and_gradients_equal_those_of_transformers(checkpoint):
  model, folder = checkpoint
  assert (folder / "model.safetensors.index.json").is_file()  # in several files
  config = load_config(folder)
  params = load_params(folder, config)

  found = all_logits(config, params, TOKENS)
  expected = model(torch.from_numpy(TOKENS)).logits
  np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-4)

  def loss(params):
    logprobs = jax.nn.log_softmax(all_logits(config, params, TOKENS)[:, :-1])
    return -jnp.mean(jnp.take_along_axis(logprobs, TOKENS[:, 1:, None], axis=-1))

  gradients = jax.grad(loss)(params)
  model.zero_grad()
  targets = torch.from_numpy(TOKENS[:, 1:]).reshape(-1)
  torch.nn.functional.cross_entropy(expected[:, :-1].reshape(-1, 96), targets).backward()
  theirs = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
  for path, tensor in stored_tensors(config).items():
    ours = gradients
    for key in path:
      ours = ours[key]
    layers = enumerate(ours) if path[0] == "layers" else [(None, ours)]
    for layer, gradient in layers:
      wanted = theirs.pop(tensor.hugging_face.format(layer))
      difference = np.abs(tensor.from_ours(np.asarray(gradient)) - wanted).max()
      assert difference < 1e-3 * max(1.0, np.abs(wanted).max()), (path, layer, difference)
  assert not theirs


def test_parameters_are_read_into_their_shardings(checkpoint):
  _, folder = checkpoint
  config = load_config(folder)
  shardings = param_shardings(config, make_mesh(-1, 2), TRAINING)
  sharded = load_params(folder, config, shardings, "bfloat16")
  whole = load_params(folder, config)
  assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, sharded, shardings)))
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b.astype("bfloat16"))),
    sharded,
    whole,
  )


def test_gguf_equals_the_folder(checkpoint, tmp_path):
  """The same weights as llama.cpp's converter writes them: other names, norms plus one."""
  gguf = pytest.importorskip("gguf")
  model, folder = checkpoint
  config = load_config(folder)
  family = model.config.model_type.removesuffix("_text")
  path = tmp_path / "model.gguf"
  writer = gguf.GGUFWriter(path, family)
  for key, value in {
    "embedding_length": 32,
    "block_count": 4,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 8,
    "attention.value_length": 8,
    "attention.sliding_window": 6,
  }.items():
    writer.add_uint32(f"{family}.{key}", value)
  writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", 1e-6)
  writer.add_float32(f"{family}.final_logit_softcapping", 3.0)
  if family == "gemma2":
    writer.add_float32("gemma2.attn_logit_softcapping", 5.0)
  else:
    writer.add_uint32("gemma3.attention.sliding_window_pattern", 3)
    writer.add_float32("gemma3.rope.freq_base", 20_000.0)
    writer.add_float32("gemma3.rope.freq_base_swa", 500.0)
    writer.add_string("gemma3.rope.scaling.type", "linear")
    writer.add_float32("gemma3.rope.scaling.factor", 8.0)
  weights = model.state_dict()
  quantized = gguf.GGMLQuantizationType.Q8_0
  for tensor in stored_tensors(config).values():
    for layer in range(4) if "{}" in tensor.gguf else (None,):
      values = weights[tensor.hugging_face.format(layer)].numpy()
      if tensor.gguf.endswith("norm.weight"):
        writer.add_tensor(tensor.gguf.format(layer), values + 1)
      elif tensor.gguf == "token_embd.weight":
        rows = gguf.quants.quantize(values, quantized)
        writer.add_tensor(tensor.gguf, rows, raw_dtype=quantized)
      else:
        writer.add_tensor(tensor.gguf.format(layer), values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()

  # llama.cpp scales queries by head_dim: GGUF has no key for query_pre_attn_scalar.
  assert load_config(path) == dataclasses.replace(config, query_scale=8**-0.5)
  found, expected = load_params(path, config), load_params(folder, config)
  step = np.abs(found["embedding"]).max() / 127
  np.testing.assert_allclose(found.pop("embedding"), expected.pop("embedding"), atol=step)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


@pytest.fixture
def broken(tmp_path):
  """A folder of a Gemma 3 whose files a test then spoils."""
  gemma3().save_pretrained(tmp_path)
  return tmp_path


def test_all_tensors_that_do_not_fit_are_listed_at_once(broken):
  file = broken / "model.safetensors"
  tensors = safetensors_torch.load_file(file)
  del tensors["model.norm.weight"]
  tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 3)
  tensors["model.layers.1.self_attn.q_norm.weight"] = torch.zeros(7)
  safetensors_torch.save_file(tensors, file, metadata={"format": "pt"})
  with pytest.raises(ValueError, match="3 tensors") as error:
    load_params(broken, load_config(broken))
  message = str(error.value)
  assert "missing model.norm.weight [32]" in message
  assert "not expected model.layers.9.mlp.up_proj.weight [2, 3]" in message
  assert "model.layers.1.self_attn.q_norm.weight: found [7], expected [8]" in message


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "mamba"}, "model_type 'mamba', supported are gemma2, gemma3"),
    ({"hidden_activation": "relu"}, "hidden_activation = 'relu' is not supported"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
    ({"attention_bias": True}, "attention_bias = True is not supported"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported"),
  ],
)
def test_what_is_not_supported_is_refused_by_name(broken, change, message):
  file = broken / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(ValueError, match=message):
    load_config(broken)


def test_a_rope_that_is_not_supported_is_refused_by_name(broken):
  file = broken / "config.json"
  config = json.loads(file.read_text())
  full = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
  config["rope_parameters"]["full_attention"] = full
  file.write_text(json.dumps(config))
  with pytest.raises(ValueError, match="rope_type = 'yarn' is not supported"):
    load_config(broken)


def test_a_multimodal_checkpoint_gives_its_text_model(broken, tmp_path_factory):
  whole = tmp_path_factory.mktemp("multimodal")
  text = json.loads((broken / "config.json").read_text())
  (whole / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
  tensors = safetensors_torch.load_file(broken / "model.safetensors")
  renamed = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
  renamed["vision_tower.vision_model.embeddings.patch_embedding.bias"] = torch.zeros(3)
  renamed["multi_modal_projector.mm_input_projection_weight"] = torch.zeros(3)
  safetensors_torch.save_file(renamed, whole / "model.safetensors")
  assert load_config(whole) == load_config(broken)
  config = load_config(whole)
  found, expected = load_params(whole, config), load_params(broken, config)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_path_that_is_nothing_is_an_error():
  with pytest.raises(FileNotFoundError, match="found no such folder, and it is not a hub id"):
    load_config("./nowhere")
  with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf: found no such file"):
    load_config("nowhere.gguf")


def test_a_hub_id_with_a_revision_is_read_from_the_hub_cache(broken, tmp_path, monkeypatch):
  """The hub's own layout on disk, and no network: what a second start of a run finds."""
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
  repository = tmp_path / "models--owner--tiny"
  shutil.copytree(broken, repository / "snapshots" / ("a" * 40))
  (repository / "refs").mkdir()
  (repository / "refs" / "v2").write_text("a" * 40)
  config = load_config("owner/tiny@v2")
  assert config == load_config(broken)
  found, expected = load_params("owner/tiny@v2", config), load_params(broken, config)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  with pytest.raises(FileNotFoundError, match=r"main|cached|snapshot"):
    load_config("owner/tiny")  # revision main is not there
