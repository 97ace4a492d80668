"""Lines and files on a disk that may be full, read later on a terminal that obeys control codes.

`writing` says of an error which file it was, how much was to be written and how much room there is:
the operating system names none of them. `json_line` is how model text gets into a file.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

# Errors of a disk, not of a program.
_DISK_ERRORS = frozenset(
  (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)
)
# Libraries in C++ raise errors of their own, which carry the system's words for these.
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


class StorageError(OSError):
  """Something could not be written; the message names it, its size and the room there is."""


@contextlib.contextmanager
def writing(path: pathlib.Path, size: int | None = None) -> Iterator[None]:
  """Around writing `size` bytes to `path`, or around all that is done with it and other files.

  Raises:
    StorageError: instead of what a full or broken disk raised.
  """
  try:
    yield
  except StorageError:
    raise
  except Exception as error:
    if isinstance(error, OSError):
      broken, number, reason = error.errno in _DISK_ERRORS, error.errno, error.strerror
    else:
      reason = next((words for words in _FULL if words in str(error)), None)
      broken, number = reason is not None, errno.ENOSPC
    if not broken:
      raise
    what = "cannot read or write" if size is None else f"cannot write {size:,} bytes"
    named = pathlib.Path(str(getattr(error, "filename", None) or path))
    raise StorageError(number, f"{what}: {reason}; {_room(named)}", str(named)) from error


def _room(path: pathlib.Path) -> str:
  there = next(folder for folder in (path, *path.parents) if folder.exists())
  usage = shutil.disk_usage(there)
  return f"{usage.free:,} of {usage.total:,} bytes are free"


def json_escapes(*codes: int | range) -> dict[int, str]:
  """For `str.translate`: characters as JSON's escapes, by which JSON reads them back."""
  every = (code for one in codes for code in (one if isinstance(one, range) else (one,)))
  return {code: f"\\u{code:04x}" for code in every}


HALVES = range(0xD800, 0xE000)  # of characters
# JSON escapes controls below U+0020 by itself. These too would act on a terminal or in an editor:
# other controls, line separators, marks that reorder text, and half characters.
_ACTIVE = json_escapes(
  range(0x7F, 0xA0),
  *(0x61C, 0x200E, 0x200F, 0xFEFF),
  *(range(0x2028, 0x202F), range(0x2066, 0x206A), range(0xFFF9, 0xFFFC)),
  HALVES,
)


def json_line(values: Mapping[str, Any]) -> str:
  """One line of a JSON lines file, without characters that do more than be seen.

  What JSON reads back is exactly `values`; only two halves of a character that stand beside each
  other are read as that character.
  """
  text = json.dumps(values, ensure_ascii=False)
  return text.translate(_ACTIVE)


def append(path: pathlib.Path, text: str) -> None:
  """Appends text, which has left the program when this returns.

  Raises:
    StorageError: the disk is full.
  """
  data = text.encode()
  with writing(path, len(data)), path.open("ab") as file:
    file.write(data)


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file so that it is there whole or not at all, whenever the machine stops.

  Raises:
    StorageError: the disk is full; what was there before is still there.
  """
  data = text.encode()
  partial = path.with_name(path.name + ".partial")
  with writing(path, len(data)):
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    partial.replace(path)


def sync(path: pathlib.Path) -> None:
  """Until what was appended to a file is on the disk; nothing if there is no such file."""
  if path.exists():
    with writing(path), path.open("rb") as file:
      os.fsync(file.fileno())
