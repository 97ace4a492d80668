"""A long run of self-feedback: nothing grows, nothing is compiled anew, saving takes no time.

Slopes are least-squares fits over the second half of the run; the time of a step is the median of
each tenth of the steps.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks.faults import runs
from tests import runs as test_runs

OBSERVED = pathlib.Path(__file__).with_name("observed.py")


def run(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  workdir, samples = folder / "soak", folder / "soak.samples.jsonl"
  command = test_runs.command(
    workdir,
    base__steps=60,
    srl__steps=options.steps,
    evaluation__every=200,
    checkpoint__every=50,
    log__tensorboard=True,
    guard__collapse_window=20,
  )
  command = [sys.executable, str(OBSERVED), str(samples), "2", *command[1:]]
  subprocess.run(command, env=runs.environment(folder), cwd=test_runs.ROOT, check=True)
  lines = [
    line
    for line in test_runs.read_lines(workdir / "metrics.jsonl")
    if line["stage"] == "srl" and "loss" in line
  ]
  seen = test_runs.read_lines(samples)
  second_half = seen[len(seen) // 2 :]
  times = [line["time/step"] for line in lines]
  tenths = np.array_split(np.array(times), 10)
  saving = [line["time/checkpoint"] for line in lines if "time/checkpoint" in line]
  steps_a_second = len(times) / sum(times)
  return {
    "steps": len(lines),
    "host memory, MB at half and end": [second_half[0]["host_kb"] / 1e3, seen[-1]["host_kb"] / 1e3],
    "host memory, kB a step": slope(second_half, "host_kb") / steps_a_second,
    "device memory, bytes a step": slope(second_half, "device_bytes") / steps_a_second,
    "handles at half and end": [second_half[0]["handles"], seen[-1]["handles"]],
    "threads at half and end": [second_half[0]["threads"], seen[-1]["threads"]],
    "compiled after half": seen[-1]["compiled"] - second_half[0]["compiled"],
    "seconds a step, median of each tenth": [round(float(np.median(part)), 4) for part in tenths],
    "saves": len(saving),
    "seconds a save blocks, median": round(statistics.median(saving), 4),
    "share of time in saving": sum(saving) / sum(times),
  }


def slope(samples: list[dict[str, Any]], name: str) -> float:
  """Growth a second."""
  seconds = np.array([sample["seconds"] for sample in samples])
  return float(np.polyfit(seconds, np.array([float(s[name]) for s in samples]), 1)[0])
