"""Numbers as the world writes them, read exactly and without evaluating anything.

The path of a text: `normalise` maps every digit, minus, space and full-width form to one plain
character each, so that positions stay true; `read_numbers` walks over the result from left to right
and gives each number as a `Fraction` with the place where it stood. On the way one number may take
in its sign, separators, a fraction or mixed number, a power of ten, CJK numerals and scale words.

Which separator means what is decided by `_resolve`, in this order: a reading that is the language's
own; else the English one; else the only one left. Nothing here is longer than `MAX_DIGITS`, no loop
is nested over the text, and no function raises for any string.
"""

import dataclasses
import functools
import re
import unicodedata
from fractions import Fraction

from pasmr_jax.text.languages import LANGUAGES, Language

MAX_DIGITS = 200  # a longer number is no number
MAX_EXPONENT = 200  # of ten, and of powers such as 2^10

SIGN = "-"
NARROW = "\u00a0"  # every no-break, narrow and thin space, normalised
INVISIBLE = "\u200b"  # every zero-width and direction mark, normalised

_SAME = {
  **dict.fromkeys(map(ord, "\u2212\ufe63\u2010\u2011\u2012\u207b"), SIGN),
  **dict.fromkeys(map(ord, "\u00a0\u202f\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u205f"), NARROW),
  **dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u2032"), "'"),
  **dict.fromkeys(
    (0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), INVISIBLE
  ),
  **dict.fromkeys((0x061C, 0xFEFF, 0x00AD, 0x2060), INVISIBLE),
  **dict.fromkeys(map(ord, "\u2044\u2215"), "/"),
  **dict.fromkeys(map(ord, "\u22c5\u2219\u2022"), "·"),
  0x3000: " ",
  0x066A: "%",
  0xFE6A: "%",
  0xFE69: "$",
  0x2236: ":",
  0x0130: "I",  # the one letter whose lower case has two characters
}


class _Characters(dict[int, str | int]):
  """Translation table that fills itself with the characters that it meets."""

  def __missing__(self, code: int) -> str | int:
    character = chr(code)
    digit = unicodedata.decimal(character, None) if code > 127 else None
    mapped: str | int = code
    if digit is not None:
      mapped = str(digit)
    elif 0xFF01 <= code <= 0xFF5E:
      mapped = chr(code - 0xFEE0)
    if len(self) < 1 << 14:  # hostile text could otherwise make it as large as Unicode
      self[code] = mapped
    return mapped


_CHARACTERS = _Characters(_SAME)


def normalise(text: str) -> str:
  """Maps digits, signs, spaces and full-width forms to plain ones; the length stays the same."""
  return text if text.isascii() else text.translate(_CHARACTERS)


def word_forms(words: tuple[str, ...]) -> tuple[str, ...]:
  """Lower-case forms under which `words` occur: as given, composed, decomposed; longest first."""
  forms: dict[str, None] = {}
  for word in words:
    for form in (word, unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word)):
      forms[form.lower()] = None
      for nuktaless, composed in _COMPOSED_NUKTAS:
        if nuktaless in form:
          forms[form.lower().replace(nuktaless, composed)] = None
  return tuple(sorted(forms, key=lambda form: (-len(form), form)))


# Unicode's normal forms never compose these, keyboards do.
_COMPOSED_NUKTAS = (
  ("\u09af\u09bc", "\u09df"),
  ("\u09a1\u09bc", "\u09dc"),
  ("\u09a2\u09bc", "\u09dd"),
  ("\u091c\u093c", "\u095b"),
  ("\u0921\u093c", "\u095c"),
  ("\u0922\u093c", "\u095d"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
  """One number of a text."""

  value: Fraction
  start: int  # of the sign or scale word, if any, else of the first digit
  end: int  # after the last character that belongs to the value
  bare: bool = False  # written in CJK numerals alone
  ratio: str = ""  # "3:30": a clock time or ratio, kept as written


_VULGAR = {
  chr(code): Fraction(unicodedata.numeric(chr(code))).limit_denominator(10)
  for code in (0xBC, 0xBD, 0xBE, *range(0x2150, 0x215F), 0x2189)
}
_VULGAR_CLASS = f"[{''.join(_VULGAR)}]"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺", "0123456789+")
SCRIPT_DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹"

_SEPARATOR = r"(?:,\\!|\{[,.]\}|\\[,;:! ]|[.,'٫٬،_]|[ \u00a0](?=[0-9]{3}(?![0-9])))"
_RUN = re.compile(rf"[0-9]+(?:{_SEPARATOR}[0-9]+)*")
_SPLIT = re.compile(rf"({_SEPARATOR})")
_SIMPLE = r"[0-9]{1,60}(?:[.,][0-9]{1,60})?"
_LATEX_FRACTION = re.compile(
  rf"\\[dtc]?frac\s?(?:\{{\s?(-?)\s?({_SIMPLE})\s?\}}|([0-9]))\s?"
  rf"(?:\{{\s?({_SIMPLE})\s?\}}|([0-9]))"
)
_SLASH_FRACTION = re.compile(r"([ \u00a0]?/[ \u00a0]?)([0-9]{1,60})(?![0-9]|[.,/][0-9])")
_MIXED = re.compile(r"[ \u00a0]+([0-9]{1,60})/([0-9]{1,60})(?![0-9]|[.,/][0-9])")
_MIXED_VULGAR = re.compile(rf"[ \u00a0]?({_VULGAR_CLASS})")
_MIXED_LATEX = re.compile(r"\s?(?=\\[dtc]?frac)")
_E_NOTATION = re.compile(r"e([+-]?[0-9]{1,6})(?![\w.])")
_TIMES_TEN = re.compile(
  r"\s?(?:×|x|\*|·|\\times|\\cdot)\s?10(?:\s?\^\s?(?:\{\s?([+-]?[0-9]{1,6})\s?\}|([+-]?[0-9]{1,6}))"
  r"|([⁺-]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,6}))"
)
_POWER = re.compile(r"\s?\^\s?(?:\{\s?([+-]?[0-9]{1,6})\s?\}|([0-9]{1,6}))|([⁰¹²³⁴⁵⁶⁷⁸⁹]{1,6})")
_CLOCK = re.compile(r":([0-9]{1,4})(?![0-9:])")
_EXPONENT_BEFORE = re.compile(r"(?:\^|[^\W_]_|[})\]]_)[\s{]{0,2}[-+]?$")
_SYMBOL = (
  r"(?:\\?\$|[¢-¥֏؋৲৳৻૱௹฿៛₠-₿﷼])"  # dollar with or without a backslash, category Sc otherwise
)
_SIGN_BEFORE = "-–"


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


def _resolve(groups: list[str], marks: list[str], language: Language) -> Fraction | None:
  """Value of digit `groups` joined by `marks`, None if that is no single number."""
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
  is_grouped = _grouped(groups, last, language)
  if last == "٫" or last == language.decimal_mark:
    return decimal
  if last in language.thousands_marks or last in "٬،_'" or last == " ":
    if is_grouped:
      return Fraction(_digits(groups))
    # "2,5" where the comma groups: not this language's style, nor English; one reading is left
    return decimal if last in ".,،" else None
  return decimal if last in ".," else None


def _pieces(text: str, run: re.Match[str], language: Language) -> list[Number]:
  """The numbers of a run of digits and separators: one if it reads as one, else its parts."""
  start, end = run.span()
  if end - start < 16 and run.group().isdigit():
    return [Number(Fraction(int(run.group())), start, end)]
  if end - start > 2 * MAX_DIGITS:
    return []
  parts = _SPLIT.split(run.group())
  groups, marks = parts[::2], [_plain_mark(mark) for mark in parts[1::2]]
  if sum(map(len, groups)) > MAX_DIGITS:
    return []
  value = _resolve(groups, marks, language)
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
  value = _resolve(groups, marks, language)
  if value is None:
    value = Fraction(int(groups[-1]))
    start = end - len(groups[-1])
  return [Number(value, start, end)]


def _plain_mark(mark: str) -> str:
  if mark[0] == "\\" or mark == NARROW:
    return " "
  return mark.strip("{}")[0]


def _power(base: Fraction, exponent: int) -> Fraction | None:
  """`base ** exponent`, None if it is too large to be meant or not defined."""
  if abs(exponent) > MAX_EXPONENT or (base == 0 and exponent < 0):
    return None
  size = len(str(abs(base.numerator))) + len(str(base.denominator))
  return base**exponent if size * abs(exponent) <= 2 * MAX_DIGITS else None


class NumberReader:
  """The tables of one language, compiled. Use `number_reader(code)`, which keeps them."""

  def __init__(self, language: Language):
    self.language = language
    english = LANGUAGES["en"]
    scales = {**dict(english.scale_words), **dict(language.scale_words)}
    self._scales = {form: scale for word, scale in scales.items() for form in word_forms((word,))}
    words = "|".join(map(re.escape, sorted(self._scales, key=lambda word: (-len(word), word))))
    own = word_forms(tuple(word for word, _ in language.scale_words)) if language.spaced else ()
    # A word ends where no letter or mark follows, except in scripts that do not space words.
    unspaced = word_forms(tuple(word for word, _ in language.scale_words)) if not own else ()
    ends = rf"(?:{words})(?![^\W\d_]|[\u0900-\u0dff])"
    if unspaced:
      ends = rf"(?:{'|'.join(map(re.escape, unspaced))})|{ends}"
    self._scale = re.compile(rf"[ \u00a0~-]?(?:\\text\s?\{{\s?)?({ends})\.?")
    self._scale_before = (
      re.compile(rf"(?<!\w)({'|'.join(map(re.escape, own))})[ \u00a0]+$")
      if language.scale_before and own
      else None
    )
    currencies = word_forms((*english.currencies, *language.currencies))
    self.currency_words = frozenset(currencies)
    self._currency_before = re.compile(
      rf"(?:[a-z]{{0,3}}{_SYMBOL}|(?<![^\W\d_])(?:{'|'.join(map(re.escape, currencies))})\.?)"
      r"[ \u00a0]?$"
    )
    self._numeral_values = dict(language.numeral_digits)
    self._numeral_scales = dict(language.numeral_scales)
    digits, scale_characters = "".join(self._numeral_values), "".join(self._numeral_scales)
    numerals = digits + scale_characters
    begin = rf"[0-9]|(?<![\w.,])[.,٫](?=[0-9])|{_VULGAR_CLASS}|\\[dtc]?frac"
    # Korean writes scales between digits only; alone its syllables are parts of words.
    self._begin = re.compile(f"{begin}|[{re.escape(numerals)}]" if digits else begin)
    self._numerals = re.compile(
      rf"(?:[0-9]+(?:[.,][0-9]+)*|[{re.escape(numerals)}])(?:[ \u00a0]?[0-9]+(?:[.,][0-9]+)*"
      rf"|[ ]?[{re.escape(numerals)}])*"
      if numerals
      else r"(?!)"
    )
    self._inverted = (
      re.compile(
        rf"[ \u00a0]?(?:{'|'.join(map(re.escape, language.inverted_fractions))})[ \u00a0]?"
      )
      if language.inverted_fractions
      else None
    )
    self.units = word_forms(language.units)

  def first(self, text: str, start: int, end: int) -> Number | None:
    """The first number that begins in `text[start:end]`; `text` is normalised and lower case."""
    numbers = self.read(text, start, end, limit=1)
    return numbers[0] if numbers else None

  def read(self, text: str, start: int, end: int, limit: int = 1 << 30) -> list[Number]:
    """All numbers that begin in `text[start:end]`, in order, at least up to `limit` of them."""
    numbers: list[Number] = []
    position = start
    while len(numbers) < limit:
      found = self._begin.search(text, position, end)
      if found is None:
        break
      read, position = self._read_at(text, found)
      numbers += read
    return numbers

  def _read_at(self, text: str, found: re.Match[str]) -> tuple[list[Number], int]:
    """Numbers at a place where one may begin, and where to look for the next."""
    start, character = found.start(), text[found.start()]
    if character == "\\":
      fraction = _latex_fraction(text, start, self.language)
      if fraction is None:
        return [], found.end()
      number = self._completed(text, fraction)
      return [number], number.end
    if character in _VULGAR:
      number = self._completed(text, Number(_VULGAR[character], start, start + 1))
      return [number], number.end
    if character in ".,٫":
      run = re.compile(r"[0-9]+").match(text, start + 1)
      assert run is not None
      if run.end() - start > MAX_DIGITS:
        return [], run.end()
      value = Fraction(int(run.group()), 10 ** len(run.group()))
      return [self._completed(text, Number(value, start, run.end()))], run.end()
    if not character.isdigit() or not character.isascii():
      return self._read_numerals(text, start)
    run = _RUN.match(text, start)
    assert run is not None
    if not self._stands_alone(text, start):
      return [], run.end()
    if self._numeral_scales and _next_visible(text, run.end()) in self._numeral_scales:
      read, end = self._read_numerals(text, start)
      if read:
        return read, end
    pieces = _pieces(text, run, self.language)
    if not pieces:
      return [], run.end()
    last = self._completed(text, self._extended(text, pieces[-1]))
    return [*(self._completed(text, piece) for piece in pieces[:-1]), last], max(
      last.end, run.end()
    )

  def _stands_alone(self, text: str, start: int) -> bool:
    """False for the digits of m2, CO2, x_1 and 10^3; true for Rs500, 4x5 and 答えは5."""
    if start == 0:
      return True
    before = text[start - 1]
    if before in "^_{-+" and _EXPONENT_BEFORE.search(text, max(0, start - 6), start):
      return False
    if not (before.islower() or before.isupper()):
      return True
    word_start = start - 1
    while word_start > 0 and start - word_start < 8 and text[word_start - 1].islower():
      word_start -= 1
    word = text[word_start:start]
    if word == "x" and text[:word_start].rstrip(" ")[-1:].isdigit():
      return True
    return word in self.currency_words

  def _extended(self, text: str, number: Number) -> Number:
    """Takes in what follows the digits: mixed and slash fractions, powers, ratios."""
    value, end = number.value, number.end
    following = text[end : end + 1]
    if not following:
      return number
    whole = value.denominator == 1
    if following == "e" and (match := _E_NOTATION.match(text, end)):
      return _times_ten(number, int(match[1]), match.end())
    if following in " \u00a0×x*·\\" and (match := _TIMES_TEN.match(text, end)):
      exponent = match[1] or match[2] or match[3].translate(_SUPERSCRIPTS)
      return _times_ten(number, int(exponent), match.end())
    if whole and (match := _MIXED_VULGAR.match(text, end)):
      return dataclasses.replace(number, value=value + _VULGAR[match[1]], end=match.end())
    if whole and (match := _MIXED.match(text, end)):
      numerator, denominator = int(match[1]), int(match[2])
      if 0 < numerator < denominator:
        part = Fraction(numerator, denominator)
        return dataclasses.replace(number, value=value + part, end=match.end())
    if whole and (match := _MIXED_LATEX.match(text, end)):
      part = _latex_fraction(text, match.end(), self.language)
      if part is not None and 0 < part.value < 1:
        return dataclasses.replace(number, value=value + part.value, end=part.end)
    if (
      (match := _SLASH_FRACTION.match(text, end))
      and int(match[2]) != 0
      and text[number.start - 1 : number.start] != "/"
    ):
      return dataclasses.replace(number, value=value / int(match[2]), end=match.end())
    if match := _POWER.match(text, end):
      exponent = match[1] or match[2] or match[3].translate(_SUPERSCRIPTS)
      powered = _power(value, int(exponent))
      if powered is not None:
        return dataclasses.replace(number, value=powered, end=match.end())
    if whole and (match := _CLOCK.match(text, end)):
      ratio = f"{value.numerator}:{match[1]}"
      return dataclasses.replace(number, end=match.end(), ratio=ratio)
    return number

  def _completed(self, text: str, number: Number) -> Number:
    """Applies the scale word, inverted fraction and sign around a number."""
    if number.ratio:
      return number
    value, start, end = number.value, number.start, number.end
    if self._inverted and value and (match := self._inverted.match(text, end)):
      numerator, after = self._plain_at(text, match.end())
      if numerator is not None:
        value, end = numerator / value, after
    if match := self._scale.match(text, end):
      scale = self._scales[match[1]]
      value, end = value * scale, match.end()
      following = self._begin.match(text, end + 1) if text[end : end + 1] in " \u00a0" else None
      if following is not None and following.group().isdigit():
        rest, after = self._smaller_scale(text, following, scale)
        if rest is not None:
          value, end = value + rest, after
    elif self._scale_before and (
      match := self._scale_before.search(text, max(0, start - 24), start)
    ):
      value, start = value * self._scales[match[1]], match.start()
    start, negative = self._sign(text, start)
    return Number(-value if negative else value, start, end, number.bare)

  def _plain_at(self, text: str, position: int) -> tuple[Fraction | None, int]:
    """A whole number, in digits or CJK numerals, that begins at `position`; not what follows it."""
    match = re.compile(r"[0-9]{1,60}").match(text, position)
    if match is not None:
      return Fraction(int(match.group())), match.end()
    match = self._numerals.match(text, position, position + 20)
    if match is None:
      return None, position
    return self._numeral_value(match.group()), match.end()

  def _smaller_scale(
    self, text: str, found: re.Match[str], scale: int
  ) -> tuple[Fraction | None, int]:
    """ "200 thousand" after "1 million": its value and end, None if it is no smaller part."""
    run = _RUN.match(text, found.start())
    if run is None or not run.group().isdigit() or run.end() - run.start() > 12:
      return None, 0
    match = self._scale.match(text, run.end())
    if match is None or int(run.group()) * self._scales[match[1]] >= scale:
      return None, 0
    return Fraction(int(run.group()) * self._scales[match[1]]), match.end()

  def _sign(self, text: str, start: int) -> tuple[int, bool]:
    """Where the number begins with its sign and currency, and whether the sign is a minus.

    Worked: "ist -5", "-$5", "$-5", "= - 5" are negative; "20 -12", "10-12" and "- 5" on a line of
    its own (a list item) are not.
    """
    if start == 0:
      return start, False
    place = start
    before = text[place - 1]
    if before not in _SIGN_BEFORE:
      match = self._currency_before.search(text, max(0, start - 16), start)
      if match is not None:
        place = match.start()
      elif before not in " \u00a0\u200b":
        return start, False
    glued = True
    if place and text[place - 1] in " \u00a0\u200b":
      glued = text[place - 1] == "\u200b"
      place -= 1
    if not place or text[place - 1] not in _SIGN_BEFORE:
      return start, False
    place -= 1
    before = text[place - 1 : place]
    visible = text[max(0, place - 3) : place].rstrip(" \u00a0\u200b")[-1:]
    if not glued:
      return (place, True) if visible and visible in "=:({[#$≈<>" else (start, False)
    if before and (before.isdigit() or before.islower() or before in ")]}%"):
      return start, False
    if visible and (visible.isdigit() or visible in ")]%"):
      return start, False
    return place, True

  def _read_numerals(self, text: str, start: int) -> tuple[list[Number], int]:
    """Reads 三十五, 3万5千, 1億2000万, 2만 5천; an ill-formed row of numerals is no number."""
    match = self._numerals.match(text, start, start + 80)
    if match is None:
      return [], start + 1
    numeral = match.group().rstrip(" \u00a0")
    value = self._numeral_value(numeral)
    if value is None:
      if numeral[0].isdigit():
        return [], start + 1
      return [], match.end()
    bare = not any(character in "0123456789" for character in numeral)
    number = self._completed(text, Number(value, start, start + len(numeral), bare))
    return [number], number.end

  def _numeral_value(self, numeral: str) -> Fraction | None:
    """Value of a mixture of digits, CJK digits and scales; scales must fall, as in 1億2000万5."""
    total = section = Fraction(0)
    current: Fraction | None = None
    small_limit, large_limit, last_scale = 10**4, 10**16, 1
    tokens = re.findall(r"[0-9]+(?:[.,][0-9]+)*|[^ \u00a0]", numeral)
    if sum(map(len, tokens)) > MAX_DIGITS:
      return None
    row = ""
    for token in tokens:
      scale = self._numeral_scales.get(token)
      if scale is None:
        if token in self._numeral_values:
          row += str(self._numeral_values[token])
          current = Fraction(int(row))
        elif row:
          return None
        else:
          groups = re.split(r"([.,])", token)
          if current is not None:
            return None
          current = _resolve(groups[::2], groups[1::2], self.language)
          if current is None:
            return None
          row = ""
        continue
      row = ""
      if scale < 10**4:
        if scale >= small_limit:
          return None
        section += (1 if current is None else current) * scale
        small_limit = scale
      else:
        if scale >= large_limit:
          return None
        section += current or 0
        total += (section or 1) * scale
        section, small_limit, large_limit = Fraction(0), 10**4, scale
      current, last_scale = None, scale
    if current is not None:
      elliptic = self.language.elliptic_numerals and len(tokens) > 1
      if (
        elliptic
        and last_scale > 10
        and tokens[-2] in self._numeral_scales
        and tokens[-1] in (self._numeral_values)
      ):
        current *= last_scale // 10
      section += current
    return total + section


def plain_runs(text: str, language: Language) -> str:
  """Rewrites each number of normalised `text` that has separators as ASCII with a decimal dot."""

  def plain(run: re.Match[str]) -> str:
    pieces = _pieces(text, run, language)
    if len(pieces) != 1 or pieces[0].start != run.start():
      return run.group()
    value = pieces[0].value
    if value.denominator == 1:
      return str(value.numerator)
    places = len(run.group()) - 1 - max(run.group().rfind(mark) for mark in ".,٫،")
    scaled = str(value.numerator * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{scaled[:-places]}.{scaled[-places:]}"

  return _RUN.sub(plain, text)


def _times_ten(number: Number, exponent: int, end: int) -> Number:
  power = _power(Fraction(10), exponent)
  if power is None:
    return number
  return dataclasses.replace(number, value=number.value * power, end=end)


def _latex_fraction(text: str, start: int, language: Language) -> Number | None:
  match = _LATEX_FRACTION.match(text, start)
  if match is None:
    return None
  sign, above, above_digit, below, below_digit = match.groups()
  numerator, denominator = (
    _resolve(parts[::2], parts[1::2], language)
    for parts in (
      re.split(r"([.,])", above or above_digit),
      re.split(r"([.,])", below or below_digit),
    )
  )
  if numerator is None or not denominator:
    return None
  value = numerator / denominator
  return Number(-value if sign else value, start, match.end())


def _next_visible(text: str, position: int) -> str:
  following = text[position : position + 1]
  return text[position + 1 : position + 2] if following == " " else following


@functools.cache
def number_reader(code: str) -> NumberReader:
  """The compiled number tables of language `code`. Raises ValueError if it is unknown."""
  from pasmr_jax.text.languages import language

  return NumberReader(language(code))
