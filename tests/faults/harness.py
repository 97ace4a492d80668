"""Runs interrupted at chosen operations on files, and compared with one that nothing interrupts."""

import math
import pathlib
import signal
import subprocess
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
