"""Reading pretrained weights: a Hugging Face folder or hub id of safetensors, or a GGUF file.

`load_config` reads the sizes and refuses, by name, what the decoder does not do. `load_params`
lists the tensors of the checkpoint and checks all their names and shapes against that config at
once. Then one tensor after the other is read, turned to our axes and laid in its place among the
layers of a parameter leaf that stands on the devices already. A process reads the parts that its
devices hold, and besides the parameters its host holds one tensor at a time.

A hub id may carry a revision: `owner/name@revision`.
"""

import functools
import gc
import pathlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from rich.console import Console
from rich.progress import Progress

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.gguf_file import gguf_config, gguf_statement, open_gguf
from pasmr_jax.models.hugging_face import folder_config, folder_json, open_folder
from pasmr_jax.models.stored import VOCABULARY, Cut, StoredTensor, TensorSource, stored_tensors
from pasmr_jax.models.transformer import param_shapes

Path = str | pathlib.Path

_CHUNK = 1 << 20  # values that are read and converted at a time
_ALIGNMENT = 64  # bytes


def load_config(path: Path) -> TransformerConfig:
  """The config of a checkpoint: a folder with config.json, a `.gguf` file, or a hub id.

  Computation fields (dtype, remat, ...) keep their defaults: set them by `dataclasses.replace`.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ValueError: the architecture, or something it asks for, is not supported.
  """
  path = str(path)
  return gguf_config(path) if path.endswith(".gguf") else folder_config(path)


def stated_config(path: Path) -> dict[str, Any]:
  """What an export of this checkpoint keeps of its config.json (of a multimodal one, the text's).

  A GGUF file has none: then the positions it was trained for are all there is.
  """
  path = str(path)
  if path.endswith(".gguf"):
    length = gguf_statement(path)[0].get("max_position_embeddings")
    return {} if length is None else {"max_position_embeddings": length}
  written = folder_json(path)
  return written.get("text_config", written)


def is_multimodal(path: Path) -> bool:
  """Whether a Hugging Face folder or hub id is a model of which we read the text model alone."""
  return "text_config" in folder_json(str(path))


def check_tensors(path: Path, config: TransformerConfig) -> None:
  """Raises ValueError as `load_params` does, without reading a value."""
  shapes = param_shapes(config)
  path = str(path)
  with _opened(path, config) as source:
    _check(path, config, stored_tensors(config), shapes, source, False)


def load_params(
  path: Path,
  config: TransformerConfig,
  shardings: Any | None = None,
  dtype: str | None = None,
  new_rows: Mapping[int, Sequence[int]] | None = None,
  show_progress: bool = False,
) -> Any:
  """The parameters of a checkpoint, in `dtype` (config.param_dtype if None).

  Args:
    path: a folder of safetensors, a `.gguf` file, or a hub id.
    config: what `load_config` gave, computation fields aside; with `new_rows` its vocab_size may be
      more than the checkpoint's, and the rows that are in neither are zero.
    shardings: tree of Shardings as `parallel.mesh.param_shardings` makes; None is one device.
    dtype: of the parameters.
    new_rows: for tokens that the checkpoint does not know, the tokens whose rows theirs is the mean
      of, in the embedding and in the head. The new token then scores no higher than the best of
      them, so that the model's other predictions hardly change.
    show_progress: a bar on the terminal.

  Raises:
    ValueError: listing every tensor that is missing, not expected, or of another shape.
  """
  tensors = stored_tensors(config)
  shapes = param_shapes(config)
  target = np.dtype(jnp.dtype(config.param_dtype if dtype is None else dtype))
  if shardings is None:
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: one, shapes)
  path, rows = str(path), dict(new_rows or {})
  with _opened(path, config) as source, _bar(show_progress) as bar:
    _check(path, config, tensors, shapes, source, bool(rows))
    count = sum(config.num_layers if len(key) > 1 and key[0] == "layers" else 1 for key in tensors)
    task = bar.add_task("reading weights", total=count)

    def leaf(key_path, abstract, sharding):
      key = tuple(entry.key for entry in key_path)

      def read(layer: int | None, shape: tuple[int, ...], index: Sequence[slice]) -> np.ndarray:
        if key in VOCABULARY:
          return _read_rows(source, tensors[key], shape, index, target, rows)
        return _read_part(source, tensors[key], layer, shape, index, target)

      advance = functools.partial(bar.advance, task)
      return _place(abstract, sharding, target, read, advance, key[0] == "layers")

    return jax.tree_util.tree_map_with_path(leaf, shapes, shardings)


def _opened(path: str, config: TransformerConfig) -> AbstractContextManager[TensorSource]:
  return (open_gguf if path.endswith(".gguf") else open_folder)(path, config)


def _bar(show: bool) -> Progress:
  return Progress(console=Console(stderr=True), disable=not show, transient=True)


def _place(
  abstract: jax.ShapeDtypeStruct,
  sharding: Sharding,
  dtype: np.dtype,
  read: Callable[[int | None, tuple[int, ...], Sequence[slice]], np.ndarray],
  advance: Callable[[], None],
  stacked: bool,
) -> jax.Array:
  """A leaf, made on the devices from the parts that `read` gives, layer by layer if `stacked`."""
  if not stacked:
    whole = _on_devices(abstract.shape, sharding, functools.partial(read, None, abstract.shape))
    advance()
    return whole
  if isinstance(sharding, NamedSharding):  # layers are never split
    layer_sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
  else:
    layer_sharding = sharding
  whole, shape = jnp.zeros(abstract.shape, dtype, device=sharding), abstract.shape[1:]
  for layer in range(abstract.shape[0]):
    part = _on_devices(shape, layer_sharding, functools.partial(read, layer, shape))
    whole = jax.block_until_ready(_put_layer(whole, part, layer, sharding=sharding))
    # Gone before the next is read: JAX gives a host array back when Python collects garbage.
    del part
    gc.collect(0)
    advance()
  return whole


def _on_devices(
  shape: tuple[int, ...], sharding: Sharding, read: Callable[[Sequence[slice]], np.ndarray]
) -> jax.Array:
  """`make_array_from_callback`, reading once what several devices hold alike."""
  parts: dict[tuple, np.ndarray] = {}

  def part(index: Any) -> np.ndarray:  # a slice for each axis
    bounds = tuple(one.indices(size)[:2] for one, size in zip(index, shape, strict=True))
    if bounds not in parts:
      parts[bounds] = read(index)
    return parts[bounds]

  return jax.make_array_from_callback(shape, sharding, part)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="sharding")
def _put_layer(
  whole: jax.Array, part: jax.Array, layer: jax.Array | int, sharding: Sharding
) -> jax.Array:
  placed = jax.lax.dynamic_update_index_in_dim(whole, part, layer, axis=0)
  return jax.lax.with_sharding_constraint(placed, sharding)


def _read_part(
  source: TensorSource,
  tensor: StoredTensor,
  layer: int | None,
  shape: tuple[int, ...],
  index: Sequence[slice],
  dtype: np.dtype,
) -> np.ndarray:
  """Part `index` of one layer of a leaf, of our `shape` (without layers)."""
  bounds = (one.indices(size) for one, size in zip(index, shape, strict=True))
  ours = _empty(tuple(stop - start for start, stop, _ in bounds), dtype)
  name, cut = source.name_of(tensor, layer), tensor.cut(index, shape)
  _read_into(tensor.as_stored(ours), source, name, cut, _inner(tensor, shape))
  return ours


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """A host array that JAX on a CPU takes over as it is, not copied: those must be aligned."""
  size = int(np.prod(shape, dtype=int)) * dtype.itemsize
  raw = np.empty(size + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + size].view(dtype).reshape(shape)


def _inner(tensor: StoredTensor, shape: tuple[int, ...]) -> int:
  """How many stored rows belong together: a head's."""
  return int(np.prod([shape[axis] for axis in tensor.axes[0][1:]], dtype=int))


def _read_into(out: np.ndarray, source: TensorSource, name: str, cut: Cut, together: int) -> None:
  """Reads and converts few rows at a time: each takes memory in the file's dtype too."""
  rows, *columns = cut
  step = max(1, _CHUNK // max(1, out[:1].size) // together) * together
  for start in range(rows.start, rows.stop, step):
    stop = min(start + step, rows.stop)
    out[start - rows.start : stop - rows.start] = source.read(name, (slice(start, stop), *columns))


def _read_rows(
  source: TensorSource,
  tensor: StoredTensor,
  shape: tuple[int, ...],
  index: Sequence[slice],
  dtype: np.dtype,
  new_rows: Mapping[int, Sequence[int]],
) -> np.ndarray:
  """A part of the embedding or the head, with rows that the checkpoint may not have."""
  name = source.name_of(tensor, None)
  rows, columns = (slice(*one.indices(size)) for one, size in zip(index, shape, strict=True))
  found = _empty((rows.stop - rows.start, columns.stop - columns.start), dtype)
  held = slice(rows.start, max(rows.start, min(rows.stop, source.shapes[name][0])))
  _read_into(found[: held.stop - held.start], source, name, (held, columns), 1)
  found[held.stop - held.start :] = 0.0
  for row, tokens in new_rows.items():
    if rows.start <= row < rows.stop:
      read = [source.read(name, (slice(token, token + 1), columns)) for token in tokens]
      found[row - rows.start] = np.concatenate(read).astype(np.float32).mean(axis=0)
  return found


def _check(path, config, tensors, shapes, source, may_grow):
  """Compares all names and shapes before anything is read."""
  found, name_of = source.shapes, source.name_of
  expected: dict[str, tuple[int, ...]] = {}
  for key_path, abstract in jax.tree_util.tree_leaves_with_path(shapes):
    key = tuple(entry.key for entry in key_path)
    tensor = tensors[key]
    if key[0] == "layers":
      for layer in range(config.num_layers):
        expected[name_of(tensor, layer)] = tensor.shape(abstract.shape[1:])
    else:
      name, shape = name_of(tensor, None), tensor.shape(abstract.shape)
      if may_grow and key in VOCABULARY and name in found:
        shape = (min(shape[0], found[name][0]), *shape[1:])
      expected[name] = shape
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
