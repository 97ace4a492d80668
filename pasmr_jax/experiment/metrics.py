"""Metrics of a run: JSON lines, TensorBoard, a progress bar. Only process 0 writes.

`metrics.jsonl` has a line for each logged step, with `stage` and `step`, and one more for an
evaluation or an alarm; `rollouts.jsonl` has samples of model text.
Each line has left the program before the next step begins. A resumed run first takes back what was
written after the checkpoint it resumes from, so that the files have no gap and no step twice;
TensorBoard's file is then written anew from what is kept.
"""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

from pasmr_jax import Config
from pasmr_jax.experiment.reliability.storage import append, json_line, sync, write_whole
from pasmr_jax.experiment.reliability.tensorboard import TensorBoard
from pasmr_jax.parallel.processes import process_index, say

# What a rerun of the same step may measure differently; everything else is exact.
MEASURED = ("time/", "time_share/", "throughput/", "memory/")
_FILES = ("metrics.jsonl", "rollouts.jsonl")


class Metrics:
  """Writes metrics and shows progress; a context manager."""

  def __init__(self, workdir: pathlib.Path, stages: tuple[str, ...], config: Config):
    """`config` is `config.log`."""
    self._workdir = workdir
    self._order = {stage: place for place, stage in enumerate(stages)}
    self._writes = process_index() == 0
    self._tensorboard = None
    if self._writes:
      workdir.mkdir(parents=True, exist_ok=True)
      if config.tensorboard:
        self._tensorboard = TensorBoard(workdir / "tensorboard")
    self._bar = Progress(
      TextColumn("{task.description}"),
      BarColumn(),
      MofNCompleteColumn(),
      TimeElapsedColumn(),
      TimeRemainingColumn(),
      TextColumn("{task.fields[shown]}"),
      console=Console(stderr=True),
      disable=not (config.progress and self._writes),
    )
    self._task = None

  def __enter__(self) -> "Metrics":
    self._bar.start()
    return self

  def __exit__(self, *_):
    self._bar.stop()
    if self._tensorboard is not None:
      self._tensorboard.close()

  def rewind(self, stage: str, step: int) -> None:
    """Takes back every line after `step` of `stage`, and lines that a crash left broken.

    Lines are left in the order of stages and steps: that of an uninterrupted run, also where an
    earlier stage had to be trained again.
    """
    if not self._writes:
      return
    changed = [self._rewind(self._workdir / name, stage, step) for name in _FILES]
    board = self._tensorboard
    if board is not None and (changed[0] or not board.begun):
      metrics = self._workdir / _FILES[0]
      lines = metrics.read_bytes().splitlines() if metrics.exists() else []
      board.rewrite(json.loads(line) for line in lines)

  def _rewind(self, path: pathlib.Path, stage: str, step: int) -> bool:
    """Whether the file is another than before."""
    if not path.exists():
      return False
    raw = path.read_bytes().splitlines(keepends=True)
    place = self._place(stage, 0)[0]
    lines = self._readable(path, raw)
    kept = [line for line in lines if line[0] != place or line[1] <= step]
    kept.sort(key=lambda line: line[:2])
    if [line for *_, line in kept] == raw:
      return False
    write_whole(path, b"".join(line for *_, line in kept).decode())
    return True

  def _readable(self, path: pathlib.Path, lines: Sequence[bytes]) -> list[tuple[int, int, bytes]]:
    """Place, step and text of each line; what is no line of metrics is told and left out."""
    found = []
    for number, line in enumerate(lines, 1):
      try:
        values = json.loads(line)
        found.append((*self._place(values["stage"], values["step"]), line))
      except (ValueError, TypeError, KeyError):
        torn = number == len(lines) and not line.endswith(b"\n")
        if not torn:  # what a crash cuts off is written again and needs no word
          say(f"{path}:{number}: no line of metrics; left out")
    if found and not found[-1][2].endswith(b"\n"):
      found.pop()  # cut off exactly at its end
    return found

  def _place(self, stage: str, step: int) -> tuple[int, int]:
    return self._order.get(stage, -1), step

  def sync(self) -> None:
    """Until what was written is on the disk: a checkpoint is never ahead of its metrics."""
    if self._writes:
      for name in _FILES:
        sync(self._workdir / name)

  def start_stage(self, stage: str, step: int, steps: int) -> None:
    """Shows the stage's bar from `step` on."""
    self._task = self._bar.add_task(stage, total=steps, completed=step, shown="")

  def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
    """Writes one step's numbers.

    Raises:
      StorageError: they cannot be written.
    """
    numbers = {name: _number(value) for name, value in values.items()}
    self._append(_FILES[0], {"stage": stage, "step": step, **numbers})
    if self._tensorboard is not None:
      self._tensorboard.write(stage, step, numbers)

  def show(self, step: int, values: Mapping[str, Any]) -> None:
    """Moves the progress bar, with the loss or the reward."""
    name = "reward" if "reward" in values else "loss"
    if self._task is not None and name in values:
      self._bar.update(self._task, completed=step, shown=f"{name} {_number(values[name]):.3f}")

  def write_rollouts(self, stage: str, step: int, rollouts: Sequence[dict[str, Any]]) -> None:
    """Writes samples of model text, one line a question."""
    for rollout in rollouts:
      self._append(_FILES[1], {"stage": stage, "step": step, **rollout})

  def _append(self, name: str, line: Mapping[str, Any]) -> None:
    if self._writes:
      append(self._workdir / name, json_line(line) + "\n")


class Timer:
  """Seconds of a step by phase, and the peak of device memory so far."""

  def __init__(self):
    self._seconds: dict[str, float] = {}
    self._last = self._start = time.perf_counter()

  def lap(self, phase: str) -> None:
    """Ends a phase, which began where the last one ended."""
    now = time.perf_counter()
    self._seconds[f"time/{phase}"] = now - self._last
    self._last = now

  def measured(self, seen: Mapping[str, float]) -> dict[str, float]:
    """`time/...` in seconds and their shares of the step, update tokens a second, peak memory.

    Args:
      seen: the stage's metrics, with `trained_tokens` (and `learned_tokens`, if that is more: over
        several updates, with rehearsal) and its own `time/...`.

    `memory/peak_bytes` is that of the first device, where the backend tells it.
    """
    step = self._last - self._start
    measured = self._seconds | {"time/step": step}
    phases = {name: value for name, value in seen.items() if name.startswith("time/")}
    for name, seconds in (phases | {"time/update": self._seconds["time/update"]}).items():
      measured[name.replace("time/", "time_share/")] = seconds / step
    tokens = seen.get("learned_tokens", seen["trained_tokens"])
    measured["throughput/update_tokens_per_second"] = tokens / self._seconds["time/update"]
    memory = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in memory:
      measured["memory/peak_bytes"] = memory["peak_bytes_in_use"]
    return measured


def _number(value: Any) -> float | int:
  scalar = np.asarray(value).item()
  return scalar if isinstance(scalar, int) else float(scalar)


def without_measured(line: Mapping[str, Any]) -> dict[str, Any]:
  """A line of metrics.jsonl without times and memory: what two runs must agree on."""
  return {name: value for name, value in line.items() if not name.startswith(MEASURED)}
