"""A bound on how long a run waits for a step that does not come, and for whom it waits.

In a run of several processes each waits for all others, so that one which was killed or hangs stops
the rest without a word. Every process tells its progress in `WORKDIR/processes/NUMBER.json`, beside
a number that a thread counts up while the process lives. A process that makes no progress for
`guard.hang_minutes` looks at the others', names those that no longer count or stand furthest
behind, and ends. Time is counted in the thread's own ticks: what was suspended as a whole goes on.
"""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any

from pasmr_jax.experiment.reliability.stopping import EXIT_HUNG
from pasmr_jax.experiment.reliability.storage import write_whole
from pasmr_jax.parallel import processes

_TICK = 2.0  # seconds


class Watchdog:
  """Watches over this process's progress; a context manager."""

  def __init__(self, workdir: pathlib.Path, minutes: float, tick: float = _TICK):
    """`minutes` without progress end the process; 0 is never."""
    self._folder = workdir / "processes"
    self._limit = minutes * 60
    self._tick = tick
    self._place = "the start"
    self._beats = self._idle = 0
    self._ended = threading.Event()

  def progress(self, place: str) -> None:
    """The process has come to `place`, such as 'srl step 12'."""
    self._place, self._idle = place, 0

  def __enter__(self) -> "Watchdog":
    # Asked for here: a thread may not wait for JAX.
    self._number, self._count = processes.process_index(), processes.process_count()
    if self._count > 1:
      self._folder.mkdir(parents=True, exist_ok=True)
    if self._count > 1 or self._limit > 0:
      threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    self._ended.set()
    if kind is not None and not issubclass(kind, SystemExit) and self._count > 1:
      # Another process that was killed shows as an error of the network, which names no process.
      for line in self._silent():
        os.write(2, f"{line}\n".encode())

  def _watch(self) -> None:
    while not self._ended.wait(self._tick):
      self._beats += 1
      self._idle += 1
      if self._count > 1:
        self._tell()
      if 0 < self._limit <= self._idle * self._tick:
        told = [f"no progress for {self._limit:.0f} s, at {self._place}: leaving", *self._silent()]
        os.write(2, ("\n".join(told) + "\n").encode())
        os._exit(EXIT_HUNG)

  def _tell(self) -> None:
    state = {
      "host": socket.gethostname(),
      "pid": os.getpid(),
      "place": self._place,
      "idle": self._idle * self._tick,
      "beats": self._beats,
    }
    with contextlib.suppress(OSError):  # of a full disk, which the run itself meets
      write_whole(self._folder / f"{self._number}.json", json.dumps(state))

  def _silent(self) -> list[str]:
    """A sentence on each other process that no longer counts, else on those furthest behind."""
    others = [number for number in range(self._count) if number != self._number]
    first = {number: self._read(number) for number in others}
    time.sleep(3 * self._tick)
    second = {number: self._read(number) for number in others}
    gone = [n for n in others if first[n].get("beats") == second[n].get("beats")]
    if gone:
      return [f"process {n} ({_who(second[n])}) does not answer" for n in gone]
    longest = max((found.get("idle", 0.0) for found in second.values()), default=0.0)
    return [
      f"process {n} ({_who(found)}) has made no progress for {longest:.0f} s"
      for n, found in second.items()
      if found.get("idle", 0.0) == longest
    ]

  def _read(self, number: int) -> dict[str, Any]:
    try:
      found = json.loads((self._folder / f"{number}.json").read_text("utf-8"))
    except (OSError, ValueError):
      return {}
    return found if isinstance(found, dict) else {}


def _who(found: dict[str, Any]) -> str:
  if not found:
    return "of which nothing is known"
  return f"{found.get('pid')} on {found.get('host')}, last at {found.get('place')}"
