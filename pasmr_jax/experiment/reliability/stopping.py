"""Stopping when asked: by a signal, or by a notice that the machine will go.

The first SIGTERM or SIGINT asks for a checkpoint at the next step boundary; the second leaves at
once. Signals are noticed by a thread, through the descriptor that Python's C code writes to, and
not by the main thread, which may be inside a compiled step for minutes. A preemption notice is a
file that appears or a URL that begins to answer TRUE (`checkpoint.notice`).

All processes of a run stop at the same step: `Stopping.check` asks each of them.
"""

import http.client
import os
import pathlib
import signal
import sys
import threading
import urllib.request
from types import FrameType

from pasmr_jax.parallel import processes

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on
EXIT_GUARD = 70  # EX_SOFTWARE: training itself is in trouble (not finite, collapsed)
EXIT_STORAGE = 74  # EX_IOERR: the disk is full or broken
EXIT_HUNG = 76  # EX_PROTOCOL: another process does not answer, or a step takes too long

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NOTICE_PERIOD = 2.0  # seconds


class Stopped(SystemExit):
  """The run stopped because it was asked to; everything is saved."""

  def __init__(self, saved: str = "everything"):
    """`saved` is what the person at the terminal is told of, such as 'srl step 120'."""
    super().__init__(EXIT_STOPPED)
    self.saved = saved


class Stopping:
  """Whether the run has been asked to stop; a context manager of the main thread."""

  def __init__(self, notice: str = ""):
    """`notice` is checkpoint.notice: a file, a URL, or '' for signals only."""
    self._notice = notice
    self._reason = ""
    self._ended = threading.Event()

  def check(self) -> str:
    """Why the run shall stop, the same in every process at the same call; '' if it goes on."""
    if not processes.global_max(len(self._reason)):
      return ""
    return next(reason for reason in processes.gather_text(self._reason) if reason)

  def __enter__(self) -> "Stopping":
    self._read_end, self._write_end = os.pipe()
    os.set_blocking(self._write_end, False)
    self._old_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
    self._old_handlers = {number: signal.signal(number, _noticed) for number in _SIGNALS}
    threads = [self._watch_signals]
    if self._notice:
      threads.append(self._watch_notice)
    for target in threads:
      threading.Thread(target=target, name=target.__name__, daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._ended.set()
    signal.set_wakeup_fd(self._old_wakeup)
    for number, handler in self._old_handlers.items():
      signal.signal(number, handler)
    os.write(self._write_end, b"\0")  # wakes the thread, which closes the pipe

  def _watch_signals(self) -> None:
    while True:
      number = os.read(self._read_end, 1)[0]
      if self._ended.is_set():
        os.close(self._read_end)
        os.close(self._write_end)
        return
      if number not in _SIGNALS:
        continue
      name = signal.Signals(number).name
      if self._reason:
        _tell(f"{name} again: leaving at once")
        os._exit(128 + number)
      self._ask(f"{name} received")

  def _watch_notice(self) -> None:
    failed = ""
    while not self._ended.wait(_NOTICE_PERIOD) and not self._reason:
      given, problem = _notice_given(self._notice)
      if given:
        self._ask(f"preemption notice at {self._notice}")
      elif problem and problem != failed:
        _tell(f"checkpoint.notice: {self._notice}: {problem}; asking on")
      failed = problem

  def _ask(self, reason: str) -> None:
    self._reason = reason
    _tell(
      f"{reason}: a checkpoint follows at the next step boundary, then exit code {EXIT_STOPPED};"
      " a second signal leaves at once"
    )


def _noticed(number: int, frame: FrameType | None) -> None:
  """In place of Python's own handlers; the thread does the work."""


def _tell(text: str) -> None:
  # The cursor may have been hidden by a progress bar.
  shown = "\x1b[?25h" if sys.stderr.isatty() else ""
  os.write(2, f"{shown}{text}\n".encode())


def _notice_given(notice: str) -> tuple[bool, str]:
  """Whether the notice is given, and why that cannot be told."""
  try:
    if "://" not in notice:
      return pathlib.Path(notice).exists(), ""
    request = urllib.request.Request(notice, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=_NOTICE_PERIOD) as answer:
      return answer.read(100).strip().upper() == b"TRUE", ""
  except http.client.HTTPException as error:
    return False, repr(error)  # it holds what the other side sent
  except (OSError, ValueError) as error:
    return False, str(error)
