"""Is one checkpoint better than another? The difference of two evaluations, by language.

    python -m pasmr_jax.experiment.comparison results/pam_greedy.jsonl results/srl_greedy.jsonl

Both must have answered the same questions; those that only one has are counted and left out. The
difference of each question (of its mean over samples) is what is resampled: a paired bootstrap,
which is narrower than two intervals side by side because hard questions are hard for both.

A gap is called significant if its 95 % interval leaves out 0 and `MIN_DIFFERING` questions or more
differ. With many languages about one in twenty is significant by chance: look at the averages
first.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pasmr_jax.experiment.measures import averaged
from pasmr_jax.experiment.scoring import SCORINGS
from pasmr_jax.experiment.statistics import Bootstrap, Interval

# So few may all differ to one side by chance: 5 do in 2 * 0.5**5 = 6 % of cases, 6 in 3 %. The
# bootstrap knows nothing of this: it calls 4 gains among 250 questions significant.
MIN_DIFFERING = 6

_Key = tuple[str, str]  # language and id of a question


@dataclasses.dataclass(frozen=True)
class Difference:
  """How much more of one language's, or one average's, questions the second run has right."""

  name: str
  questions: int
  differing: int  # questions, in whatever language, that the two do not have right alike
  first: float  # accuracies, 0 to 1
  second: float
  interval: Interval  # of second - first

  @property
  def significant(self) -> bool:
    return self.interval.excludes_zero() and self.differing >= MIN_DIFFERING


def read_scores(path: pathlib.Path, scoring: str | None) -> dict[_Key, float]:
  """The share of each question's samples that is right, from an items file.

  Args:
    path: a `..._greedy.jsonl` or `..._sampled.jsonl` of an evaluation.
    scoring: one of `scoring.SCORINGS`; None takes the rule that the evaluation was made with.

  Raises:
    ValueError: a line that is no item, naming it; or no line.
  """

  def correct(item: Mapping[str, Any]) -> bool:
    return bool(item["correct"] if scoring is None else item["scores"][scoring])

  return read_means(path, correct)


def read_means(
  path: pathlib.Path, value: Callable[[Mapping[str, Any]], float]
) -> dict[_Key, float]:
  """The mean of a value of each question's answers, from an items file.

  Raises:
    ValueError: a line that is no item, naming it; or no line.
  """
  values: dict[_Key, list[float]] = collections.defaultdict(list)
  with path.open(encoding="utf-8") as lines:
    for number, line in enumerate(lines, start=1):
      try:
        item: Mapping[str, Any] = json.loads(line)
        values[item["language"], item["id"]].append(value(item))
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}:{number}: expected an evaluated item: {error!r}") from error
  if not values:
    raise ValueError(f"{path}: no items; expected a line for each answer")
  return {key: float(np.mean(samples)) for key, samples in values.items()}


def compare(
  first: Mapping[_Key, float], second: Mapping[_Key, float], pivot: str
) -> list[Difference]:
  """Differences by language, then averaged, of the questions that both have.

  Raises:
    ValueError: they have none in common.
  """
  shared = sorted(first.keys() & second.keys())
  if not shared:
    raise ValueError("the two evaluations have no question in common; expected the same questions")
  ids = {name: row for row, name in enumerate(sorted({name for _, name in shared}))}
  languages = sorted({language for language, _ in shared})
  tables = np.full((2, len(ids), len(languages)), np.nan)
  for language, name in shared:
    place = ids[name], languages.index(language)
    for side, scores in enumerate((first, second)):
      tables[(side, *place)] = scores[language, name]
  accuracies = np.nanmean(tables, axis=1)
  gains = tables[1] - tables[0]
  bootstrap = Bootstrap(gains)
  differences = []
  for name, chosen in {
    **{code: [code] for code in languages},
    **averaged(languages, pivot),
  }.items():
    columns = [languages.index(language) for language in chosen]
    differences.append(
      Difference(
        name=name,
        questions=sum(language in chosen for language, _ in shared),
        differing=int((np.nan_to_num(gains[:, columns]) != 0).any(axis=1).sum()),
        first=float(accuracies[0, columns].mean()),
        second=float(accuracies[1, columns].mean()),
        interval=bootstrap.interval(columns),
      )
    )
  return differences


def table(differences: Sequence[Difference], names: tuple[str, str]) -> Table:
  """The differences as they are printed, in percentage points."""
  printed = Table(title=f"{names[1]} against {names[0]}, accuracy in %")
  for head in ("", "questions", names[0], names[1], "difference", "95 % interval", "significant"):
    printed.add_column(head, justify="left" if head in ("", "significant") else "right")
  averages = {"target", "high_resource", "low_resource", "all"}
  last = max(place for place, one in enumerate(differences) if one.name not in averages)
  for place, one in enumerate(differences):
    low, high = one.interval.low, one.interval.high
    better = "higher" if low > 0 else "lower"
    printed.add_row(
      one.name.replace("_", " "),
      str(one.questions),
      f"{100 * one.first:.1f}",
      f"{100 * one.second:.1f}",
      f"{100 * (one.second - one.first):+.1f}",
      f"{100 * low:+.1f} to {100 * high:+.1f}",
      better if one.significant else "",
      end_section=place == last,
    )
  return printed


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    prog="python -m pasmr_jax.experiment.comparison", description=(__doc__ or "").splitlines()[0]
  )
  parser.add_argument("first", type=pathlib.Path, help="items of the run to compare with, .jsonl")
  parser.add_argument("second", type=pathlib.Path, help="items of the run that may be better")
  parser.add_argument("--scoring", choices=SCORINGS, help="rule, if not that of each evaluation")
  parser.add_argument("--pivot", default="en", help="language that target averages leave out")
  parser.add_argument("--json", type=pathlib.Path, help="also write the differences to this file")
  chosen = parser.parse_args(arguments)
  try:
    first, second = (read_scores(path, chosen.scoring) for path in (chosen.first, chosen.second))
    differences = compare(first, second, chosen.pivot)
  except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")
  names = (chosen.first.stem, chosen.second.stem)
  if names[0] == names[1]:
    names = (str(chosen.first), str(chosen.second))
  Console(width=None if sys.stdout.isatty() else 120).print(table(differences, names))
  apart = len(first.keys() ^ second.keys())
  if apart:
    print(f"{apart} questions that only one of them has are left out")
  if chosen.json:
    lines = [dataclasses.asdict(one) | {"significant": one.significant} for one in differences]
    chosen.json.write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
