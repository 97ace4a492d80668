"""One of two processes is killed or hangs: the other ends and says who it was, and both resume.

Process 0 is the one whose JAX service all others report to: without it they are aborted, and their
witnesses say why (reliability/witness.py).
"""

import argparse
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from typing import Any

from benchmarks.faults import runs
from pasmr_jax.experiment.metrics import without_measured
from tests import runs as test_runs

HANG_MINUTES = 0.5
BOUND = 150.0  # seconds in which the other process must have ended and named the first
FAULTS = ((1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGSTOP))


def run(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  calm = {"log__tensorboard": False}
  changes = calm | {"guard__hang_minutes": HANG_MINUTES}
  whole = folder / "two"
  if not (whole / "results" / "srl.json").exists():
    test_runs.run_two_processes(runs.command(whole, **calm), runs.environment(folder), 900)
  seen = []
  for number, fault in FAULTS:
    workdir = folder / f"two_{number}_{fault.name}"
    shutil.rmtree(workdir, ignore_errors=True)
    seconds, code, said = _injured(runs.command(workdir, **changes), folder, workdir, number, fault)
    named = _named(said, number)
    runs.tell(f"process {number} {fault.name}: {code} and named after {seconds:.0f} s: {named}")
    assert named, said[-3000:]
    assert not _named(said, 1 - number), said[-3000:]
    assert code != 0
    test_runs.run_two_processes(runs.command(workdir, **calm), runs.environment(folder), 900)
    found, expected = (
      [without_measured(line) for line in test_runs.read_lines(one / "metrics.jsonl")]
      for one in (workdir, whole)
    )
    assert found == expected
    for stage in ("base", "pam", "srl"):
      test_runs.assert_same_checkpoint(workdir, whole, stage)
    seen.append(
      {
        "process": number,
        "fault": fault.name,
        "the other ended and had named it after seconds": round(seconds, 1),
        "its exit code": code,
        "said": named[0],
      }
    )
  return {"faults": seen}


def _injured(
  command: list[str], folder: pathlib.Path, workdir: pathlib.Path, number: int, fault: int
) -> tuple[float, int, str]:
  """What the process that was left alone does: seconds until it had ended and named the other
  (at most BOUND), its exit code and what it said."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  environment = runs.environment(folder) | {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": "2",
  }
  paths = [pathlib.Path(f"{workdir}.{place}.log") for place in range(2)]
  logs = [path.open("wb") for path in paths]
  processes = [
    subprocess.Popen(
      command,
      env=environment | {"JAX_PROCESS_ID": str(place)},
      cwd=test_runs.ROOT,
      stdout=logs[place],
      stderr=subprocess.STDOUT,
    )
    for place in range(2)
  ]
  try:
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 9):
      assert all(process.poll() is None for process in processes), "a process ended too early"
      time.sleep(0.05)
    processes[number].send_signal(fault)
    start = time.monotonic()
    code = processes[1 - number].wait(timeout=BOUND)
    said = paths[1 - number].read_text("utf-8")
    while not _named(said, number) and time.monotonic() - start < BOUND:
      time.sleep(0.1)
      said = paths[1 - number].read_text("utf-8")
    seconds = time.monotonic() - start
  finally:
    for process, log in zip(processes, logs, strict=True):
      if process.poll() is None:
        process.kill()
        process.wait()
      log.close()
  return seconds, code, said


def _named(said: str, number: int) -> list[str]:
  return [line for line in said.splitlines() if line.startswith(f"process {number} (")]
