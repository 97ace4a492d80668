"""The report's section of test accuracy: charts by language, controls side by side, tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pasmr_jax.experiment.reporting.elements import (
  in_order,
  language_name,
  nothing,
  short_or_dash,
  table,
)
from pasmr_jax.experiment.reporting.reading import Run
from pasmr_jax.experiment.reporting.shares import Share, bar_chart, dot_chart

ACCURACY = "accuracy/"
# Averages over languages, as results name them (`target_accuracy`, `tokens/target`), and what they
# are called here. `pivot_accuracy` is no average but has a column of its own too.
AVERAGES = {
  "target": "targets",
  "high_resource": "high-resource",
  "low_resource": "low-resource",
  "all": "all",
}
PIVOT = "pivot"
Measures = Mapping[str, float]


def accuracy(runs: Sequence[Run]) -> str:
  """Before and after for each run, runs side by side, and every number the results hold."""
  if not any(run.results for run in runs):
    return nothing("No test results yet: results/*.json is written at the end of each stage.")
  parts = []
  for decoding in _decodings(runs):
    figures = _side_by_side(runs, decoding) if len(runs) > 1 else []
    for run in runs:
      found = [
        (name, result[decoding]) for name, result in run.of_stages.items() if decoding in result
      ]
      others = [
        (name, result[decoding])
        for name, result in run.results.items()
        if decoding in result and name not in run.of_stages
      ]
      for title, drawn, joined in (
        (_before_and_after(found), found, True),
        ("Accuracy by language, other evaluations", others, False),
      ):
        if len(drawn) > 1 or (drawn and len(runs) == 1):
          title = f"{title}, {decoding}"
          title = title if len(runs) == 1 else f"{run.name}: {title[0].lower() + title[1:]}"
          figures.append(_dots(title, drawn, joined=joined))
    parts.append("".join(figures))
  # The few charts of one run share rows; with several runs each decoding begins a new one.
  grids = parts if len(runs) > 1 else ["".join(parts)]
  drawn = "".join(f'<div class="charts">{figures}</div>' for figures in grids)
  return drawn + _accuracy_table(runs) + _averaged_table(runs) + _language_tables(runs)


def _before_and_after(found: Sequence[tuple[str, Any]]) -> str:
  if len(found) < 2:
    return "Accuracy by language"
  return f"Accuracy by language, before ({found[0][0]}) and after ({found[-1][0]})"


def _decodings(runs: Sequence[Run]) -> list[str]:
  return in_order(name for run in runs for result in run.results.values() for name in result)


def _side_by_side(runs: Sequence[Run], decoding: str) -> list[str]:
  """Every result's mean over target languages and pivot accuracy; last results by language."""
  figures = []
  for name, title in (("target", "Target languages"), (PIVOT, "Pivot language")):
    bars = {
      label: share
      for label, result in _labelled(runs)
      if (share := _share(result.get(decoding, {}), name)) is not None
    }
    if bars:
      figures.append(bar_chart(f"{title}, {decoding}", bars))
  # Runs without a result keep their place, so that each has one colour in all charts.
  latest = [(run.name, list(run.of_stages.values())[-1] if run.of_stages else {}) for run in runs]
  last = [(name, result.get(decoding, {})) for name, result in latest]
  return [*figures, _dots(f"After the last stage, {decoding}", last, joined=False)]


def _labelled(runs: Sequence[Run]) -> list[tuple[str, dict[str, dict[str, float]]]]:
  """Every result of every run; a run with one result is called by its name alone."""
  return [
    (run.name if len(run.results) == 1 else f"{run.name} {name}", result)
    for run in runs
    for name, result in run.results.items()
  ]


def _share(values: Measures, name: str) -> Share | None:
  """The accuracy of a language, an average or the pivot, with its interval."""
  value = values.get(f"{ACCURACY}{name}", values.get(f"{name}_accuracy"))
  if value is None:
    return None
  low, high = (values.get(f"interval/{name}/{end}") for end in ("low", "high"))
  return Share(value, None if low is None or high is None else (low, high))


def _dots(title: str, found: Sequence[tuple[str, Measures]], joined: bool) -> str:
  languages = _languages(values for _, values in found)
  names = {name: called for name, called in AVERAGES.items() if name != "all"}
  names |= {code: language_name(code) for code in languages}
  series = {name: [_share(values, row) for row in names] for name, values in found}
  known = [place for place in range(len(names)) if any(shares[place] for shares in series.values())]
  if not known:
    return ""
  called = list(names.values())
  kept = {name: [shares[place] for place in known] for name, shares in series.items()}
  return dot_chart(title, [called[place] for place in known], kept, joined)


def _languages(results: Iterable[Measures]) -> list[str]:
  measures = in_order(measure for values in results for measure in values)
  return sorted(m.removeprefix(ACCURACY) for m in measures if m.startswith(ACCURACY))


def _accuracy_table(runs: Sequence[Run]) -> str:
  rows = _result_rows(runs)
  names = {code: language_name(code) for code in _languages(values for _, values in rows)}
  names |= AVERAGES | {PIVOT: "pivot"}
  known = [name for name in names if any(_share(values, name) for _, values in rows)]
  body = [
    [*labels, *("-" if share is None else str(share) for share in shares)]
    for labels, values in rows
    for shares in [[_share(values, name) for name in known]]
  ]
  head = [*_labels(runs), *(names[name] for name in known)]
  return table("Test accuracy in %", head, body, labels=len(_labels(runs)))


def _others(values: Measures) -> dict[str, float]:
  """What the table of accuracy does not hold."""
  averages = {f"{name}_accuracy" for name in (*AVERAGES, PIVOT)}
  return {
    measure: value
    for measure, value in values.items()
    if measure not in averages and not measure.startswith((ACCURACY, "interval/"))
  }


def _averaged_table(runs: Sequence[Run]) -> str:
  """Measures that are of no one language, and averages over target languages of those that are."""
  rows = [(labels, _others(values)) for labels, values in _result_rows(runs)]
  columns = {*AVERAGES, *_languages(values for _, values in _result_rows(runs))}
  measures = [
    measure
    for measure in in_order(measure for _, values in rows for measure in values)
    if measure.rpartition("/")[2] not in columns or measure.endswith("/target")
  ]
  if not measures:
    return ""
  head = ["measure", *(" ".join(labels) for labels, _ in rows)]
  body = [
    [
      measure.replace("/target", ", targets"),
      *(short_or_dash(values.get(measure)) for _, values in rows),
    ]
    for measure in measures
  ]
  return table("Other test measures", head, body)


def _language_tables(runs: Sequence[Run]) -> str:
  """For each result what is known by language: `tokens/de` is row `tokens`, column `de`."""
  tables = []
  for labels, values in _result_rows(runs):
    names = {code: language_name(code) for code in _languages([values])} | AVERAGES
    split = [measure.rpartition("/") for measure in _others(values)]
    rows = in_order(row for row, _, name in split if name in names)
    known = [name for name in names if any(f"{row}/{name}" in values for row in rows)]
    if rows:
      body = [
        [row, *(short_or_dash(values.get(f"{row}/{name}")) for name in known)] for row in rows
      ]
      head = ["measure", *(names[name] for name in known)]
      tables.append(table(", ".join(labels), head, body))
  if not tables:
    return ""
  return (
    '<details class="stage"><summary><h3>Measures by language</h3>'
    f" <span>{len(tables)} results</span></summary>{''.join(tables)}</details>"
  )


def _labels(runs: Sequence[Run]) -> list[str]:
  return ["decoding", "run", "after"] if len(runs) > 1 else ["decoding", "after"]


def _result_rows(runs: Sequence[Run]) -> list[tuple[list[str], dict[str, float]]]:
  """(labels, values) of every result: one decoding after the other."""
  return [
    ([decoding, run.name, name] if len(runs) > 1 else [decoding, name], result[decoding])
    for decoding in _decodings(runs)
    for run in runs
    for name, result in run.results.items()
    if decoding in result
  ]
