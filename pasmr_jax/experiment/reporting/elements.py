"""The pieces of HTML that the report's sections are made of.

Every text that comes from a file goes through `escape` or, in bulk, through `json_block`.
"""

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from pasmr_jax.experiment.reliability.storage import HALVES, json_escapes
from pasmr_jax.text.languages import LANGUAGES


def escape(text: str) -> str:
  return html.escape(text, quote=True)


def json_block(name: str, value: Any) -> str:
  """A data block whose text cannot end it, begin another, or be read as markup.

  `<`, `>`, `&`, the line separators, controls and lone surrogates become JSON's own escapes, so
  that what JSON.parse returns is exactly `value`.
  """
  text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
  text = text.translate(_UNSAFE)
  return f'<script type="application/json" id="{name}">{text}</script>'


_UNSAFE = json_escapes(
  *map(ord, "<>&"), range(0x7F, 0xA0), *(0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF), HALVES
)


def nothing(text: str) -> str:
  return f'<p class="nothing">{escape(text)}</p>'


def table(caption: str, head: Sequence[str], body: Sequence[Sequence[str]], labels: int = 1) -> str:
  """A table whose first `labels` columns are text; it scrolls by itself where it is too wide."""
  heads = "".join(
    f'<th scope="col"{"" if place < labels else " class=number"}>{escape(text)}</th>'
    for place, text in enumerate(head)
  )
  rows = "".join(
    "<tr>"
    + "".join(
      f'<th scope="row">{escape(cell)}</th>'
      if place < labels
      else f'<td class="number">{escape(cell)}</td>'
      for place, cell in enumerate(row)
    )
    + "</tr>"
    for row in body
  )
  return (
    f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
    f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
    f"<tbody>{rows}</tbody></table></div>"
  )


def short(value: float) -> str:
  """A number as people write it: 4 significant digits, k and M for large ones."""
  for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
    if abs(value) >= limit:
      return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
  return f"{value:.4g}"


def percent(value: float) -> str:
  return f"{100 * value:.1f}"


def short_or_dash(value: float | None) -> str:
  return "-" if value is None else short(value)


def language_name(code: str) -> str:
  known = LANGUAGES.get(code)
  return known.name if known else code


def in_order(names: Iterable[str]) -> list[str]:
  """Each name once, as first met."""
  return list(dict.fromkeys(names))
