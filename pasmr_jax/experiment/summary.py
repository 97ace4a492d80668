"""What a run tells the person at the terminal: the start-up summary and the tables of results."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pasmr_jax import Config
from pasmr_jax.experiment.questions import pools_used
from pasmr_jax.experiment.result_files import DECODINGS
from pasmr_jax.experiment.scoring import SCORINGS
from pasmr_jax.experiment.setup import Run, parameter_count
from pasmr_jax.parallel.mesh import replication_notes
from pasmr_jax.parallel.processes import process_count, process_index
from pasmr_jax.parallel.rules import TRAINING


def print_start(run: Run) -> None:
  """Model, devices, batch arithmetic, languages, pools, and where things are written."""
  if process_index() != 0:
    return
  config, model = run.config, run.model
  count = parameter_count(run.origins.abstract_params())
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
  stops = [run.tokenizer.vocabulary.token_of(token) for token in run.tokenizer.stop_ids]
  rows.append(("responses", f"learned to end with {stops[0]}, sampled up to {' or '.join(stops)}"))
  for stage in config.stages:
    rows.append((stage, _arithmetic(stage, config)))
  notes = replication_notes(model, run.mesh, TRAINING)
  rows += [("not split", note) for note in notes]
  rows.append(("pools", ", ".join(f"{name} {len(run.pools[name])}" for name in pools_used(config))))
  rows.append(("written to", str(run.workdir)))
  table = Table(show_header=False, box=None)
  for name, text in rows:
    table.add_row(name, escape(text))
  Console(stderr=True).print(table)


def _arithmetic(stage: str, config: Config) -> str:
  settings = config[stage]
  if stage != "srl":
    parts = f"{settings.microbatches} microbatch(es)"
    tokens = settings.batch_size * settings.max_length
    return f"{settings.batch_size} rows x {settings.max_length} = {tokens} tokens a step, {parts}"
  rows = settings.questions * settings.group_size
  used = settings.update_rows or rows
  samples, updates = config.feedback.pivot_samples, settings.inner_batches * settings.inner_epochs
  return (
    f"{settings.questions} questions x {settings.group_size} = {rows} responses, up to"
    f" {rows * samples} pivot solutions, {used} rows learned from in {updates}"
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
  for decoding in DECODINGS:
    table = Table(title=f"test accuracy, {decoding}, in %")
    for column in ("after", *languages, "targets"):
      table.add_column(column, justify="left" if column == "after" else "right")
    for name, measures in found.items():
      if decoding not in measures:
        continue
      cells = [measures[decoding].get(f"accuracy/{language}") for language in languages]
      cells.append(measures[decoding].get("target_accuracy"))
      table.add_row(name, *("-" if cell is None else f"{100 * cell:.1f}" for cell in cells))
    if table.row_count:
      console.print(table)


# Measures by language: the column's head, the measure's name, and what it is multiplied by.
_COLUMNS = (
  ("cut short", "truncated", 100),
  ("tokens", "tokens", 1),
  ("language", "language/reasoning", 100),
  ("of translation", "language/translation", 100),
  ("chrF++", "chrf", 1),
  ("numbers", "number_recall", 100),
  ("pivot agrees", "pivot_agreement", 100),
)


def print_measures(workdir: pathlib.Path, config: Config, name: str) -> None:
  """Everything in `results/NAME.json`: a table a decoding, languages down, in %."""
  if process_index() != 0:
    return
  found = json.loads((workdir / "results" / f"{name}.json").read_text("utf-8"))
  console = Console(width=120)
  for decoding, measures in found.items():
    console.print(_measures_table(f"{name}, {decoding}, in %", config, measures))
    evaluation = config.evaluation
    rules = [
      f"{rule[len('rule/') :]} {100 * share:.1f}"
      for rule, share in measures.items()
      if rule.startswith("rule/")
    ]
    console.print(f"answers found by: {', '.join(rules)}")
    others = [
      f"{rule} {100 * measures[f'scoring/{rule}/target']:.1f}"
      for rule in SCORINGS
      if f"scoring/{rule}/target" in measures
    ]
    if others:
      console.print(f"targets by {evaluation.scoring} above; by other rules: {', '.join(others)}")
    for key, value in measures.items():
      if key.startswith("cut_off_questions/"):
        language = key.rpartition("/")[2]
        console.print(
          f"{language} without the {value:.0f} questions that the set cuts off:"
          f" {100 * measures[f'whole_questions/{language}']:.1f}"
        )


def _measures_table(title: str, config: Config, measures: Mapping[str, float]) -> Table:
  order = [config.pivot, *config.languages]
  languages = [code for code in order if f"accuracy/{code}" in measures]
  majority = next((key[: key.index("/")] for key in measures if key.startswith("maj@")), None)
  columns = [column for column in _COLUMNS if any(k.startswith(f"{column[1]}/") for k in measures)]
  table = Table(title=title)
  table.add_column("")
  heads = ["asked", "accuracy", "95 %", *([majority] if majority else [])]
  for head in (*heads, *(head for head, _, _ in columns)):
    table.add_column(head, justify="right")
  averages = [
    key for key in ("target", "high_resource", "low_resource", "all")
    if f"{key}_accuracy" in measures
  ]  # fmt: skip
  for row in (*languages, *averages):
    accuracy = measures.get(f"accuracy/{row}", measures.get(f"{row}_accuracy"))
    low, high = (measures[f"interval/{row}/{side}"] for side in ("low", "high"))
    cells = [
      _cell(measures.get(f"questions/{row}"), 1, 0),
      _cell(accuracy, 100),
      f"{100 * low:.1f}-{100 * high:.1f}",
    ]
    if majority:
      cells.append(_cell(measures.get(f"{majority}/{row}"), 100))
    cells += [_cell(measures.get(f"{key}/{row}"), scale) for _, key, scale in columns]
    table.add_row(row.replace("_", " "), *cells, end_section=row == languages[-1])
  return table


def _cell(value: float | None, scale: float, places: int = 1) -> str:
  return "-" if value is None else f"{scale * value:.{places}f}"
