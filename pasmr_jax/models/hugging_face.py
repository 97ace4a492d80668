"""Checkpoints of Hugging Face: a folder, or a hub id, of config.json and safetensors."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.families import Family, Stated, family_config, find_family
from pasmr_jax.models.stored import Cut, StoredTensor, TensorSource
from pasmr_jax.text import hub


def folder_config(path: str) -> TransformerConfig:
  """The config of a folder or hub id; errors as `pretrained.load_config`."""
  return family_config(*folder_statement(path))


def folder_statement(path: str) -> tuple[Stated, Family]:
  """What config.json says of the text model, defaults filled in, and its family.

  Raises:
    FileNotFoundError: there is no config.json.
    ValueError: it cannot be read, or is of no known family.
  """
  import transformers  # slow to import, and reading GGUF needs none of it
  from huggingface_hub.errors import StrictDataclassError

  file = find_folder(path) / "config.json"
  if not file.is_file():
    raise FileNotFoundError(f"{file.parent}: found no config.json")
  try:
    written: dict[str, Any] = json.loads(file.read_text("utf-8"))
  except ValueError as error:
    raise ValueError(f"{file}: expected JSON: {error}") from error
  family = find_family(str(file), "model_type", written.get("model_type"), written)
  try:
    # transformers' own config class fills in what the file leaves to defaults, of old layouts too.
    found = transformers.AutoConfig.from_pretrained(file.parent, trust_remote_code=False)
  except (KeyError, TypeError, ArithmeticError, StrictDataclassError) as error:  # of bad values
    raise ValueError(f"{file}: transformers cannot read it: {error!r}") from error
  return Stated(str(file), getattr(found, "text_config", found).to_dict()), family


def folder_json(path: str) -> dict[str, Any]:
  """config.json as it is written."""
  file = find_folder(path) / "config.json"
  return json.loads(file.read_text("utf-8"))


def find_folder(path: str, weights: bool = False) -> pathlib.Path:
  """The folder itself, or the local snapshot of a hub id with config.json, or all that loads it.

  Of the weights only the files that hold the model: a hub id may have it in another layout too.
  """
  if pathlib.Path(path).is_dir():
    return pathlib.Path(path)
  if not weights:
    return hub.snapshot(path, ["config.json"])
  folder = hub.snapshot(path, ["*.json"])
  return hub.snapshot(path, ["*.json", *_weight_files(folder)])


@contextlib.contextmanager
def open_folder(path: str, config: TransformerConfig) -> Iterator[TensorSource]:
  """Opens the folder's safetensors; what is read of a tensor is the part asked for.

  Raises:
    FileNotFoundError: there are none, or not all that the index names.
    ValueError: one cannot be read, or the output table is another than the tied embedding.
  """
  import safetensors

  folder = find_folder(path, weights=True)
  files = _weight_files(folder)
  absent = [name for name in files if not (folder / name).is_file()]
  if absent:
    others = sorted(file.name for file in folder.glob("*.bin"))
    pickled = f"; {', '.join(others)} may hold code and is not read, only safetensors are"
    raise FileNotFoundError(f"{folder}: found no {', '.join(absent)}" + pickled * bool(others))
  with contextlib.ExitStack() as stack:
    shapes, where = {}, {}
    for file in files:
      try:
        opened = stack.enter_context(safetensors.safe_open(folder / file, framework="np"))
      except safetensors.SafetensorError as error:
        raise ValueError(f"{folder / file}: no readable safetensors file: {error}") from error
      for stored in opened.keys():  # noqa: SIM118 (not a mapping)
        name = _text_name(stored)
        if name is not None:
          where[name] = opened.get_slice(stored)
          shapes[name] = tuple(where[name].get_shape())

    if config.tie_embeddings and (head := where.pop("lm_head.weight", None)) is not None:
      del shapes["lm_head.weight"]
      embedding = where.get("model.embed_tokens.weight")
      if embedding is not None and not _equal_rows(head, embedding):
        raise ValueError(
          f"{folder}: config.json ties the output table to the embedding, and lm_head.weight is"
          " another; expected tie_word_embeddings = false, or no such tensor"
        )

    def name_of(tensor: StoredTensor, layer: int | None) -> str:
      return tensor.hugging_face.format(layer)

    def read(name: str, cut: Cut) -> np.ndarray:
      return where[name][cut]

    yield TensorSource(shapes, name_of, read)


def _weight_files(folder: pathlib.Path) -> list[str]:
  index = folder / "model.safetensors.index.json"
  return _indexed_files(index) if index.is_file() else ["model.safetensors"]


def _indexed_files(index: pathlib.Path) -> list[str]:
  """The files of an index, all of them beside it."""
  try:
    files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    apart = [file for file in files if pathlib.PurePath(file).name != file or "\\" in file]
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise ValueError(f"{index}: expected {{'weight_map': {{tensor: file}}}}: {error!r}") from error
  if apart:
    raise ValueError(f"{index}: names {apart[0]!r}; expected files in the same folder")
  return files


def _equal_rows(one: Any, other: Any) -> bool:
  """Whether two tables of a file are the same, read in parts."""
  if one.get_shape() != other.get_shape():
    return False
  rows, part = one.get_shape()[0], 8192
  cuts = [slice(begin, min(begin + part, rows)) for begin in range(0, rows, part)]
  return all(np.array_equal(one[cut], other[cut]) for cut in cuts)


def _text_name(name: str) -> str | None:
  """The name without a multimodal model's prefix; None for what the text model does not use."""
  if any(part in name for part in ("vision_tower.", "multi_modal_projector.")):
    return None
  if name.endswith(".rotary_emb.inv_freq"):  # old files keep what the config says already
    return None
  for prefix in ("model.language_model.", "language_model.model."):
    if name.startswith(prefix):
      return "model." + name.removeprefix(prefix)
  return name.removeprefix("language_model.")
