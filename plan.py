"""Does a run fit a TPU slice, or GPUs, and how fast can it be? Compiles its programs without them.

    python plan.py --config=configs/pasmr_gemma.py:9b --topology=v5e:4x8
    python plan.py --config=configs/pasmr_gemma.py:1b --topology=auto
    python plan.py --config=configs/pasmr_gemma.py:1b --topology=v5e:2x4 --max_batch
    python plan.py --config=configs/pasmr_gemma.py:9b --topology=v5e:4x8 --num_slices=2
    python plan.py --config=configs/pasmr_gemma.py:270m --topology=h100:1

Exit code 0: it fits. 2: it does not, and which keys would help is said. 1: it cannot be planned.
docs/tpu.md says what the figures mean and what they leave out; docs/gpu.md what GPUs need.
"""

import json
import pathlib
import sys
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from pasmr_jax import Config
from pasmr_jax.experiment.planning.cost import CHIPS
from pasmr_jax.experiment.planning.plan import MOST_ROWS, PlanError, Planning
from pasmr_jax.experiment.planning.table import advice, render

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
TOPOLOGY = flags.DEFINE_string(
  "topology",
  "auto",
  "Slice such as v5e:4x8, GPUs such as h100:1, or 'auto': the smallest slice of each TPU generation"
  " that fits.",
)
NUM_SLICES = flags.DEFINE_integer(
  "num_slices", 1, "Slices of that topology, joined by the data-centre network.", lower_bound=1
)
OUT = flags.DEFINE_string("out", None, "Also write the reports here, as JSON.")
MAX_BATCH = flags.DEFINE_bool("max_batch", False, "Find the largest microbatch that fits instead.")
FILL = flags.DEFINE_float(
  "fill", 1.0, "Mean length of prompt and response over their limits, for packing.", 0.01, 1.0
)
QUICK = flags.DEFINE_bool("quick", False, "Compile with little effort: faster, less exact.")
PROGRAMS = flags.DEFINE_list("programs", [], "Plan these alone, such as decode or 'srl update'.")
CACHE = flags.DEFINE_string("cache", "~/.cache/pasmr_jax/plans", "Folder of earlier answers.")


def show_max_batch(planning: Planning, topology: str) -> tuple[Any, bool]:
  """Prints the largest microbatches of one topology."""
  found = planning.max_batch(topology)
  parts = found["row_parts"]
  print(
    f"{topology}: the most rows that fit, to an eighth, on each device of {parts} that share rows,"
    " and over all"
  )
  for key, rows in found["max_batch"].items():
    what = "decoded together" if key == "rollout.slots" else "in a microbatch"
    more = ", or more: no more were tried" if rows >= MOST_ROWS else ""
    print(f"  {key}: {rows} and {rows * parts} rows {what}{more}")
  return found, all(found["max_batch"].values())


def show_plan(planning: Planning, topology: str) -> tuple[Any, bool]:
  """Prints the report of one topology."""
  report = planning.plan(topology)
  print(render(report))
  for line in advice(report, planning.config):
    print(f"\n{line}")
  return report, report["fits"]


def show_smallest(planning: Planning) -> tuple[Any, bool]:
  """Prints the smallest slice of each generation that fits."""
  reports = {}
  for generation in CHIPS:
    report, refused = planning.smallest(generation)
    reports[generation] = {"report": report, "refused": refused}
    for topology, reason in refused:
      print(f"not {topology}: {reason}")
    if report is None:
      print(f"{generation}: no slice fits\n")
    else:
      print(f"{generation}: the smallest slice that fits is {report['topology']}\n")
      print(render(report), end="\n\n")
  return reports, any(one["report"] is not None for one in reports.values())


def main(_):
  config: Config = CONFIG.value
  if OUT.value:  # before hours of compiling
    pathlib.Path(OUT.value).parent.mkdir(parents=True, exist_ok=True)
    if pathlib.Path(OUT.value).is_dir():
      print(f"plan.py: --out={OUT.value} is a folder; expected a file", file=sys.stderr)
      sys.exit(1)
  cache = pathlib.Path(CACHE.value).expanduser()
  planning = Planning(
    config, cache, FILL.value, QUICK.value, NUM_SLICES.value, tuple(PROGRAMS.value)
  )
  try:
    if TOPOLOGY.value == "auto":
      if MAX_BATCH.value:
        raise PlanError("--max_batch needs a slice: --topology=v5e:4x8")
      found, fits = show_smallest(planning)
    elif MAX_BATCH.value:
      found, fits = show_max_batch(planning, TOPOLOGY.value)
    else:
      found, fits = show_plan(planning, TOPOLOGY.value)
  except PlanError as error:
    print(f"plan.py: {error}", file=sys.stderr)
    sys.exit(1)
  if OUT.value:
    pathlib.Path(OUT.value).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
  sys.exit(0 if fits else 2)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  app.run(main)
