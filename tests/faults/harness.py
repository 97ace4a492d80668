"""Runs interrupted at chosen operations on files, and compared with one that nothing interrupts."""

import math
import pathlib
import signal
import subprocess
import time
from collections.abc import Sequence

import numpy as np

from pasmr_jax.experiment.metrics import without_measured
from tests import runs

DOOMED = pathlib.Path(__file__).with_name("doomed.py")
STAGES = ("base", "pam", "srl")


def doomed(
  command: Sequence[str],
  folder: pathlib.Path,
  count: int,
  *,
  pattern: str = "",
  delay: float = 0.0,
  number: int = signal.SIGKILL,
) -> list[str]:
  """The command, ended by a signal `delay` seconds after a change to a file below `folder`.

  It is the `count`-th of those that have `pattern` in them; 0 is none.
  """
  interpreter, *rest = command
  settings = [str(folder), pattern, str(count), str(delay), str(int(number))]
  return [interpreter, str(DOOMED), *settings, *rest]


def interrupted(command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
  """Runs a command to whatever end it comes to."""
  return subprocess.run(
    command,
    env=environment,
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    timeout=1200,
    check=False,
  )


def injured(
  command: Sequence[str],
  environment: dict[str, str],
  workdir: pathlib.Path,
  number: int,
  fault: int,
  bound: float,
  lines: int = 9,
) -> tuple[float, int, str]:
  """Two processes of one run, one of which gets a signal once there are some lines of metrics.

  Args:
    command: both processes'.
    environment: the same.
    workdir: of the run; what each process says is written beside it.
    number: of the process that gets the signal.
    fault: the signal.
    bound: seconds in which the other must have ended and named it.
    lines: how many.

  Returns:
    Seconds until the other one had ended and named it, its exit code, and what it said.
  """
  paths = [pathlib.Path(f"{workdir}.{place}.log") for place in range(2)]
  logs = [path.open("wb") for path in paths]
  environment = environment | runs.two_processes()
  processes = [
    subprocess.Popen(
      command,
      env=environment | {"JAX_PROCESS_ID": str(place)},
      cwd=runs.ROOT,
      stdout=log,
      stderr=subprocess.STDOUT,
    )
    for place, log in enumerate(logs)
  ]
  other = 1 - number
  try:
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= lines):
      assert all(process.poll() is None for process in processes), "a process ended too early"
      time.sleep(0.05)
    processes[number].send_signal(fault)
    start = time.monotonic()
    code = processes[other].wait(timeout=bound)
    while not named(said := paths[other].read_text("utf-8"), number):
      assert time.monotonic() - start < bound, said[-3000:]
      time.sleep(0.1)
    seconds = time.monotonic() - start
  finally:
    for process, log in zip(processes, logs, strict=True):
      process.kill()
      process.wait()
      log.close()
  return seconds, code, said


def named(said: str, number: int) -> list[str]:
  """The lines by which a process says that another is lost."""
  return [line for line in said.splitlines() if line.startswith(f"process {number} (")]


def tensorboard(folder: pathlib.Path) -> list[tuple[str, int, float]]:
  """Every value in the event file: name, step and value."""
  from tensorboardX.proto.event_pb2 import Event

  found = []
  (path,) = folder.iterdir()
  data = path.read_bytes()
  while data:
    length = int.from_bytes(data[:8], "little")
    event = Event.FromString(data[12 : 12 + length])
    found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    data = data[16 + length :]
  return found


def assert_board_is_of_metrics(workdir: pathlib.Path) -> None:
  """TensorBoard's file has each finite number of metrics.jsonl once, and no other."""
  found = sorted(tensorboard(workdir / "tensorboard"))
  expected = sorted(
    (f"{line['stage']}/{name}", line["step"], float(np.float32(value)))
    for line in runs.read_lines(workdir / "metrics.jsonl")
    for name, value in line.items()
    if name not in ("stage", "step") and math.isfinite(value)
  )
  assert found == expected


def assert_same_run(one: pathlib.Path, other: pathlib.Path, stages: Sequence[str] = STAGES) -> None:
  """Metrics without gap or repetition, samples, evaluations and final checkpoints, to the bit.

  Where the run wrote for TensorBoard too, that is its metrics.
  """
  for name in ("metrics.jsonl", "rollouts.jsonl"):
    found, expected = (
      [without_measured(line) for line in runs.read_lines(folder / name)] for folder in (one, other)
    )
    if name == "metrics.jsonl":
      steps = [(line["stage"], line["step"], "loss" in line) for line in found]
      assert len(set(steps)) == len(steps)
    assert found == expected, name
  if (one / "tensorboard").exists():
    assert_board_is_of_metrics(one)
  for stage in stages:
    runs.assert_same_checkpoint(one, other, stage)
  results = sorted(path.name for path in (other / "results").iterdir())
  assert sorted(path.name for path in (one / "results").iterdir()) == results
  for name in results:
    assert (one / "results" / name).read_bytes() == (other / "results" / name).read_bytes(), name
