"""What a GGUF file holds, read once for tokenizer, configuration and weights."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import gguf


@dataclasses.dataclass(frozen=True)
class Content:
  """Metadata as plain values, and tensors by name, whose data stay in the file until asked for."""

  fields: Mapping[str, Any]
  tensors: Mapping[str, "gguf.ReaderTensor"]


def read_content(path: str) -> Content:
  """Reads the file, unless it is the last that was read and has not changed.

  The library takes ten seconds over the 262,144 tokens of Gemma's vocabulary, and holds 700 MB
  meanwhile.

  Raises:
    OSError: there is no such file.
    ValueError, IndexError, KeyError, OverflowError: the library's, of what is no GGUF file.
  """
  found = os.stat(path)
  return _read(os.path.realpath(path), found.st_size, found.st_mtime_ns)


def forget() -> None:
  """Lets go of the last file: a vocabulary is many megabytes, and is needed at the start alone."""
  _read.cache_clear()


@functools.lru_cache(maxsize=1)
def _read(path: str, size: int, changed: int) -> Content:
  del size, changed  # of the file that is remembered
  import gguf

  reader = gguf.GGUFReader(path)
  fields = {name: field.contents() for name, field in reader.fields.items()}
  return Content(fields, {tensor.name: tensor for tensor in reader.tensors})
