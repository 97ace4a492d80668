"""kill -9 at seeded moments of training, evaluation and export; started again, all ends the same.

Two in three kills come at the n-th operation on a file of one kind (a checkpoint, a result, a line
of metrics, anything), half of those a moment later, inside a write; one in three at a random time
after the start. A run is killed and started again until it ends, then compared with one that was
not, to the bit; then the next one begins. `eval.py` and `export.py` are killed in the same way.
"""

import argparse
import collections
import pathlib
import random
import shutil
import signal
from typing import Any

from benchmarks.faults import runs
from tests.faults import harness

KINDS = ("checkpoints/", "results/", "metrics.jsonl", "tensorboard", "")
LONGEST = 40.0  # seconds after the start, of kills at a random time


def run(folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
  environment = runs.environment(folder)
  whole = runs.whole(folder, environment)
  rng = random.Random(options.seed)
  kills: list[str] = []
  ends = 0
  while len(kills) < options.kills:
    workdir = folder / f"killed{ends}"
    shutil.rmtree(workdir, ignore_errors=True)
    while True:
      command = runs.command(workdir)
      alive = len(kills) >= options.kills
      if not alive:
        command = _doomed(command, workdir, rng)
      ended = harness.interrupted(command, environment)
      if ended.returncode == 0:
        break
      if ended.returncode != -signal.SIGKILL:
        raise RuntimeError(f"exit code {ended.returncode}: {ended.stderr[-3000:]}")
      kills.append(workdir.with_name(workdir.name + ".doom").read_text("utf-8").splitlines()[-1])
      runs.tell(f"kill {len(kills)}: {kills[-1]}")
    harness.assert_same_run(workdir, whole)
    ends += 1
  others = _evaluation(whole, environment) + _export(folder, whole, rng, environment)
  return {
    "kills": len(kills),
    "runs that ended, each equal to the undisturbed one": ends,
    "kills by what was being written": dict(
      collections.Counter(moment.partition(" ")[2].split("/")[0].split(" ")[0] for moment in kills)
    ),
    "kills by stage": dict(
      collections.Counter(
        next((stage for stage in harness.STAGES if stage in moment), "any") for moment in kills
      )
    ),
    "moments": kills,
    "kills of eval.py and export.py": others,
  }


def _doomed(command: list[str], workdir: pathlib.Path, rng: random.Random) -> list[str]:
  if rng.random() < 1 / 3:
    return harness.doomed(command, workdir, 1, delay=round(rng.uniform(0, LONGEST), 3))
  kind = rng.choice(KINDS)
  most = {"checkpoints/": 120, "": 150}.get(kind, 8)
  delay = round(rng.choice([0.0, rng.uniform(0, 0.05)]), 3)
  return harness.doomed(command, workdir, rng.randint(1, most), pattern=kind, delay=delay)


def _evaluation(whole: pathlib.Path, environment: dict[str, str]) -> list[str]:
  """eval.py on the last checkpoint, killed three times: what it leaves is as of one never killed.

  Its answers are also those of the run's own test.
  """
  results = whole / "results"
  runs.completed(runs.command(whole, "eval.py"), environment)
  expected = {path.name: path.read_bytes() for path in results.glob("eval*")}
  assert expected["eval_srl_4_greedy.jsonl"] == (results / "srl_greedy.jsonl").read_bytes()
  _remove(results)
  for number in range(1, 4):
    command = runs.command(whole, "eval.py")
    ended = harness.interrupted(
      harness.doomed(command, whole, number, pattern="results/eval"), environment
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
  runs.completed(runs.command(whole, "eval.py"), environment)
  assert {path.name: path.read_bytes() for path in results.glob("eval*")} == expected
  assert not list(results.glob("*.partial*"))
  _remove(results)
  return ["eval.py: 3"]


def _remove(results: pathlib.Path) -> None:
  for path in results.glob("eval*"):
    path.unlink()


def _export(
  folder: pathlib.Path, whole: pathlib.Path, rng: random.Random, environment: dict[str, str]
) -> list[str]:
  """export.py, killed before each of a few operations; then the folder is as one never killed."""
  expected, killed = folder / "exported", folder / "exported_after_kills"
  for out in (expected, killed):
    shutil.rmtree(out, ignore_errors=True)
  command = runs.command(whole, "export.py", [f"--out={expected}"])
  runs.completed(harness.doomed(command, folder, 0, pattern="exported"), environment)
  listed = folder.with_name(folder.name + ".operations").read_text("utf-8").splitlines()
  command = runs.command(whole, "export.py", [f"--out={killed}"])
  moments = sorted(rng.sample(range(1, len(listed) + 1), 3))
  for number in moments:
    ended = harness.interrupted(
      harness.doomed(command, folder, number, pattern="exported_after"), environment
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    assert not killed.exists()
  runs.completed(command, environment)
  files = {path.relative_to(expected) for path in expected.rglob("*")}
  assert {path.relative_to(killed) for path in killed.rglob("*")} == files
  for path in files:
    if (expected / path).is_file():
      assert (killed / path).read_bytes() == (expected / path).read_bytes(), path
  return [f"export.py: {len(moments)}, before operations {moments} of {len(listed)}"]
