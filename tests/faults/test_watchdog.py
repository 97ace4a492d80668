"""Of several processes: one is killed, hangs, errs or is aborted, and the others say which."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from pasmr_jax.experiment.reliability.stopping import EXIT_HUNG

pytestmark = pytest.mark.faults

TICK = 0.1  # seconds
# A process of a run, without JAX: it counts, and does what it is told on its standard input.
PROGRAM = """
import os, pathlib, sys, time
from pasmr_jax.experiment.reliability import watchdog as module
folder, number, count, minutes = pathlib.Path(sys.argv[1]), *map(float, sys.argv[2:5])
module.processes.process_index = lambda: int(number)
module.processes.process_count = lambda: int(count)
with module.Watchdog(folder, minutes, tick=TICK) as watchdog:
  watchdog.progress(f"step {int(number)}")
  print("watching", flush=True)
  for line in sys.stdin:
    if line == "abort\\n":
      os.abort()
    if line == "err\\n":
      raise ValueError("of its own\\nand more")
    if line == "end\\n":
      break
    if line == "work\\n":
      for _ in range(100):
        watchdog.progress("work")
        time.sleep(TICK / 2)
""".replace("TICK", str(TICK))


class Member:
  """One process of a run."""

  def __init__(self, folder: pathlib.Path, number: int, count: int = 2, minutes: float = 0.0):
    self.process = subprocess.Popen(
      [sys.executable, "-c", PROGRAM, str(folder), str(number), str(count), str(minutes)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    assert self.process.stdout is not None
    assert self.process.stdout.readline() == "watching\n"
    deadline = time.monotonic() + 30
    while count > 1 and _state(folder, number)["place"] != f"step {number}":
      assert time.monotonic() < deadline
      time.sleep(TICK / 5)

  def tell(self, word: str) -> None:
    assert self.process.stdin is not None
    self.process.stdin.write(f"{word}\n")
    self.process.stdin.flush()

  def said(self) -> str:
    """All it says until it, and its witness, have ended."""
    self.process.wait(timeout=60)
    return self.process.communicate(timeout=60)[1]


@pytest.fixture
def member(tmp_path):
  """Starts processes of one run."""
  members: list[Member] = []

  def start(*arguments, **named) -> Member:
    members.append(Member(tmp_path, *arguments, **named))
    return members[-1]

  yield start
  for one in members:
    one.process.send_signal(signal.SIGKILL)
    one.process.communicate()


def _state(folder: pathlib.Path, number: int) -> dict:
  return json.loads((folder / "processes" / f"{number}.json").read_text())


def test_one_that_errs_names_the_one_that_was_killed(member):
  first, second = member(0), member(1)
  second.process.kill()
  second.process.wait()
  first.tell("err")
  said = first.said()
  assert f"process 1 ({second.process.pid} on {os.uname().nodename}, last at step 1) was" in said
  assert "was killed" in said
  assert first.process.returncode == 1


def test_one_that_is_aborted_names_the_one_that_was_killed_and_shows_where_it_was(member):
  first, second = member(0), member(1)
  first.process.kill()
  second.tell("abort")
  said = second.said()
  assert second.process.returncode == -signal.SIGABRT
  assert "Fatal Python error: Aborted" in said
  assert f"process 0 ({first.process.pid} on" in said
  assert "last at step 0) was killed" in said
  # Who was killed does not blame those that were aborted because of it.
  assert "process 1" not in first.said()


@pytest.mark.parametrize("end", ["abort", "err"])
def test_one_that_hangs_does_not_answer(member, end):
  first, second, third = member(0, 3), member(1, 3), member(2, 3)
  second.process.send_signal(signal.SIGSTOP)
  first.tell(end)
  said = first.said()
  assert f"process 1 ({second.process.pid} on" in said
  assert "last at step 1) does not answer" in said
  assert "process 2" not in said
  assert third.process.poll() is None


def test_one_without_progress_leaves_and_names_who_hangs(member):
  second, first = member(1), member(0, minutes=0.1)
  second.process.send_signal(signal.SIGSTOP)
  said = first.said()
  assert first.process.returncode == EXIT_HUNG
  assert "no progress for 6 s, at step 0: leaving" in said
  assert "last at step 1) does not answer" in said


def test_where_all_count_the_one_furthest_behind_is_named(member):
  second, third = member(1, 3), member(2, 3)
  third.tell("work")
  first = member(0, 3, minutes=0.03)
  said = first.said()
  assert f"process 1 ({second.process.pid} on" in said
  assert "has made no progress for" in said
  assert "process 2" not in said


def test_an_error_of_another_process_is_told_and_not_blamed_on_who_met_it(member):
  first, second = member(0), member(1)
  second.tell("err")
  first.tell("abort")
  assert "process 1" in (said := first.said())
  assert "last at step 1) ended with ValueError: of its own\n" in said
  assert "process 0" not in second.said()


def test_an_orderly_end_leaves_no_witness_and_no_word(member, tmp_path):
  first = member(0)
  first.tell("end")
  start = time.monotonic()
  assert first.said() == ""
  assert time.monotonic() - start < 5
  assert first.process.returncode == 0
  assert "ended" not in _state(tmp_path, 0)


def test_a_new_start_forgets_how_the_last_one_ended(member, tmp_path):
  killed = member(0)
  killed.process.kill()
  killed.said()
  assert _state(tmp_path, 0)["ended"] == "was killed"
  member(0)
  assert "ended" not in _state(tmp_path, 0)


def test_one_process_has_no_witness(tmp_path):
  alone = Member(tmp_path, 0, count=1)
  alone.tell("err")
  assert "ValueError" in alone.said()
  assert not (tmp_path / "processes").exists()
