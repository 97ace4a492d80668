"""What a box, a formula or a side of an equation says: a number with its unit, or mathematics.

Plain numbers never reach the symbolic parser: `FormulaReader.expression` first asks whether the
text is one number and a unit ("57,500 apples", "5\\text{ cm}^2"), and only what is not goes to
`symbolic.read_expression`, with its numbers rewritten in one style.
"""

import re
from fractions import Fraction

from pasmr_jax.text import symbolic
from pasmr_jax.text.characters import normalise, word_forms
from pasmr_jax.text.languages import LANGUAGES
from pasmr_jax.text.numerals import MONEY, NumberReader
from pasmr_jax.text.separators import Number, plain_runs
from pasmr_jax.text.symbolic import Symbolic

Value = Fraction | Symbolic

# Dollars enclose a formula only where no space stands inside them and no digit after them:
# "$5 - $2" is none.
_MATH_SPAN = re.compile(
  r"\$\$([^$]{1,400})\$\$|\$(?!\s)([^$\n]{1,400})(?<!\s)\$(?![0-9])"
  r"|\\\(([^\n]{1,400}?)\\\)|\\\[(.{1,400}?)\\\]",
  re.DOTALL,
)
# A macro that computes; spacing, text and fonts do not.
_MATH_MACRO = re.compile(
  r"\\(?!(?:text|mathrm|mathbf|textbf|boldsymbol|bm|mbox|left|right)(?![a-z]))[A-Za-z]+"
)
_LATEX_SPACING = re.compile(  # the \! of 70,\!000 is of the number
  r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[> ]|(?<![0-9],)\\!|\\!(?![0-9]{3}(?![0-9]))"
)
_BOLD = re.compile(r"\\(?:mathbf|textbf|boldsymbol|bm)\s?\{([^{}]{0,200})\}")
_TEXT = re.compile(r"(?:[\s~]|\\[,;: ]){0,8}\\(?:mathrm|text|mbox)\s?\{[\s~]*([^{}]{0,200})\}\s?")
_LETTER = r"[^\W\d_]"
_UNIT_WORDS = (  # up to six words, with the punctuation and exponents that units have
  # Nothing is given back (++, *+): a long word could be cut into six in millions of ways. An
  # exponent is glued to its letter or behind ^: "m2", "m-3", but "1 or 2" are two numbers.
  rf"[\s~*_`'\"$.,;:!。।॥۔፣።%°)\]}}|]*+(?:-?\\?(?:{_LETTER}|[\u0900-\u0eff\u200c\u200d'])++"
  rf"[\s.,;:!。।॥۔።%°)\]}}*$²³/{{-]*+(?:(?:\^\{{?|(?<={_LETTER})|(?<={_LETTER}-))[23]\}}?)?){{0,6}}$"
)
_UNIT = re.compile(_UNIT_WORDS)
_EQUALS = re.compile(r"(?<![<>!])=|≈|\\approx(?![A-Za-z])")
_BRACKET = re.compile(r"[(\[\]|]")
_TIMES = re.compile(r"(?<=[0-9])\s?[xXхХ]\s?(?=[0-9])")  # 4 x 5 and 4x5, not 4x; also Cyrillic
_MONEY_SIGN = re.compile(f"(?<![0-9])[{MONEY[1:]}]|[{MONEY[1:]}](?![0-9])")  # but of 5€50
_AMOUNT = r"\\?\$?([0-9](?:[.,]?[0-9])*)"
_RANGE = re.compile(rf"{_AMOUNT}(?:-|–|\s–\s){_AMOUNT}{_UNIT_WORDS}")
_FUNCTION_WORDS = frozenset(("pi", "sqrt", "sin", "cos", "tan", "log", "ln"))
_OPERATION = re.compile(r"[-+*/^_×÷·=<>≤≥±√(\[]")
_WORD = rf"(?:{_LETTER}|[\u0900-\u0eff])++\s?"
_WORD_BEFORE = re.compile(rf"(?<!{_LETTER}){_WORD}$")
# Swahili "2 x 5 = mayai 10"
_LAST_SIDE = re.compile(rf"[^.,;:!?\n=]{{0,30}}=\s?(?:{_WORD}){{1,2}}+")
_PERCENT = re.compile(r"\s?[%٪]")
_DECIMAL = re.compile("[.,٫]")


def math_spans(text: str, begin: int = 0) -> list[tuple[int, int, str]]:
  """Start, end and content of the formulas between $, \\( \\) or \\[ \\] in `text[begin:]`."""
  return [
    (match.start(), match.end(), next(group for group in match.groups() if group is not None))
    for match in _MATH_SPAN.finditer(text, begin)
  ]


def computes(text: str) -> bool:
  """Is there a LaTeX macro in `text` that stands for an operation or a symbol?"""
  return _MATH_MACRO.search(text) is not None


class FormulaReader:
  """Reads formulas and boxes with the numbers of one language."""

  def __init__(self, numbers: NumberReader):
    self.numbers = numbers
    money = "|".join(map(re.escape, word_forms(tuple(numbers.currency_words))))
    # Between two numbers of an equation: a unit, an operator, money. Nothing is given back (*+).
    self._chain_gap = re.compile(
      r"[^.,;:!?\n=]{0,30}?(?P<mark>[-–+*/×÷·=≈]|(?<![^\W\d_])[xх]|\\times|\\cdot|\\div)"
      rf"(?:[\s({{*\\]|[a-z]{{0,3}}[{MONEY}]|(?<!{_LETTER})(?:{money})(?!{_LETTER})\.?)*+"
    )
    of = word_forms((*numbers.language.of_words, *LANGUAGES["en"].of_words))
    self._of = re.compile(
      rf"\s?[%٪]?\s?(?:{'|'.join(map(re.escape, of))})(?:\s{_LETTER}{{1,4}}+)?\s?"
    )

  def expression(self, text: str) -> Value | None:
    """A number with its unit, or a formula; None for anything else. `text` is normalised."""
    formula = _BOLD.sub(r" \1 ", _LATEX_SPACING.sub(" ", _MONEY_SIGN.sub("", text)))
    formula = _TIMES.sub("*", formula.strip(" \t\r\n$*`").rstrip(".。।"))
    plain = _TEXT.sub(r" \1 ", formula).strip()
    # "x = 5 cm" and "3 + 5 = 8 cm" say their last side; "2x + y = 5" says no 5
    *_, left, side = "", *_EQUALS.split(plain)
    if symbolic.is_name(left) or not symbolic.has_symbol(left):
      number = self.amount(side)
      if number is not None:
        return value_of(number)
    if (span := self.range(plain)) is not None:
      return span
    if re.search(r"[0-9][.,'{\\ \u00a0_][0-9,!}\\]", formula):
      formula = plain_runs(formula, self.numbers.language)
    value = symbolic.read_expression(formula)
    if value == symbolic.IDENTITY and side != plain:
      return self.expression(side)  # 500 g + 200 g = 700 g says 700
    return value

  def amount(self, text: str) -> Number | None:
    """The number that `text` is, with a unit or without; None if it is more."""
    lowered = text.lower()
    number = self.numbers.first(lowered, 0, len(lowered))
    if number is None or lowered[: number.start].strip(" ~≈\\$,;:!"):
      return None
    rest = text[number.end :]
    unit = not computes(rest) and _UNIT.match(rest) and not self.opens_algebra(text, number.end)
    return number if not rest or unit else None

  def range(self, text: str) -> Symbolic | None:
    """The range that `text` is, with a unit or without: 10-12, 10–12 km/h; not 10-12x or 12-10."""
    match = _RANGE.match(text)
    if match is None or computes(text) or self.opens_algebra(text, match.end(2)):
      return None
    low, high = (self.numbers.first(match[end], 0, len(match[end])) for end in (1, 2))
    if low is None or high is None or low.value >= high.value:
      return None
    return Symbolic(f"{low.value}–{high.value}")

  def box(self, text: str) -> Value | None:
    """What a box holds: a number with its unit, a formula, else a sentence or a word."""
    text = normalise(text)
    value = self.expression(text)
    if value is not None:
      return value
    lowered = text.lower()
    number = self.numbers.first(lowered, 0, len(lowered))
    power = number is not None and lowered.startswith("^", number.end)  # one that cannot be read
    if number and not (power or computes(lowered) or _BRACKET.search(lowered, 0, number.start)):
      number = self.numbers.past_rate(lowered, number, len(lowered))
      return value_of(self.end_of_equation(lowered, number, len(lowered)))
    return symbolic.read_words(text)

  def enclosing(
    self, text: str, begin: int, position: int, only_macros: bool = False
  ) -> tuple[Value, int, int] | None:
    """Value and place of the formula around `position`, if it is one that can be read.

    A formula without an operation, such as $5$, is none; with `only_macros` one without a LaTeX
    macro that computes.
    """
    for start, end, content in math_spans(text, begin):
      if start <= position < end:
        if not computes(content) and (only_macros or not _OPERATION.search(content)):
          return None
        value = self.expression(content)
        return None if value is None else (value, start, end)
    return None

  def opens_algebra(self, text: str, position: int) -> bool:
    """Is what follows a number a factor, as in 5x, 5! or 2π, rather than a unit, as in 5 m?"""
    rest = text[position : position + 40]
    if rest.lstrip()[:1] == "!":
      return True
    match = re.search(rf"{_LETTER}+", rest)
    if match is None:
      return False
    word = match.group().lower()
    if len(word) > 1:
      return word in _FUNCTION_WORDS
    if "α" <= word <= "ω":
      return True
    if not word.isascii():
      return False
    return rest[0].isalpha() or word not in self.numbers.units

  def end_of_equation(self, lowered: str, number: Number, end: int) -> Number:
    """In "5 + 6 = 11" the number after the last equals sign of the row that `number` opens."""
    found = last = number
    calculated = False
    unit = _WORD_BEFORE.search(lowered, max(0, number.start - 24), number.start)
    row = self.numbers.read(lowered, number.end, end, limit=24)
    for following in row:
      gap = lowered[last.end : following.start]
      if unit is not None:  # Swahili "mayai 10 + mayai 5"
        gap = gap.removesuffix(unit.group())
      if match := self._chain_gap.fullmatch(gap):
        equals = match["mark"] in "=≈"
      elif self._of.fullmatch(gap) and (_is_share(lowered, last) or _is_share(lowered, following)):
        equals = False  # 50% of 20, 20的50%
      elif calculated and following is row[-1] and _LAST_SIDE.fullmatch(gap):
        equals = True
      else:
        break
      calculated = calculated or not equals
      found, last = following if equals else found, following
    return found


def _is_share(lowered: str, number: Number) -> bool:
  """Is `number` a fraction or in per cent, rather than whole or decimal?"""
  decimal = _DECIMAL.search(lowered, number.start, number.end)
  fraction = number.value.denominator != 1 and decimal is None
  return fraction or _PERCENT.match(lowered, number.end) is not None


def value_of(number: Number) -> Value:
  """The value of a number; a clock time or ratio is kept as it is written."""
  return Symbolic(number.ratio) if number.ratio else number.value
