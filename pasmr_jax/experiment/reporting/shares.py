"""Draws shares by row as inline SVG: markers (accuracy by language) and bars (one number a run).

Colours are the classes of charts.py; every marker also has a shape of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from pasmr_jax.experiment.reporting.charts import COLOURS, TOP, WIDTH
from pasmr_jax.experiment.reporting.elements import escape, percent

ROW_LABEL = 112  # width of the labels of a dot or bar chart
# Half sizes of the marker shapes, drawn around 0, 0.
_MARKERS = (
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",  # circle
  "M-3.6 -3.6h7.2v7.2h-7.2z",  # square
  "M0 -5.2l5.2 5.2l-5.2 5.2l-5.2 -5.2z",  # diamond
  "M0 -5l4.8 8.6h-9.6z",  # triangle
  "M0 5l4.8 -8.6h-9.6z",  # triangle upside down
  "M-1.5 -5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",  # plus
  "M-5 -2.2h10v4.4h-10z",  # bar lying
  "M-2.2 -5h4.4v10h-4.4z",  # bar standing
)


@dataclasses.dataclass(frozen=True)
class Share:
  """A share, 0..1, with the interval it was measured to, where there is one."""

  value: float
  interval: tuple[float, float] | None = None

  def __str__(self) -> str:
    if self.interval is None:
      return percent(self.value)
    return f"{percent(self.value)} ({percent(self.interval[0])}–{percent(self.interval[1])})"


def dot_chart(
  title: str, rows: Sequence[str], series: Mapping[str, Sequence[Share | None]], joined: bool
) -> str:
  """Shares by row (a language), one marker a series, as a `figure` element.

  Args:
    title: the caption.
    rows: what each row is called.
    series: name -> its share in each row, None where it has none; whiskers show the intervals.
    joined: draw a line from a row's first marker to its last: before and after.
  """
  spread = max(2.0, min(6.0, 24.0 / max(len(series), 1)))  # between the markers of a row
  row_height = 14 + spread * max(len(series), 1)
  height = TOP + row_height * len(rows) + 22
  parts = [_share_axis(height - 22)]
  for number, row in enumerate(rows):
    middle = TOP + row_height * (number + 0.5)
    parts.append(_row(row, middle, number, row_height))
    marks = []
    for place, (name, shares) in enumerate(series.items()):
      share = shares[number]
      if share is not None:
        down = middle + (place - (len(series) - 1) / 2) * spread
        marks.append((_share_x(share.value), down))
        parts.append(_marker(share, down, place, f"{row}, {name}: {share} %"))
    if joined and len(marks) > 1:
      (x1, y1), (x2, y2) = marks[0], marks[-1]
      parts.append(f'<path class="joined" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>')
  legend = "".join(
    f'<li><svg class="swatch s{place % COLOURS}" viewBox="-7 -7 14 14" aria-hidden="true">'
    f'<path class="mark" d="{_MARKERS[place % len(_MARKERS)]}"/></svg>{escape(name)}</li>'
    for place, (name, shares) in enumerate(series.items())
    if any(shares)
  )
  return _figure(title, f'<ul class="legend">{legend}</ul>', parts, height)


def bar_chart(title: str, rows: Mapping[str, Share]) -> str:
  """Shares by row (a result of a run) as bars with their number, as a `figure` element."""
  row_height = 24.0
  height = TOP + row_height * len(rows) + 22
  parts = [_share_axis(height - 22)]
  for number, (row, share) in enumerate(rows.items()):
    middle = TOP + row_height * (number + 0.5)
    parts.append(_row(row, middle, number, row_height))
    end = _share_x(share.value)
    # The number stands inside the bar where there is room, else behind bar and whisker.
    inside = share.value > 0.2
    beside = ROW_LABEL if inside else _share_x(max((share.value, *(share.interval or ()))))
    parts.append(
      f'<g class="s0"><path class="bar" d="M{ROW_LABEL} {middle - 7:.1f}H{end:.1f}v14'
      f'H{ROW_LABEL}z"><title>{escape(row)}: {share} %</title></path></g>'
      f"{_whisker(share, middle)}"
      f'<text class="value{" inside" if inside else ""}" x="{beside + 5:.1f}"'
      f' y="{middle + 4:.1f}">{percent(share.value)}</text>'
    )
  return _figure(title, "", parts, height)


def _figure(title: str, legend: str, parts: Sequence[str], height: float) -> str:
  return (
    f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{legend}'
    f'<svg class="plot" viewBox="0 0 {WIDTH} {height:.0f}" role="img"'
    f' aria-label="{escape(title)}; the numbers are in the table of test accuracy">'
    f"{''.join(parts)}</svg></figure>"
  )


def _share_x(value: float) -> float:
  return ROW_LABEL + min(max(value, 0.0), 1.0) * (WIDTH - ROW_LABEL - 16)


def _share_axis(bottom: float) -> str:
  return "".join(
    f'<path class="grid" d="M{_share_x(value):.1f} {TOP}V{bottom:.1f}"/>'
    f'<text class="tick middle" x="{_share_x(value):.1f}" y="{bottom + 16:.1f}">{value:.0%}</text>'
    for value in (0.0, 0.25, 0.5, 0.75, 1.0)
  )


def _row(label: str, middle: float, number: int, height: float) -> str:
  """A row's label, shortened where there is no room (a hover shows all), with a stripe behind."""
  shown = label if len(label) <= 16 else f"{label[:8]}…{label[-7:]}"
  stripe = ""
  if number % 2:
    stripe = (
      f'<rect class="stripe" x="0" width="{WIDTH}" y="{middle - height / 2:.1f}"'
      f' height="{height:.1f}"/>'
    )
  return (
    f'{stripe}<text class="row end" x="{ROW_LABEL - 10}" y="{middle + 4:.1f}">{escape(shown)}'
    f"<title>{escape(label)}</title></text>"
  )


def _marker(share: Share, y: float, place: int, label: str) -> str:
  return (
    f'<g class="s{place % COLOURS}">{_whisker(share, y)}'
    f'<path class="mark" transform="translate({_share_x(share.value):.1f} {y:.1f})"'
    f' d="{_MARKERS[place % len(_MARKERS)]}"><title>{escape(label)}</title></path></g>'
  )


def _whisker(share: Share, y: float) -> str:
  if share.interval is None:
    return ""
  low, high = (_share_x(end) for end in share.interval)
  return f'<path class="whisker" d="M{low:.1f} {y:.1f}H{high:.1f}"/>'
