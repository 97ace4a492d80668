"""One of two processes is killed or hangs: the other ends and says who it was, and both resume.

Process 0 is the one whose JAX service all others report to: without it they are aborted, and their
witnesses say why (reliability/witness.py).
"""

import argparse
import pathlib
import shutil
import signal
from typing import Any

from benchmarks.faults import runs
from pasmr_jax.experiment.metrics import without_measured
from tests import runs as test_runs
from tests.faults import harness

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
    seconds, code, said = harness.injured(
      runs.command(workdir, **changes), runs.environment(folder), workdir, number, fault, BOUND
    )
    named = harness.named(said, number)
    runs.tell(f"process {number} {fault.name}: {code} and named after {seconds:.0f} s: {named}")
    assert named, said[-3000:]
    assert not harness.named(said, 1 - number), said[-3000:]
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
