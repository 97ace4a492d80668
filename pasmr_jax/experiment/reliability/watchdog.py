"""A bound on how long a run waits for a step that does not come, and for whom it waits.

In a run of several processes each waits for all others, so that one which was killed or hangs stops
the rest without a word. Every process tells its progress in `WORKDIR/processes/NUMBER.json`, beside
a number that a thread counts up while the process lives. A process that makes no progress for
`guard.hang_minutes`, or ends with an error, looks at the others', names those that no longer count
or stand furthest behind, and ends; for one that is aborted its witness does (witness.py). Time is
counted in the thread's own ticks: what was suspended as a whole goes on.
"""

import contextlib
import faulthandler
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

from pasmr_jax.experiment.reliability import witness
from pasmr_jax.experiment.reliability.stopping import EXIT_HUNG
from pasmr_jax.experiment.reliability.storage import write_whole
from pasmr_jax.parallel import processes

_TICK = 2.0  # seconds


class Watchdog:
  """Watches over this process's progress; a context manager."""

  def __init__(self, workdir: pathlib.Path, minutes: float, tick: float = _TICK):
    """`minutes` without progress end the process; 0 is never."""
    self._folder = workdir.absolute() / "processes"
    self._limit = minutes * 60
    self._tick = tick
    self._place = "the start"
    self._error = ""  # what the process ends with
    self._beats = self._idle = 0
    self._ended = threading.Event()
    self._witness: subprocess.Popen[bytes] | None = None

  def progress(self, place: str) -> None:
    """The process has come to `place`, such as 'srl step 12'."""
    self._place, self._idle = place, 0

  def __enter__(self) -> "Watchdog":
    # Asked for here: a thread may not wait for JAX.
    self._number, self._count = processes.process_index(), processes.process_count()
    if self._count > 1:
      self._folder.mkdir(parents=True, exist_ok=True)
      self._tell()
      self._start_witness()
    if self._count > 1 or self._limit > 0:
      threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: object
  ) -> None:
    if error is not None and not isinstance(error, SystemExit) and self._count > 1:
      # Another process that was killed shows as an error of the network, which names no process.
      # This one counts on meanwhile: nobody shall take it for the one that was lost.
      self._error = f"ended with {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
      self._tell()
      _say(witness.lost(self._folder, self._number, self._count, self._tick))
    self._ended.set()
    self._part()

  def _watch(self) -> None:
    while not self._ended.wait(self._tick):
      self._beats += 1
      self._idle += 1
      if self._count > 1:
        self._tell()
      if 0 < self._limit <= self._idle * self._tick:
        _say([f"no progress for {self._limit:.0f} s, at {self._place}: leaving"])
        lost = witness.lost(self._folder, self._number, self._count, self._tick)
        _say(lost or witness.behind(self._folder, self._number, self._count))
        self._part()
        os._exit(EXIT_HUNG)

  def _tell(self) -> None:
    state = {
      "host": socket.gethostname(),
      "pid": os.getpid(),
      "place": self._place,
      "idle": self._idle * self._tick,
      "beats": self._beats,
    }
    if self._error:
      state["ended"] = self._error
    with contextlib.suppress(OSError):  # of a full disk, which the run itself meets
      write_whole(self._folder / f"{self._number}.json", json.dumps(state))

  def _start_witness(self) -> None:
    numbers = [str(self._number), str(self._count), str(self._tick)]
    # A session of its own: a signal for the whole group is not for it.
    self._witness = subprocess.Popen(
      [sys.executable, "-I", witness.__file__, str(self._folder), *numbers],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      start_new_session=True,
    )
    assert self._witness.stdin is not None
    faulthandler.enable(self._witness.stdin)  # what it shows of an abort is passed on

  def _part(self) -> None:
    if self._witness is None or self._witness.stdin is None:
      return
    faulthandler.enable()
    with contextlib.suppress(BrokenPipeError):  # a person may have ended it
      self._witness.stdin.write(witness.GOODBYE)
      self._witness.stdin.close()
    self._witness.wait()


def _say(lines: list[str]) -> None:
  os.write(2, "".join(f"{line}\n" for line in lines).encode())
