"""Reading pretrained weights: a Hugging Face folder or hub id of safetensors, or a GGUF file.

`load_config` reads the sizes and refuses, by name, what the decoder does not do. `load_params`
lists the tensors of the checkpoint, checks all their names and shapes against that config at once,
then fills one parameter leaf at a time: the layers' tensors are read, turned to our axes and
stacked on the host, and each device takes its part. The host holds one leaf besides the parameters.

A hub id may carry a revision: `owner/name@revision`.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.gguf_file import gguf_config, open_gguf
from pasmr_jax.models.hugging_face import folder_config, open_folder
from pasmr_jax.models.stored import stored_tensors
from pasmr_jax.models.transformer import init_params

Path = str | pathlib.Path


def load_config(path: Path) -> TransformerConfig:
  """The config of a checkpoint: a folder with config.json, a `.gguf` file, or a hub id.

  Computation fields (dtype, remat, ...) keep their defaults: set them by `dataclasses.replace`.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ValueError: the architecture, or something it asks for, is not supported.
  """
  path = str(path)
  return gguf_config(path) if path.endswith(".gguf") else folder_config(path)


def load_params(
  path: Path,
  config: TransformerConfig,
  shardings: Any | None = None,
  dtype: str | None = None,
) -> Any:
  """The parameters of a checkpoint, in `dtype` (config.param_dtype if None).

  Args:
    path: a folder of safetensors, a `.gguf` file, or a hub id.
    config: what `load_config` gave, computation fields aside.
    shardings: tree of Shardings as `parallel.mesh.param_shardings` makes; None is one device.
    dtype: of the parameters.

  Raises:
    ValueError: listing every tensor that is missing, not expected, or of another shape.
  """
  tensors = stored_tensors(config)
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  target = np.dtype(jnp.dtype(config.param_dtype if dtype is None else dtype))
  path = str(path)
  opened = open_gguf if path.endswith(".gguf") else open_folder
  with opened(path, config) as source:
    _check(path, config, tensors, shapes, source)

    def leaf(key_path, abstract, sharding):
      tensor = tensors[tuple(key.key for key in key_path)]
      stacked = key_path[0].key == "layers"
      shape = abstract.shape[1:] if stacked else abstract.shape
      host = np.empty(abstract.shape, target)
      for layer in range(config.num_layers) if stacked else (None,):
        at = ... if layer is None else layer
        host[at] = tensor.to_ours(source.read(source.name_of(tensor, layer)), shape)
      if sharding is None:
        return jax.device_put(host)
      return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if shardings is None:
      return jax.tree_util.tree_map_with_path(lambda p, shape: leaf(p, shape, None), shapes)
    return jax.tree_util.tree_map_with_path(leaf, shapes, shardings)


def _check(path, config, tensors, shapes, source):
  """Compares all names and shapes before anything is read."""
  found, name_of = source.shapes, source.name_of
  expected: dict[str, tuple[int, ...]] = {}
  for key_path, abstract in jax.tree_util.tree_leaves_with_path(shapes):
    tensor = tensors[tuple(key.key for key in key_path)]
    if key_path[0].key == "layers":
      for layer in range(config.num_layers):
        expected[name_of(tensor, layer)] = tensor.shape(abstract.shape[1:])
    else:
      expected[name_of(tensor, None)] = tensor.shape(abstract.shape)
  problems = [f"missing {name} {list(expected[name])}" for name in expected.keys() - found.keys()]
  problems += [
    f"not expected {name} {list(found[name])}" for name in found.keys() - expected.keys()
  ]
  for name in expected.keys() & found.keys():
    if expected[name] != found[name]:
      problems.append(f"{name}: found {list(found[name])}, expected {list(expected[name])}")
  if problems:
    lines = "\n  ".join(sorted(problems))
    raise ValueError(f"{path} does not fit the model config ({len(problems)} tensors):\n  {lines}")
