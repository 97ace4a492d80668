"""Numbers as the world writes them, read exactly and without evaluating anything.

The path of a text, which `characters.normalise` has made plain: `NumberReader.read` walks over it
from left to right and gives each number as a `Fraction` with the place where it stood. A number
takes in, in this order, its digits and separators (`separators.py`), a fraction, mixed number,
power or power of ten, an inverted fraction or scale word, its sign; or it is a row of CJK numerals.

Nothing here is longer than `MAX_DIGITS`, no loop is nested over the text, and no function raises
for any string.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable
from fractions import Fraction

from pasmr_jax.text.characters import word_forms
from pasmr_jax.text.languages import LANGUAGES, Language
from pasmr_jax.text.languages import language as language_table
from pasmr_jax.text.separators import MAX_DIGITS, RUN, Number, pieces_of_run, resolve

MAX_EXPONENT = 200  # of ten, and of powers such as 2^10

_VULGAR = {
  chr(code): Fraction(unicodedata.numeric(chr(code))).limit_denominator(10)
  for code in (0xBC, 0xBD, 0xBE, *range(0x2150, 0x215F), 0x2189)
}
_VULGAR_CLASS = f"[{''.join(_VULGAR)}]"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺", "0123456789+")

_DIGITS = re.compile("[0-9]+")
_SIMPLE = r"[0-9]{1,60}(?:[.,][0-9]{1,60})?"
_LATEX_FRACTION = re.compile(
  rf"\\[dtc]?frac\s?(?:\{{\s?(-?)\s?({_SIMPLE})\s?\}}|([0-9]))\s?"
  rf"(?:\{{\s?({_SIMPLE})\s?\}}|([0-9]))"
)
_SLASH_FRACTION = re.compile(r"([ \u00a0]?/[ \u00a0]?)([0-9]{1,60})(?![0-9]|[.,/][0-9])")
_MIXED = re.compile(r"[ \u00a0]+([0-9]{1,60})/([0-9]{1,60})(?![0-9]|[.,/][0-9])")
_MIXED_VULGAR = re.compile(rf"[ \u00a0]?({_VULGAR_CLASS})")
_MIXED_LATEX = re.compile(r"\s?(?=\\[dtc]?frac)")
_E_NOTATION = re.compile(r"e([+-]?[0-9]{1,99})(?!\w|\.[0-9])")
_TIMES_TEN = re.compile(
  r"\s?(?:×|[xх]|\*|·|\\times|\\cdot)\s?10(?:\s?\^\s?(?:\{\s?([+-]?[0-9]{1,99})\s?\}|([+-]?[0-9]{1,99}))"
  r"|([⁺-]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,6}))"
)
_POWER = re.compile(r"\s?\^\s?(?:\{\s?([+-]?[0-9]{1,99})\s?\}|([0-9]{1,99}))|([⁰¹²³⁴⁵⁶⁷⁸⁹]{1,6})")
_CLOCK = re.compile(r":([0-9]{1,4}(?::[0-9]{1,4}){0,4})(?![0-9:])")
_EXPONENT_BEFORE = re.compile(r"(?:\^|[^\W_]_|[})\]]_)[\s{]{0,2}[-+]?$")
MONEY = "$¢£¤¥֏؋৲৳৻૱௹฿៛﷼" + "".join(map(chr, range(0x20A0, 0x20D0)))
_SYMBOL = rf"(?:\\?\$|[{MONEY}])"
_SIGN_BEFORE = "-–"
_TEXT_OPENS = r"(?:\\[,;:! ]|~)?\\(?:text|mathrm|mbox)\s?\{[\s~]?"
# What may follow a number, after a space at most, and make it another one.
_EXTENDING = frozenset("/^e×xх*·:\\0123456789⁰¹²³⁴⁵⁶⁷⁸⁹") | frozenset(_VULGAR)


def _power(base: Fraction, exponent: int) -> Fraction | None:
  """`base ** exponent`, None if it is too large to be meant or not defined."""
  if abs(exponent) > MAX_EXPONENT or (base == 0 and exponent < 0):
    return None
  size = len(str(abs(base.numerator))) + len(str(base.denominator))
  return base**exponent if size * abs(exponent) <= 2 * MAX_DIGITS else None


def _any(words: Iterable[str]) -> str:
  return "|".join(map(re.escape, words))


class NumberReader:
  """The tables of one language, compiled. Use `number_reader(code)`, which keeps them."""

  def __init__(self, language: Language):
    self.language = language
    english = LANGUAGES["en"]
    scales = {**dict(english.scale_words), **dict(language.scale_words)}
    self._scales = {form: scale for word, scale in scales.items() for form in word_forms((word,))}
    own = word_forms(tuple(word for word, _ in language.scale_words))
    # A word ends where no letter or vowel sign follows, except in scripts that do not space words.
    scale = rf"(?:{_any(word_forms(tuple(scales)))})(?![^\W\d_]|[\u0900-\u0dff])"
    others = word_forms(language.not_scales)
    no_other = f"(?!{_any(others)})" if others else ""
    if own and not language.spaced:
      scale = f"{no_other}(?:{_any(own)})|{scale}"
    self._scale = re.compile(
      rf"[ \u00a0~-]?(?P<braced>{_TEXT_OPENS})?(?P<word>{scale})(?(braced)(?:\s?\}})?)"
    )
    self._scale_before, self._scale_names = None, own
    if language.scale_before:
      self._scale_before = re.compile(rf"(?<!\w)({_any(own)})[ \u00a0]+$")
      joints = language.scale_joints
      joint = rf"(?:(?:{_any(joints)})[ \u00a0]+)?" if joints else ""
      self._scale_between = re.compile(
        rf"[ \u00a0]+{joint}({_any(own)})[ \u00a0]+([0-9]{{1,3}})(?![0-9]|[.,][0-9])"
      )
    currencies = word_forms((*english.currencies, *language.currencies))
    self.currency_words = frozenset(currencies)
    # A minus in words stands where a value begins: "is minus 3", but not "10 minus 3".
    minus = word_forms((*english.minus_words, *language.minus_words))
    verbs = word_forms((*english.answer_verbs, *language.answer_verbs))
    verb_end = rf"(?<![^\W\d_])(?:{_any(verbs)})[ \u00a0]+"
    if not language.spaced:
      verb_end += rf"|(?:{_any(word_forms(language.answer_verbs))})[ \u00a0]?"
    self._minus_before = re.compile(
      rf"(?:^|[=:({{\[#$*≈][ \u00a0]?|{verb_end})({_any(minus)})[ \u00a0]?$"
    )
    # Without one of these before it there is no sign to look for; a full stop ends "Rs."
    self._before_amount = (*currencies, *minus, *f".{MONEY}{_SIGN_BEFORE}")
    self._currency_before = re.compile(
      rf"(?:[a-z]{{0,3}}{_SYMBOL}|(?<![^\W\d_])(?:{_any(currencies)})\.?)[ \u00a0]?$"
    )
    self._numeral_values = dict(language.numeral_digits)
    self._numeral_scales = dict(language.numeral_scales)
    numerals = re.escape("".join((*self._numeral_values, *self._numeral_scales)))
    begin = rf"[0-9]|(?<![\w.,\\])[.,٫](?=[0-9])|{_VULGAR_CLASS}|\\[dtc]?frac"
    # Korean writes scales between digits only; alone its syllables are parts of words.
    numeral = f"{no_other}[{numerals}]"
    self._begin = re.compile(f"{begin}|{numeral}" if language.numeral_digits else begin)
    decimal = "[0-9]+(?:[.,][0-9]+)*"
    self._numerals = re.compile(
      rf"(?:{decimal}|{numeral})(?:[ \u00a0]?{decimal}|[ ]?{numeral})*" if numerals else "(?!)"
    )
    scales = re.escape("".join(self._numeral_scales))
    self._numeral_scale = re.compile(f"[ ]?{no_other}[{scales}]") if scales else None
    self._braced_scale = (  # 3\text{万元}
      re.compile(rf"[ ]?{_TEXT_OPENS}((?:{no_other}[{scales}])+)(?:\s?\}})?") if scales else None
    )
    self._inverted = (
      re.compile(rf"[ \u00a0]?(?:{_any(language.inverted_fractions)})[ \u00a0]?")
      if language.inverted_fractions
      else None
    )
    # 30分の2倍で60分, but not 3分の2倍です, which is the fraction
    multiples = _any(word_forms(language.multiples))
    self._multiple = (
      re.compile(rf"(?:{multiples})[^。.!?\n0-9]{{0,12}}[0-9]") if multiples else None
    )
    of = _any(word_forms(language.of_words))
    classifier = rf"[ ]?(?:(?!{of})[^\W\d_]){{0,8}}?[ ]?"
    per_before, per_after = word_forms(language.per_before), word_forms(language.per_after)
    ends = (word + ("" if len(word) > 1 else r"(?![^\W\d_])") for word in per_after)
    self._per_before = re.compile(rf"(?:{_any(per_before)})[ ]?$") if per_before else None
    self._per_after = re.compile(rf"{classifier}(?:{'|'.join(ends)})") if per_after else None
    self._of_after = re.compile(rf"{classifier}(?:{of})[ ]?")
    self.units = word_forms((*language.units, *language.not_scales))

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

  def past_rate(self, text: str, number: Number, end: int) -> Number:
    """The number that is meant where `number` only says of how many: 5 in 1人あたり5個.

    Likewise 10 in 5個の2倍で10個; `number` itself if none follows in `text[:end]`.
    """
    while self._is_rate(text, number):
      following = self.first(text, number.end, end)
      if following is None or following.value == 1 != number.value:
        return number  # 每3天一次
      number = following
    multiple, factor = self._multiple, number
    while multiple and factor and (of := self._of_after.match(text, factor.end)):
      factor = self.first(text, of.end(), min(of.end() + 1, end))
      if factor and multiple.match(text, factor.end):
        return self.first(text, factor.end, end) or number
    return number

  def _is_rate(self, text: str, number: Number) -> bool:
    before, after = self._per_before, self._per_after
    if before and before.search(text, max(0, number.start - 8), number.start):
      return True
    return after is not None and after.match(text, number.end) is not None

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
      run = _DIGITS.match(text, start + 1)
      assert run is not None
      if run.end() - start > MAX_DIGITS:
        return [], run.end()
      value = Fraction(int(run.group()), 10 ** len(run.group()))
      return [self._completed(text, Number(value, start, run.end()))], run.end()
    if not character.isdigit() or not character.isascii():
      return self._read_numerals(text, start)
    run = RUN.match(text, start)
    assert run is not None
    if not self._stands_alone(text, start):
      return [], run.end()
    if self._numeral_scale and self._numeral_scale.match(text, run.end()):
      read, end = self._read_numerals(text, start)
      if read:
        return read, end
    pieces = pieces_of_run(text, run, self.language)
    if not pieces:
      return [], run.end()
    extended = self._extended(text, pieces[-1])
    if extended is None:
      return [], run.end()
    last = self._completed(text, extended)
    before = [self._completed(text, piece) for piece in pieces[:-1]]
    return [*before, last], max(last.end, run.end())

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
    if word in ("x", "х") and text[:word_start].rstrip(" ")[-1:].isdigit():
      return True
    return word in self.currency_words

  def _extended(self, text: str, number: Number) -> Number | None:
    """Takes in what follows the digits: mixed and slash fractions, powers, ratios.

    None if that makes a number beyond the limits, such as 9^99999.
    """
    value, end = number.value, number.end
    following = text[end : end + 1]
    visible = text[end + 1 : end + 2] if following in " \u00a0" else following
    if visible not in _EXTENDING:
      return number
    whole = value.denominator == 1
    if following == "e" and (match := _E_NOTATION.match(text, end)):
      return _times_ten(number, int(match[1]), match.end())
    if following in " \u00a0×xх*·\\" and (match := _TIMES_TEN.match(text, end)):
      exponent = match[1] or match[2] or match[3].translate(_SUPERSCRIPTS)
      return _times_ten(number, int(exponent), match.end())
    if whole and (match := _MIXED_VULGAR.match(text, end)):
      return number._replace(value=value + _VULGAR[match[1]], end=match.end())
    if whole and (match := _MIXED.match(text, end)):
      numerator, denominator = int(match[1]), int(match[2])
      if 0 < numerator < denominator:
        part = Fraction(numerator, denominator)
        return number._replace(value=value + part, end=match.end())
    if whole and (match := _MIXED_LATEX.match(text, end)):
      part = _latex_fraction(text, match.end(), self.language)
      if part is not None and 0 < part.value < 1:
        return number._replace(value=value + part.value, end=part.end)
    if (
      (match := _SLASH_FRACTION.match(text, end))
      and int(match[2]) != 0
      and text[number.start - 1 : number.start] != "/"
    ):
      return number._replace(value=value / int(match[2]), end=match.end())
    if match := _POWER.match(text, end):
      exponent = match[1] or match[2] or match[3].translate(_SUPERSCRIPTS)
      powered = _power(value, int(exponent))
      if powered is None:
        return None
      return number._replace(value=powered, end=match.end())
    if whole and (match := _CLOCK.match(text, end)):
      ratio = f"{value.numerator}:{match[1]}"
      return number._replace(end=match.end(), ratio=ratio)
    return number

  def _completed(self, text: str, number: Number) -> Number:
    """Applies the scale word, inverted fraction and sign around a number."""
    if number.ratio:
      return number
    value, start, end = number.value, number.start, number.end
    if self._inverted and value and (match := self._inverted.match(text, end)):
      numerator, after = self._plain_at(text, match.end())
      if numerator is not None and not (self._multiple and self._multiple.match(text, after)):
        value, end = numerator / value, after
    value, start, end = self._scaled(text, value, start, end)
    start, negative = self._sign(text, start)
    if negative:
      value = -value
    elif value is number.value:
      return number
    return Number(value, start, end, number.bare)

  def _scaled(self, text: str, value: Fraction, start: int, end: int) -> tuple[Fraction, int, int]:
    """Value and place with the scale words around a number."""
    if (
      self._scale_before
      and text[max(0, start - 24) : start].rstrip(" \u00a0").endswith(self._scale_names)
      and (match := self._scale_before.search(text, max(0, start - 24), start))
    ):
      scale, start = self._scales[match[1]], match.start()
      value *= scale
      while match := self._scale_between.match(text, end):  # "elfu 5 mia 2"
        part = int(match[2]) * self._scales[match[1]]
        if part >= scale:
          break
        value, end, scale = value + part, match.end(), self._scales[match[1]]
      return value, start, end
    following = text[end : end + 1]
    if following in " \u00a0~-":
      following = text[end + 1 : end + 2]
    if following == "\\" and self._braced_scale:
      match = self._braced_scale.match(text, end)
      scale = self._numeral_value(match[1]) if match else None
      if match and scale:
        return value * scale, start, match.end()
    if (following == "\\" or following.isalpha()) and (match := self._scale.match(text, end)):
      scale = self._scales[match["word"]]
      value, end = value * scale, match.end()
      following = self._begin.match(text, end + 1) if text[end : end + 1] in " \u00a0" else None
      if following is not None and following.group().isdigit():
        rest, after = self._smaller_scale(text, following, scale)
        if rest is not None:
          value, end = value + rest, after
    return value, start, end

  def _plain_at(self, text: str, position: int) -> tuple[Fraction | None, int]:
    """A whole number, in digits or CJK numerals, that begins at `position`; not what follows it."""
    match = _DIGITS.match(text, position)
    if match is not None and len(match.group()) <= MAX_DIGITS:
      return Fraction(int(match.group())), match.end()
    match = self._numerals.match(text, position, position + 20)
    if match is None:
      return None, position
    return self._numeral_value(match.group()), match.end()

  def _smaller_scale(
    self, text: str, found: re.Match[str], scale: int
  ) -> tuple[Fraction | None, int]:
    """Value and end of "200 thousand" after "1 million"; None if it is no smaller part."""
    run = RUN.match(text, found.start())
    if run is None or not run.group().isdigit() or run.end() - run.start() > 12:
      return None, 0
    match = self._scale.match(text, run.end())
    if match is None or int(run.group()) * self._scales[match["word"]] >= scale:
      return None, 0
    return Fraction(int(run.group()) * self._scales[match["word"]]), match.end()

  def _sign(self, text: str, start: int) -> tuple[int, bool]:
    """Where the number begins with its sign and currency, and whether the sign is a minus.

    Worked: "ist -5", "-$5", "$-5", "= - 5", "ist minus 5" and "ist minus $5" are negative; "20
    -12", "10-12", "20 minus 12" and "- 5" on a line of its own (a list item) are not.
    """
    if start == 0:
      return start, False
    place = start
    before = text[place - 1]
    if before not in _SIGN_BEFORE:
      end = start - 1 if before in " \u00a0\u200b" else start
      if not text.endswith(self._before_amount, 0, end):
        return start, False
      match = self._minus_before.search(text, max(0, start - 40), start)
      currency = self._currency_before.search(text, max(0, start - 16), start)
      if currency is not None:
        place = currency.start()
        match = match or self._minus_before.search(text, max(0, place - 40), place)
      if match is not None:
        return match.start(1), True
      if currency is None and before not in " \u00a0\u200b":
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
    end = start + len(numeral)
    bare = not any(character in "0123456789" for character in numeral)
    if bare and (
      self._numeral_scales.get(numeral[0], 1) >= 10**4
      or (len(numeral) == 1 and not self._ends_numeral(text, end))
    ):
      return [], end  # 万一 and 一共 are words
    number = self._completed(text, Number(value, start, end, bare))
    return [number], number.end

  def _ends_numeral(self, text: str, end: int) -> bool:
    """May a single CJK numeral end here: before a classifier, kana, punctuation or nothing?"""
    following = text[end : end + 1]
    if not "\u4e00" <= following <= "\u9fff":
      return True
    inverted = self._inverted is not None and self._inverted.match(text, end) is not None
    return inverted or any(text.startswith(unit, end) for unit in self.units)

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
          current = resolve(groups[::2], groups[1::2], self.language)
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
      ellipsis = tokens[-2:-1] and tokens[-2] in self._numeral_scales and last_scale > 10
      if ellipsis and self.language.elliptic_numerals and tokens[-1] in self._numeral_values:
        current *= last_scale // 10
      section += current
    return total + section


def _times_ten(number: Number, exponent: int, end: int) -> Number | None:
  power = _power(Fraction(10), exponent)
  if power is None:
    return None
  return number._replace(value=number.value * power, end=end)


def _latex_fraction(text: str, start: int, language: Language) -> Number | None:
  match = _LATEX_FRACTION.match(text, start)
  if match is None:
    return None
  sign, above, above_digit, below, below_digit = match.groups()
  numerator, denominator = (
    resolve(parts[::2], parts[1::2], language)
    for parts in (
      re.split(r"([.,])", above or above_digit),
      re.split(r"([.,])", below or below_digit),
    )
  )
  if numerator is None or not denominator:
    return None
  value = numerator / denominator
  return Number(-value if sign else value, start, match.end())


@functools.cache
def number_reader(code: str) -> NumberReader:
  """The compiled number tables of language `code`. Raises ValueError if it is unknown."""
  return NumberReader(language_table(code))
