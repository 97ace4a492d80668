"""Checkpoints of Hugging Face: a folder, or a hub id, of config.json and safetensors."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.stored import GEMMA, StoredTensor, TensorSource, shortest_pattern

_MODEL_TYPES = ("gemma2", "gemma3", "gemma3_text")
_KINDS = {"sliding_attention": "local", "full_attention": "global"}


def folder_config(path: str) -> TransformerConfig:
  """The config of a folder or hub id; errors as `pretrained.load_config`."""
  import transformers  # slow to import, and reading GGUF needs none of it

  folder = _folder(path, ["config.json"])
  if not (folder / "config.json").is_file():
    raise FileNotFoundError(f"{folder}: found no config.json")
  model_type = json.loads((folder / "config.json").read_text()).get("model_type")
  if model_type not in _MODEL_TYPES:
    known = ", ".join(sorted(_MODEL_TYPES))
    raise ValueError(f"{folder}: found model_type {model_type!r}, supported are {known}")
  # transformers' own config class fills in what the file leaves to defaults, of old layouts too.
  found = transformers.AutoConfig.from_pretrained(folder)
  return _text_config(getattr(found, "text_config", found), str(folder))


def _folder(path: str, patterns: list[str]) -> pathlib.Path:
  """The folder itself, or the local snapshot of a hub id."""
  if pathlib.Path(path).is_dir():
    return pathlib.Path(path)
  name, _, revision = str(path).partition("@")
  if name.count("/") != 1 or name.startswith((".", "/", "~")):
    raise FileNotFoundError(
      f"{path}: found no such folder, and it is not a hub id 'owner/name' or 'owner/name@revision'"
    )
  import huggingface_hub

  return pathlib.Path(
    huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns)
  )


def _text_config(found: Any, where: str) -> TransformerConfig:
  gemma3 = found.model_type == "gemma3_text"

  def require(name: str, wanted: tuple[object, ...]) -> None:
    value = getattr(found, name, wanted[0])
    if value not in wanted:
      raise ValueError(f"{where}: {name} = {value!r} is not supported, only {wanted[0]!r}")

  require("hidden_activation", ("gelu_pytorch_tanh",))
  require("attention_bias", (False,))
  require("use_bidirectional_attention", (False, None))
  if gemma3:  # the field is left from Gemma 2: transformers reads it and applies nothing
    require("attn_logit_softcapping", (None,))
  ropes = found.rope_parameters
  local = ropes["sliding_attention"] if gemma3 else ropes
  full = ropes["full_attention"] if gemma3 else ropes
  for rope, allowed in (
    (local, ("default",)),
    (full, ("default", "linear") if gemma3 else ("default",)),
  ):
    if rope["rope_type"] not in allowed:
      raise ValueError(
        f"{where}: rope_type = {rope['rope_type']!r} is not supported, only {', '.join(allowed)}"
      )
  return TransformerConfig(
    vocab_size=found.vocab_size,
    embed_dim=found.hidden_size,
    num_layers=found.num_hidden_layers,
    num_heads=found.num_attention_heads,
    num_kv_heads=found.num_key_value_heads,
    head_dim=found.head_dim,
    mlp_dim=found.intermediate_size,
    query_scale=found.query_pre_attn_scalar**-0.5,
    attention_pattern=shortest_pattern(tuple(_KINDS[kind] for kind in found.layer_types)),
    sliding_window=found.sliding_window,
    rope_base_global=float(full["rope_theta"]),
    rope_base_local=float(local["rope_theta"]),
    rope_scale_global=float(full.get("factor", 1.0)),
    qk_norm=gemma3,
    attention_softcap=found.attn_logit_softcapping,
    final_softcap=found.final_logit_softcapping,
    norm_eps=found.rms_norm_eps,
    tie_embeddings=found.tie_word_embeddings,
    **GEMMA,
  )


@contextlib.contextmanager
def open_folder(path: str, config: TransformerConfig) -> Iterator[TensorSource]:
  import safetensors

  folder = _folder(path, ["*.json", "*.safetensors"])
  index = folder / "model.safetensors.index.json"
  if index.is_file():
    files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
  else:
    files = ["model.safetensors"]
  absent = [name for name in files if not (folder / name).is_file()]
  if absent:
    raise FileNotFoundError(f"{folder}: found no {', '.join(absent)}")
  with contextlib.ExitStack() as stack:
    shapes, where = {}, {}
    for file in files:
      opened = stack.enter_context(safetensors.safe_open(folder / file, framework="np"))
      for stored in opened.keys():  # noqa: SIM118 (not a mapping)
        name = _text_name(stored, config)
        if name is not None:
          shapes[name] = tuple(opened.get_slice(stored).get_shape())
          where[name] = (opened, stored)

    def name_of(tensor: StoredTensor, layer: int | None) -> str:
      return tensor.hugging_face.format(layer)

    def read(name: str) -> np.ndarray:
      opened, stored = where[name]
      return opened.get_tensor(stored)

    yield TensorSource(shapes, name_of, read)


def _text_name(name: str, config: TransformerConfig) -> str | None:
  """The name without a multimodal model's prefix; None for what the text model does not use."""
  if any(part in name for part in ("vision_tower.", "multi_modal_projector.")):
    return None
  for prefix in ("model.language_model.", "language_model.model."):
    if name.startswith(prefix):
      return "model." + name.removeprefix(prefix)
  name = name.removeprefix("language_model.")
  return None if config.tie_embeddings and name == "lm_head.weight" else name
