"""Checkpoints of llama.cpp: one GGUF file, quantized or not.

Metadata become what config.json would say (`gguf_statement`), so that `families.py` reads both
alike. Tensors differ from Hugging Face's in name, in axis order, in Gemma's norms, which are stored
plus one, and in the rows of Llama's queries and keys, which are stored in another order.
"""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import gguf
import numpy as np

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.families import (
  FAMILIES,
  Family,
  Stated,
  family_config,
  find_family,
)
from pasmr_jax.models.stored import Cut, StoredTensor, TensorSource
from pasmr_jax.text.gguf_content import Content, forget, read_content

# Metadata of Gemma say neither which layers are local nor the query scale: llama.cpp knows both by
# architecture, the latter from the number of layers of the largest model, which scales by
# embed_dim / num_heads instead of head_dim.
_PERIOD = {"gemma2": 2, "gemma3": 6}
_LARGEST = {"gemma2": 46, "gemma3": 62}
# Llama 3's scaling is kept as the divisors it gives. All released models share these two bounds
# and this length; with them, the divisors of a file tell its factor.
_LLAMA3 = {
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
_DIVISORS = "rope_freqs.weight"
# Keys of llama.cpp that change what is computed, and the value with which they do not.
_NEUTRAL = {
  "attention.causal": True,
  "attention.clamp_kqv": 0.0,
  "attention.max_alibi_bias": 0.0,
  "embedding_scale": 1.0,
  "logit_scale": 1.0,
  "residual_scale": 1.0,
  "rope.scaling.attn_factor": 1.0,
}
# Keys that may say no other width of a head than attention.key_length does.
_HEAD_DIMS = (
  "attention.value_length",
  "attention.key_length_swa",
  "attention.value_length_swa",
  "rope.dimension_count",
  "rope.dimension_count_swa",
)


def gguf_config(path: str) -> TransformerConfig:
  """The config in a GGUF file's metadata; errors as `pretrained.load_config`."""
  return family_config(*gguf_statement(path))


def gguf_statement(path: str) -> tuple[Stated, Family]:
  """What the metadata say, in the words of config.json, and the family."""
  content = _content(path)
  fields = {name: value for name, value in content.fields.items() if "tokenizer." not in name}
  architecture = fields.get("general.architecture")
  experts = {"num_local_experts": fields.get(f"{architecture}.expert_count", 0)}
  family = find_family(path, "general.architecture", architecture, experts)
  said = Stated(path, {name.removeprefix(f"{architecture}."): fields[name] for name in fields})
  if architecture == "llama" and said.get("attention.sliding_window"):
    family = FAMILIES["mistral"]  # llama.cpp calls Mistral a Llama
  for name, neutral in _NEUTRAL.items():
    said.refuse_unless(name, neutral)
  values = _values(said, content.tensors)
  values["rope_parameters"] = _rope(said, content.tensors, 1e6 if architecture == "gemma3" else 1e4)
  if architecture in _PERIOD:
    values |= _gemma(said, architecture, values)
  scale = values.get("query_pre_attn_scalar", values["head_dim"]) ** -0.5
  if not math.isclose(said.number("attention.scale", scale), scale, rel_tol=1e-4):
    raise ValueError(
      f"{path}: attention.scale = {said.get('attention.scale')!r} is not supported, only {scale!r}"
    )
  return Stated(path, values), family


def _values(said: Stated, tensors: Mapping[str, gguf.ReaderTensor]) -> dict[str, Any]:
  """What all families state alike."""
  embedding = tensors.get("token_embd.weight")
  if embedding is None or len(embedding.shape) != 2:
    raise ValueError(f"{said.where}: found no matrix token_embd.weight")
  embed_dim, vocab_size = (int(size) for size in embedding.shape)
  heads = said.size("attention.head_count")
  head_dim = said.size("attention.key_length", embed_dim // heads)
  for name in _HEAD_DIMS:
    said.refuse_unless(name, head_dim)
  return {
    "vocab_size": vocab_size,
    "hidden_size": embed_dim,
    "num_hidden_layers": said.size("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": said.size("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "intermediate_size": said.size("feed_forward_length"),
    # As it was before it became a float32.
    "rms_norm_eps": round(said.number("attention.layer_norm_rms_epsilon"), 12),
    "tie_word_embeddings": "output.weight" not in tensors,
    "sliding_window": said.get("attention.sliding_window"),
    "hidden_act": "silu",
    "max_position_embeddings": said.get("context_length"),
  }


def _gemma(said: Stated, architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
  """What Gemma's files do not say, or say in words of their own."""
  gemma3, layers = architecture == "gemma3", values["num_hidden_layers"]
  period = said.size("attention.sliding_window_pattern", _PERIOD[architecture])
  largest = layers == _LARGEST[architecture]
  scalar = values["hidden_size"] // values["num_attention_heads"] if largest else values["head_dim"]
  own = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": scalar,
    "layer_types": [
      "full_attention" if (layer + 1) % period == 0 else "sliding_attention"
      for layer in range(layers)
    ],
    "attn_logit_softcapping": None if gemma3 else said.get("attn_logit_softcapping", 50.0),
    "final_logit_softcapping": said.get("final_logit_softcapping") or (None if gemma3 else 30.0),
  }
  if gemma3:
    base = said.number("rope.freq_base_swa", 1e4)
    own["rope_parameters"] = {
      "full_attention": values["rope_parameters"],
      "sliding_attention": {"rope_type": "default", "rope_theta": base},
    }
  return own


def _content(path: str) -> Content:
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"{path}: found no such file")
  try:
    return read_content(path)
  except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
    raise ValueError(f"{path}: no readable GGUF file: {error}") from error


def _rope(said: Stated, tensors: Mapping[str, gguf.ReaderTensor], base: float) -> dict[str, Any]:
  """transformers' rope_parameters; `base` is the family's, where the file states none."""
  base = said.number("rope.freq_base", base)
  # As llama.cpp reads it: old files have the factor under another key, and none need say `linear`.
  factor = said.number("rope.scaling.factor", said.number("rope.scale_linear", 0.0)) or 1.0
  kind = said.get("rope.scaling.type", "none" if factor == 1.0 else "linear")
  rope: dict[str, Any] = {"rope_type": "default" if kind == "none" else kind, "rope_theta": base}
  if kind == "linear":
    rope["factor"] = factor
  if _DIVISORS in tensors:
    rope |= _llama3(said.where, np.asarray(tensors[_DIVISORS].data, np.float64), base)
  return rope


def _llama3(path: str, divisors: np.ndarray, base: float) -> dict[str, Any]:
  """The scaling that gives these divisors.

  Raises:
    ValueError: none of Llama 3's does.
  """
  factor = float(np.round(divisors.max(), 6))
  low, high, length = _LLAMA3.values()
  frequencies = base ** (-np.arange(len(divisors)) / len(divisors))
  kept = np.clip((length * frequencies / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
  if not np.allclose(divisors, 1 / ((1 - kept) / factor + kept), rtol=1e-4):
    raise ValueError(
      f"{path}: {_DIVISORS} is not the scaling of Llama 3 ({_LLAMA3}); no other is supported"
    )
  return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


@contextlib.contextmanager
def open_gguf(path: str, config: TransformerConfig) -> Iterator[TensorSource]:
  """Opens the file; the tensors are mapped, and what is asked for dequantized to float32."""
  content = _content(path)
  tensors = {name: tensor for name, tensor in content.tensors.items() if name != _DIVISORS}
  # GGUF names the fastest axis first.
  shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in tensors.items()}
  architecture = content.fields["general.architecture"]
  del content
  forget()  # weights are what is read last
  paired = any(family.paired_rows and architecture in family.gguf for family in FAMILIES.values())

  def name_of(tensor: StoredTensor, layer: int | None) -> str:
    return tensor.gguf.format(layer)

  def read(name: str, cut: Cut) -> np.ndarray:
    # Blocks of quantized values lie along a row, so rows can be read apart, columns cannot.
    vector = len(cut) == 1
    rows = tensors[name].data if vector else tensors[name].data[cut[0]]
    values = gguf.quants.dequantize(rows, tensors[name].tensor_type)
    values = values[cut[0]] if vector else values[:, cut[1]]
    if config.norm_plus_one and name.endswith("norm.weight"):
      # llama.cpp multiplies by the norm weight alone, so its converter adds Gemma's one to it.
      return values - 1.0
    if paired and name.endswith(("attn_q.weight", "attn_k.weight")):
      return _unpaired(values, config.head_dim)
    return values

  yield TensorSource(shapes, name_of, read)


def _unpaired(rows: np.ndarray, head_dim: int) -> np.ndarray:
  """Rows of whole heads in Hugging Face's order.

  llama.cpp rotates row 2i of a Llama's head with row 2i + 1, Hugging Face i with i + H/2; its
  converter reorders a head's rows 0 1 2 3 4 5 to 0 3 1 4 2 5.
  """
  paired = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
  return paired.swapaxes(1, 2).reshape(rows.shape)
