"""Asked to stop, in each way and at each kind of place; started again, all ends the same.

SIGTERM, SIGINT and a preemption notice while training, saving and evaluating; then two signals, of
which the second leaves at once. Every ending has its exit code, and what was asked for is there: a
checkpoint of the step that was under way, or the answers that a test had so far.
"""

import argparse
import pathlib
import shutil
import signal
import subprocess
import time
from typing import Any

from benchmarks.faults import runs
from pasmr_jax.experiment.reliability.recovery import steps_in
from tests import runs as test_runs
from tests.faults import harness

# What the signal comes at: a kind of operation on files, how many there were, and which signal.
PLACES = (
  ("metrics.jsonl", 9, signal.SIGINT),
  ("results/base", 1, signal.SIGTERM),
  ("checkpoints/", 240, signal.SIGTERM),  # of self-feedback
  ("results/srl", 1, signal.SIGINT),
)
NOTICES = (9,)  # lines of metrics after which the notice is given
TWICE = ((signal.SIGINT, signal.SIGTERM),)


def run(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  environment = runs.environment(folder)
  whole = runs.whole(folder, environment)
  seen = []
  for number, (pattern, count, sent) in enumerate(PLACES):
    workdir = _empty(folder / f"asked{number}")
    command = harness.doomed(runs.command(workdir), workdir, count, pattern=pattern, number=sent)
    ended = harness.interrupted(command, environment)
    seen.append(
      _asked(workdir, f"{sent.name} at {pattern} {count}", ended.returncode, ended.stderr)
    )
    _ends_as(workdir, whole, environment)
  seen += [_noticed(folder, whole, environment, lines) for lines in NOTICES]
  seen += [_twice(folder, whole, environment, *sent) for sent in TWICE]
  return {"stops, each run then equal to the undisturbed one": seen}


def _asked(workdir: pathlib.Path, how: str, code: int, said: str) -> dict[str, Any]:
  """What a run left that was asked once."""
  runs.tell(f"{how}: exit code {code}")
  assert code == 75, said[-3000:]
  assert "a checkpoint follows at the next step boundary" in said
  assert "Traceback" not in said
  last = test_runs.read_lines(workdir / "metrics.jsonl")[-1]
  assert steps_in(workdir / "checkpoints" / last["stage"])[-1] == last["step"]
  return {"asked by": how, "exit code": code, "saved": f"{last['stage']} {last['step']}"}


def _noticed(
  folder: pathlib.Path, whole: pathlib.Path, environment: dict[str, str], lines: int
) -> dict[str, Any]:
  """A preemption notice that appears once there are so many lines of metrics."""
  workdir, notice = _empty(folder / f"noticed{lines}"), folder / "notice"
  notice.unlink(missing_ok=True)
  command = runs.command(workdir, checkpoint__notice=str(notice))
  with _started(command, environment) as process:
    _wait_for_lines(workdir, process, lines)
    notice.touch()
    said = process.communicate(timeout=300)[1]
  notice.unlink()
  found = _asked(workdir, f"a notice after {lines} lines", process.returncode, said)
  _ends_as(workdir, whole, environment)
  return found


def _twice(
  folder: pathlib.Path,
  whole: pathlib.Path,
  environment: dict[str, str],
  first: signal.Signals,
  second: signal.Signals,
) -> dict[str, Any]:
  """Two signals, the second at once after the first: nobody waits for a step or a checkpoint."""
  workdir = _empty(folder / f"twice_{first.name}_{second.name}")
  with _started(runs.command(workdir), environment) as process:
    _wait_for_lines(workdir, process, 3)
    process.send_signal(first)
    time.sleep(0.05)  # two signals at the same moment may be one
    process.send_signal(second)
    start = time.monotonic()
    said = process.communicate(timeout=60)[1]
    seconds = time.monotonic() - start
  how = f"{first.name}, then {second.name}"
  runs.tell(f"{how}: exit code {process.returncode} after {seconds:.2f} s")
  assert process.returncode in (128 + second, 75), said[-3000:]
  assert process.returncode != 75 or "leaving at once" not in said
  _ends_as(workdir, whole, environment)
  return {"asked by": how, "exit code": process.returncode, "seconds": round(seconds, 2)}


def _ends_as(workdir: pathlib.Path, whole: pathlib.Path, environment: dict[str, str]) -> None:
  runs.completed(runs.command(workdir), environment)
  harness.assert_same_run(workdir, whole)


def _empty(workdir: pathlib.Path) -> pathlib.Path:
  shutil.rmtree(workdir, ignore_errors=True)
  return workdir


def _started(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
  return subprocess.Popen(
    command,
    env=environment,
    cwd=test_runs.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _wait_for_lines(workdir: pathlib.Path, process: subprocess.Popen[str], number: int) -> None:
  """Until metrics.jsonl has so many lines."""
  metrics = workdir / "metrics.jsonl"
  while number and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= number):
    assert process.poll() is None, "the run ended too early"
    time.sleep(0.01)
