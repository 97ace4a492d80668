"""Whether a checkpoint is still what was saved.

`Seal` is an item of every checkpoint. Orbax finishes items in order and then gives the whole folder
its name; the seal is the last, so it sees the other items' files as they will stay, and notes the
length and the CRC-32 of each. A checkpoint has its name only with its seal. `find_damage` compares.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import orbax.checkpoint as ocp

from pasmr_jax.experiment.reliability.storage import write_whole
from pasmr_jax.parallel import processes

SEAL = "seal"  # the item
_FILE = "checksums.json"
_CHUNK = 1 << 22  # bytes that are read at a time
_READERS = 8
_SOUND: set[tuple[pathlib.Path, tuple[str, ...]]] = set()  # what this process has compared already


class SealHandler(ocp.CheckpointHandler):
  """Writes the checksums of the items `sealed` once they are complete; reads nothing."""

  def __init__(self, sealed: Iterable[str]):
    self._sealed = tuple(sealed)

  def save(self, directory: Any, args: "Seal") -> None:
    """Nothing yet: the other items are still being written."""

  def finalize(self, directory: Any) -> None:
    # `directory` is CHECKPOINT/seal, maybe under a name for the time being.
    folder = pathlib.Path(directory)
    files = {
      path.relative_to(folder.parent).as_posix(): path
      for item in self._sealed
      for path in sorted((folder.parent / item).rglob("*"))
      if path.is_file()
    }
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
      measured = list(readers.map(_measure, files.values()))
    write_whole(folder / _FILE, json.dumps({"files": dict(zip(files, measured, strict=True))}))

  def restore(self, directory: Any, args: "Seal | None" = None) -> None:
    raise NotImplementedError("a seal is compared by find_damage, not restored")


@ocp.args.register_with_handler(SealHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class Seal(ocp.args.CheckpointArgs):
  """Asks for the seal of a checkpoint."""


def _measure(path: pathlib.Path) -> list[int]:
  """Length and CRC-32 of a file."""
  checksum = length = 0
  with path.open("rb") as file:
    while part := file.read(_CHUNK):
      checksum = zlib.crc32(part, checksum)
      length += len(part)
  return [length, checksum]


def find_damage(folder: pathlib.Path, items: tuple[str, ...]) -> list[str]:
  """What is wrong with a checkpoint, a sentence each; the processes share the reading.

  Args:
    folder: the checkpoint. A sound one is read once by a process, however often it asks.
    items: those that are to be used. A checkpoint without a seal is older than seals, and passes
      if these are there.
  """
  if (folder, items) in _SOUND:
    return []
  problems = [f"{item}/ is missing" for item in items if not (folder / item).is_dir()]
  if (folder / SEAL).is_dir() and not problems:
    expected, problems = _read_seal(folder / SEAL / _FILE)
    wanted = sorted(name for name in expected if name.partition("/")[0] in items)
    mine = wanted[processes.process_index() :: processes.process_count()]
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
      compared = readers.map(lambda name: _compare(folder / name, name, expected[name]), mine)
      problems += [problem for problem in compared if problem]
  told = processes.gather_text("\n".join(problems))
  found = sorted({problem for text in told for problem in text.split("\n") if problem})
  if not found:
    _SOUND.add((folder, items))
  return found


def seal_of(folder: pathlib.Path) -> Mapping[str, list[int]] | None:
  """Length and checksum of each file of a checkpoint; None if it has no seal that can be read."""
  files, problems = _read_seal(folder / SEAL / _FILE)
  return None if problems else files


def checkpoint_checksum(folder: pathlib.Path) -> str:
  """SHA-256 of what a checkpoint's seal says of its files; '' if it has none that can be read."""
  files = seal_of(folder)
  return "" if files is None else hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _read_seal(path: pathlib.Path) -> tuple[Mapping[str, list[int]], list[str]]:
  name = f"{SEAL}/{path.name}"
  try:
    found = json.loads(path.read_text("utf-8"))["files"]
    return {str(file): [int(length), int(crc)] for file, (length, crc) in found.items()}, []
  except FileNotFoundError:
    return {}, [f"{name} is missing"]
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    return {}, [f"{name} cannot be read ({type(error).__name__})"]


def _compare(path: pathlib.Path, name: str, expected: list[int]) -> str:
  try:
    found = _measure(path)
  except FileNotFoundError:
    return f"{name} is missing"
  except OSError as error:
    return f"{name} cannot be read: {error.strerror}"
  if found[0] != expected[0]:
    return f"{name} has {found[0]:,} bytes, not the {expected[0]:,} that were written"
  return "" if found[1] == expected[1] else f"{name} has another checksum than was written"
