"""Which slice does each model need, and how fast can it be there? The table of docs/tpu.md.

    python -m benchmarks.plans --out=runs/plans.json

For each model and TPU generation, every program of the model's own configuration is compiled with
little effort for one slice after the other, from the first that could hold what is known by shape,
until all fit (mesh.tensor doubled, up to 8, where weights are too many while sampling). There the
programs that --timed names are compiled once more, as training compiles them; times of others are
marked with a ~. A row is written as soon as it is known. Rows that --out has already stay in it,
and answers are kept in --cache, so the table can be made in parts.
"""

import argparse
import dataclasses
import importlib
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import record
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
TIMED = ("srl update", "decode")
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


def row(entry: Mapping[str, Any]) -> list[str]:
  """The cells of one model on one generation; ~ marks what was compiled with little effort."""
  model, generation, report = (entry[key] for key in ("model", "generation", "report"))
  if report is None:
    return [model, f"{generation}: none up to {CHIPS[generation].slices[-1]}"] + ["-"] * 8
  timed = {program["program"]: program for program in entry["timed"]}
  programs = [timed.get(program["program"], program) for program in report["programs"]]
  worst = max(programs, key=lambda program: program["peak_bytes"])
  refused = "" if all(program["fits"] for program in programs) else ", does not fit"
  parts = {part["part"]: part for program in programs for part in program.get("parts", ())}
  mark = {name: "" if name in timed else "~" for name in parts}
  update, decode = parts.get("srl update"), parts.get("decode")
  mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items() if size > 1)
  step = sum(seconds for _, seconds, _ in step_parts({"programs": programs}))
  quick = mark.get("srl update")
  return [
    model,
    report["topology"],
    mesh or "one chip",
    f"{worst['peak_bytes'] / GIB:.1f} of {report['limit_bytes'] / GIB:.1f},"
    f" {worst['program']}{refused}",
    f"{quick}{update['floor_seconds']:.2f}" if update else "-",
    f"{quick}{update['tokens_per_second']:,.0f}" if update else "-",
    update["bound"] if update else "-",
    f"{quick}{update['model_flops_share']:.0%}" if update else "-",
    f"{mark['decode']}{decode['tokens_per_second']:,.0f}, {decode['bound']}" if decode else "-",
    f"{max(mark.values())}{step:.1f}" if update and decode else "-",
  ]


def weighed_row(model: str, generation: str, options: list[dict[str, Any]]) -> list[str]:
  """The cells of the smallest slice whose programs hold no more than there is."""
  option = next((one for one in options if one["fits"]), None)
  if option is None:
    return [model, f"{generation}: none up to {CHIPS[generation].slices[-1]}", "-", "-"]
  limit = CHIPS[generation].hbm_limit / GIB
  held = f"{option['held_bytes'] / GIB:.1f} of {limit:.1f}, {option['program']}"
  return [model, option["topology"], str(option["tensor"]), held]


def found(planning: Planning, generation: str, timed: Sequence[str]) -> dict[str, Any]:
  """The smallest slice of a generation, why smaller ones do not fit, and what takes time there."""
  report, refused = dataclasses.replace(planning, quick=True).smallest(generation)
  programs: list[Any] = []
  if report is not None:
    config: Any = planning.config.copy_and_resolve_references()
    config.mesh.tensor = report["mesh"]["tensor"]
    for name in timed:
      there = dataclasses.replace(planning, config=config, programs=(name,))
      programs += there.plan(report["topology"])["programs"]
  return {"generation": generation, "report": report, "refused": refused, "timed": programs}


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
    "--programs", nargs="*", default=[], help="compile these alone, such as decode or 'srl update'"
  )
  parser.add_argument(
    "--timed", nargs="*", choices=TIMED, default=TIMED, help="compiled again with full effort"
  )
  parser.add_argument("--by_shape", action="store_true", help="compile nothing: see docs/tpu.md")
  arguments = parser.parse_args()
  entries = {}
  if arguments.out and arguments.out.exists():
    known = json.loads(arguments.out.read_text("utf-8"))["rows"]
    entries = {(entry["model"], entry["generation"]): entry for entry in known}
  weighed = []
  for generation, model in itertools.product(arguments.generations, arguments.models):
    name, size = MODELS[model]
    config = importlib.import_module(f"configs.{name}").get_config(size)
    planning = Planning(config, arguments.cache.expanduser(), programs=tuple(arguments.programs))
    if arguments.by_shape:
      weighed.append(weighed_row(model, generation, planning.weigh(generation)))
      continue
    entry = {"model": model} | found(planning, generation, arguments.timed)
    entries[model, generation] = entry
    print("| " + " | ".join(row(entry)) + " |", flush=True)
    order = [key for key in itertools.product(MODELS, CHIPS) if key in entries]
    record.write(
      arguments.out, "benchmarks.plans", "no TPU", {"rows": [entries[key] for key in order]}
    )
  if arguments.by_shape:
    print(table(WEIGHED, sorted(weighed, key=lambda cells: list(MODELS).index(cells[0]))))
  else:
    rows = [row(entries[key]) for key in itertools.product(MODELS, CHIPS) if key in entries]
    print("\n" + table(HEADINGS, rows))


if __name__ == "__main__":
  main()
