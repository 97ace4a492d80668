"""What a run tells the person at the terminal: the start-up summary and the table of accuracies."""

import json
import pathlib
from collections.abc import Sequence

import jax
from rich.console import Console
from rich.table import Table

from pasmr_jax import Config
from pasmr_jax.experiment.setup import Run, parameter_count, pools_used
from pasmr_jax.parallel.processes import process_count, process_index


def print_start(run: Run) -> None:
  """Model, devices, batch arithmetic, languages, pools, and where things are written."""
  if process_index() != 0:
    return
  config, model = run.config, run.model
  count = parameter_count(run.abstract_params())
  devices = jax.devices()
  mesh = " x ".join(f"{size} {name}" for name, size in run.mesh.shape.items())
  source = config.model.pretrained or "random initialisation"
  rows: list[tuple[str, str]] = [
    ("model", f"{source}, {count / 1e6:,.1f} M parameters, {model.num_layers} layers"),
    ("precision", f"{model.dtype} compute, {model.param_dtype} parameters"),
    (
      "devices",
      f"{len(devices)} x {devices[0].device_kind} ({mesh}), {process_count()} process(es)",
    ),
    ("languages", f"{', '.join(config.languages)}; pivot {config.pivot}"),
    ("stages", ", ".join(f"{stage} ({config[stage].steps} steps)" for stage in config.stages)),
  ]
  for stage in config.stages:
    rows.append((stage, _arithmetic(stage, config)))
  rows.append(("pools", ", ".join(f"{name} {len(run.pools[name])}" for name in pools_used(config))))
  rows.append(("written to", str(run.workdir)))
  table = Table(show_header=False, box=None)
  for name, text in rows:
    table.add_row(name, text)
  Console(stderr=True).print(table)


def _arithmetic(stage: str, config: Config) -> str:
  settings = config[stage]
  if stage != "srl":
    parts = f"{settings.microbatches} microbatch(es)"
    tokens = settings.batch_size * settings.max_length
    return f"{settings.batch_size} rows x {settings.max_length} = {tokens} tokens a step, {parts}"
  rows = settings.questions * settings.group_size
  used = settings.update_rows or rows
  samples = config.feedback.pivot_samples
  return (
    f"{settings.questions} questions x {settings.group_size} = {rows} responses, up to"
    f" {rows * samples} pivot solutions, {used} rows learned from in {settings.inner_batches}"
    f" update(s); feedback {config.feedback.source}, teacher {config.feedback.teacher}"
  )


def print_accuracy(workdir: pathlib.Path, config: Config, names: Sequence[str]) -> None:
  """Test accuracy in % per language of each `results/NAME.json`; greedy, then sampled."""
  if process_index() != 0:
    return
  results = workdir / "results"
  found = {name: json.loads((results / f"{name}.json").read_text("utf-8")) for name in names}
  languages = (config.pivot, *config.languages)
  console = Console(width=max(80, 16 + 8 * (len(languages) + 1)))
  for way in ("greedy", "sampled"):
    table = Table(title=f"test accuracy, {way}, in %")
    for column in ("after", *languages, "targets"):
      table.add_column(column, justify="left" if column == "after" else "right")
    for name, ways in found.items():
      if way not in ways:
        continue
      cells = [ways[way].get(f"accuracy/{language}") for language in languages]
      cells.append(ways[way].get("target_accuracy"))
      table.add_row(name, *("-" if cell is None else f"{100 * cell:.1f}" for cell in cells))
    if table.row_count:
      console.print(table)
