"""A long run of self-feedback: nothing grows, nothing is compiled anew, saving takes no time.

The first quarter of the steps is warm-up. Slopes are least-squares fits over the other three. The
machine may have been busy with something else, or the run suspended: time is compared by medians of
tenths of the steps, and by processor time. What a save costs is what it blocks, and what the steps
take longer that are made while it goes on in the background.
"""

import argparse
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
PERIOD = 2  # seconds between samples

# What is called flat. A step's arrays are 200 kB, its texts 20: one of them kept a step would show.
HOST_KB_A_STEP = 2.0
DEVICE_BYTES_A_STEP = 100.0
SLOWER = 1.15  # the last tenth of the steps against the first after the warm-up
SAVING = 0.02  # of the time of a step


def run(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  workdir, samples = folder / "soak", folder / "soak.samples.jsonl"
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
  warm = steps // 4
  # After the last step come the tests, with other shapes.
  later = [s for s in observed if s["stage"] == "srl" and warm <= s["step"] < steps]
  samples = [s for s in later if "event" not in s]
  events = [(s["step"], s["event"], s["name"]) for s in later if "event" in s]
  compiled = [s["step"] for s in observed if s.get("event") == "compiled" and s["stage"] == "srl"]
  seen = {
    "steps": len(lines),
    "warm-up, steps": warm,
    "samples after it": len(samples),
    "host memory after it, MB, each tenth": _tenths(samples, "host_kb", 1e-3),
    "with its files, MB": _tenths(samples, "resident_kb", 1e-3),
    "host memory, kB a step": round(slope(samples, "host_kb"), 4),
    "device memory after it, bytes, each tenth": _tenths(samples, "device_bytes"),
    "device memory, bytes a step": round(slope(samples, "device_bytes"), 3),
    "handles after it, least and most": _range(samples, "handles"),
    "threads after it, least and most": _range(samples, "threads"),
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
  """Growth a step."""
  steps = np.array([sample["step"] for sample in samples], float)
  return float(np.polyfit(steps, np.array([float(s[name]) for s in samples]), 1)[0])


def _tenths(samples: Sequence[dict[str, Any]], name: str, factor: float = 1) -> list[float]:
  parts = np.array_split(np.array([sample[name] for sample in samples]) * factor, 10)
  return [round(float(np.median(part)), 1) for part in parts]


def _range(samples: Sequence[dict[str, Any]], name: str) -> list[int]:
  values = [sample[name] for sample in samples]
  return [min(values), max(values)]


def _flat(samples: Sequence[dict[str, Any]], name: str) -> bool:
  """Whether the second half never has more than the first had at its most, and has no less room."""
  half = len(samples) // 2
  return _range(samples[half:], name)[1] <= _range(samples[:half], name)[1]


def _times(
  times: Sequence[float], samples: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """A step's time by the clock and by the processor, and what there was to do in it."""
  tokens = [line["response_length"] for line in lines]
  parts = np.array_split(np.arange(len(samples)), 10)
  spent = []
  for part in parts:
    first, last = samples[part[0]], samples[part[-1]]
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
