"""Reads what a run leaves in its work directory, for the report.

`read_run` gathers three things: the curves of `metrics.jsonl`, the test results of
`results/*.json` and the samples of `rollouts.jsonl`. A report is also wanted of a run that still
goes on, was killed, or comes from an older version: so nothing here is required, whatever cannot
be read is left out, and a notice says what and where. Model text is passed on as it is;
page.py escapes it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pasmr_jax.experiment.reliability import untaught
from pasmr_jax.stages import STAGES

MAX_NOTICES = 10  # of steps whose numbers are not finite
Points = list[tuple[int, float]]  # (step, value), as written

# Why a response may have failed: the key in the page's data and what the reader is shown.
FAILURES = {
  "malformed": "not well-formed",
  "truncated": "truncated",
  "language": "wrong language",
  "unanswered": "no answer",
}
# The numbers of a response, in the order in which they are shown.
TERMS = (
  "reward",
  "agreement",
  "understanding",
  "format",
  "language",
  "length",
  "advantage",
  "understanding_advantage",
)


@dataclasses.dataclass(frozen=True)
class Run:
  """One work directory, read."""

  name: str  # the arm: the folder's name, with as much of its path as tells it from the others
  curves: dict[str, dict[str, Points]]  # stage -> metric -> points, stages in order of training
  results: dict[str, dict[str, dict[str, float]]]  # result -> decoding -> measure -> value
  rollouts: list[dict[str, Any]]  # one a question, as `rollout` lays it out
  notices: tuple[str, ...]  # what could not be read

  @property
  def of_stages(self) -> dict[str, dict[str, dict[str, float]]]:
    """The results of stages, which follow one another; others may be of other questions."""
    return {name: found for name, found in self.results.items() if name in (*STAGES, *self.curves)}


def read_runs(workdirs: Sequence[pathlib.Path]) -> list[Run]:
  """Reads every directory.

  Raises:
    NotADirectoryError: one of them is none, naming it.
    ValueError: none is given, or one twice.
  """
  if not workdirs:
    raise ValueError("no work directory; expected at least one")
  for workdir in workdirs:
    if not workdir.is_dir():
      raise NotADirectoryError(
        f"{workdir}: no such directory; expected the work directory of a run"
      )
  if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
    raise ValueError(f"a work directory is given twice: {', '.join(map(str, workdirs))}")
  names = short_names(workdirs)
  return [read_run(workdir, name) for workdir, name in zip(workdirs, names, strict=True)]


def short_names(workdirs: Sequence[pathlib.Path]) -> list[str]:
  """Folder names, each with so many of its parents that no two are alike."""
  parts = [workdir.resolve().parts for workdir in workdirs]
  depth = 1
  while len({part[-depth:] for part in parts}) < len(parts):
    depth += 1
  return ["/".join(part[-depth:]) for part in parts]


def read_run(workdir: pathlib.Path, name: str) -> Run:
  """Reads one directory; what is missing is empty."""
  notices: list[str] = []
  curves: dict[str, dict[str, Points]] = {}
  skipped = not_finite = 0
  for line in _json_lines(workdir / "metrics.jsonl", notices):
    stage, step = line.get("stage"), line.get("step")
    if not isinstance(stage, str) or not isinstance(step, int):
      continue
    infinite = []
    notices += _alarms(stage, step, line)
    skipped += bool(_number(line.get("skipped_updates")))
    for metric, value in line.items():
      number = _number(value)
      if isinstance(value, float) and number is None:
        infinite.append(metric)
      elif metric != "step" and number is not None:
        curves.setdefault(stage, {}).setdefault(metric, []).append((step, number))
    if infinite and not_finite < MAX_NOTICES:
      not_finite += 1
      notices.append(f"metrics.jsonl: {stage} step {step}: not finite: {', '.join(infinite)}")
  if skipped:
    notices.append(f"metrics.jsonl: {skipped} steps with an update that was skipped (not finite)")
  return Run(
    name=name,
    curves=curves,
    results=_read_results(workdir / "results", tuple(curves), notices),
    rollouts=[rollout(line) for line in _json_lines(workdir / "rollouts.jsonl", notices)],
    notices=tuple(notices),
  )


def _alarms(stage: str, step: int, line: Mapping[str, Any]) -> Iterator[str]:
  """The collapse alarms of a line, and that it taught nothing, each in a sentence."""
  for metric, value in line.items():
    lost = _number(value)
    if metric.startswith("alarm/") and lost is not None:
      name = metric.removeprefix("alarm/")
      yield (
        f"ALARM: {stage} step {step}: agreement rose while {name} lost {100 * lost:.0f} % of its"
        " best (docs/operations.md)"
      )
    if metric.startswith("untaught/") and lost is not None:
      said = untaught.sentence(metric.removeprefix("untaught/"), round(lost))
      yield f"{stage} step {step}: {said} (docs/operations.md)"


def _json_lines(path: pathlib.Path, notices: list[str]) -> Iterator[dict[str, Any]]:
  """The objects of a JSON lines file; lines that hold none are counted in a notice."""
  if not path.is_file():
    return
  broken: list[int] = []
  count, torn = 0, False
  with path.open("rb") as file:
    for count, line in enumerate(file, 1):
      try:
        value = json.loads(line)
      except (ValueError, RecursionError):
        value = None
      if isinstance(value, dict):
        yield value
      elif not line.endswith(b"\n"):
        torn = True
      elif line.strip():
        broken.append(count)
  if torn:
    notices.append(f"{path.name}: the last line ({count}) is incomplete and was left out")
  if broken:
    where = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
    notices.append(f"{path.name}: {len(broken)} line(s) are not JSON objects: {where}")


def _read_results(
  folder: pathlib.Path, stages: Sequence[str], notices: list[str]
) -> dict[str, dict[str, dict[str, float]]]:
  """Results by name: the stages in order of training, then the others by name."""
  found = {}
  place = {stage: number for number, stage in enumerate(stages)}
  paths = folder.glob("*.json") if folder.is_dir() else ()
  for path in sorted(paths, key=lambda path: (place.get(path.stem, len(place)), path.stem)):
    try:
      by_decoding = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
      notices.append(f"results/{path.name}: not JSON ({error})")
      continue
    measured = {}
    for decoding, values in by_decoding.items() if isinstance(by_decoding, dict) else ():
      pairs = values.items() if isinstance(values, dict) else ()
      numbers = {measure: _number(value) for measure, value in pairs}
      kept = {measure: number for measure, number in numbers.items() if number is not None}
      if kept:
        measured[decoding] = kept
    if measured:
      found[path.stem] = measured
    else:
      notices.append(f"results/{path.name}: holds no numbers by decoding (greedy, sampled)")
  return found


def rollout(line: Mapping[str, Any]) -> dict[str, Any]:
  """A line of rollouts.jsonl as the page shows it; strings, numbers, lists and None only.

  The K solutions of a translation that several responses share are in the file once for each of
  them; here responses point to their translation, and equal solutions are counted.
  """
  translations: list[dict[str, Any]] = []
  places: dict[str, int] = {}
  responses = []
  for response in _objects(line.get("responses")):
    text = _text(response.get("translation"))
    place = None
    if text is not None:
      if text not in places:
        places[text] = len(translations)
        translations.append({"text": text, "solutions": _counted_solutions(response)})
      place = places[text]
    responses.append(
      {
        "translation": place,
        "reasoning": _text(response.get("reasoning")) or "",
        "answer": _text(response.get("answer")),
        "label": _text(response.get("label")),
        "confidence": _number(response.get("confidence")),
        "labelled": response.get("labelled") is not False,
        "tokens": _number(response.get("tokens")),
        "terms": [_number(response.get(term)) for term in TERMS],
        "failures": failures(response),
      }
    )
  return {
    "stage": _text(line.get("stage")) or "",
    "step": _number(line.get("step")) or 0,
    "id": _text(line.get("id")) or "",
    "language": _text(line.get("language")) or "",
    "pivot": _text(line.get("pivot")) or "",
    "question": _text(line.get("question")) or "",
    "label": _text(line.get("pooled_label")),
    "confidence": _number(line.get("pooled_confidence")),
    "translations": translations,
    "responses": responses,
  }


def failures(response: Mapping[str, Any]) -> list[str]:
  """The `FAILURES` of a response. Languages count as wrong if either text is in another one."""
  consistent = (response.get("reasoning_consistent"), response.get("translation_consistent"))
  language = _number(response.get("language"))
  found = {
    "malformed": response.get("well_formed") is False,
    "truncated": response.get("truncated") is True,
    # Older runs wrote the mean of the two only.
    "language": False in consistent or (language is not None and language < 1),
    "unanswered": response.get("answer") is None,
  }
  return [name for name in FAILURES if found[name]]


def _counted_solutions(response: Mapping[str, Any]) -> list[list[Any]]:
  """[answer, text, count] of each distinct pivot solution, in order of first appearance."""
  answers = _list(response.get("pivot_answers"))
  texts = _list(response.get("pivot_solutions"))
  texts += [""] * (len(answers) - len(texts))
  counts: dict[tuple[str | None, str], int] = {}
  for answer, text in zip(answers, texts, strict=False):
    pair = (_text(answer), _text(text) or "")
    counts[pair] = counts.get(pair, 0) + 1
  return [[answer, text, count] for (answer, text), count in counts.items()]


def _number(value: Any) -> float | None:
  """A finite number, else None: JSON has no other, and a truth value is none."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  # An integer of any length is valid JSON; beyond a float's range it is no measurement.
  return float(value) if abs(value) < 1e300 else None


def _text(value: Any) -> str | None:
  return value if isinstance(value, str) else None


def _list(value: Any) -> list[Any]:
  return list(value) if isinstance(value, list) else []


def _objects(value: Any) -> list[dict[str, Any]]:
  return [one for one in _list(value) if isinstance(one, dict)]
