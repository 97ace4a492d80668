"""Adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors.

PEFT adds `lora_alpha / r * B A` to a matrix [out, in] of a Hugging Face model, with A [r, in] and
B [out, r], layer by layer; ours are stacked over layers, transposed, and have heads apart.

Matrices are named as transformers' modules are, not as the checkpoint's tensors. In a multimodal
model the text model is `model.language_model`, and a vision model has matrices of the same names.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.lora import LoraSettings
from pasmr_jax.models.stored import stored_tensors
from pasmr_jax.models.writing import write_json

_PREFIX = "base_model.model."  # PEFT's own wrappers around the model


@dataclasses.dataclass(frozen=True)
class Base:
  """The model that adapters were trained on."""

  name: str  # hub id, or path
  revision: str = ""  # branch, tag or commit of a hub id; '' is its main branch
  multimodal: bool = False


def write_adapters(
  folder: pathlib.Path,
  adapters: Any,
  settings: LoraSettings,
  config: TransformerConfig,
  base: Base,
) -> None:
  """Writes the two files.

  Args:
    folder: is there, and has neither.
    adapters: the tree of `lora.init_adapters`, all of it addressable by this process.
    settings: of the adapters.
    config: of the model.
    base: of the adapters.
  """
  import safetensors.numpy

  stored, tensors, modules = stored_tensors(config), {}, []
  text_model = "model.language_model." if base.multimodal else "model."
  for block, pairs in adapters["layers"].items():
    for name, pair in pairs.items():
      a, b = np.asarray(pair["a"], np.float32), np.asarray(pair["b"], np.float32)
      module = stored["layers", block, name].hugging_face.removesuffix(".weight")
      module = text_model + module.removeprefix("model.")
      modules.append(module.rpartition(".")[2])
      for layer in range(config.num_layers):
        place = _PREFIX + module.format(layer)
        rows = a[layer].reshape(-1, settings.rank).T
        tensors[f"{place}.lora_A.weight"] = np.ascontiguousarray(rows)
        columns = b[layer].reshape(settings.rank, -1).T
        tensors[f"{place}.lora_B.weight"] = np.ascontiguousarray(columns)
  safetensors.numpy.save_file(
    tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"}
  )
  write_json(
    folder / "adapter_config.json",
    {
      "peft_type": "LORA",
      "task_type": "CAUSAL_LM",
      "base_model_name_or_path": base.name,
      "revision": base.revision or None,
      "r": settings.rank,
      "lora_alpha": settings.alpha,
      "lora_dropout": 0.0,
      "bias": "none",
      "fan_in_fan_out": False,
      "inference_mode": True,
      "target_modules": _targets(sorted(modules), base.multimodal),
    },
  )


def _targets(modules: list[str], multimodal: bool) -> list[str] | str:
  """The names of modules, or where they alone are not enough, a pattern of whole paths."""
  return rf".*\.language_model\..*\.({'|'.join(modules)})" if multimodal else modules
