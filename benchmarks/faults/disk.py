"""A full disk: the work directory on a tmpfs of a few hundred kilobytes, then of enough.

Runs in a mount namespace of its own (`unshare`), so that it needs no rights and leaves no mount. At
each size a run is started on an empty disk and must end with exit code 74, a message that names the
path and the bytes, and its last good checkpoint intact; with room made it must end like a run that
nothing disturbed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from benchmarks.faults import runs
from pasmr_jax.experiment.reliability.recovery import recover, steps_in
from tests.faults import harness

KILOBYTES = (100, 300, 700, 1000, 1300, 1600)
ROOM = 200_000


def run(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  environment = runs.environment(folder)
  runs.whole(folder, environment)
  inside = [sys.executable, "-m", "benchmarks.faults.disk", str(folder)]
  command = ["unshare", "--user", "--mount", "--map-root-user", *inside]
  environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
  done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
  return json.loads(done.stdout)


def _inside(folder: pathlib.Path) -> dict[str, Any]:
  environment = runs.environment(folder)
  seen = []
  for size in KILOBYTES:
    place = folder / f"disk{size}"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "full", place], check=True)
    workdir = place / "run"
    ended = harness.interrupted(runs.command(workdir), environment)
    said = [line for line in ended.stderr.splitlines() if "cannot write" in line]
    runs.tell(f"{size} kB: exit code {ended.returncode}: {said[-1:]}")
    assert ended.returncode == 74, ended.stderr[-3000:]
    assert "bytes are free" in said[-1]
    assert str(workdir) in said[-1]
    kept = {}
    for stage in harness.STAGES:
      # Undamaged, however the save that met the full disk ended.
      assert recover(workdir / "checkpoints" / stage) == []
      kept[stage] = steps_in(workdir / "checkpoints" / stage)
    seen.append({"kB": size, "said": said[-1], "checkpoints": kept})
    subprocess.run(["mount", "-o", f"remount,size={ROOM}k", place], check=True)
    runs.completed(runs.command(workdir), environment)
    harness.assert_same_run(workdir, folder / "whole")
    subprocess.run(["umount", place], check=True)
  return {"disks": seen}


if __name__ == "__main__":
  json.dump(_inside(pathlib.Path(sys.argv[1])), sys.stdout)
