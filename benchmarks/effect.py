"""Does the pivot's feedback help? The built-in benchmark with all its controls, over several seeds.

    python benchmarks/effect.py --workdir=runs/effect --seeds=3 --jobs=2

For each seed one model is trained through base and PAM; every arm starts from it and runs as
many steps. Each arm is an ordinary run of train.py in `WORKDIR/seedN/ARM` (a finished one is not
run again). Writes `WORKDIR/effect.json` and prints the table of docs/results.md: test accuracy in
%, mean over seeds, and each difference to pivot feedback with its standard error over seeds,
paired by seed.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import platform
import queue
import shlex
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # started by its path, Python knows only its folder
  sys.path.insert(0, str(ROOT))

from benchmarks.effects import arms as runs  # noqa: E402
from benchmarks.effects.arms import mean_and_error  # noqa: E402
from benchmarks.effects.markdown import table  # noqa: E402

CONFIG = "configs/tiny.py"
STEPS = 200
ARMS = (*runs.SOURCES, "continued_pam")


def accuracies(workdir: pathlib.Path, stage: str) -> dict[str, float]:
  found = json.loads((workdir / "results" / f"{stage}.json").read_text())
  return {
    "targets": found["greedy"]["target_accuracy"],
    "targets, sampled": found["sampled"]["target_accuracy"],
    "English": found["greedy"]["pivot_accuracy"],
    "English, sampled": found["sampled"]["pivot_accuracy"],
  } | {name[9:]: value for name, value in found["greedy"].items() if name.startswith("accuracy/")}


def results_table(results: dict[str, dict[str, dict[int, float]]]) -> str:
  columns = ["targets", "targets, sampled", "English"]
  rows = []
  for arm, values in results.items():
    cells = []
    for column in columns:
      mean, error = mean_and_error(list(values[column].values()))
      cells.append(f"{100 * mean:.1f} ± {100 * error:.1f}")
    for column in columns[:2]:
      pivot = results.get("pivot", {}).get(column, {})
      differences = [pivot[seed] - values[column][seed] for seed in values[column] if seed in pivot]
      if arm == "pivot" or not differences:
        cells.append("")
        continue
      mean, error = mean_and_error(differences)
      cells.append(f"{100 * mean:+.1f} ± {100 * error:.1f}")
    rows.append([arm, *cells, str(len(values["targets"]))])
  return table(["arm", *columns, "pivot - arm, greedy", "pivot - arm, sampled", "seeds"], rows)


def program(workdir: pathlib.Path, seed: int, name: str) -> runs.Program:
  """The run of one seed's `start` (base and PAM) or of an arm."""
  folder = workdir.absolute() / f"seed{seed}"
  settings = {"seed": seed, "data.seed": seed, "log.progress": False}
  if name == "start":
    settings |= {"stages": "('base','pam')"}
  else:
    settings |= runs.after_pam(name, folder / "start", STEPS, runs.configuration(CONFIG, {}))
  return runs.Program(folder=folder / name, config=CONFIG, settings=settings)


def train(workdir: pathlib.Path, seeds: int, arms: list[str], jobs: int, leg: runs.Leg) -> None:
  """Runs every start and arm that is not finished, `jobs` at a time; raises what `run` does.

  When one fails the others are stopped, and go on at the next start.
  """
  compiled = workdir.absolute() / "compiled"  # one program serves all runs that have it
  variables = {"JAX_COMPILATION_CACHE_DIR": str(compiled), **os.environ, "JAX_PLATFORMS": "cpu"}
  cores: queue.Queue[int | None] = queue.Queue()
  usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
  for job in range(jobs):
    cores.put(usable[job % len(usable)])

  def start(seed: int, name: str) -> None:
    core = cores.get()
    try:
      runs.run(program(workdir, seed, name), leg, variables, core)
    finally:
      cores.put(core)

  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    # Jobs begin in this order, so that an arm waits at most for the last of the starts.
    starts = [pool.submit(start, seed, "start") for seed in range(seeds)]

    def arm_of(seed: int, arm: str) -> None:
      starts[seed].result()
      start(seed, arm)

    submitted = [pool.submit(arm_of, seed, arm) for arm in arms for seed in range(seeds)]
    try:
      for job in concurrent.futures.as_completed([*starts, *submitted]):
        job.result()
    except BaseException:
      leg.end()
      raise


def collect(workdir: pathlib.Path, seeds: int) -> dict[str, dict[str, dict[int, float]]]:
  """Arm -> column -> seed -> accuracy, of every run that is finished."""
  results: dict[str, dict[str, dict[int, float]]] = {}
  for name in ("base", "pam", *ARMS):
    before = name in ("base", "pam")
    stage = name if before else "pam" if name == "continued_pam" else "srl"
    for seed in range(seeds):
      folder = workdir / f"seed{seed}" / ("start" if before else name)
      if (folder / "results" / f"{stage}.json").exists():
        for column, value in accuracies(folder, stage).items():
          results.setdefault(name, {}).setdefault(column, {})[seed] = value
  return results


def _count(text: str) -> int:
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f"{text}; expected 1 or more")
  return number


def main(arguments: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=_count, default=3)
  parser.add_argument("--jobs", type=_count, default=2, help="runs at a time, one core each")
  parser.add_argument("--arms", default=",".join(ARMS))
  parser.add_argument("--report", action="store_true", help="only the table of what is finished")
  options = parser.parse_args(arguments)
  workdir, chosen = options.workdir, options.arms.split(",")
  unknown = [arm for arm in chosen if arm not in ARMS]
  if unknown:
    expected = ", ".join(ARMS)
    print(f"effect: --arms: unknown {unknown[0]!r}; expected some of {expected}", file=sys.stderr)
    return 1
  if not options.report:
    try:
      with runs.Leg() as leg:
        train(workdir, options.seeds, chosen, options.jobs, leg)
    except runs.Stopped:
      print("stopped; the same command goes on", file=sys.stderr)
      return runs.EXIT_STOPPED
    except (RuntimeError, ValueError) as error:
      print(f"effect: {error}", file=sys.stderr)
      return 1
  results = collect(workdir, options.seeds)
  if not results:
    print(f"effect: {workdir} has no finished run", file=sys.stderr)
    return 1
  command = ["python", "benchmarks/effect.py", *(arguments or sys.argv[1:])]
  summary = {
    "command": shlex.join(command),
    "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    "seconds": {
      f"seed{seed}/{name}": seconds
      for seed in range(options.seeds)
      for name in ("start", *ARMS)
      if (seconds := program(workdir, seed, name).seconds())
    },
    "results": results,
  }
  (workdir / "effect.json").write_text(json.dumps(summary, indent=2) + "\n")
  print(results_table(results))
  return 0


if __name__ == "__main__":
  sys.exit(main())
