"""GGUF files, written as llama.cpp's converter does, against the folders they are made from."""

import dataclasses
import json
import math

import checkpoints  # beside this file; skips where torch is absent
import gguf
import jax
import numpy as np
import pytest

from pasmr_jax.models.pretrained import load_config, load_params
from pasmr_jax.models.stored import stored_tensors
from pasmr_jax.parallel.mesh import make_mesh, param_shardings
from pasmr_jax.parallel.rules import TRAINING
from pasmr_jax.text.gguf_content import read_content

Kind = gguf.GGMLQuantizationType
# Each has another kind of the embedding, which is the matrix with rows of whole blocks (32).
QUANTIZED = {
  "gemma2": Kind.Q8_0,
  "gemma3": Kind.Q4_0,
  "llama": Kind.Q4_1,
  "mistral": Kind.F16,
  "qwen2": Kind.BF16,
  "qwen3": Kind.F32,
}
STEPS = {Kind.Q8_0: 1 / 127, Kind.Q4_0: 1 / 8, Kind.Q4_1: 1 / 15, Kind.F16: 1e-3, Kind.BF16: 1e-2}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500_000.0,
  "factor": 32.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}


def metadata(family: str, config) -> dict[str, int | float | str]:
  values = {
    "embedding_length": config.hidden_size,
    "block_count": config.num_hidden_layers,
    "feed_forward_length": config.intermediate_size,
    "attention.head_count": config.num_attention_heads,
    "attention.head_count_kv": config.num_key_value_heads,
    "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    "context_length": 128,
  }
  own = {
    "gemma2": {
      "attention.key_length": 8,
      "attention.value_length": 8,
      "attention.sliding_window": 6,
      "final_logit_softcapping": 3.0,
      "attn_logit_softcapping": 5.0,
    },
    "gemma3": {
      "attention.key_length": 8,
      "attention.value_length": 8,
      "attention.sliding_window": 6,
      "attention.sliding_window_pattern": 3,
      "final_logit_softcapping": 3.0,
      "rope.freq_base": 20_000.0,
      "rope.freq_base_swa": 500.0,
      "rope.scaling.type": "linear",
      "rope.scaling.factor": 8.0,
    },
    "llama": {"rope.dimension_count": 8, "rope.freq_base": 500_000.0},
    "mistral": {
      "rope.dimension_count": 16,
      "attention.key_length": 16,
      "attention.sliding_window": 6,
      "rope.freq_base": 500.0,
      "rope.scaling.type": "linear",
      "rope.scaling.factor": 2.0,
    },
    "qwen2": {"rope.freq_base": 1000.0},
    "qwen3": {"attention.key_length": 16, "attention.value_length": 16},
  }
  return values | own[family]


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
  """Row i of the first half of each head, then row i of the second, and so on."""
  parts = np.split(rows, 2 * heads)
  return np.concatenate(
    [
      np.stack([first, second], axis=1).reshape(-1, *rows.shape[1:])
      for first, second in zip(parts[::2], parts[1::2], strict=True)
    ]
  )


def llama3_divisors(head_dim: int) -> np.ndarray:
  found = []
  for i in range(head_dim // 2):
    wavelength = 2 * math.pi * LLAMA3["rope_theta"] ** (2 * i / head_dim)
    if wavelength < 8192 / 4:
      found.append(1.0)
    elif wavelength > 8192:
      found.append(LLAMA3["factor"])
    else:
      smooth = (8192 / wavelength - 1) / 3
      found.append(1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
  return np.array(found, np.float32)


def write_gguf(path, architecture, values, tensors) -> None:
  """`tensors` maps a name to an array, or to one and the kind it is quantized to."""
  writer = gguf.GGUFWriter(path, architecture)
  adding = {
    int: writer.add_uint32,
    float: writer.add_float32,
    str: writer.add_string,
    list: writer.add_array,
  }
  for key, value in values.items():
    add = adding[type(value)]
    add(f"{architecture}.{key}", value)
  for name, tensor in tensors.items():
    if isinstance(tensor, tuple):
      values, kind = tensor
      writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
      writer.add_tensor(name, tensor)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def converted(family, model, config, kind):
  weights, tensors = model.state_dict(), {}
  for tensor in stored_tensors(config).values():
    for layer in range(4) if "{}" in tensor.gguf else (None,):
      values = weights[tensor.hugging_face.format(layer)].numpy()
      name = tensor.gguf.format(layer)
      if family.startswith("gemma") and name.endswith("norm.weight"):
        values = values + 1
      if family in ("llama", "mistral") and name.endswith(("attn_q.weight", "attn_k.weight")):
        values = paired(values, config.num_heads if "_q" in name else config.num_kv_heads)
      tensors[name] = (values, kind) if name == "token_embd.weight" else values
  if family == "llama":
    tensors["rope_freqs.weight"] = llama3_divisors(8)
  return tensors


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_gguf_equals_the_folder(family, tmp_path):
  model = checkpoints.random_model(family)
  if family == "qwen2":  # GGUF cannot say that only the upper layers have a window
    model.config.use_sliding_window = False
    model.config.sliding_window, model.config.layer_types = None, ["full_attention"] * 4
  model.save_pretrained(tmp_path)
  if family == "llama":
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_parameters": LLAMA3}))
  config, kind = load_config(tmp_path), QUANTIZED[family]
  path = tmp_path / "model.gguf"
  # llama.cpp calls Mistral a Llama.
  architecture = "llama" if family == "mistral" else family
  tensors = converted(family, model, config, kind)
  write_gguf(path, architecture, metadata(family, model.config), tensors)

  if family.startswith("gemma"):
    # llama.cpp scales queries by head_dim: GGUF has no key for query_pre_attn_scalar.
    config = dataclasses.replace(config, query_scale=8**-0.5)
  assert load_config(path) == config
  found, expected = load_params(path, config), load_params(tmp_path, config)
  # Split by heads, whose rows are in another order, and by columns, across blocks of values.
  sharded = load_params(path, config, param_shardings(config, make_mesh(-1, 2), TRAINING))
  jax.tree.map(np.testing.assert_array_equal, sharded, found)
  step = np.abs(found["embedding"]).max() * STEPS.get(kind, 0.0)
  np.testing.assert_allclose(found.pop("embedding"), expected.pop("embedding"), atol=step)
  # Gemma's norms lose their last bits when one is added.
  exact = (
    np.testing.assert_array_equal if family in ("llama", "qwen3") else np.testing.assert_allclose
  )
  tolerance = {} if family in ("llama", "qwen3") else {"atol": 1e-6}
  jax.tree.map(lambda a, b: exact(a, b, **tolerance), found, expected)


def small_llama(**changes):
  values = {
    "embedding_length": 256,
    "block_count": 1,
    "feed_forward_length": 256,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
  }
  return values | changes


@pytest.mark.parametrize(
  ("values", "tensors", "message"),
  [
    ({"expert_count": 8}, {}, "num_local_experts = 8: a mixture of experts is not supported"),
    ({"rope.scaling.type": "yarn"}, {}, "rope_type = 'yarn' is not supported"),
    ({"rope.dimension_count": 32}, {}, "rope.dimension_count = 32 is not supported, only 64"),
    ({"attention.value_length": 32}, {}, "attention.value_length = 32 is not supported, only 64"),
    ({"attention.scale": 0.5}, {}, "attention.scale = 0.5 is not supported, only 0.125"),
    ({"attention.clamp_kqv": 8.0}, {}, "attention.clamp_kqv = 8.0 is not supported, only 0.0"),
    ({"residual_scale": 0.5}, {}, "residual_scale = 0.5 is not supported, only 1.0"),
    ({"rope.scaling.attn_factor": 2.0}, {}, "rope.scaling.attn_factor = 2.0 is not supported"),
    ({"attention.head_count": [4, 4]}, {}, r"attention.head_count = \[4, 4\]; expected 1 to"),
    ({"attention.head_count": 0}, {}, "attention.head_count = 0; expected 1 to"),
    ({"attention.head_count_kv": [4]}, {}, r"attention.head_count_kv = \[4\]; expected 1 to"),
    ({"rope.freq_base": "x"}, {}, "rope.freq_base = 'x'; expected a number"),
    (
      {},
      {"rope_freqs.weight": np.linspace(1, 8, 32, dtype=np.float32)},
      r"rope_freqs\.weight is not the scaling of Llama 3",
    ),
  ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, values, tensors, message):
  path = tmp_path / "model.gguf"
  embedding = {"token_embd.weight": np.zeros((8, 256), np.float32)}
  write_gguf(path, "llama", small_llama(**values), embedding | tensors)
  with pytest.raises(ValueError, match=rf"model\.gguf: {message}"):
    load_config(path)


@pytest.mark.parametrize(
  "values",
  [
    {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    {"rope.scaling.factor": 4.0},  # llama.cpp takes it for linear
    {"rope.scale_linear": 4.0},  # its older name
  ],
)
def test_linear_scaling_is_read_however_it_is_stated(tmp_path, values):
  path = tmp_path / "model.gguf"
  tensors = {"token_embd.weight": np.zeros((8, 256), np.float32)}
  write_gguf(path, "llama", small_llama(**values, **{"attention.scale": 0.125}), tensors)
  assert load_config(path).rope_scale_global == 4.0


def test_a_malformed_pattern_and_an_absent_embedding_are_named(tmp_path):
  path = tmp_path / "model.gguf"
  tensors = {"token_embd.weight": np.zeros((8, 256), np.float32)}
  write_gguf(path, "gemma3", small_llama(**{"attention.sliding_window_pattern": 0}), tensors)
  with pytest.raises(ValueError, match=r"attention\.sliding_window_pattern = 0; expected 1 to"):
    load_config(path)
  write_gguf(path, "llama", small_llama(), {})
  with pytest.raises(ValueError, match=r"model\.gguf: found no matrix token_embd\.weight"):
    load_config(path)


def test_an_unknown_architecture_and_a_missing_key_are_named(tmp_path):
  path = tmp_path / "model.gguf"
  tensors = {"token_embd.weight": np.zeros((8, 256), np.float32)}
  write_gguf(path, "gpt-oss", {}, tensors)
  with pytest.raises(ValueError, match=r"general\.architecture 'gpt-oss', supported are gemma2"):
    load_config(path)
  values = small_llama()
  del values["block_count"]
  write_gguf(path, "llama", values, tensors)
  with pytest.raises(ValueError, match=r"model\.gguf: found no block_count"):
    load_config(path)


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
  path, read, reader = tmp_path / "x.gguf", [], gguf.GGUFReader
  monkeypatch.setattr(gguf, "GGUFReader", lambda path: read.append(path) or reader(path))
  for width in (2, 3):
    write_gguf(path, "llama", {"width": width}, {"one": np.ones((4, width), np.float32)})
    for _ in range(2):
      content = read_content(str(path))
      assert content.fields["llama.width"] == width
      assert content.tensors["one"].data.shape == (4, width)
  assert len(read) == 2
