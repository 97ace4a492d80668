"""Chooses the study's hyper-parameters on the development questions, and writes the search down.

    WORKDIR/search/pam-0 ...   one run for each point of the scale's grid
    WORKDIR/search.json        every point with what it scored, and the one that was chosen

Stage 1 is searched first; stage 2 then starts from the best of its runs. What is compared is
`development/target_accuracy` of a stage's last step (never of its best one: only annealed runs
compare). A search run is tested on development questions too: test questions are not read. Stage 2
is searched with the arm `pivot`, and all arms of self-feedback take what was found.
"""

import itertools
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.effects import arms
from benchmarks.effects.plan import Study, metric_lines
from pasmr_jax.experiment.reliability.storage import write_whole

METRIC = "development/target_accuracy"
NAME = "search.json"


def points(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
  """Every combination of the grid's values."""
  for values in itertools.product(*grid.values()):
    yield dict(zip(grid, values, strict=True))


def read(workdir: pathlib.Path) -> dict[str, Any] | None:
  """What a finished search wrote down; None if there was no search.

  Raises:
    ValueError: the file is broken.
  """
  path = workdir / NAME
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text("utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is broken: {error}; remove it and search again") from error


def chosen(workdir: pathlib.Path) -> dict[str, Any]:
  """The settings that a finished search chose; none if there was no search."""
  stages = (read(workdir) or {"stages": {}})["stages"]
  return {key: value for stage in stages.values() for key, value in stage["chosen"].items()}


def search(
  study: Study, leg: arms.Leg, environment: Mapping[str, str], *, free: bool = False
) -> dict[str, Any]:
  """Runs what is not finished of the search, and writes it down.

  Args:
    study: which study.
    leg: ends it.
    environment: variables of its runs.
    free: remove the runs' checkpoints when nothing starts from them any more; metrics stay.

  Returns:
    What was written.

  Raises:
    Stopped: the leg ended first.
    RuntimeError: a run failed.
  """
  config = study.configuration()
  # The development questions stand in for the tests that end every run.
  quiet = {
    "data.test": repr(tuple(config.data.development)),
    "evaluation.test_questions": 1,
    "evaluation.sampled": False,
    "evaluation.samples": 1,
    "log.rollouts_every": 0,
  }
  # What is searched is not yet chosen, also where an earlier search has.
  searched = {key for grid in study.scale.grid.values() for key in grid}
  fixed = {key: value for key, value in study.settings.items() if key not in searched}
  stages: dict[str, Any] = {}
  taken: dict[str, Any] = {}
  told = False
  pam = study.workdir / "search" / "pam-0"
  for stage, grid in study.scale.grid.items():
    tried = []
    for number, point in enumerate(points(grid)):
      folder = study.workdir / "search" / f"{stage}-{number}"
      settings = {**fixed, **quiet, **taken, "seed": 0, "data.seed": 0, **point}
      if stage == "srl":
        settings |= arms.after_pam("pivot", pam, config.srl.steps, config)
      asked = ("evaluation.development_questions",)  # what is compared
      program = arms.Program(folder=folder, config=study.config, settings=settings, also=asked)
      if not told and not program.ended_well():  # else nothing else can be chosen any more
        _tell_finished(study)
        told = True
      arms.run(program, leg, environment)
      if free and stage == "srl":
        _free(folder)
      last = [line for line in metric_lines(folder, stage) if METRIC in line][-1]
      tried.append({"settings": point, "accuracy": last[METRIC], "step": last["step"]})
    best = max(range(len(tried)), key=lambda place: tried[place]["accuracy"])  # the first of equals
    stages[stage] = {"tried": tried, "chosen": tried[best]["settings"]}
    taken |= tried[best]["settings"]
    if stage == "pam":
      pam = study.workdir / "search" / f"pam-{best}"
      for number in range(len(tried)):
        if free and number != best:
          _free(study.workdir / "search" / f"pam-{number}")
  found = {
    "metric": METRIC,
    "questions_a_language": config.evaluation.development_questions,
    "stages": stages,
  }
  write_whole(study.workdir / NAME, json.dumps(found, indent=2) + "\n")
  if free:
    _free(pam)
  return found


def _tell_finished(study: Study) -> None:
  """Says which arms will not have what is chosen, unless they have it already."""
  finished = [
    str(folder.relative_to(study.workdir))
    for seed in study.seeds()
    for name in ("pam", *arms.ARMS)
    if arms.Program(
      folder=(folder := study.workdir / f"seed{seed}" / name), config=study.config, settings={}
    ).ended_well()
  ]
  if finished:
    print(
      f"--search: {', '.join(finished)} are finished with the settings of before; if the search"
      " chooses others, they are refused",
      file=sys.stderr,
      flush=True,
    )


def _free(folder: pathlib.Path) -> None:
  shutil.rmtree(folder / "checkpoints", ignore_errors=True)
