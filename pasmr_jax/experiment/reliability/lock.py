"""One trainer at a time in a work directory.

`only_one` holds a lock of the operating system on `WORKDIR/lock`, which ends with the process
however that ends. Some network file systems do not know such locks, or keep them a machine each: so
the file also says who holds it and a number that grows every few seconds. A holder on another
machine whose number stands still is gone.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from pasmr_jax.parallel import processes

_BEAT = 5.0  # seconds between signs of life
_PATIENCE = 3 * _BEAT  # without a sign from another machine until its lock is stale
_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class LockedError(RuntimeError):
  """Another trainer uses the work directory."""


@contextlib.contextmanager
def only_one(workdir: pathlib.Path) -> Iterator[None]:
  """While this run, in whatever number of processes, is the only one in `workdir`.

  Raises:
    LockedError: another one is, naming its host and process; in all processes.
  """
  lock, refused = WorkLock(workdir), ""
  if processes.process_index() == 0:
    try:
      lock.acquire()
    except LockedError as error:
      refused = str(error)
  refused = processes.gather_text(refused)[0]
  if refused:
    raise LockedError(refused)
  try:
    yield
  finally:
    lock.release()


class WorkLock:
  """The lock of one work directory; `acquire` and `release` it in one process."""

  def __init__(self, workdir: pathlib.Path, beat: float = _BEAT, patience: float = _PATIENCE):
    self._path = workdir / "lock"
    self._beat, self._patience = beat, patience
    self._file: int | None = None
    self._released = threading.Event()
    self._thread: threading.Thread | None = None

  def acquire(self) -> None:
    """Raises LockedError if it is held."""
    self._path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      holder, exclusive = _read(file), True
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise LockedError(self._refusal(holder)) from None
      except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
          raise
        exclusive = False
      # This machine's own lock, once taken, says that nobody else here holds it.
      elsewhere = holder.get("host") != socket.gethostname()
      if holder and (elsewhere or not exclusive) and self._shows_life(file, holder):
        raise LockedError(self._refusal(holder))
    except BaseException:
      os.close(file)
      raise
    self._file = file
    self._released.clear()
    self._write(0)
    self._thread = threading.Thread(target=self._keep, name="work directory lock", daemon=True)
    self._thread.start()

  def release(self) -> None:
    """Lets another one in; nothing if it is not held."""
    if self._file is None or self._thread is None:
      return
    self._released.set()
    self._thread.join()
    os.ftruncate(self._file, 0)  # a released lock needs no waiting, wherever one asks
    os.close(self._file)  # and with it the lock
    self._file = None

  def _refusal(self, holder: dict[str, Any]) -> str:
    who = (
      f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
      if holder
      else "another process"
    )
    return (
      f"{self._path.parent} is in use by {who}: expected one trainer in a work directory. Wait for"
      " it, stop it, or name another --workdir."
    )

  def _shows_life(self, file: int, holder: dict[str, Any]) -> bool:
    end = time.monotonic() + self._patience
    while time.monotonic() < end:
      time.sleep(self._beat / 5)
      if _read(file).get("beat") != holder.get("beat"):
        return True
    return False

  def _keep(self) -> None:
    beat = 0
    while not self._released.wait(self._beat):
      beat += 1
      self._write(beat)

  def _write(self, beat: int) -> None:
    if self._file is None:
      return
    if beat == 0:
      self._started = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": self._started}
    # Padded: it always has the same length, so that no reader finds half of two.
    text = json.dumps(holder | {"beat": beat}).ljust(240).encode()
    with contextlib.suppress(OSError):  # of a full disk; the lock itself holds without it
      os.pwrite(self._file, text, 0)


def _read(file: int) -> dict[str, Any]:
  """Who holds the lock; nothing if nobody says so."""
  try:
    found = json.loads(os.pread(file, 1000, 0) or b"{}")
  except ValueError:
    return {}
  return found if isinstance(found, dict) and {"host", "pid", "started"} <= found.keys() else {}
