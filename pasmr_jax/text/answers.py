"""Final answers of multilingual mathematics: found, read exactly, compared.

The path of a response: its last `MAX_CHARACTERS` characters are searched, from the end, for an
explicit statement, which is `#### 5`, `\\boxed{5}` or the language's own phrase ("die Antwort lautet
5"). The last statement that can be read wins, so that a model may correct itself. Without one, the
last number of the text is the answer. `Answer.rule` tells which of the four it was.

What a number means is settled in `text/numerals.py`, formulas in `text/symbolic.py`; `docs/answers.md`
has every rule with an example. Model text is hostile: nothing in it is ever evaluated, every search
is bounded, and no string raises.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from fractions import Fraction

from pasmr_jax.text import symbolic
from pasmr_jax.text.characters import normalise, word_forms
from pasmr_jax.text.languages import LANGUAGES
from pasmr_jax.text.languages import language as language_table
from pasmr_jax.text.numerals import number_reader
from pasmr_jax.text.separators import Number, plain_runs
from pasmr_jax.text.symbolic import Symbolic

HASH, BOXED, PHRASE, LAST_NUMBER = RULES = ("hash", "boxed", "phrase", "last_number")

# Only the end of a response is read: an answer stands there, and a runaway text costs no more.
MAX_CHARACTERS = 16_384
MAX_STATEMENTS = 40  # explicit statements tried before the last number is taken
_STATEMENT_CHARACTERS = 240  # an answer phrase and its number are not further apart
_BOX_CHARACTERS = 400
_MAX_WORDS_AFTER_VERB = 4  # "the answer is that she now has 5"


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
  """A final answer and where it was found."""

  value: Fraction | Symbolic  # exact; equal answers have equal values and hashes
  rule: str  # one of `RULES`
  start: int  # text[start:end] is what was read, sign and scale word included
  end: int


# value, start and end within the string that was read
_Reading = tuple[Fraction | Symbolic, int, int]

_LETTER = r"[^\W\d_]"
_HAS_LETTER = re.compile(_LETTER)
_MATH_MACRO = re.compile(r"\\(?!text|mathrm|mathbf|textbf|boldsymbol|left|right|\W)[A-Za-z]+")
_MATH_SPAN = re.compile(
  r"\$\$([^$]{1,400})\$\$|\$([^$\n]{1,400})\$|\\\(([^\n]{1,400}?)\\\)|\\\[(.{1,400}?)\\\]",
  re.DOTALL,
)
_SENTENCE_END = re.compile(r"[!?！？。।॥؟۔։።\n]|\.(?=\s+\S|$)|;")
_ABBREVIATION = re.compile(rf"(?<!{_LETTER}){_LETTER}{{1,6}}\.$")
_OPERATOR_AFTER = re.compile(r"\s?(?:[-+*/^_×÷·=<>≤≥±√(\[]|\\(?![$%,; ]|text|mathrm|mbox|\)|\]))")
_OPERATOR_BEFORE = re.compile(r"(?:[-+*/^_×÷·=<>≤≥±√(\[{]|\\[A-Za-z]+)\s?$")
_CHAIN_GAP = re.compile(
  r"[^.,;:!?\n=]{0,30}?(?P<mark>[-+*/×÷·=≈]|(?<![^\W\d_])x|\\times|\\cdot|\\div)[\s$({*\\]*"
)
_BOX = re.compile(r"\s{0,3}\{")
_LINE_START = re.compile(r"(?:^|\n)[\s>*#_-]*$")
_LIST_ITEM = re.compile(r"[.)](?=\s)")
_UNIT_WORDS = re.compile(
  r"[\s~*_`'\"$.,;:!。।॥۔፣።%°)\]}|-]*(?:(?:\\text\s?\{\s?)?\\?(?:[^\W\d_]|[\u0900-\u0dff\u200c\u200d'])+"
  r"[\s.,;:!。।॥۔።%°)\]}*$²³/^{-]*(?:\^?\{?[23]\}?)?){0,6}$"
)
_LATEX_SPACING = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!> ]")
_EMPHASIS = re.compile(r"\\(?:mathbf|textbf|boldsymbol|bm|mathrm|text|mbox)\s?\{([^{}]{0,200})\}")


class _Reader:
  """The tables of one language, compiled."""

  def __init__(self, code: str):
    self.language = language_table(code)
    english = LANGUAGES["en"]
    self.numbers = number_reader(code)
    self.answer_words = word_forms((*self.language.answer_words, *english.answer_words))
    verbs = word_forms(self.language.answer_verbs)
    spaced_verbs = (*english.answer_verbs, *(verbs if self.language.spaced else ()))
    self.verb = _any_word(spaced_verbs, () if self.language.spaced else verbs)
    negations = word_forms(self.language.negations)
    spaced_negations = (*english.negations, *(negations if self.language.spaced else ()))
    self.negation = _any_word(spaced_negations, () if self.language.spaced else negations)
    steps = word_forms((*self.language.steps, *english.steps))
    alternatives = "|".join(map(re.escape, steps))
    self.step_before = re.compile(rf"(?:{alternatives})[\s:#*_.\"'()-]{{0,4}}$")
    self.step = re.compile(alternatives)
    amounts = word_forms(
      (*self.language.currencies, *english.currencies, "approximately", "about", "exactly")
    )
    self.amount_word = re.compile(
      rf"(?<!{_LETTER})(?:{'|'.join(map(re.escape, amounts))})(?!{_LETTER})"
      r"|\\(?:text|mathrm|mathbf|textbf|boxed)|(?<![^\W\d_])[a-z]{1,3}(?=\\?\$)"
    )
    closing = word_forms(
      (*self.language.answer_verbs, *self.language.units, *self.language.currencies)
    )
    self.closing_words = frozenset(closing)
    self.unit_end = re.compile(f"(?:{'|'.join(map(re.escape, self.numbers.units))})")

  # ---- statements ------------------------------------------------------------------------------

  def statements(self, text: str, begin: int) -> Iterator[tuple[int, str, str]]:
    """Places of explicit statements from the last to the first: (position, rule, marker)."""
    lowered = text.lower() if text.isascii() else text.replace("İ", "I").lower()
    markers = [("####", HASH), ("\\boxed", BOXED), ("\\fbox", BOXED)]
    markers += [(word, PHRASE) for word in self.answer_words]
    places: dict[str, int] = {}
    for marker, _ in markers:
      if (place := lowered.rfind(marker, begin)) >= 0:
        places[marker] = place
    rules = dict(markers)
    while places:
      marker = max(places, key=lambda key: (places[key], len(key)))
      place = places[marker]
      yield place, rules[marker], marker
      if marker[0] == "#":  # a row of hashes is one marker
        while place > begin and lowered[place - 1] == "#":
          place -= 1
      earlier = lowered.rfind(marker, begin, place)
      if earlier >= 0:
        places[marker] = earlier
      else:
        del places[marker]

  def read_statement(self, text: str, place: int, rule: str, marker: str) -> _Reading | None:
    """Reads the statement at `place`; positions in the result are those of `text`."""
    if rule == BOXED:
      reading = self._boxed(text, place + len(marker))
      offset = 0
    else:
      offset = max(0, place - 24)
      window = normalise(text[offset : place + len(marker) + _STATEMENT_CHARACTERS])
      after = place + len(marker) - offset
      reading = (
        self._hash(window, after) if rule == HASH else self._phrase(window, place - offset, after)
      )
    if reading is None:
      return None
    value, start, end = reading
    return value, start + offset, end + offset

  def _hash(self, window: str, after: int) -> _Reading | None:
    """`#### 5`: the first number of the line, or of the next line if this one is empty."""
    lowered = window.lower()
    begin = after + len(window[after:]) - len(window[after:].lstrip())
    if lowered.count("\n", after, begin) > 2:
      return None
    end = lowered.find("\n", begin)
    end = len(lowered) if end < 0 else end
    number = self.numbers.first(lowered, begin, end)
    if number is None:
      return self._formula(window, begin, end)
    gap = lowered[begin : number.start]
    if len(gap) > 60 or self.step_before.search(gap):
      return None
    following = lowered[number.end : number.end + 2]
    if following[:1] == ":" or (
      _LIST_ITEM.match(following)
      and _HAS_LETTER.search(lowered, number.end, end)
      and not gap.strip("$*_ ")
    ):
      return None  # "#### 3. Add the numbers" and "#### Part 2: ..." are headings
    return self._stated(window, lowered, begin, end, number)

  def _phrase(self, window: str, place: int, after: int) -> _Reading | None:
    """ "The answer is 5", "Answer: 5", "答えは5"."""
    lowered = window.lower()
    language = self.language
    if language.spaced or lowered[place].isascii():
      if lowered[after : after + 1].isalpha() or (place and lowered[place - 1].isalpha()):
        return None
    if self.step_before.search(lowered, max(0, place - 24), place):
      return None
    number = self.numbers.first(lowered, after, min(len(lowered), after + 120))
    begin = number.start if number else len(lowered)
    span = _MATH_SPAN.search(window, after, after + 160)
    if span and span.start() < begin and _MATH_MACRO.search(span[0].strip("$\\()[]")):
      # a formula without a digit of its own, or around it
      content = next(group for group in span.groups() if group is not None)
      if self._gap(lowered, after, span.start(), None):
        value = self._expression(content)
        if value is not None:
          return value, span.start(), span.end()
    if number is None:
      return None
    if lowered[number.end : number.end + 1] == ":" and not number.ratio:
      label_end = number.end + 1  # "Answer 1: 5" is an answer with a number
      numbered = self.numbers.first(lowered, label_end, min(len(lowered), label_end + 40))
      if numbered is None or _HAS_LETTER.search(lowered, label_end, numbered.start):
        return None
      number, after = numbered, number.end
    if not self._gap(lowered, after, number.start, number):
      return None
    end = self._statement_end(lowered, number.end)
    colon = lowered.rfind(":", after, number.start)
    return self._stated(window, lowered, max(after, colon + 1), end, number)

  def _gap(self, lowered: str, after: int, start: int, number: Number | None) -> bool:
    """May the text between an answer word and a number join the two?"""
    gap = lowered[after:start]
    if len(gap) > 100 or self.step.search(gap):
      return False
    tail = gap[gap.rfind(":") + 1 :]
    bare = self.amount_word.sub(" ", tail)
    sentence_end = _SENTENCE_END.search(gap.rstrip())
    verb = None
    for verb in self.verb.finditer(gap):
      break
    if not _HAS_LETTER.search(bare):  # a label: "Answer: **$5**"
      head = gap[: len(gap) - len(tail)]
      if _HAS_LETTER.search(head) and len(head.split()) > 6:
        return False
      if gap.count("\n") > 2 or re.search(r"[!?？]", gap):
        return False
      return number is None or self._label_ends(lowered, gap, number)
    if verb is None or ":" in gap or (sentence_end and not _ABBREVIATION.search(gap.rstrip())):
      return False
    if self.negation.search(gap):
      return False
    words = gap[verb.end() :].split()
    return len(words) <= _MAX_WORDS_AFTER_VERB and len(gap) - verb.end() <= 40

  def _label_ends(self, lowered: str, gap: str, number: Number) -> bool:
    """A label holds for a number that is its whole statement, not for one inside a sentence.

    "Answer: 5 apples." is read; "Step-by-step answer: 5 bags of 3 make 15" and "Answer:\n1. First"
    are not.
    """
    if re.match(r"\.[^\W\d]", lowered[number.end : number.end + 2]):
      return True  # a full stop without a space after it
    end = self._statement_end(lowered, number.end, ",(")
    rest = lowered[number.end : end]
    if (
      "\n" in gap
      and _LIST_ITEM.match(lowered, number.end)
      and _HAS_LETTER.search(lowered[number.end : number.end + 20])
    ):
      return False
    if any(character in "=+-*/×÷·<>" for character in rest):
      return True  # an equation; its value is found later
    if re.search(r"[0-9]", rest):
      return False
    if not gap.strip():  # "answer 5": the number has to close the sentence
      if self.language.spaced:
        words = re.sub(r"^['’]\w+", "", rest).split()
        return len(words) <= 3 and all(
          word.strip(".,'\"*%$") in self.closing_words for word in words
        )
      return True
    return True

  def _statement_end(self, lowered: str, position: int, further: str = "") -> int:
    """Where the sentence around `position` ends."""
    end = len(lowered)
    match = _SENTENCE_END.search(lowered, position)
    if match:
      end = match.start()
    for mark in further:
      place = lowered.find(mark, position, end)
      end = place if place >= 0 else end
    return end

  # ---- values ----------------------------------------------------------------------------------

  def _stated(
    self, window: str, lowered: str, begin: int, end: int, number: Number
  ) -> _Reading | None:
    """Value of a statement whose first number is `number`: that number, or the formula it opens."""
    if number.ratio:
      return Symbolic(number.ratio), number.start, number.end
    span = next(
      (s for s in _MATH_SPAN.finditer(window, begin) if s.start() <= number.start < s.end()), None
    )
    if span is not None:
      content = next(group for group in span.groups() if group is not None)
      if _OPERATOR_AFTER.search(content) or _MATH_MACRO.search(content):
        value = self._expression(content)
        if value is not None:
          return value, span.start(), span.end()
    before = lowered[begin : number.start].rstrip("$ ")
    if _OPERATOR_AFTER.match(lowered, number.end) or _OPERATOR_BEFORE.search(before):
      formula = self._formula(window, begin, end)
      if formula is not None:
        return formula
    if lowered.find("=", number.end, end) >= 0:
      number = self._end_of_equation(lowered, number, end)
    return number.value, number.start, number.end

  def _formula(self, window: str, begin: int, end: int) -> _Reading | None:
    """A whole statement as one formula, None if it has words in it or no mathematics."""
    body = window[begin:end].strip(" \t\r*:`._")
    if not body or len(body) > 200 or not re.search(r"[0-9\\^=+*/√π]", body):
      return None
    start = window.index(body, begin)
    span = _MATH_SPAN.fullmatch(body)
    if span:
      body = next(group for group in span.groups() if group is not None)
    value = self._expression(body)
    return None if value is None else (value, start, start + len(body))

  def _end_of_equation(self, lowered: str, number: Number, end: int) -> Number:
    """ "5 + 6 = 11": the number after the last equals sign of the row of terms that `number` opens."""
    found = number
    last = number
    for following in self.numbers.read(lowered, number.end, end, limit=24):
      gap = lowered[last.end : following.start]
      match = _CHAIN_GAP.fullmatch(gap)
      if match is None:
        if last.end > following.start or gap.strip():
          break
      elif match["mark"] in "=≈":
        found = following
      last = following
    return found

  def _boxed(self, text: str, after: int) -> _Reading | None:
    """Content of \\boxed{...}; one without its closing brace was cut off and is not read."""
    opening = _BOX.match(text, after)
    if opening is None:
      return None
    depth, begin = 1, opening.end()
    for match in re.compile(r"[{}]").finditer(text, begin, begin + _BOX_CHARACTERS):
      if match.start() and text[match.start() - 1] == "\\":
        continue
      depth += 1 if match.group() == "{" else -1
      if depth == 0:
        value = self._content(text[begin : match.start()])
        return None if value is None else (value, begin, match.start())
    return None

  def _content(self, content: str) -> Fraction | Symbolic | None:
    """What a box holds: a number with its unit, a formula, else a sentence or a word."""
    value = self._expression(normalise(content))
    if value is not None:
      return value
    normalised = normalise(content).lower()
    number = self.numbers.first(normalised, 0, len(normalised))
    if number is not None and not _MATH_MACRO.search(normalised):
      number = self._end_of_equation(normalised, number, len(normalised))
      return Symbolic(number.ratio) if number.ratio else number.value
    return symbolic.read_words(content)

  def _expression(self, content: str) -> Fraction | Symbolic | None:
    """A number with its unit, or a formula; None for anything else."""
    plain = _LATEX_SPACING.sub(" ", content).strip(" \t\r\n$*`").rstrip(".。।")
    plain = _EMPHASIS.sub(r" \1 ", plain).strip()
    lowered = plain.lower()
    number = self.numbers.first(lowered, 0, len(lowered))
    if number is not None and not lowered[: number.start].strip(" ~≈\\$,;:!"):
      rest = plain[number.end :]
      if not rest or (
        not _MATH_MACRO.search(rest) and _UNIT_WORDS.match(rest) and not self._is_algebra(rest)
      ):
        return Symbolic(number.ratio) if number.ratio else number.value
    return symbolic.read_expression(self._plain_numbers(plain))

  def _is_algebra(self, rest: str) -> bool:
    """Is what follows a number a factor, as in 5x, rather than a unit, as in 5 m or 5 apples?"""
    if re.match(r"\\?[!]", rest.lstrip()):
      return True
    words = re.findall(rf"{_LETTER}+", rest)
    if not words or len(words[0]) > 1:
      return bool(words) and words[0] in ("pi", "sqrt", "sin", "cos", "tan", "log", "ln")
    if "α" <= words[0] <= "ω":
      return True
    if rest[0] in " ~\u00a0" or not words[0].isascii():
      return words[0].lower() not in self.numbers.units and words[0].isascii()
    return True

  def _plain_numbers(self, text: str) -> str:
    """Numbers in the language's style become ASCII ones: in German, 2.500,5x is 2500.5x."""
    if not re.search(r"[0-9][.,'{\\ \u00a0][0-9,!}]", text):
      return text
    return plain_runs(text, self.language)

  # ---- the last number -------------------------------------------------------------------------

  def last_number(self, text: str, begin: int) -> _Reading | None:
    """The last number of `text[begin:]` that is no list mark, step heading or exponent."""
    match = _LAST_DIGIT.match(text, begin)
    if match is not None:
      last = match.end()
      for reach in (40, 400, 4_000):
        offset = max(begin, last - reach)
        while (
          offset > begin and offset > last - reach - 200 and _NUMBER_LIKE.match(text, offset - 1)
        ):
          offset -= 1
        window = normalise(text[offset : last + 80])
        reading = self._last_in(window, offset == begin)
        if reading is not None:
          return reading[0], reading[1] + offset, reading[2] + offset
        if offset == begin:
          break
    if not self.language.numeral_digits:
      return None
    return self._last_bare(normalise(text[max(begin, len(text) - 600) :]), text)

  def _last_in(self, window: str, whole: bool) -> _Reading | None:
    lowered = window.lower()
    read = self.numbers.read(lowered, 0, len(lowered))
    kept = [number for number in read if not number.bare]
    if not whole:
      kept = [number for number in kept if number.start >= 12]  # others may be cut off
    chosen = next((n for n in reversed(kept) if not self._is_heading(lowered, n)), None)
    if chosen is None:
      if not whole or not kept:
        return None
      chosen = kept[-1]
    if chosen.ratio:
      return Symbolic(chosen.ratio), chosen.start, chosen.end
    if "$" in window or "\\" in window:
      for span in _MATH_SPAN.finditer(window):
        if span.start() <= chosen.start < span.end():
          content = next(group for group in span.groups() if group is not None)
          if _MATH_MACRO.search(content):
            value = self._expression(content)
            if value is not None:
              return value, span.start(), span.end()
    return chosen.value, chosen.start, chosen.end

  def _is_heading(self, lowered: str, number: Number) -> bool:
    if self.step_before.search(lowered, max(0, number.start - 30), number.start):
      return True
    if number.end - number.start > 2 or not _LIST_ITEM.match(lowered, number.end):
      return False
    return _LINE_START.search(lowered, max(0, number.start - 12), number.start) is not None

  def _last_bare(self, window: str, text: str) -> _Reading | None:
    """Without any digit, CJK numerals count if they are long or have a classifier: 三个, 三十五."""
    offset = len(text) - len(window)
    for number in reversed(self.numbers.read(window, 0, len(window))):
      if number.end - number.start > 1 or self.unit_end.match(window, number.end):
        return number.value, number.start + offset, number.end + offset
    return None


_LAST_DIGIT = re.compile(r".*[\d½⅓¼¾⅔]", re.DOTALL)
_NUMBER_LIKE = re.compile(r"[^\s.,;:=]|[.,]\d")


def _any_word(spaced: tuple[str, ...], unspaced: tuple[str, ...]) -> re.Pattern[str]:
  """Matches a whole word of `spaced`, or `unspaced` anywhere; an empty table matches nothing."""
  parts = []
  if spaced:
    words = "|".join(re.escape(word) for word in sorted(spaced, key=lambda word: -len(word)))
    parts.append(rf"(?<![^\W\d_])(?:{words})(?![^\W\d_])")
  if unspaced:
    parts.append("|".join(map(re.escape, unspaced)))
  return re.compile("|".join(parts) or r"(?!)")


@functools.cache
def _reader(code: str) -> _Reader:
  return _Reader(code)


def read_answer(text: str, language: str) -> Answer | None:
  """Reads the final answer of a solution.

  Args:
    text: any string, a whole response or its answer only. Its last `MAX_CHARACTERS` characters,
      not counting space at the end, are read.
    language: code of `languages.LANGUAGES` whose way of writing numbers and answers holds; English
      answer phrases are understood in every language.

  Returns:
    The answer, None if there is none. Never raises for any text.

  Raises:
    ValueError: `language` is unknown.
  """
  reader = _reader(language)
  end = len(text)
  text = text[max(0, end - 4 * MAX_CHARACTERS) :] if end > 8 * MAX_CHARACTERS else text
  dropped = end - len(text)
  text = text.rstrip()
  begin = max(0, len(text) - MAX_CHARACTERS)
  tried = 0
  for place, rule, marker in reader.statements(text, begin):
    reading = reader.read_statement(text, place, rule, marker)
    if reading is not None:
      value, start, stop = reading
      return Answer(value, rule, start + dropped, stop + dropped)
    tried += 1
    if tried == MAX_STATEMENTS:
      break
  reading = reader.last_number(text, begin)
  if reading is None:
    return None
  value, start, stop = reading
  return Answer(value, LAST_NUMBER, start + dropped, stop + dropped)


def same_answer(a: Answer | None, b: Answer | None) -> bool:
  """Do two answers have the same exact value? A missing answer equals nothing, itself included."""
  return a is not None and b is not None and a.value == b.value
