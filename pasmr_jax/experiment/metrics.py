"""Metrics of a run: JSON lines, TensorBoard, a progress bar. Only process 0 writes.

`metrics.jsonl` has one line a step with `stage` and `step`; `rollouts.jsonl` samples of model text.
A resumed run first takes back what was written after the checkpoint it resumes from, so that the
files have no gap and no step twice.
"""

import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorboardX
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
from pasmr_jax.parallel.processes import process_index

# What a rerun of the same step may measure differently; everything else is exact.
MEASURED = ("time/", "time_share/", "throughput/", "memory/")


class NonFiniteError(RuntimeError):
  """A loss or gradient that is not finite."""


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
        self._tensorboard = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))
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
    """Takes back every line after `step` of `stage`, and a last line cut off by a crash."""
    if not self._writes:
      return
    here = (self._order[stage], step)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
      path = self._workdir / name
      if not path.exists():
        continue
      kept = [
        line
        for line in path.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n") and self._place(json.loads(line)) <= here
      ]
      partial = path.with_suffix(".partial")
      partial.write_bytes(b"".join(kept))
      partial.replace(path)

  def _place(self, line: Mapping[str, Any]) -> tuple[int, int]:
    return self._order.get(line["stage"], -1), line["step"]

  def start_stage(self, stage: str, step: int, steps: int) -> None:
    """Shows the stage's bar from `step` on."""
    self._task = self._bar.add_task(stage, total=steps, completed=step, shown="")

  def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
    """Writes one step's numbers.

    Raises:
      NonFiniteError: a value that learning depends on is NaN or infinite, naming it.
    """
    numbers = {name: _number(value) for name, value in values.items()}
    self._append("metrics.jsonl", {"stage": stage, "step": step, **numbers})
    if self._tensorboard is not None:
      for name, value in numbers.items():
        if math.isfinite(value):
          self._tensorboard.add_scalar(f"{stage}/{name}", value, step)
    for name in ("loss", "gradient_norm"):
      if not math.isfinite(numbers.get(name, 0.0)):
        raise NonFiniteError(f"{stage} step {step}: {name} is {numbers[name]}")

  def show(self, step: int, values: Mapping[str, Any]) -> None:
    """Moves the progress bar, with the loss or the reward."""
    name = "reward" if "reward" in values else "loss"
    if self._task is not None and name in values:
      self._bar.update(self._task, completed=step, shown=f"{name} {_number(values[name]):.3f}")

  def write_rollouts(self, stage: str, step: int, rollouts: Sequence[dict[str, Any]]) -> None:
    """Writes samples of model text, one line a question."""
    for rollout in rollouts:
      self._append("rollouts.jsonl", {"stage": stage, "step": step, **rollout})

  def _append(self, name: str, line: Mapping[str, Any]) -> None:
    if self._writes:
      with (self._workdir / name).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


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
      seen: the stage's metrics, with `trained_tokens` and its own `time/...`.

    `memory/peak_bytes` is that of the first device, where the backend tells it.
    """
    step = self._last - self._start
    measured = self._seconds | {"time/step": step}
    phases = {name: value for name, value in seen.items() if name.startswith("time/")}
    for name, seconds in (phases | {"time/update": self._seconds["time/update"]}).items():
      measured[name.replace("time/", "time_share/")] = seconds / step
    tokens = seen["trained_tokens"] / self._seconds["time/update"]
    measured["throughput/update_tokens_per_second"] = tokens
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
