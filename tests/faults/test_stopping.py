"""Signals and preemption notices: the first asks, the second leaves, all processes agree."""

import http.server
import signal
import socketserver
import subprocess
import sys
import threading
import time

import pytest

from pasmr_jax.experiment.reliability import exits
from pasmr_jax.experiment.reliability import stopping as module
from pasmr_jax.experiment.reliability.stopping import EXIT_STOPPED, Stopped, Stopping

pytestmark = pytest.mark.faults

# A step is a call into compiled code that holds the main thread: here numpy's.
PROGRAM = """
import sys, time
import numpy as np
from pasmr_jax.experiment.reliability.stopping import Stopped, Stopping
matrix = np.ones((2000, 2000))
with Stopping() as stopping:
  print("ready", flush=True)
  for step in range(10_000):
    if sys.argv[1] == "long":
      sys.stdin.read()  # a main thread that comes back to Python never
    matrix @ matrix
    if stopping.check():
      print("saved", flush=True)
      raise Stopped
"""


@pytest.fixture
def program(request):
  process = subprocess.Popen(
    [sys.executable, "-c", PROGRAM, request.param],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None
  assert process.stdout.readline() == "ready\n"
  yield process
  process.kill()
  process.communicate()


@pytest.mark.parametrize("program", ["short"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_ends_the_run_at_a_step_boundary(program, number):
  program.send_signal(number)
  out, error = program.communicate(timeout=60)
  assert out == "saved\n"
  assert program.returncode == EXIT_STOPPED == 75
  assert f"{signal.Signals(number).name} received: a checkpoint follows" in error
  assert "Traceback" not in error


@pytest.mark.parametrize("program", ["long"], indirect=True)
def test_the_second_signal_leaves_at_once_whatever_the_main_thread_does(program):
  program.send_signal(signal.SIGTERM)
  time.sleep(0.3)
  assert program.poll() is None
  program.send_signal(signal.SIGINT)
  assert program.wait(timeout=10) == 128 + signal.SIGINT


def _waited(stopping) -> str:
  deadline = time.monotonic() + 20
  while not stopping.check() and time.monotonic() < deadline:
    time.sleep(0.01)
  return stopping.check()


def test_a_file_that_appears_is_a_notice(tmp_path, monkeypatch):
  monkeypatch.setattr(module, "_NOTICE_PERIOD", 0.02)
  notice = tmp_path / "going"
  with Stopping(str(notice)) as stopping:
    time.sleep(0.2)
    assert stopping.check() == ""
    notice.touch()
    assert _waited(stopping) == f"preemption notice at {notice}"


class _Metadata(http.server.BaseHTTPRequestHandler):
  preempted = b"FALSE"

  def do_GET(self):
    self.send_response(200 if self.headers["Metadata-Flavor"] == "Google" else 403)
    self.end_headers()
    self.wfile.write(self.preempted)

  def log_message(self, format, *arguments):
    """Nothing."""


def test_a_url_that_answers_true_is_a_notice(monkeypatch):
  monkeypatch.setattr(module, "_NOTICE_PERIOD", 0.05)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Metadata) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/instance/preempted"
    with Stopping(url) as stopping:
      time.sleep(0.3)
      assert stopping.check() == ""
      monkeypatch.setattr(_Metadata, "preempted", b"TRUE")
      assert _waited(stopping) == f"preemption notice at {url}"
    server.shutdown()
    thread.join()


def test_a_notice_that_cannot_be_asked_for_is_told_once_and_asked_for_again(monkeypatch, capfd):
  monkeypatch.setattr(module, "_NOTICE_PERIOD", 0.02)
  with Stopping("http://127.0.0.1:1/preempted") as stopping:
    time.sleep(0.5)
    assert stopping.check() == ""
  assert capfd.readouterr().err.count("asking on") == 1


class _Garbled(socketserver.BaseRequestHandler):
  """No HTTP at first, then a notice."""

  answers = (b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nTRUE")
  asked = 0

  def handle(self):
    self.request.recv(2000)
    self.request.sendall(self.answers[min(self.asked, 1)])
    type(self).asked += 1


def test_the_watch_outlives_an_answer_that_is_garbled(monkeypatch, capfd):
  monkeypatch.setattr(module, "_NOTICE_PERIOD", 0.05)
  with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Garbled) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/preempted"
    with Stopping(url) as stopping:
      assert _waited(stopping) == f"preemption notice at {url}"
    server.shutdown()
    thread.join()
  assert r"BadStatusLine('garbage\r\n'); asking on" in capfd.readouterr().err


def test_a_notice_that_can_be_no_file_is_told(monkeypatch, capfd):
  monkeypatch.setattr(module, "_NOTICE_PERIOD", 0.02)
  with Stopping("x" * 300) as stopping:
    time.sleep(0.3)
    assert stopping.check() == ""
  assert "File name too long: " in (said := capfd.readouterr().err)
  assert said.count("asking on") == 1


def test_one_process_that_is_asked_stops_all(monkeypatch):
  monkeypatch.setattr(module.processes, "global_max", lambda own: max(own, 1))
  monkeypatch.setattr(module.processes, "gather_text", lambda own: [own, "SIGTERM received"])
  assert Stopping().check() == "SIGTERM received"


def test_handlers_are_given_back():
  before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  with Stopping():
    assert signal.getsignal(signal.SIGTERM) is not before[0]
  assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_stopped_is_an_exit_code_and_says_what_was_saved(tmp_path, capsys):
  with pytest.raises(Stopped) as raised, exits.told(tmp_path):
    raise Stopped("srl step 120")
  assert raised.value.code == 75
  assert capsys.readouterr().err == "saved srl step 120; the same command goes on\n"
