"""The report's sections of training: curves stage by stage, and the numbers of its end."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from pasmr_jax.experiment.reporting import charts
from pasmr_jax.experiment.reporting.elements import (
  escape,
  in_order,
  language_name,
  nothing,
  short,
  table,
)
from pasmr_jax.experiment.reporting.reading import Points, Run

# Numbers of the end of training are means over so many logged steps.
LAST_STEPS = 10
BY_LANGUAGE = "development/accuracy/"


@dataclasses.dataclass(frozen=True)
class Chart:
  """Metrics that are read together."""

  title: str
  metrics: tuple[tuple[str, str], ...]  # metric -> what it is called
  share: bool = False
  logarithmic: bool = False
  needs: str = ""  # a metric without which the chart says nothing
  together: bool = False  # with several runs: one chart a run, not one a metric


CHARTS = (
  Chart(
    "Reward",
    (
      ("reward", "reward"),
      ("reward/agreement", "agreement"),
      ("reward/understanding", "understanding"),
      ("reward/format", "format"),
      ("reward/language", "language"),
    ),
  ),
  Chart(
    "Agreement against held-out accuracy",
    (
      ("reward/agreement", "agreement with the vote"),
      ("development/target_accuracy", "held-out accuracy, targets"),
      ("development/sampled/target_accuracy", "held-out accuracy, targets, sampled"),
      ("development/label_accuracy", "labels that are right"),
    ),
    share=True,
    needs="reward/agreement",
    together=True,
  ),
  Chart("Loss", (("loss", "loss"),), logarithmic=True, needs="loss"),
  Chart(
    "Held-out accuracy",
    (
      ("development/target_accuracy", "targets"),
      ("development/sampled/target_accuracy", "targets, sampled"),
      ("development/pivot_accuracy", "pivot"),
      ("development/sampled/pivot_accuracy", "pivot, sampled"),
    ),
    share=True,
  ),
  Chart("Held-out accuracy by language", (), share=True, together=True),  # filled from the run
  Chart("KL to the reference", (("kl", "KL to the reference"),)),
  Chart(
    "Lengths in tokens",
    (("response_length", "response"), ("translation_length", "translation")),
  ),
  Chart(
    "Language consistency",
    (
      ("language/reasoning", "reasoning in the target language"),
      ("language/translation", "translation in the pivot"),
      ("translation_number_recall", "numbers the translation keeps"),
    ),
    share=True,
  ),
  Chart(
    "Well-formed, answered, truncated",
    (
      ("well_formed_rate", "well-formed"),
      ("answered_rate", "answered"),
      ("truncation_rate", "truncated"),
    ),
    share=True,
  ),
  Chart(
    "Votes",
    (
      ("label_rate", "responses with a label"),
      ("vote_confidence", "confidence"),
      ("zero_variance_share", "groups with equal rewards"),
    ),
    share=True,
  ),
  Chart("Entropy of the answers, nats", (("answer_entropy", "entropy of the answers, nats"),)),
  Chart(
    "Entropy of the policy, nats a token",
    (("entropy", "estimated from what was drawn"), ("exact_entropy", "over the vocabulary")),
  ),
  Chart("Gradient norm", (("gradient_norm", "gradient norm"),), logarithmic=True),
  Chart(
    "Throughput, tokens a second",
    (
      ("throughput/rollout_tokens_per_second", "rollout"),
      ("throughput/update_tokens_per_second", "update"),
    ),
  ),
  Chart(
    "Share of time",
    tuple(
      (f"time_share/{phase}", phase) for phase in ("rollout", "pivot", "score", "update", "host")
    ),
    share=True,
  ),
)


def curves(runs: Sequence[Run], readable: list[dict[str, Any]]) -> str:
  stages = in_order(stage for run in runs for stage in run.curves)
  if not stages:
    return nothing("No step has been logged yet: metrics.jsonl is empty or missing.")
  parts = []
  for stage in stages:
    steps = max(points[-1][0] for run in runs for points in run.curves.get(stage, {}).values())
    figures = []
    for chart in CHARTS:
      for title, lines in _drawings(chart, stage, runs):
        figure, values = charts.line_chart(
          title,
          lines,
          max(steps, 1),
          share=chart.share,
          from_zero=chart.together,
          logarithmic=chart.logarithmic,
        )
        figures.append(figure)
        readable.append(values)
    opened = " open" if stage == stages[-1] else ""
    parts.append(
      f'<details class="stage"{opened}><summary><h3>Stage {escape(stage)}</h3>'
      f" <span>{steps} steps</span></summary>"
      f'<div class="charts">{"".join(figures)}</div></details>'
    )
  return (
    "<p>A line is the mean of neighbouring steps, the band behind it their range. Point at a chart,"
    " or focus it and use the arrow keys, to read values off it.</p>" + "".join(parts)
  )


def _drawings(chart: Chart, stage: str, runs: Sequence[Run]) -> list[tuple[str, list[charts.Line]]]:
  """The charts a `Chart` becomes: title and lines, those without a point left out.

  One run: all metrics in one chart. Several: a chart a metric, a line a run, whose colour is the
  same in all charts; or, where metrics must be seen together, a chart a run.
  """
  found = {run.name: run.curves.get(stage, {}) for run in runs}
  metrics = chart.metrics or _by_language(runs, stage)
  if len(runs) == 1 or chart.together:
    drawings = [
      (
        chart.title if len(runs) == 1 else f"{name}: {_lower(chart.title)}",
        [_line(label, values.get(metric), place) for place, (metric, label) in enumerate(metrics)],
      )
      for name, values in found.items()
      if not chart.needs or chart.needs in values
    ]
  else:
    drawings = [
      (
        chart.title if _lower(chart.title) == label else f"{chart.title}: {label}",
        [_line(name, found[name].get(metric), place) for place, name in enumerate(found)],
      )
      for metric, label in metrics
    ]
  kept = [(title, [line for line in lines if line.points]) for title, lines in drawings]
  return [(title, lines) for title, lines in kept if lines]


def _lower(title: str) -> str:
  return title[0].lower() + title[1:]


def _line(label: str, points: Points | None, colour: int) -> charts.Line:
  return charts.Line(label, points or [], colour)


def _by_language(runs: Sequence[Run], stage: str) -> tuple[tuple[str, str], ...]:
  metrics = {metric for run in runs for metric in run.curves.get(stage, {})}
  found = sorted(metric for metric in metrics if metric.startswith(BY_LANGUAGE))
  return tuple((metric, language_name(metric.removeprefix(BY_LANGUAGE))) for metric in found)


def numbers(runs: Sequence[Run]) -> str:
  stages = in_order(stage for run in runs for stage in run.curves)
  if not stages:
    return nothing("Nothing yet.")
  parts = []
  for stage in stages:
    metrics = in_order(metric for run in runs for metric in run.curves.get(stage, {}))
    body = [
      [metric, *(_at_the_end(metric, run.curves.get(stage, {}).get(metric)) for run in runs)]
      for metric in metrics
    ]
    caption = f"Stage {stage}: mean of the last {LAST_STEPS} logged steps; evaluations: the last"
    parts.append(
      f'<details class="stage"><summary><h3>Stage {escape(stage)}</h3>'
      f" <span>{len(metrics)} metrics</span></summary>"
      f"{table(caption, ['metric', *(run.name for run in runs)], body)}</details>"
    )
  return "".join(parts)


def _at_the_end(metric: str, points: Points | None) -> str:
  if not points:
    return "-"
  # Evaluations, and what else is far apart: their mean would be of another model.
  span = points[-1][0] - points[0][0]
  sparse = len(points) < 2 or span / (len(points) - 1) > 10
  alone = sparse or metric.startswith(("development/", "alarm/", "untaught/"))
  last = points[-1:] if alone else points[-LAST_STEPS:]
  return short(math.fsum(value for _, value in last) / len(last))
