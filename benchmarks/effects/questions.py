"""The study's questions, each with its differences, a chart and a sentence.

`answers` asks them in order. A sentence says no more than the intervals: a difference is shown
where its interval leaves out 0 and enough questions differ, else it says that none is shown.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from benchmarks.effects import charts
from benchmarks.effects.arms import CONTINUED, SOURCES
from benchmarks.effects.results import Gap, Results
from pasmr_jax.text.languages import LANGUAGES

CALLED = {
  "base": "base model",
  "pam": "PAM (stage 1)",
  "pivot": "SRL, pivot feedback",
  "gold": "SRL, gold reward",
  "target_majority": "SRL, own target majority",
  "random": "SRL, random reward",
  "shuffled": "SRL, shuffled labels",
  "continued_pam": "continued PAM, equal steps",
  "continued_pam_tokens": "continued PAM, equal tokens",
}
POINTS = "percentage points"
_WITHOUT_PIVOT = ("pam", *CONTINUED, "target_majority", "random", "shuffled")


@dataclasses.dataclass(frozen=True)
class Answer:
  """One question of the study."""

  anchor: str  # of its chart's file
  question: str
  rows: Mapping[str, Gap]
  sentence: str
  chart: str = ""  # SVG


def percent(found: tuple[float, float] | None, scale: float = 100.0) -> str:
  """Mean and standard error over seeds, where there are several."""
  if found is None:
    return ""
  mean, error = found
  return f"{scale * mean:.1f}" + ("" if math.isnan(error) else f" ± {scale * error:.1f}")


def verdict(gap: Gap) -> str:
  if not gap.shown:
    return "No difference is shown"
  return "Higher" if gap.value > 0 else "Lower"


def answers(results: Results) -> list[Answer]:
  """What the finished arms say to each question, on the first set, greedy, unless it says so."""
  found = [_mapping(results), _beats(results), _gold(results), _languages(results)]
  found.append(_english(results))
  return [*found, _translation(results), _vote(results)]


def _mapping(results: Results) -> Answer:
  rows = {}
  for tested in results.sets:
    for group, codes in results.groups.items():
      gap = results.gap("base", "pam", tested, "greedy", codes)
      if gap is not None:
        rows[f"{tested}, {group}"] = gap
  return _answer(
    "mapping", "What does PAM change?", "PAM minus the base model, each asked in its own way", rows
  )


def _gaps(results: Results, pairs: Mapping[str, tuple[str, str]], codes: Sequence[str]):
  """Label -> gap, of the pairs of arms that are finished."""
  gaps = {
    label: results.gap(*pair, results.sets[0], "greedy", codes) for label, pair in pairs.items()
  }
  return {label: gap for label, gap in gaps.items() if gap is not None}


def _answer(anchor: str, question: str, said: str, rows: Mapping[str, Gap]) -> Answer:
  """The chart of differences, and `said`, which names them, with what the intervals show."""
  if not rows:
    return Answer(anchor, question, {}, "The arms that it compares are not finished.")
  by_verdict: dict[str, list[str]] = {}
  for label, gap in rows.items():
    by_verdict.setdefault(verdict(gap), []).append(label)
  told = ". ".join(f"{found}: {'; '.join(labels)}" for found, labels in by_verdict.items())
  drawn = [(label, 100 * gap.value, 100 * gap.low, 100 * gap.high) for label, gap in rows.items()]
  return Answer(anchor, question, rows, f"{said}. {told}.", charts.intervals(said, POINTS, drawn))


def trained(results: Results) -> tuple[str, ...]:
  return results.groups.get("trained", ())


def _beats(results: Results) -> Answer:
  pairs = {CALLED[name]: (name, "pivot") for name in _WITHOUT_PIVOT}
  rows = _gaps(results, pairs, trained(results))
  return _answer(
    "feedback",
    "Does the pivot's feedback beat no feedback, the model's own majority, random and shuffled"
    " labels?",
    "SRL with pivot feedback minus each control, trained languages",
    rows,
  )


def _gold(results: Results) -> Answer:
  pairs = {CALLED[name]: (name, "gold") for name in ("pivot", "pam")}
  rows = _gaps(results, pairs, trained(results))
  said = "SRL with gold reward minus pivot feedback and PAM, trained languages"
  return _answer("gold", "How far is it from gold?", said, rows)


def _languages(results: Results) -> Answer:
  codes = [code for name in ("trained", "unseen") for code in results.groups.get(name, ())]
  rows = {}
  for code in codes:
    gap = results.gap("pam", "pivot", results.sets[0], "greedy", [code])
    if gap is not None:
      never = "" if code in trained(results) else " (never trained)"
      rows[f"{LANGUAGES[code].name}{never}"] = gap
  said = "SRL with pivot feedback minus PAM, by language (one in twenty differs by chance)"
  return _answer("languages", "Which languages gain?", said, rows)


def _english(results: Results) -> Answer:
  pairs = {CALLED[name]: ("pam", name) for name in (*SOURCES, *CONTINUED)}
  rows = _gaps(results, pairs, (results.pivot,))
  name = LANGUAGES[results.pivot].name
  return _answer("pivot-language", f"Does {name} lose?", f"Each arm minus PAM, {name}", rows)


def _translation(results: Results) -> Answer:
  rows = {}
  for code in (*trained(results), *results.groups.get("unseen", ())):
    gap = results.recall_gap("pam", "pivot", results.sets[0], code)
    if gap is not None:
      rows[LANGUAGES[code].name] = gap
  answer = _answer(
    "translation",
    "Is the translation better?",
    "Numbers of the question kept by its translation, pivot feedback minus PAM",
    rows,
  )
  told = ""
  for group in results.groups:
    if group == results.pivot:
      continue
    quality = [
      f"{CALLED[name]} {percent(found, 1.0)}"
      for name in results.arms
      if (found := results.by_group(name, results.sets[0], "greedy", group, "chrf")) is not None
    ]
    if quality:
      told += f" chrF++ against the reference, {group} languages: {', '.join(quality)}."
  return dataclasses.replace(answer, sentence=answer.sentence + told)


def _vote(results: Results) -> Answer:
  question = "Does the vote stay right?"
  lines, told = {}, []
  for name in SOURCES:
    if name == "random":
      continue  # a coin has no labels
    points = results.curve(name, "srl", "development/label_accuracy")
    if points:
      lines[CALLED[name]] = points
      told.append(f"{CALLED[name]}: {', '.join(f'{100 * v:.0f} % at step {s}' for s, v in points)}")
  if not lines:
    return Answer("vote", question, {}, "No label of a finished arm of self-feedback was checked.")
  chart = charts.curves("Labels that are right, development questions", lines)
  said = "Share of the labels that are gold, at the steps where a response had a label: "
  return Answer("vote", question, {}, said + "; ".join(told) + ".", chart)
