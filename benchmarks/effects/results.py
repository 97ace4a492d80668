"""What the finished arms of a study show: accuracies, paired differences, how long it took.

`collect` reads every finished arm. A difference between two arms is over the questions and seeds
that both have: a question's score is its mean over samples and seeds, and the questions are drawn
again (experiment/comparison.py), so that the interval is for these seeds; the differences of the
single seeds stand beside it, with their standard error where there are several. The built-in
corpus gives each seed questions of its own under the same ids: there each counts by itself.
"""

import ast
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.effects import roofline
from benchmarks.effects.arms import ARMS, CONTINUED, SOURCES, mean_and_error
from benchmarks.effects.plan import BEFORE, Arm, Study, metric_lines
from pasmr_jax import Config
from pasmr_jax.experiment.comparison import compare, read_means, read_scores
from pasmr_jax.experiment.origins import source
from pasmr_jax.experiment.result_files import DECODINGS
from pasmr_jax.models.pretrained import load_config

# Metrics of a step of self-feedback that tell what there was to learn from.
SIGNALS = (
  "well_formed_rate",
  "answered_rate",
  "label_rate",
  "vote_confidence",
  "reward",
  "zero_variance_share",
  "translation_number_recall",
  "truncation_rate",
)
_Scores = dict[tuple[str, str], float]  # (language, id of a question) -> 0 to 1


@dataclasses.dataclass(frozen=True)
class Gap:
  """How much more one arm has than another, of the questions that both answered; shares."""

  first: float  # what is subtracted
  second: float
  low: float  # of second - first, 95 %, over questions
  high: float
  shown: bool  # the interval leaves out 0 and enough questions differ
  questions: int
  differing: int  # of them, in any of the languages, that the two do not have right alike
  by_seed: tuple[float, ...]

  @property
  def value(self) -> float:
    return self.second - self.first

  def __str__(self) -> str:
    told = f"{100 * self.value:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"
    return told.replace("-", "−")


@dataclasses.dataclass
class Results:
  """All finished arms of a study."""

  arms: dict[str, list[Arm]]  # name -> its seeds that are finished
  groups: dict[str, tuple[str, ...]]  # trained, unseen, and the pivot by its code -> languages
  sets: tuple[str, ...]
  pivot: str
  refused: dict[tuple[str, int], str]  # (arm, seed) that was made otherwise -> how
  synthetic: frozenset[str] = frozenset()  # sets whose questions are others in each seed

  def seeds(self, name: str) -> list[int]:
    return [arm.seed for arm in self.arms.get(name, ())]

  def measures(self, name: str, tested: str, decoding: str) -> list[dict[str, float]]:
    """All measures of an arm on a set, a seed each; none where it was not decoded so."""
    found = []
    for arm in self.arms.get(name, ()):
      path = arm.answers[tested].with_suffix(".json")
      values = json.loads(path.read_text("utf-8"))
      if decoding in values:
        found.append(values[decoding])
    return found

  def mean(self, name: str, tested: str, decoding: str, measure: str) -> tuple[float, float] | None:
    """Mean over seeds and its standard error of a measure."""
    found = [
      values[measure] for values in self.measures(name, tested, decoding) if measure in values
    ]
    return mean_and_error(found) if found else None

  def accuracy(
    self, name: str, tested: str, decoding: str, group: str
  ) -> tuple[float, float] | None:
    """Mean over a group's languages that the set has, then over seeds, with its error."""
    return self.by_group(name, tested, decoding, group, "accuracy")

  def by_group(
    self, name: str, tested: str, decoding: str, group: str, measure: str
  ) -> tuple[float, float] | None:
    """The same of any measure that there is by language, such as `chrf`."""
    found = []
    for values in self.measures(name, tested, decoding):
      known = [f"{measure}/{code}" for code in self.groups[group] if f"{measure}/{code}" in values]
      if known:
        found.append(float(np.mean([values[one] for one in known])))
    return mean_and_error(found) if found else None

  def asked(self, tested: str) -> dict[tuple[str, int], dict[str, frozenset[str]]]:
    """(arm, seed) -> language -> ids of the questions of a set that it answered."""
    found = {}
    for name, arms in self.arms.items():
      for arm in arms:
        path = _items(arm, tested, DECODINGS[0])
        if not path.exists():
          continue
        by_language: dict[str, set[str]] = {}
        for language, question in _once(_accuracy, path, path.stat().st_mtime_ns):
          by_language.setdefault(language, set()).add(question)
        found[name, arm.seed] = {code: frozenset(ids) for code, ids in by_language.items()}
    return found

  def gap(
    self, first: str, second: str, tested: str, decoding: str, languages: Sequence[str]
  ) -> Gap | None:
    """How much more of these languages' questions `second` has right than `first`."""
    return self._gap(first, second, tested, decoding, languages, _accuracy)

  def recall_gap(self, first: str, second: str, tested: str, code: str) -> Gap | None:
    """The same of the share of a question's numbers that its translation keeps."""
    return self._gap(first, second, tested, "greedy", [code], _number_recall)

  def _gap(self, first, second, tested, decoding, languages, read) -> Gap | None:
    pairs = [
      (one, other)
      for one in self.arms.get(first, ())
      for other in self.arms.get(second, ())
      if one.seed == other.seed
    ]
    scores: dict[int, tuple[_Scores, _Scores]] = {}
    for pair in pairs:
      paths = [_items(arm, tested, decoding) for arm in pair]
      if all(path.exists() for path in paths):
        one, other = (
          _only(_once(read, path, path.stat().st_mtime_ns), languages) for path in paths
        )
        if one.keys() & other.keys():
          scores[pair[0].seed] = one, other
    if not scores:
      return None
    merged = _together if tested in self.synthetic else _mean_scores
    one, other = (merged({seed: pair[side] for seed, pair in scores.items()}) for side in (0, 1))
    found = {gap.name: gap for gap in compare(one, other, self.pivot)}
    codes = {language for language, _ in one.keys() & other.keys()}
    gap = found[codes.pop()] if len(codes) == 1 else found["target"]
    return Gap(
      first=gap.first,
      second=gap.second,
      low=gap.interval.low,
      high=gap.interval.high,
      shown=gap.significant,
      questions=gap.questions,
      differing=gap.differing,
      by_seed=tuple(_difference(*pair) for pair in scores.values()),
    )

  def saturation(self) -> list[tuple[int, float]]:
    """Development accuracy of PAM by step, the mean over seeds."""
    return self.curve("pam", "pam", "development/target_accuracy")

  def curve(self, name: str, stage: str, metric: str) -> list[tuple[int, float]]:
    """A metric by step, the mean over the seeds that have it."""
    values: dict[int, list[float]] = {}
    for arm in self.arms.get(name, ()):
      for line in metric_lines(arm.folder, stage):
        if metric in line:
          values.setdefault(line["step"], []).append(line[metric])
    return [(step, float(np.mean(found))) for step, found in sorted(values.items())]


def collect(study: Study, trained: Sequence[str]) -> Results:
  """Reads what is finished, whichever arms and seeds the newest leg was asked for.

  Args:
    study: which study.
    trained: languages that PAM learned from.
  """
  config = study.configuration()
  arms: dict[str, list[Arm]] = {}
  refused: dict[tuple[str, int], str] = {}
  for name in (*BEFORE, *ARMS):
    for seed in study.seeds():
      if name in ARMS and not (study.workdir / f"seed{seed}" / name).exists():
        continue  # not begun; how long one of them is follows from the pivot's run
      try:
        arm = study.arm(name, seed)
        if arm.finished():
          arms.setdefault(name, []).append(arm)
      except ValueError as error:
        refused[name, seed] = str(error)
  groups = {
    "trained": tuple(code for code in config.languages if code in trained),
    "unseen": tuple(code for code in config.languages if code not in trained),
    config.pivot: (config.pivot,),
  }
  return Results(
    arms=arms,
    groups={name: codes for name, codes in groups.items() if codes},
    sets=tuple(study.scale.sets),
    pivot=config.pivot,
    refused=refused,
    synthetic=frozenset(
      name
      for name, sources in study.scale.sets.items()
      if any(
        one.startswith("synthetic:")
        for one in (ast.literal_eval(sources) if sources else config.data.test)
      )
    ),
  )


def throughput(results: Results, config: Config) -> list[dict[str, Any]]:
  """Medians over the steps of each arm: seconds by phase, tokens a second, and peak memory.

  Where all ran on the same devices, whose roofline is known, and the model is at hand, tokens a
  second also as shares of it.
  """
  rows = []
  for name, arms in results.arms.items():
    stage = "srl" if name in SOURCES else "pam" if name in ("pam", *CONTINUED) else None
    lines = [line for arm in arms for line in metric_lines(arm.folder, stage)] if stage else []
    lines = [line for line in lines if "time/step" in line]
    if not lines:
      continue
    row: dict[str, Any] = {"arm": name, "steps": len(lines)}
    for key in ("time/", "throughput/", "memory/", "response_length"):
      for metric in sorted({metric for line in lines for metric in line if metric.startswith(key)}):
        known = [line[metric] for line in lines if metric in line]
        row[metric] = float(np.median(known))
    rows.append(row)
  devices = {tuple(_kinds(record)) for record in _records(results)}
  if len(devices) != 1 or not config.model.pretrained:
    return rows
  try:
    model = load_config(source(config.model))
  except FileNotFoundError:  # a report may be written where the weights are not
    return rows
  model = dataclasses.replace(model, dtype=config.model.dtype)
  return roofline.beside(rows, devices.pop(), model, config)


def signals(results: Results) -> list[dict[str, Any]]:
  """What self-feedback had to learn from: means over the steps of each arm of it, and its seeds."""
  rows = []
  for name, arms in results.arms.items():
    lines = [line for arm in arms for line in metric_lines(arm.folder, "srl") if "reward" in line]
    if name not in SOURCES or not lines:
      continue
    means = {  # over the steps that have it: translations may be none
      key: float(np.mean(known))
      if (known := [line[key] for line in lines if key in line])
      else None
      for key in SIGNALS
    }
    rows.append({"arm": name, "steps": len(lines), **means})
  return rows


def _records(results: Results) -> list[dict[str, Any]]:
  """run.json of every arm that has one."""
  paths = [arm.folder / "run.json" for arms in results.arms.values() for arm in arms]
  return [json.loads(path.read_text("utf-8")) for path in paths if path.exists()]


def _kinds(record: Mapping[str, Any]) -> list[str]:
  return [device["kind"] for device in record["devices"]]


def machines(results: Results) -> list[str]:
  """Devices, system and versions that the arms' last starts name, each once."""
  return list(dict.fromkeys(map(_machine, _records(results))))


def _machine(record: Mapping[str, Any]) -> str:
  kinds = _kinds(record)
  versions = ", ".join(f"{name} {version}" for name, version in record["code"].items())
  return f"{len(kinds)} x {kinds[0]}, {record['system']}; {versions}"


def _items(arm: Arm, tested: str, decoding: str) -> pathlib.Path:
  """The answers of an arm to a set's questions."""
  return arm.answers[tested].with_name(f"{arm.answers[tested].name}_{decoding}.jsonl")


@functools.cache
def _once(read: Callable[[pathlib.Path], _Scores], path: pathlib.Path, changed: int) -> _Scores:
  """What is read of a file as long as it does not change: each gap asks again."""
  del changed
  return read(path)


def _accuracy(path: pathlib.Path) -> _Scores:
  return read_scores(path, None)


def _number_recall(path: pathlib.Path) -> _Scores:
  """Recall of each question; a response without a translation keeps none of its numbers."""
  return read_means(path, lambda item: item["number_recall"] or 0.0)


def _only(scores: _Scores, languages: Sequence[str]) -> _Scores:
  return {key: value for key, value in scores.items() if key[0] in languages}


def _mean_scores(scores: Mapping[int, _Scores]) -> _Scores:
  """Mean over seeds of the questions that all have."""
  shared = set.intersection(*(set(one) for one in scores.values()))
  return {key: float(np.mean([one[key] for one in scores.values()])) for key in sorted(shared)}


def _together(scores: Mapping[int, _Scores]) -> _Scores:
  """The questions of all seeds, each seed's apart."""
  return {
    (language, f"{seed}/{name}"): value
    for seed, found in scores.items()
    for (language, name), value in found.items()
  }


def _difference(first: _Scores, second: _Scores) -> float:
  """Of the mean over languages."""
  shared = first.keys() & second.keys()
  by_language: dict[str, list[float]] = {}
  for key in shared:
    by_language.setdefault(key[0], []).append(second[key] - first[key])
  return float(np.mean([np.mean(values) for values in by_language.values()]))
