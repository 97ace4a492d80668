"""Draws the study's charts as SVG files that need nothing but themselves.

`intervals` shows differences with their intervals about 0, `curves` a share over steps. Each mark
also carries its numbers as a `title`, which browsers show; the tables beside the charts have them
all. Coordinates are units of the view box, y down.
"""

import math
from collections.abc import Mapping, Sequence

from pasmr_jax.experiment.reporting.charts import ticks
from pasmr_jax.experiment.reporting.elements import escape

WIDTH = 640
_RIGHT, _TOP, _BOTTOM = 24, 40, 44
_LETTER = 7.8  # width of one, on average and rounded up
_ROW = 26
_PLOT = 220  # height of curves
_COLOURS = ("#0b61a4", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#475569", "#be185d")
_STYLE = (
  "text{font:13px system-ui,sans-serif;fill:#1f2937}.title{font-weight:600}.tick{fill:#4b5563;"
  "font-size:11px}.end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:#e5e7eb}"
  ".zero{stroke:#6b7280;stroke-width:1.5}.whisker{stroke-width:2}.line{fill:none}"
)

# label, value, lower and upper end; in the unit of the axis
Row = tuple[str, float, float, float]


def intervals(title: str, unit: str, rows: Sequence[Row]) -> str:
  """One mark and interval a row, with a line at 0; the plot begins right of the longest label.

  Args:
    title: above the chart.
    unit: what the axis counts.
    rows: at least one.
  """
  height = _TOP + _ROW * len(rows) + _BOTTOM
  ends = [0.0, *(end for _, _, low, high in rows for end in (low, high))]
  margin = 0.06 * (max(ends) - min(ends)) or 1.0
  low, high = min(ends) - margin, max(ends) + margin
  left = 24 + _LETTER * max(len(label) for label, *_ in rows)

  def x(value: float) -> float:
    return left + (value - low) / (high - low) * (WIDTH - left - _RIGHT)

  bottom = _TOP + _ROW * len(rows)
  parts = [
    f'<path class="grid" d="M{x(value):.1f} {_TOP}V{bottom}"/>'
    f'<text class="tick middle" x="{x(value):.1f}" y="{bottom + 16}">{_signed(value)}</text>'
    for value in ticks(low, high)
  ]
  parts.append(_axis_title(unit, (left + WIDTH - _RIGHT) / 2, bottom))
  parts.append(f'<path class="zero" d="M{x(0):.1f} {_TOP}V{bottom}"/>')
  for number, (label, value, below, above) in enumerate(rows):
    y = _TOP + _ROW * (number + 0.5)
    told = f"{label}: {value:+.1f} ({below:+.1f} to {above:+.1f}) {unit}"
    parts.append(
      f'<text class="end" x="{left - 10:.1f}" y="{y + 4:.1f}">{escape(label)}</text>'
      f'<g stroke="{_COLOURS[0]}" fill="{_COLOURS[0]}"><title>{escape(told)}</title>'
      f'<path class="whisker" d="M{x(below):.1f} {y:.1f}H{x(above):.1f}"/>'
      f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="4.5"/></g>'
    )
  return _drawing(title, parts, height)


def curves(title: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
  """Shares (0 to 1) over steps, one line an arm; each with at least one point."""
  height = _TOP + _PLOT + _BOTTOM + 20 + 18 * math.ceil(len(lines) / 3)
  last = max((step for points in lines.values() for step, _ in points), default=1)
  top = max((value for points in lines.values() for _, value in points), default=1.0)
  top = min(1.0, top * 1.1) or 1.0
  left = 56

  def x(step: float) -> float:
    return left + step / last * (WIDTH - left - _RIGHT)

  def y(value: float) -> float:
    return _TOP + (1 - value / top) * _PLOT

  parts = []
  for value in ticks(0.0, top):
    parts.append(
      f'<path class="grid" d="M{left} {y(value):.1f}H{WIDTH - _RIGHT}"/>'
      f'<text class="tick end" x="{left - 6}" y="{y(value) + 4:.1f}">{100 * value:g} %</text>'
    )
  for step in (step for step in ticks(0.0, float(last)) if step == int(step)):
    parts.append(
      f'<text class="tick middle" x="{x(step):.1f}" y="{_TOP + _PLOT + 18}">{step:g}</text>'
    )
  parts.append(_axis_title("step", (left + WIDTH - _RIGHT) / 2, _TOP + _PLOT))
  for number, (name, points) in enumerate(lines.items()):
    colour = _COLOURS[number % len(_COLOURS)]
    width = 2 + 2 * (len(lines) - 1 - number)  # one below another still shows
    path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
    told = ", ".join(f"{100 * value:.1f} % at step {step}" for step, value in points)
    dots = "".join(
      f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>'
      for step, value in points
    )
    key_x = left + 190 * (number % 3)
    key_y = _TOP + _PLOT + 62 + 18 * (number // 3)
    parts.append(
      f"<g><title>{escape(f'{name}: {told}')}</title>"
      f'<path class="line" stroke="{colour}" stroke-width="{width}" d="M{path}"/>{dots}</g>'
      f'<rect x="{key_x}" y="{key_y - 9}" width="12" height="10" fill="{colour}"/>'
      f'<text x="{key_x + 18}" y="{key_y}">{escape(name)}</text>'
    )
  return _drawing(title, parts, height)


def _signed(value: float) -> str:
  return f"{value:+g}".replace("-", "−") if value else "0"


def _axis_title(text: str, middle: float, bottom: float) -> str:
  return f'<text class="tick middle" x="{middle:.1f}" y="{bottom + 34}">{escape(text)}</text>'


def _drawing(title: str, parts: Sequence[str], height: float) -> str:
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}"'
    f' role="img" aria-label="{escape(title)}"><style>{_STYLE}</style>'
    f'<rect width="100%" height="100%" fill="#fff"/>'
    f'<text class="title" x="12" y="22">{escape(title)}</text>{"".join(parts)}</svg>\n'
  )
