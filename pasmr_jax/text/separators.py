"""What the separators of a number mean: 57.500, 57,500, 57 500 and 5,75,000.

Several different separators, or the same one several times, leave no choice in any language. A
single one groups if the language groups with it and groups of the right size stand there, else it
is decimal. So a number that cannot be of the language's own style is read in the English one.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from pasmr_jax.text.characters import NARROW
from pasmr_jax.text.languages import Language

MAX_DIGITS = 200  # a longer number is no number


class Number(NamedTuple):
  """One number of a text."""

  value: Fraction
  start: int  # of the sign or scale word, if any, else of the first digit
  end: int  # after the last character that belongs to the value
  bare: bool = False  # written in CJK numerals alone
  ratio: str = ""  # "3:30", "2:3:5": a clock time or ratio, kept as written


_SEPARATOR = r"(?:,\\!|\{[,.]\}|\\[,;:! ]|[.,'٫٬،_]|[ \u00a0](?=[0-9]{3}(?![0-9])))"
RUN = re.compile(rf"[0-9]+(?:{_SEPARATOR}[0-9]+)*")
_SPLIT = re.compile(rf"({_SEPARATOR})")


def _digits(groups: list[str]) -> int:
  return int("".join(groups))


def _grouped(groups: list[str], mark: str, language: Language) -> bool:
  """Are `groups` digits grouped by a thousands mark, as this or any language groups them?"""
  head, rest = groups[0], groups[1:]
  if head[0] == "0":
    return False
  lengths = [len(group) for group in rest]
  if len(head) <= 3 and all(length == 3 for length in lengths):
    return True
  if mark in ".,٬،'" and len(rest) > 1 and len(head) <= 2 and lengths[-1] == 3:
    return all(length == 2 for length in lengths[:-1])
  myriad = language.grouping == "myriad" and mark in ", "
  return myriad and len(head) <= 4 and all(length == 4 for length in lengths)


def resolve(groups: list[str], marks: list[str], language: Language) -> Fraction | None:
  """Value of digit `groups` joined by `marks`, None if that is no single number.

  Worked, for German, where the dot groups: 57.500 is 57500; 57,500 is 57.5; 2.5 is no group of
  three, hence decimal as in English; 1,234,567 can only group.
  """
  if not marks:
    return Fraction(int(groups[0]))
  last = marks[-1]
  decimal = Fraction(_digits(groups), 10 ** len(groups[-1]))
  if len(marks) > 1:
    thousands = marks[0]
    if all(mark == thousands for mark in marks):
      return Fraction(_digits(groups)) if _grouped(groups, thousands, language) else None
    if last in ".,٫،" and all(mark == thousands for mark in marks[:-1]) and last != thousands:
      return decimal if thousands != "٫" and _grouped(groups[:-1], thousands, language) else None
    return None
  groups_here = last in language.thousands_marks or last in "٬،_' "
  if groups_here and _grouped(groups, last, language):
    return Fraction(_digits(groups))
  return decimal if last in ".,٫،" else None


@functools.lru_cache(maxsize=1 << 12)
def _whole(digits: str) -> Fraction:
  return Fraction(int(digits))


def pieces_of_run(text: str, run: re.Match[str], language: Language) -> list[Number]:
  """The numbers of a run of digits and separators: one if it reads as one, else its parts."""
  start, end = run.span()
  if end - start < 16 and run.group().isdigit():
    return [Number(_whole(run.group()), start, end)]
  if end - start > 2 * MAX_DIGITS:
    return []
  parts = _SPLIT.split(run.group())
  groups, marks = parts[::2], [_plain_mark(mark) for mark in parts[1::2]]
  if sum(map(len, groups)) > MAX_DIGITS:
    return []
  value = resolve(groups, marks, language)
  if value is not None:
    return [Number(value, start, end)]
  # No single number. Spaces part lists first, then commas ("2.5,3.5"), then every mark.
  if " " in marks and set(marks) != {" "}:
    parting = " "
  elif "," in marks and "." in marks:
    parting = ","
  else:
    parting = ""
  numbers: list[Number] = []
  position, held_groups, held_marks, held_start = start, [groups[0]], [], start
  position += len(groups[0])
  for raw, mark, group in zip(parts[1::2], marks, groups[1:], strict=True):
    if parting and mark != parting:
      held_groups.append(group)
      held_marks.append(mark)
    else:
      numbers += _part(held_groups, held_marks, held_start, position, language)
      held_groups, held_marks, held_start = [group], [], position + len(raw)
    position += len(raw) + len(group)
  return numbers + _part(held_groups, held_marks, held_start, position, language)


def _part(
  groups: list[str], marks: list[str], start: int, end: int, language: Language
) -> list[Number]:
  value = resolve(groups, marks, language)
  if value is None:
    value = Fraction(int(groups[-1]))
    start = end - len(groups[-1])
  return [Number(value, start, end)]


def _plain_mark(mark: str) -> str:
  if mark[0] == "\\" or mark == NARROW:
    return " "
  return mark.strip("{}")[0]


def plain_runs(text: str, language: Language) -> str:
  """Rewrites each number of normalised `text` that has separators as ASCII with a decimal dot.

  Inside brackets a comma parts, unless it groups as the language does: (0,1) is a pair, (1,234) is
  none in English. With a semicolon somewhere, that parts: (0,5; 1,5).
  """
  bracketed = ";" not in text and re.search(r"[(\[]|\\\{", text) is not None

  def plain(run: re.Match[str]) -> str:
    pieces = pieces_of_run(text, run, language)
    if len(pieces) != 1 or pieces[0].start != run.start():
      return run.group()
    value = pieces[0].value
    if bracketed and "," in run.group():
      grouped = _grouped(run.group().replace("\\!", "").split(","), ",", language)
      if not grouped or "," not in language.thousands_marks:
        return run.group()
    if value.denominator == 1:
      return str(value.numerator)
    places = len(run.group()) - 1 - max(run.group().rfind(mark) for mark in ".,٫،")
    scaled = str(value.numerator * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{scaled[:-places]}.{scaled[-places:]}"

  return RUN.sub(plain, text)
