"""A long run of self-feedback: nothing grows, nothing is compiled anew, saving takes no time.

The first half of the steps is warm-up; the other one is cut into tenths. Samples are taken at
any moment of a step, so that what is held all the time is the least of a tenth; a slope is the
median of those between any two tenths. The machine may have been busy with something else, or the
run suspended: time is compared by medians, and by processor time. What a save costs is what it
blocks, and what the step takes longer that is made while it goes on in the background.
"""

import argparse
import itertools
import pathlib
import statistics
import subprocess
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.faults import runs
from tests import runs as test_runs

OBSERVED = pathlib.Path(__file__).with_name("observed.py")
EVERY = 50  # steps between checkpoints
LEAST = 8 * EVERY  # steps: fewer have too few samples to be cut into tenths
PERIOD = 1  # seconds between samples

# What is called flat. A step's arrays are 200 kB, its texts 20: one of them kept a step would show.
HOST_KB_A_STEP = 5.0  # a save keeps some, in Orbax and TensorStore: docs/reliability.md
DEVICE_BYTES_A_STEP = 100.0
SLOWER = 1.15  # the last tenth of the steps against the first after the warm-up
SAVING = 0.02  # of the time of a step


def run(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  """Raises ValueError of too few steps, FileExistsError of a folder that has a soak already."""
  workdir, samples = folder / "soak", folder / "soak.samples.jsonl"
  if options.steps < LEAST:
    raise ValueError(f"--steps={options.steps}: expected {LEAST} or more")
  if workdir.exists() or samples.exists():
    raise FileExistsError(f"--workdir={folder}: expected a folder without another soak's {workdir}")
  command = test_runs.command(
    workdir,
    base__steps=60,
    srl__steps=options.steps,
    evaluation__every=200,
    checkpoint__every=EVERY,
    log__tensorboard=True,
    guard__collapse_window=20,
  )
  metrics = workdir / "metrics.jsonl"
  interpreter, *program = command
  command = [interpreter, str(OBSERVED), str(samples), str(PERIOD), str(metrics), *program]
  subprocess.run(command, env=runs.environment(folder), cwd=test_runs.ROOT, check=True)
  lines = [
    line for line in test_runs.read_lines(metrics) if line["stage"] == "srl" and "time/step" in line
  ]
  return judged(lines, test_runs.read_lines(samples), options.steps)


def judged(
  lines: Sequence[dict[str, Any]], observed: Sequence[dict[str, Any]], steps: int
) -> dict[str, Any]:
  """What was seen of the run.

  Args:
    lines: its metrics, one a step.
    observed: what observed.py wrote.
    steps: how many there must be.

  Raises:
    AssertionError: a promise was not kept; what was seen is in the message.
  """
  warm = steps // 2
  # After the last step come the tests, with other shapes.
  later = [s for s in observed if s["stage"] == "srl" and warm <= s["step"] < steps]
  samples = [s for s in later if "event" not in s]
  events = [(s["step"], s["event"], s["name"]) for s in later if "event" in s]
  compiled = [s["step"] for s in observed if s.get("event") == "compiled" and s["stage"] == "srl"]
  seen = {
    "steps": len(lines),
    "warm-up, steps": warm,
    "samples after it": len(samples),
    "host memory, kB, least of each tenth": _least(samples, "host_kb"),
    "host memory, kB a step": round(slope(samples, "host_kb"), 3),
    "with what it has of files, kB": _least(samples, "resident_kb"),
    "blocks of Python's allocator, least of each tenth": _least(samples, "python_blocks"),
    "device memory, bytes, least of each tenth": _least(samples, "device_bytes"),
    "device memory, bytes a step": round(slope(samples, "device_bytes"), 3),
    "handles, least of each tenth": _least(samples, "handles"),
    "threads, least of each tenth": _least(samples, "threads"),
    "last step of self-feedback at which something was compiled": max(compiled, default=0),
    "traced or compiled after it": events,
  }
  seen |= _times([line["time/step"] for line in lines], samples, lines)
  seen |= _saving(lines)
  kept = {
    "all steps were made": len(lines) == steps,
    "host memory is flat": abs(seen["host memory, kB a step"]) < HOST_KB_A_STEP,
    "device memory is flat": abs(seen["device memory, bytes a step"]) < DEVICE_BYTES_A_STEP,
    "handles are flat": _flat(samples, "handles"),
    "threads are flat": _flat(samples, "threads"),
    "nothing is traced or compiled after the warm-up": not events,
    "a step stays as long": seen["processor time of the last tenth against the first"] < SLOWER,
    "saving is hidden": seen["share of a step's time in saving"] < SAVING,
  }
  seen["kept"] = kept
  assert all(kept.values()), seen
  return seen


def slope(samples: Sequence[dict[str, Any]], name: str) -> float:
  """Growth a step of what is held all the time."""
  least = _least(samples, name)
  steps = [float(np.mean([s["step"] for s in part])) for part in _tenths(samples)]
  pairs = itertools.combinations(zip(steps, least, strict=True), 2)
  return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)


def _least(samples: Sequence[dict[str, Any]], name: str) -> list[int]:
  return [min(sample[name] for sample in part) for part in _tenths(samples)]


def _flat(samples: Sequence[dict[str, Any]], name: str) -> bool:
  least = _least(samples, name)
  return max(least[5:]) <= max(least[:5])


def _tenths(samples: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
  cuts = np.linspace(0, len(samples), 11).astype(int)
  return [list(samples[first:last]) for first, last in itertools.pairwise(cuts)]


def _times(
  times: Sequence[float], samples: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """A step's time by the clock and by the processor, and what there was to do in it."""
  tokens = [line["response_length"] for line in lines]
  spent = []
  for part in _tenths(samples):
    first, last = part[0], part[-1]
    spent.append(
      (last["cpu_seconds"] - first["cpu_seconds"]) / max(last["step"] - first["step"], 1)
    )
  return {
    "seconds a step, median of each tenth of all": _medians(times),
    "tokens a response, median of each tenth of all": _medians(tokens),
    "processor seconds a step after the warm-up, each tenth": [round(one, 4) for one in spent],
    "processor time of the last tenth against the first": round(spent[-1] / spent[0], 3),
  }


def _medians(values: Sequence[float]) -> list[float]:
  return [round(float(np.median(part)), 4) for part in np.array_split(np.array(values), 10)]


def _saving(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """What saving costs; the step after a save has `time/checkpoint`, that of the save."""
  blocked = [line["time/checkpoint"] for line in lines if "time/checkpoint" in line]
  after = [line["time/step"] for line in lines if "time/checkpoint" in line]
  others = [line["time/step"] for line in lines if "time/checkpoint" not in line]
  typical = statistics.median(others)
  block, slower = statistics.median(blocked), statistics.median(after) - typical
  return {
    "saves": len(blocked),
    "seconds a save blocks, median": round(block, 4),
    "seconds that the step after a save takes longer, median": round(slower, 4),
    "share of a step's time in saving": round(
      (block + max(slower, 0)) / (EVERY * typical + block), 4
    ),
    "share of all time that saves blocked": round(
      sum(blocked) / (sum(after) + sum(others) + sum(blocked)), 4
    ),
  }
