"""Draws curves over steps as inline SVG, without a plotting library.

`line_chart` thins its lines, so that the page of a long run stays small, and returns a `figure`
element with what report.js needs to read values off it. Colours are CSS classes `s0`..`s7`, which
the style sheet gives a value in light and in dark; dashes tell lines apart without colour.
Coordinates are units of the view box, y down.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from pasmr_jax.experiment.reporting.elements import escape, percent, short
from pasmr_jax.experiment.reporting.reading import Points

COLOURS = 8
# A line has at most so many points: each is the mean of a bucket of steps, with its smallest and
# largest value as a band behind the line, where lines are few enough for bands to be told apart.
MAX_POINTS = 60
MAX_BANDS = 3
MARKED_POINTS = 30  # lines of at most so many points also show them

WIDTH = 360
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 36  # margins of a line chart
HEIGHT = 220


@dataclasses.dataclass(frozen=True)
class Line:
  """One series of a line chart."""

  label: str
  points: Points
  colour: int


@dataclasses.dataclass(frozen=True)
class Bucket:
  """Neighbouring points as one."""

  step: float
  mean: float
  low: float
  high: float


def thin(points: Points, width: int) -> list[Bucket]:
  """The points of every `width` steps as one bucket, at the mean of their steps; in order."""
  groups: dict[int, Points] = {}
  for step, value in points:
    groups.setdefault((step - 1) // width, []).append((step, value))
  buckets = []
  for group in groups.values():
    steps, values = [step for step, _ in group], [value for _, value in group]
    low, high = min(values), max(values)
    # The mean of equal values may differ from them in the last bit.
    mean = min(max(math.fsum(values) / len(values), low), high)
    buckets.append(Bucket(sum(steps) / len(steps), mean, low, high))
  return buckets


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Round numbers from `low` to `high`, about `count` of them."""
  if not high > low:
    return [low]
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(place * step, 12) for place in range(first, last + 1)]


def line_chart(
  title: str,
  lines: Sequence[Line],
  last: int,
  *,
  share: bool = False,
  from_zero: bool = False,
  logarithmic: bool = False,
) -> tuple[str, dict[str, Any]]:
  """A chart of metrics over the steps of a stage.

  Args:
    title: the caption.
    lines: at least one, each with at least one point.
    last: the step at which the axis ends, 1 or more; it begins at 0.
    share: values are shares, shown in %; the axis ends at 100 %. It begins at 0, or at 25, 50 or
      75 % where all is above: 97 and 99 % must not look alike.
    from_zero: the axis of shares begins at 0 in any case, so that charts compare.
    logarithmic: the value axis is, if all values are positive and they span a factor of 30.

  Returns:
    A `figure` element, and what the page's script needs to read values off it.
  """
  width = -(-last // MAX_POINTS)
  thinned = [thin(line.points, width) for line in lines]
  means = [bucket.mean for buckets in thinned for bucket in buckets]
  logarithmic = logarithmic and min(means) > 0 and max(means) / min(means) > 30
  if share:
    low, high = 0.0 if from_zero else max(0.0, min(0.75, math.floor(4 * min(means)) / 4)), 1.0
  else:
    low, high = _domain(means, thinned, logarithmic)
  first, end = 0.0, float(last)

  def x(step: float) -> float:
    return LEFT + (step - first) / (end - first) * (WIDTH - LEFT - RIGHT)

  def y(value: float) -> float:
    if logarithmic:
      value = max(value, low * 1e-3)
      place = math.log(value / low) / math.log(high / low)
    else:
      place = (value - low) / (high - low)
    # Bands may leave the chart, and a share its range; the clip path cuts them.
    return HEIGHT - BOTTOM - min(max(place, -1.0), 2.0) * (HEIGHT - TOP - BOTTOM)

  shown = _decades(low, high) if logarithmic else ticks(low, high)
  write = (lambda value: f"{100 * value:.0f}%") if share else short
  parts = [_value_axis(shown, y, write), _step_axis(first, end, x)]
  for line, buckets in zip(lines, thinned, strict=True):
    parts.append(_drawn(line, buckets, x, y, band=len(lines) <= MAX_BANDS))
  label = f"{title}. " + " ".join(_told(line, share) for line in lines)
  chart = (
    f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    f"{''.join(parts)}"
    f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="-9" x2="-9"/></svg>'
  )
  legend = "".join(
    f'<li class="s{line.colour % COLOURS}"><svg class="swatch" viewBox="0 0 26 10"'
    f' aria-hidden="true"><path class="line" d="M1 5H25"/></svg>{escape(line.label)}</li>'
    for line in lines
  )
  readable = {
    "first": first,
    "last": end,
    "left": LEFT / WIDTH,
    "right": 1 - RIGHT / WIDTH,
    "share": share,
    "lines": [
      {
        "label": line.label,
        "steps": [_rounded(bucket.step) for bucket in buckets],
        "values": [_rounded(bucket.mean) for bucket in buckets],
      }
      for line, buckets in zip(lines, thinned, strict=True)
    ],
  }
  figure = (
    f'<figure class="chart lines"><figcaption>{escape(title)}</figcaption>'
    f'<ul class="legend">{legend}</ul>{chart}<p class="readout"></p></figure>'
  )
  return figure, readable


def _domain(
  means: Sequence[float], thinned: Sequence[Sequence[Bucket]], logarithmic: bool
) -> tuple[float, float]:
  """Covers every mean, and of the bands all but their furthest 2 % on either side."""
  lows = sorted(bucket.low for buckets in thinned for bucket in buckets)
  highs = sorted(bucket.high for buckets in thinned for bucket in buckets)
  low = min(*means, lows[len(lows) // 50])
  high = max(*means, highs[-1 - len(highs) // 50])
  if logarithmic:
    return (low if low > 0 else min(means)) / 1.1, high * 1.1
  margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
  # A quantity that is never negative starts at 0 if it comes near.
  bottom = 0.0 if 0 <= low < 0.5 * high else low - margin
  return bottom, high + margin


def _decades(low: float, high: float) -> list[float]:
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  every = max(1, len(powers) // 6)
  return [10.0**power for power in powers[::every] if low <= 10.0**power <= high]


def _value_axis(shown: Sequence[float], y, write) -> str:
  return "".join(
    f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>'
    f'<text class="tick end" x="{LEFT - 6}" y="{y(value) + 4:.1f}">{escape(write(value))}</text>'
    for value in shown
  )


def _step_axis(first: float, last: float, x) -> str:
  bottom = HEIGHT - BOTTOM
  parts = [f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>']
  for step in ticks(first, last, 4):
    if step == int(step) and step >= 0:
      parts.append(
        f'<path class="axis" d="M{x(step):.1f} {bottom}v4"/>'
        f'<text class="tick middle" x="{x(step):.1f}" y="{bottom + 17}">{short(step)}</text>'
      )
  middle = (LEFT + WIDTH - RIGHT) / 2
  parts.append(f'<text class="tick middle" x="{middle}" y="{HEIGHT - 4}">step</text>')
  return "".join(parts)


def _drawn(line: Line, buckets: Sequence[Bucket], x, y, band: bool) -> str:
  """Band, line and, where they are few, points. A nested `svg` clips what leaves the chart."""
  places = [(x(bucket.step), bucket) for bucket in buckets]
  inside = []
  if band and any(bucket.low < bucket.high for bucket in buckets):
    upper = [f"{place:.1f} {y(bucket.high):.1f}" for place, bucket in places]
    lower = [f"{place:.1f} {y(bucket.low):.1f}" for place, bucket in reversed(places)]
    inside.append(f'<path class="band" d="M{"L".join(upper + lower)}z"/>')
  path = "L".join(f"{place:.1f} {y(bucket.mean):.1f}" for place, bucket in places)
  inside.append(f'<path class="line" d="M{path}"/>')
  if len(line.points) <= MARKED_POINTS:
    inside += [
      f'<circle class="dot" cx="{place:.1f}" cy="{y(bucket.mean):.1f}" r="2.6"/>'
      for place, bucket in places
    ]
  # The clip leaves room for lines and points that lie on the edge.
  left, top = LEFT - 4, TOP - 4
  width, height = WIDTH - LEFT - RIGHT + 8, HEIGHT - TOP - BOTTOM + 8
  return (
    f'<svg class="s{line.colour % COLOURS}" x="{left}" y="{top}" width="{width}"'
    f' height="{height}" viewBox="{left} {top} {width} {height}">{"".join(inside)}</svg>'
  )


def _told(line: Line, share: bool) -> str:
  write = (lambda value: f"{percent(value)} %") if share else short
  (first, before), (last, after) = line.points[0], line.points[-1]
  return f"{line.label}: {write(before)} at step {first}, {write(after)} at step {last}."


def _rounded(value: float) -> float:
  return float(f"{value:.5g}")
