"""The families of models: what each adds to the plain decoder.

A checkpoint states its sizes and switches in config.json, or in the metadata of a GGUF file, which
`gguf_file.py` renames to the same words. `family_config` turns that statement into our record: what
all families say alike is read here once, the rest by the family's own function. Whatever is stated
and not computed is refused by name, so that nothing is read wrongly in silence.

To add a family: one function that says what differs, one entry in `FAMILIES`, and one tiny
checkpoint of it in tests/models/checkpoints.py.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pasmr_jax.models.config import TransformerConfig

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
KINDS = {"sliding_attention": "local", "full_attention": "global"}
# Names by which configs state how many experts a mixture has.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")

_LARGEST = 1 << 28  # of any size; the largest vocabularies have a thousandth of it


@dataclasses.dataclass(frozen=True)
class Stated:
  """What a checkpoint says of its model, in the words of transformers' config classes."""

  where: str  # the file, for messages
  values: Mapping[str, Any]

  def get(self, name: str, default: Any = None) -> Any:
    """A value, or the default where it is absent or null."""
    value = self.values.get(name)
    return default if value is None else value

  def need(self, name: str) -> Any:
    value = self.values.get(name)
    if value is None:
      raise ValueError(f"{self.where}: found no {name}")
    return value

  def size(self, name: str, default: int | None = None) -> int:
    """A whole number from 1 to `_LARGEST`: more is refused before anything is allocated."""
    value = self.need(name) if default is None else self.get(name, default)
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 0 < int(value) <= _LARGEST:
      raise ValueError(f"{self.where}: {name} = {value!r}; expected 1 to {_LARGEST}")
    return int(value)

  def number(self, name: str, default: float | None = None) -> float:
    value = self.need(name) if default is None else self.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise ValueError(f"{self.where}: {name} = {value!r}; expected a number")
    return float(value)

  def refuse_unless(self, name: str, *allowed: object) -> None:
    """Raises ValueError if `name` is stated and is none of `allowed`."""
    value = self.get(name, allowed[0])
    if value not in allowed:
      expected = ", ".join(repr(one) for one in allowed)
      raise ValueError(f"{self.where}: {name} = {value!r} is not supported, only {expected}")


@dataclasses.dataclass(frozen=True)
class Family:
  """What a family is called, and the function that reads what it has of its own."""

  fields: Callable[[Stated], dict[str, Any]]
  model_types: tuple[str, ...]  # in config.json; an export writes the first
  head_class: str  # transformers' class of the language model
  gguf: tuple[str, ...] = ()  # general.architecture
  paired_rows: bool = False  # llama.cpp keeps the two entries that rotate together side by side
  keys: tuple[str, ...] = ()  # of config.json, besides those that all families have
  rope_of_kind: bool = False  # its layers' kinds have rotary parameters of their own
  activation_key: str = "hidden_act"


def _gemma(stated: Stated) -> dict[str, Any]:
  """What Gemma 2 and 3 share and their files do not say."""
  stated.refuse_unless("attention_bias", False)
  stated.refuse_unless("use_bidirectional_attention", False)
  return {
    "query_scale": stated.need("query_pre_attn_scalar") ** -0.5,
    "post_norms": True,
    "norm_plus_one": True,
    "scale_embeddings": True,
    "final_softcap": stated.get("final_logit_softcapping"),
  }


def _gemma2(stated: Stated) -> dict[str, Any]:
  return _gemma(stated) | {"attention_softcap": stated.get("attn_logit_softcapping")}


def _gemma3(stated: Stated) -> dict[str, Any]:
  # The field is left from Gemma 2: transformers reads it and applies nothing.
  stated.refuse_unless("attn_logit_softcapping", None)
  return _gemma(stated) | {"qk_norm": True}


def _llama(stated: Stated) -> dict[str, Any]:
  stated.refuse_unless("attention_bias", False)
  stated.refuse_unless("mlp_bias", False)
  return {"attention_pattern": ("global",)}


def _mistral(stated: Stated) -> dict[str, Any]:
  """One window for all layers, or none (from version 0.2 on); Ministral's layers state theirs."""
  if stated.get("layer_types") is not None:
    return {}
  windowed = stated.get("sliding_window") is not None
  return {"attention_pattern": ("local" if windowed else "global",)}


def _qwen2(stated: Stated) -> dict[str, Any]:
  return {"attention_bias": True}


def _qwen3(stated: Stated) -> dict[str, Any]:
  stated.refuse_unless("attention_bias", False)
  return {"qk_norm": True}


_QWEN_KEYS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
_GEMMA_KEYS = ("query_pre_attn_scalar", "final_logit_softcapping", "sliding_window", "layer_types")
FAMILIES: Mapping[str, Family] = {
  "gemma2": Family(
    _gemma2,
    ("gemma2",),
    "Gemma2ForCausalLM",
    ("gemma2",),
    keys=(*_GEMMA_KEYS, "attn_logit_softcapping"),
    activation_key="hidden_activation",
  ),
  "gemma3": Family(
    _gemma3,
    ("gemma3_text", "gemma3"),
    "Gemma3ForCausalLM",
    ("gemma3",),
    keys=_GEMMA_KEYS,
    rope_of_kind=True,
    activation_key="hidden_activation",
  ),
  "llama": Family(_llama, ("llama",), "LlamaForCausalLM", ("llama",), paired_rows=True),
  "mistral": Family(
    _mistral,
    ("mistral",),
    "MistralForCausalLM",
    ("mistral",),
    paired_rows=True,
    keys=("sliding_window",),
  ),
  "qwen2": Family(_qwen2, ("qwen2",), "Qwen2ForCausalLM", ("qwen2",), keys=_QWEN_KEYS),
  "qwen3": Family(_qwen3, ("qwen3",), "Qwen3ForCausalLM", ("qwen3",), keys=_QWEN_KEYS),
}


def find_family(where: str, key: str, name: Any, values: Mapping[str, Any]) -> Family:
  """The family of a model_type (`key` is `model_type`) or GGUF architecture.

  Raises:
    ValueError: it is none of ours, or a mixture of experts under the name of one.
  """
  for expert_key in _EXPERTS:
    if values.get(expert_key):
      raise ValueError(
        f"{where}: {expert_key} = {values[expert_key]!r}: a mixture of experts is not supported"
        f" ({key} {name!r})"
      )
  known = {
    called: family
    for family in FAMILIES.values()
    for called in (family.model_types if key == "model_type" else family.gguf)
  }
  if name not in known:
    raise ValueError(f"{where}: found {key} {name!r}, supported are {', '.join(sorted(known))}")
  return known[name]


def family_config(stated: Stated, family: Family) -> TransformerConfig:
  """The config of a checkpoint of `family`.

  Raises:
    ValueError: naming what is missing, or stated and not supported.
  """
  heads, embed_dim = stated.size("num_attention_heads"), stated.size("hidden_size")
  head_dim = stated.size("head_dim", embed_dim // heads)
  stated.refuse_unless(family.activation_key, *ACTIVATIONS)
  common = {
    "vocab_size": stated.size("vocab_size"),
    "embed_dim": embed_dim,
    "num_layers": stated.size("num_hidden_layers"),
    "num_heads": heads,
    "num_kv_heads": stated.size("num_key_value_heads", heads),
    "head_dim": head_dim,
    "mlp_dim": stated.size("intermediate_size"),
    "query_scale": head_dim**-0.5,
    "attention_pattern": _pattern(stated),
    "norm_eps": float(stated.need("rms_norm_eps")),
    "activation": ACTIVATIONS[stated.need(family.activation_key)],
    "tie_embeddings": bool(stated.get("tie_word_embeddings", False)),
    **_ropes(stated, family),
  }
  if stated.get("sliding_window") is not None:
    common["sliding_window"] = stated.get("sliding_window")
  try:
    return TransformerConfig(**common | family.fields(stated))
  except ValueError as error:
    raise ValueError(f"{stated.where}: {error}") from error


def _pattern(stated: Stated) -> tuple[str, ...]:
  types = stated.get("layer_types")
  if types is None:
    return ("global",)
  unknown = sorted(set(types) - set(KINDS))
  if unknown:
    expected = ", ".join(KINDS)
    raise ValueError(f"{stated.where}: layer_types {unknown} are not supported, only {expected}")
  return shortest_pattern(tuple(KINDS[kind] for kind in types))


def shortest_pattern(kinds: tuple[str, ...]) -> tuple[str, ...]:
  """The shortest pattern that, repeated, gives the kinds of all layers."""
  for length in range(1, len(kinds) + 1):
    if all(kind == kinds[i % length] for i, kind in enumerate(kinds)):
      return kinds[:length]
  return kinds


def _ropes(stated: Stated, family: Family) -> dict[str, Any]:
  parameters = stated.need("rope_parameters")
  if family.rope_of_kind:
    local = _rope(stated, parameters["sliding_attention"], ("default",))
    full = _rope(stated, parameters["full_attention"], ("default", "linear"))
    extra = {}
  else:
    local = full = _rope(stated, parameters, ("default", "linear", "llama3"))
    extra = {f"rope_llama3_{name}": value for name, value in _llama3(stated, parameters).items()}
  (local_base, local_scale), (base, scale) = local, full
  return {
    "rope_base_global": base,
    "rope_base_local": local_base,
    "rope_scale_global": scale,
    "rope_scale_local": local_scale,
    **extra,
  }


def _rope(stated: Stated, rope: Mapping[str, Any], allowed: tuple[str, ...]) -> tuple[float, float]:
  """Base, and what positions are divided by."""
  kind = rope.get("rope_type", "default")
  if kind not in allowed:
    raise ValueError(
      f"{stated.where}: rope_type = {kind!r} is not supported, only {', '.join(allowed)}"
    )
  if rope.get("partial_rotary_factor", 1.0) != 1.0:
    found = rope["partial_rotary_factor"]
    raise ValueError(f"{stated.where}: partial_rotary_factor = {found!r} is not supported, only 1")
  return float(rope["rope_theta"]), float(rope["factor"]) if kind == "linear" else 1.0


def _llama3(stated: Stated, rope: Mapping[str, Any]) -> dict[str, Any]:
  if rope.get("rope_type") != "llama3":
    return {}
  names = {
    "factor": "factor",
    "low_freq": "low_freq_factor",
    "high_freq": "high_freq_factor",
  }
  found = Stated(f"{stated.where}: rope_parameters", rope)
  length = int(found.need("original_max_position_embeddings"))
  return {name: float(found.need(key)) for name, key in names.items()} | {"length": length}
