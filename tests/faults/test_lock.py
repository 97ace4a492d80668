"""One trainer in a work directory; a lock whose holder is gone is no obstacle."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from pasmr_jax.experiment.reliability.lock import LockedError, WorkLock, only_one

pytestmark = pytest.mark.faults

HOLDER = """
import pathlib, sys, time
from pasmr_jax.experiment.reliability.lock import WorkLock
WorkLock(pathlib.Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout is not None
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_a_second_one_is_refused_by_host_and_process(holder, tmp_path):
  with (
    pytest.raises(LockedError, match=rf"process {holder.pid} on {socket.gethostname()}, started"),
    only_one(tmp_path),
  ):
    pytest.fail("two hold the lock")


def test_the_lock_of_a_killed_one_is_no_obstacle(holder, tmp_path):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid
  start = time.monotonic()
  with only_one(tmp_path):
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
  assert time.monotonic() - start < 2  # of the same machine: the system says so at once
  assert (tmp_path / "lock").read_text() == ""


def _elsewhere(tmp_path, beat):
  state = {"host": "another", "pid": 7, "started": "yesterday", "beat": beat}
  (tmp_path / "lock").write_text(json.dumps(state).ljust(240))


def test_on_another_machine_one_that_shows_no_life_is_gone(tmp_path):
  _elsewhere(tmp_path, 3)
  lock = WorkLock(tmp_path, beat=0.05, patience=0.3)
  start = time.monotonic()
  lock.acquire()
  assert time.monotonic() - start >= 0.3
  lock.release()


def test_on_another_machine_one_that_shows_life_is_not(tmp_path):
  _elsewhere(tmp_path, 3)
  beating = threading.Timer(0.2, _elsewhere, (tmp_path, 4))
  beating.start()
  with pytest.raises(LockedError, match="process 7 on another, started yesterday"):
    WorkLock(tmp_path, beat=0.05, patience=5).acquire()
  beating.join()


def test_a_holder_shows_life(tmp_path):
  lock = WorkLock(tmp_path, beat=0.02)
  lock.acquire()
  deadline = time.monotonic() + 10
  while json.loads((tmp_path / "lock").read_text())["beat"] < 3:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  lock.release()


@pytest.mark.parametrize("content", ["", "{", '["x"]', '{"host": 1}', "\0" * 300])
def test_a_broken_lock_file_is_no_obstacle(tmp_path, content):
  (tmp_path / "lock").write_text(content)
  with only_one(tmp_path):
    pass
