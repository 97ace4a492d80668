"""The small runs that faults are injected into, and how one of them is started."""

import pathlib
import subprocess
import sys
from typing import Any

from tests import runs as test_runs
from tests.faults import harness

# All three stages in half a minute; a checkpoint every other step.
SMALL = {
  "base.steps": 6,
  "pam.steps": 6,
  "srl.steps": 4,
  "evaluation.every": 3,
  "checkpoint.every": 2,
  "log.tensorboard": True,
}


def environment(folder: pathlib.Path, devices: int = 2) -> dict[str, str]:
  return test_runs.environment(folder / "compiled", devices)


def command(workdir: pathlib.Path, program: str = "train.py", extra=(), **changes) -> list[str]:
  settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
  return test_runs.command(workdir, program, extra, **settings)


def tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def completed(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
  """Runs to a good end.

  Raises:
    RuntimeError: the end was another, with what was said last.
  """
  finished = harness.interrupted(command, environment)
  if finished.returncode != 0:
    raise RuntimeError(f"exit code {finished.returncode}: {finished.stderr[-3000:]}")
  return finished


def whole(folder: pathlib.Path, environment: dict[str, str], **changes: Any) -> pathlib.Path:
  """A run that nothing disturbs; its operations on files are listed beside it."""
  workdir = folder / "whole"
  if not (workdir / "results" / "srl.json").exists():
    tell("a run that nothing disturbs")
    completed(harness.doomed(command(workdir, **changes), workdir, 0), environment)
  return workdir
