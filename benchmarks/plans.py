"""Which slice does each model need, and how fast can it be there? The table of docs/tpu.md.

    python -m benchmarks.plans --out=runs/plans.json

For each model and TPU generation `plan.py` finds the smallest slice on which every program of the
model's own configuration fits (mesh.tensor doubled, up to 8, where weights are too many while
sampling). With `--programs "srl update"` sampling is not compiled, and fits if what it holds by
shape does: minutes a row instead of the better part of an hour. A row is written as soon as it is
known, and answers are kept in `--cache`, so a stopped run goes on where it was.
"""

import argparse
import importlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from pasmr_jax.experiment.planning.cost import CHIPS, GIB
from pasmr_jax.experiment.planning.plan import Planning
from pasmr_jax.experiment.planning.table import step_parts

MODELS = {  # name -> configuration file and its argument
  "Gemma 3 270M": ("pasmr_gemma", "270m"),
  "Gemma 3 1B": ("pasmr_gemma", "1b"),
  "Gemma 3 4B": ("pasmr_gemma", "4b"),
  "Gemma 3 12B": ("pasmr_gemma", "12b"),
  "Gemma 2 9B": ("pasmr_gemma", "9b"),
  "Gemma 2 27B": ("pasmr_gemma", "gemma2-27b"),
  "Llama 3.1 8B": ("pasmr_llama", "8b"),
  "Qwen 3 8B": ("pasmr_qwen", "qwen3-8b"),
}
HEADINGS = (
  "model",
  "smallest slice",
  "mesh",
  "peak GiB",
  "SRL update, s",
  "its tokens/s",
  "bound by",
  "of peak FLOP/s",
  "decode tokens/s, bound by",
  "SRL step, s",
)
WEIGHED = ("model", "no slice smaller than", "mesh.tensor", "holds by shape, GiB")


def row(model: str, generation: str, report: Mapping[str, Any] | None) -> list[str]:
  """The cells of one model on one generation; '-' is what was not compiled."""
  if report is None:
    return [model, f"{generation}: none up to {CHIPS[generation].slices[-1]}"] + ["-"] * 8
  worst = max(report["programs"], key=lambda program: program["peak_bytes"])
  parts = {part["part"]: part for program in report["programs"] for part in program["parts"]}
  update, decode = parts["srl update"], parts.get("decode")
  mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items() if size > 1)
  step = sum(seconds for _, seconds, _ in step_parts(report))
  return [
    model,
    report["topology"],
    mesh or "one chip",
    f"{worst['peak_bytes'] / GIB:.1f} of {report['limit_bytes'] / GIB:.1f}, {worst['program']}",
    f"{update['floor_seconds']:.2f}",
    f"{update['tokens_per_second']:,.0f}",
    update["bound"],
    f"{update['model_flops_share']:.0%}",
    f"{decode['tokens_per_second']:,.0f}, {decode['bound']}" if decode else "-",
    f"{step:.1f}" if decode else "-",
  ]


def weighed_row(model: str, generation: str, options: list[dict[str, Any]]) -> list[str]:
  """The cells of the smallest slice whose programs hold no more than there is."""
  option = next((one for one in options if one["fits"]), None)
  if option is None:
    return [model, f"{generation}: none up to {CHIPS[generation].slices[-1]}", "-", "-"]
  limit = CHIPS[generation].hbm_limit / GIB
  held = f"{option['held_bytes'] / GIB:.1f} of {limit:.1f}, {option['program']}"
  return [model, option["topology"], str(option["tensor"]), held]


def table(headings: tuple[str, ...], rows: list[list[str]]) -> str:
  lines = [headings, ("---",) * len(headings), *rows]
  return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, help="JSON of all reports")
  parser.add_argument("--cache", type=pathlib.Path, default="~/.cache/pasmr_jax/plans")
  parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
  parser.add_argument("--generations", nargs="*", choices=CHIPS, default=list(CHIPS))
  parser.add_argument(
    "--programs", nargs="*", default=[], help="compile these alone; 'srl update' has to be one"
  )
  parser.add_argument("--by_shape", action="store_true", help="compile nothing: see docs/tpu.md")
  arguments = parser.parse_args()
  rows, reports = [], []
  for model in arguments.models:
    name, size = MODELS[model]
    config = importlib.import_module(f"configs.{name}").get_config(size)
    programs = tuple(arguments.programs)
    planning = Planning(config, arguments.cache.expanduser(), programs=programs)
    for generation in arguments.generations:
      if arguments.by_shape:
        rows.append(weighed_row(model, generation, planning.weigh(generation)))
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
        continue
      report, refused = planning.smallest(generation)
      rows.append(row(model, generation, report))
      reports.append(
        {"model": model, "generation": generation, "report": report, "refused": refused}
      )
      print("| " + " | ".join(rows[-1]) + " |", flush=True)
      if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(reports, indent=1) + "\n", "utf-8")
  print("\n" + table(WEIGHED if arguments.by_shape else HEADINGS, rows))


if __name__ == "__main__":
  main()
