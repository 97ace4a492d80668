"""Writing a model as a Hugging Face folder: config.json and sharded safetensors.

`find_layout` finds the family that has exactly the model's features, by writing a config.json for
each and reading it back: what comes back is what transformers will compute. A model that none has
as it stands, such as our own randomly initialised one, may be one of them in other words: a norm
that multiplies by 1 + w is one that multiplies by w', and embeddings that are scaled on their way
in are a table of their own. `write_model` then writes tensor after tensor.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pasmr_jax.models.config import COMPUTED, TransformerConfig
from pasmr_jax.models.families import ACTIVATIONS, FAMILIES, KINDS, Family, Stated, family_config
from pasmr_jax.models.stored import VOCABULARY, StoredTensor, stored_tensors

MAX_SHARD_BYTES = 2 << 30  # of one safetensors file, unless a single tensor is larger


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a model is written."""

  family: Family
  config: TransformerConfig  # of the model as it is written
  source: TransformerConfig  # of the parameters
  values: Mapping[str, Any]  # config.json


def find_layout(
  config: TransformerConfig, vocab_size: int, known: Mapping[str, Any], dtype: str
) -> Layout:
  """The family as which a model is written.

  Args:
    config: of the parameters.
    vocab_size: rows of the embedding that are written: the others belong to no token.
    known: what config.json shall say besides the model's shape (ids of special tokens, ...). If it
      has a `model_type`, it is the config.json that the model was read from and is kept as far as
      it is still true.
    dtype: of the weights, 'float32' or 'bfloat16'.

  Raises:
    ValueError: no family has exactly these features, naming those that the nearest has otherwise.
  """
  misses: list[tuple[list[str], str]] = []
  config = dataclasses.replace(config, vocab_size=vocab_size)
  for written in (config, _plainly(config)):
    for name, family in FAMILIES.items():
      if known.get("model_type") in family.model_types:
        values = dict(known) | {"vocab_size": vocab_size}
      elif "model_type" in known:
        continue
      else:
        values = dict(known) | _stated(written, family)
      values |= {"architectures": [family.head_class], "model_type": family.model_types[0]}
      values |= {"dtype": dtype}
      values.pop("torch_dtype", None)  # the name before `dtype`
      differences = _differences(written, family, values)
      if not differences:
        return Layout(family, written, config, values)
      misses.append((differences, name))
  differences, name = min(misses, key=lambda miss: len(miss[0]))
  named = "; ".join(dict.fromkeys(differences))
  raise ValueError(f"no family has exactly this model's features; {name} differs in {named}")


def _plainly(config: TransformerConfig) -> TransformerConfig:
  """The same function without Gemma's norms and without scaled embeddings."""
  tied = config.tie_embeddings and not config.scale_embeddings
  return dataclasses.replace(
    config, norm_plus_one=False, scale_embeddings=False, tie_embeddings=tied
  )


def _stated(config: TransformerConfig, family: Family) -> dict[str, Any]:
  """What a config.json of the family says of this model."""
  names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
  kinds = {ours: theirs for theirs, ours in KINDS.items()}
  local = config.layer_kinds.count("local") > 0
  full = _rope(config, "global" if "global" in config.layer_kinds else "local")
  values = {
    "hidden_size": config.embed_dim,
    "intermediate_size": config.mlp_dim,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "vocab_size": config.vocab_size,
    family.activation_key: names[config.activation],
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tie_embeddings,
    "rope_parameters": full,
  }
  if family.rope_of_kind:
    values["rope_parameters"] = {
      "full_attention": full,
      "sliding_attention": _rope(config, "local"),
    }
  scalar = round(config.query_scale**-2, 6)
  own = {
    "query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar,
    "attn_logit_softcapping": config.attention_softcap,
    "final_logit_softcapping": config.final_softcap,
    "sliding_window": config.sliding_window if local else None,
    "use_sliding_window": local,
    "max_window_layers": config.layer_kinds.index("local") if local else config.num_layers,
    "layer_types": [kinds[kind] for kind in config.layer_kinds],
  }
  return values | {key: own[key] for key in family.keys}


def _rope(config: TransformerConfig, kind: str) -> dict[str, Any]:
  base, scale = getattr(config, f"rope_base_{kind}"), getattr(config, f"rope_scale_{kind}")
  if config.rope_llama3_factor != 1.0:
    return {
      "rope_type": "llama3",
      "rope_theta": base,
      "factor": config.rope_llama3_factor,
      "low_freq_factor": config.rope_llama3_low_freq,
      "high_freq_factor": config.rope_llama3_high_freq,
      "original_max_position_embeddings": config.rope_llama3_length,
    }
  if scale != 1.0:
    return {"rope_type": "linear", "rope_theta": base, "factor": scale}
  return {"rope_type": "default", "rope_theta": base}


def _differences(config: TransformerConfig, family: Family, values: Mapping[str, Any]) -> list[str]:
  """What transformers would read from `values` otherwise than `config` has it."""
  import transformers
  from huggingface_hub.errors import StrictDataclassError

  try:
    read = transformers.AutoConfig.for_model(**values)
    found = family_config(Stated("config.json", read.to_dict()), family)
  except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
    return [str(error).strip()] * len(dataclasses.fields(config))  # as far off as can be
  wanted, found = _effective(config), _effective(found)
  return [
    f"{field.name} ({getattr(found, field.name)!r}, not {getattr(wanted, field.name)!r})"
    for field in dataclasses.fields(wanted)
    if getattr(found, field.name) != getattr(wanted, field.name)
  ]


def _effective(config: TransformerConfig) -> TransformerConfig:
  """The config with every field that has no effect on the result at one value."""
  defaults = {field.name: field.default for field in dataclasses.fields(config)}
  plain: dict[str, Any] = {name: defaults[name] for name in COMPUTED}
  for absent, other in (("local", "global"), ("global", "local")):
    if absent not in config.layer_kinds:
      for name in ("rope_base", "rope_scale"):
        plain[f"{name}_{absent}"] = getattr(config, f"{name}_{other}")
  if "local" not in config.layer_kinds:
    plain["sliding_window"] = 1
  return dataclasses.replace(config, **plain)


def write_model(folder: pathlib.Path, layout: Layout, params: Any, dtype: str) -> None:
  """Writes config.json, the safetensors and, if they are several, their index.

  Args:
    folder: is there, and has none of these files.
    layout: of `find_layout`.
    params: our parameter tree, all of it addressable by this process.
    dtype: of the weights, 'float32' or 'bfloat16'.
  """
  import safetensors.numpy

  target = np.dtype(jnp.dtype(dtype))
  tensors = list(_tensors(layout, params))
  shards = _shards([math.prod(tensor.shape) * target.itemsize for tensor in tensors])
  weight_map, total = {}, 0
  for number, shard in enumerate(shards, 1):
    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    file = file if len(shards) > 1 else "model.safetensors"
    held = {}
    for tensor in tensors[shard]:
      held[tensor.name] = np.ascontiguousarray(tensor.read().astype(target))
      total += held[tensor.name].nbytes
      weight_map[tensor.name] = file
    # transformers refuses files that do not say whose axis order they have.
    safetensors.numpy.save_file(held, folder / file, metadata={"format": "pt"})
  if len(shards) > 1:
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
  write_json(folder / "config.json", layout.values)


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")


def _shards(sizes: Sequence[int]) -> list[slice]:
  """Consecutive tensors to a file, each file as full as it may be."""
  starts, room = [0], MAX_SHARD_BYTES
  for number, size in enumerate(sizes):
    if size > room and number > starts[-1]:
      starts.append(number)
      room = MAX_SHARD_BYTES
    room -= size
  return [slice(start, stop) for start, stop in itertools.pairwise([*starts, len(sizes)])]


@dataclasses.dataclass(frozen=True)
class _Tensor:
  name: str
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def _tensors(layout: Layout, params: Any) -> Iterator[_Tensor]:
  """Every tensor: those that belong to no layer, then layer by layer."""
  stored = stored_tensors(layout.config)
  outside = [path for path in stored if path[0] != "layers"]
  inside = [path for path in stored if path[0] == "layers"]
  places = [(path, None) for path in outside]
  places += [(path, layer) for layer in range(layout.config.num_layers) for path in inside]
  for path, layer in places:
    leaf, tensor = _leaf(params, path), stored[path]
    shape = leaf.shape if layer is None else leaf.shape[1:]
    if path in VOCABULARY:
      shape = (layout.config.vocab_size, *shape[1:])
    read = functools.partial(_read, layout, tensor, leaf, path, layer)
    yield _Tensor(tensor.hugging_face.format(layer), tensor.shape(shape), read)


def _leaf(params: Any, path: tuple[str, ...]) -> Any:
  if path == ("head",) and "head" not in params:
    return params["embedding"]  # tied in ours, apart where the embedding is written scaled
  return functools.reduce(lambda tree, key: tree[key], path, params)


def _read(
  layout: Layout, tensor: StoredTensor, leaf: Any, path: tuple[str, ...], layer: int | None
) -> np.ndarray:
  source, written = layout.source, layout.config
  value = np.asarray(leaf if layer is None else leaf[layer])
  if path in VOCABULARY:
    value = value[: written.vocab_size]
  if path == ("embedding",) and source.scale_embeddings and not written.scale_embeddings:
    value = value.astype(np.float32) * np.float32(source.embed_dim**0.5)
  if path[-1] == "scale" and source.norm_plus_one and not written.norm_plus_one:
    value = value.astype(np.float32) + np.float32(1.0)
  return tensor.as_stored(value)
