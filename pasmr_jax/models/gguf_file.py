"""Checkpoints of llama.cpp: one GGUF file, quantized or not."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.stored import GEMMA, StoredTensor, TensorSource, shortest_pattern

# Metadata says neither which layers are local nor the query scale: llama.cpp knows both by
# architecture, the latter from the number of layers of the largest model, which scales by
# embed_dim / num_heads instead of head_dim.
_PERIOD = {"gemma2": 2, "gemma3": 6}
_LARGEST = {"gemma2": 46, "gemma3": 62}


def gguf_config(path: str) -> TransformerConfig:
  """The config in a GGUF file's metadata; errors as `pretrained.load_config`."""
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"{path}: found no such file")
  reader = gguf.GGUFReader(path)
  fields = {
    name: field.contents() for name, field in reader.fields.items() if "tokenizer." not in name
  }
  family = fields.get("general.architecture")
  if family not in _PERIOD:
    known = ", ".join(_PERIOD)
    raise ValueError(f"{path}: found general.architecture {family!r}, supported are {known}")

  def field(name: str, default: Any = None) -> Any:
    value = fields.get(f"{family}.{name}", default)
    if value is None:
      raise ValueError(f"{path}: found no metadata key {family}.{name}")
    return value

  scaling = field("rope.scaling.type", "none")
  if scaling not in ("none", "linear"):
    raise ValueError(f"{path}: rope.scaling.type = {scaling!r} is not supported, only 'linear'")
  vectors = {tensor.name: tensor.shape for tensor in reader.tensors}
  embed_dim, vocab_size = (int(size) for size in vectors["token_embd.weight"])
  heads, layers, head_dim = (
    field("attention.head_count"),
    field("block_count"),
    field("attention.key_length"),
  )
  if field("attention.value_length", head_dim) != head_dim:
    raise ValueError(f"{path}: attention.value_length other than key_length is not supported")
  gemma3 = family == "gemma3"
  period = field("attention.sliding_window_pattern", _PERIOD[family])
  base = float(field("rope.freq_base", 1e6 if gemma3 else 1e4))
  largest = layers == _LARGEST[family]
  softcaps = {
    "attention_softcap": None if gemma3 else field("attn_logit_softcapping", 50.0),
    "final_softcap": fields.get(f"{family}.final_logit_softcapping", None if gemma3 else 30.0),
  }
  return TransformerConfig(
    vocab_size=vocab_size,
    embed_dim=embed_dim,
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=field("attention.head_count_kv"),
    head_dim=head_dim,
    mlp_dim=field("feed_forward_length"),
    query_scale=(embed_dim // heads if largest else head_dim) ** -0.5,
    attention_pattern=shortest_pattern(
      tuple("global" if (i + 1) % period == 0 else "local" for i in range(layers))
    ),
    sliding_window=field("attention.sliding_window"),
    rope_base_global=base,
    rope_base_local=float(field("rope.freq_base_swa", 1e4)) if gemma3 else base,
    rope_scale_global=float(field("rope.scaling.factor")) if scaling == "linear" else 1.0,
    qk_norm=gemma3,
    norm_eps=round(float(field("attention.layer_norm_rms_epsilon")), 12),  # from float32
    tie_embeddings="output.weight" not in vectors,
    **softcaps,
    **GEMMA,
  )


@contextlib.contextmanager
def open_gguf(path: str, config: TransformerConfig) -> Iterator[TensorSource]:
  """Opens the file; the tensors are mapped, and dequantized to float32 one at a time."""
  tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
  # GGUF names the fastest axis first.
  shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in tensors.items()}

  def name_of(tensor: StoredTensor, layer: int | None) -> str:
    return tensor.gguf.format(layer)

  def read(name: str) -> np.ndarray:
    values = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
    # llama.cpp multiplies by the norm weight alone, so its converter adds Gemma's one to it.
    return values - 1.0 if config.norm_plus_one and name.endswith("norm.weight") else values

  yield TensorSource(shapes, name_of, read)
