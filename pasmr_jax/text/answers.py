"""Final answers of multilingual mathematics: found, read exactly, compared.

The path of a response: its last `MAX_CHARACTERS` characters are searched, from the end, for an
explicit statement, which is `#### 5`, `\\boxed{5}` or the language's own phrase ("die Antwort
lautet 5"). The last statement that can be read wins, so that a model may correct itself. Without
one, the last number of the text is the answer. `Answer.rule` tells which of the four it was.

What a number means is settled in `numerals.py`, formulas in `formulas.py` and `symbolic.py`;
`docs/answers.md` has every rule with an example. Model text is hostile: nothing in it is ever
evaluated, every search is bounded, and no string raises.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

from pasmr_jax.text.characters import normalise, word_forms
from pasmr_jax.text.formulas import FormulaReader, Value, computes, math_spans, value_of
from pasmr_jax.text.languages import LANGUAGES
from pasmr_jax.text.languages import language as language_table
from pasmr_jax.text.numerals import MONEY, number_reader
from pasmr_jax.text.separators import Number
from pasmr_jax.text.symbolic import WORDS

HASH, BOXED, PHRASE, LAST_NUMBER = RULES = ("hash", "boxed", "phrase", "last_number")

# Only the end of a response is read: an answer stands there, and a runaway text costs no more.
MAX_CHARACTERS = 16_384
MAX_STATEMENTS = 40  # explicit statements tried before the last number is taken
_STATEMENT_CHARACTERS = 240  # read after a marker or answer word
_BOX_CHARACTERS = 400
_UNIT_CHARACTERS = 24  # at the end of a statement: "a day", "sq ft", "in all of it"
_LAST_NUMBER_REACH = (28, 400, 4_000)  # characters before the last digit, the nearest first
_MAX_WORDS_AFTER_VERB = 4  # "the answer is that she now has 5"
_MAX_WORDS_BEFORE_COLON = 6  # "answer to the first question: 5"


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
  """A final answer and where it was found."""

  value: Value  # exact and hashable; the same answer written in two ways has one value
  rule: str  # one of `RULES`
  start: int  # text[start:end] is what was read, sign and scale word included
  end: int


_Reading = tuple[Value, int, int]  # value, start and end within the string that was read

_LETTER = r"[^\W\d_]"
_HAS_LETTER = re.compile(_LETTER)
_HAS_DIGIT = re.compile(r"[0-9]")
_SENTENCE_END = re.compile(r"[!?！？。।॥؟۔።;\n]|\.(?=\s+\S|$)")
_CLAUSE_END = re.compile(r"[!?！？。।॥؟۔።;\n,、，(]|\.(?=\s+\S|$)")
_ABBREVIATION = re.compile(rf"(?<!{_LETTER}){_LETTER}{{1,6}}\.$")
_DASH = rf"–(?=\\?[{MONEY}]?[0-9])"  # of a range or a difference: 10–12, $10–$12
_OPERATOR_AFTER = re.compile(
  rf"{_DASH}|\s?(?:[-+*/^_×÷·=<>≤≥±√(\[]|\\(?![$%,; )\]]|text|mathrm|mbox)|[a-zπ](?![^\W\d_])"
  r"|х(?=\s?[0-9]))"  # a Cyrillic x
)
_OPERATOR_BEFORE = re.compile(r"(?:[-+*/^_×÷·=<>≤≥±√(\[{]|\\[A-Za-z]+)\s?$")
_OPERATION = re.compile(rf"[-+*/^_×÷·=<>≤≥±√(\[]|^\s?[xх]\s?[{MONEY}]?[0-9]|{_DASH}")
_HAS_MATHEMATICS = re.compile(r"[0-9\\^=+*/√π]")
_BOX = re.compile(r"\s{0,3}\{")
_BRACE = re.compile(r"[{}]")
_LINE_START = re.compile(r"(?:^|\n)[\s>*#_-]*$")
_LIST_ITEM = re.compile(r"[.)](?=\s)")
_LAST_DIGIT = re.compile(r".*[\d¼-¾⅐-⅞]", re.DOTALL)
_WITHIN_WORD = re.compile(r"[^\s.,;:=]|[.,]\d")
_SUFFIX = re.compile(r"['’]\w+")
_END = rf"(?!{_LETTER})"
# Short words, which would be products of letters: "So, 5", "15 a day", "42 / day". No formula has
# longer ones, "sin" and "or" are of formulas, and what stands in braces is told apart later.
_WORD = rf"(?!(?:{'|'.join(WORDS)}){_END})[a-z]{{2,3}}{_END}"
_PROSE = re.compile(
  rf"(?:^\s*(?={_WORD}[\s,]+[\w$])|(?<=[\w)}}\]%]\s)|/\s?){_WORD}(?![^{{}}]*\}})", re.IGNORECASE
)
_LAST_WORDS = re.compile(
  rf"(?<=[\w)}}\]%])(?:\s[a-z]{{1,3}})*?(?:\s?/\s?|\s){_WORD}$", re.IGNORECASE
)


class _Reader:
  """The tables of one language, compiled."""

  def __init__(self, code: str):
    self.language = language_table(code)
    self.numbers = number_reader(code)
    self.formulas = FormulaReader(self.numbers)
    own, english = self.language, LANGUAGES["en"]
    # What a statement begins with. Of words that are as far behind, the longest counts.
    self.rules = {"####": HASH, "\\boxed": BOXED, "\\fbox": BOXED}
    self.rules |= dict.fromkeys(word_forms((*own.answer_words, *english.answer_words)), PHRASE)
    self.verb = _words(own.answer_verbs, own.spaced, english.answer_verbs)
    self.says = re.compile(rf"[\s*_]*:|{self.verb.pattern}")
    self.negation = _words(own.negations, own.spaced, english.negations)
    steps = "|".join(map(re.escape, word_forms((*own.steps, *english.steps))))
    self.step = re.compile(steps)
    self.step_before = re.compile(rf"(?:{steps})[\s:#*_.\"'()-]{{0,4}}$")
    amounts = word_forms(
      (*own.currencies, *english.currencies, "approximately", "about", "exactly")
    )
    self.amount_word = re.compile(  # words that may stand before a number without being a sentence
      rf"(?<!{_LETTER})(?:{'|'.join(map(re.escape, amounts))})(?!{_LETTER})"
      rf"|\\(?:text|mathrm|mathbf|textbf|boxed)|(?<!{_LETTER})[a-z]{{1,3}}(?=\\?\$)"
      rf"|(?<!{_LETTER})[a-z](?=\s?=)"
    )
    self.closing_words = frozenset(
      word_forms((*own.answer_verbs, *own.units, *own.currencies, *english.currencies))
    )
    self.unit = re.compile("|".join(map(re.escape, self.numbers.units)))
    # "15 (3 * 5)" and "3 * 5 = 15 (5 * 3)" explain themselves, "3 (x + 1)", "3 (√2 + 1)" and
    # "3 (4 + 1) = 15" multiply
    space = r"\s" if own.spaced else r"\s?"
    last_side = r".*=[^-+*/^_×÷·=<>≤≥±√()\[\]\\a-z]*[0-9]"
    inside = r"(?:[^()\[\]a-z\\√πθαβ∞]|\\(?:times|cdot|div)|x(?=\s?[0-9]))*"
    self.explanation = re.compile(
      rf"((?:{last_side})?){space}[(\[]{inside}[)\]](?!\s?[-+*/^=×÷·(\[])"
    )

  # ---- explicit statements ---------------------------------------------------------------------

  def statements(self, text: str, begin: int) -> Iterator[tuple[int, str, str]]:
    """Explicit statements from the last to the first: position, rule and marker."""
    # lower() keeps positions: only the dotted capital I grows
    lowered = text.lower() if text.isascii() else text.replace("İ", "I").lower()
    places = {
      marker: place for marker in self.rules if (place := lowered.rfind(marker, begin)) >= 0
    }
    while places:
      marker = max(places, key=lambda key: (places[key], len(key)))
      place = places[marker]
      yield place, self.rules[marker], marker
      while marker == "####" and place > begin and lowered[place - 1] == "#":
        place -= 1  # a row of hashes is one marker
      earlier = lowered.rfind(marker, begin, place)
      if earlier >= 0:
        places[marker] = earlier
      else:
        del places[marker]

  def read_statement(self, text: str, place: int, rule: str, marker: str) -> _Reading | None:
    """Reads the statement at `place`; positions in the result are those of `text`."""
    if rule == BOXED:
      return self._boxed(text, place + len(marker))
    offset = max(0, place - 24)
    window = normalise(text[offset : place + len(marker) + _STATEMENT_CHARACTERS])
    after = place + len(marker) - offset
    if rule == HASH:
      reading = self._hash(window, after)
    else:
      reading = self._phrase(window, place - offset, after)
    return None if reading is None else (reading[0], reading[1] + offset, reading[2] + offset)

  def _boxed(self, text: str, after: int) -> _Reading | None:
    """Content of \\boxed{...}; one without its closing brace was cut off and is not read."""
    opening = _BOX.match(text, after)
    if opening is None:
      return None
    depth, begin = 1, opening.end()
    for brace in _BRACE.finditer(text, begin, begin + _BOX_CHARACTERS):
      if text[brace.start() - 1] == "\\":
        continue
      depth += 1 if brace.group() == "{" else -1
      if depth == 0:
        value = self.formulas.box(text[begin : brace.start()])
        return None if value is None else (value, begin, brace.start())
    return None

  def _hash(self, window: str, after: int) -> _Reading | None:
    """`#### 5`: the first number of the line, or of the next line if this one is empty."""
    lowered = window.lower()
    begin = len(window) - len(window[after:].lstrip())
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
    # "#### 3. Add the numbers" and "#### Part 2: ..." are headings
    if lowered[number.end : number.end + 1] == ":":
      return None
    numbered = not gap.strip("$*_ ") and _LIST_ITEM.match(lowered, number.end)
    if numbered and _HAS_LETTER.search(lowered, number.end, end):
      return None
    number = self.numbers.past_rate(lowered, number, end)
    return self._stated(window, lowered, begin, end, number)

  def _phrase(self, window: str, place: int, after: int) -> _Reading | None:
    """ "The answer is 5", "Answer: 5", "答えは5"; `window[place:after]` is the answer word."""
    lowered = window.lower()
    if (self.language.spaced or lowered[place].isascii()) and (
      lowered[after : after + 1].isalpha() or (place > 0 and lowered[place - 1].isalpha())
    ):
      return None  # part of another word: "answered"
    within = after - place == 1 and place > 0 and lowered[place - 1].isalpha()
    if within and not self.says.match(lowered, after):
      return None  # the same of one character: "回答5个问题", but "回答：5" and "解答是5"
    if self.step_before.search(lowered, max(0, place - 24), place):
      return None  # "step-by-step answer:" is a heading
    number = self.numbers.first(lowered, after, min(len(lowered), after + 120))
    limit = number.start if number else after + 100
    spans = math_spans(window, after) if "\\" in window else []
    if spans and spans[0][0] <= limit and computes(spans[0][2]):
      # a formula around the number, or one without a digit
      start, stop, content = spans[0]
      if self._joins(lowered, after, start, None) >= 0:
        value = self.formulas.expression(content)
        if value is not None:
          return value, start, stop
    if number is None:
      return None
    if lowered[number.end : number.end + 1] == ":" and not number.ratio:
      # "Answer 1: 5" is an answer with a number of its own
      after = number.end + 1
      number = self.numbers.first(lowered, after, min(len(lowered), after + 40))
      if number is None or _HAS_LETTER.search(lowered, after, number.start):
        return None
      begin = after
    else:
      start, end = number.start, _end_of(_SENTENCE_END, lowered, number.end)
      number = self.numbers.past_rate(lowered, number, end)
      begin = self._joins(lowered, after, start, number)
    if begin < 0:
      return None
    end = _end_of(_SENTENCE_END, lowered, number.end)
    return self._stated(window, lowered, begin, end, number)

  def _joins(self, lowered: str, after: int, start: int, number: Number | None) -> int:
    """Where the value begins, if the text between answer word and number joins the two, else -1.

    A verb joins ("the answer is that she has 5"), and so do signs alone ("Answer: **$5**").
    """
    gap = lowered[after:start]
    if len(gap) > 100 or self.step.search(gap) or self.negation.search(gap):
      return -1
    colon = gap.rfind(":")
    verb = self.verb.search(gap)
    tail = gap[max(colon + 1, verb.end() if verb else 0) :]
    is_label = not _HAS_LETTER.search(self.amount_word.sub(" ", tail))
    head = gap[: verb.end()] if verb else gap[: colon + 1]
    if len(head.split()) > 2 * _MAX_WORDS_BEFORE_COLON or _SENTENCE_END.search(head):
      return -1
    if verb is None:
      if not is_label or len(gap[: colon + 1].split()) > _MAX_WORDS_BEFORE_COLON:
        return -1
      if gap.count("\n") > 2 or re.search(r"[!?？]", gap):
        return -1
      return after + colon + 1 if number is None or self._closes(lowered, gap, number) else -1
    if 0 <= colon < verb.start():
      return -1  # "Answer: Tom is 5": a sentence after a label
    if colon >= 0 and not is_label:
      return -1
    stripped = tail.strip()
    if _SENTENCE_END.search(stripped) and not _ABBREVIATION.search(stripped):
      return -1
    if len(stripped.split()) > _MAX_WORDS_AFTER_VERB or len(stripped) > 40:
      return -1
    return start - len(tail)

  def _closes(self, lowered: str, gap: str, number: Number) -> bool:
    """Is the number after a label its whole statement, rather than one inside a sentence?

    "Answer: 5 apples." is read; "Step-by-step answer: 5 bags of 3 make 15", "Answer:\\n1. First"
    and "she has to answer 5 questions" are not.
    """
    following = lowered[number.end : number.end + 2]
    if following[:1] == "." and following[1:].isalpha():
      return True  # a full stop without a space after it
    if "\n" in gap and _LIST_ITEM.match(lowered, number.end):
      return not _HAS_LETTER.search(lowered, number.end, number.end + 20)
    rest = lowered[number.end : _end_of(_CLAUSE_END, lowered, number.end)]
    if _OPERATION.search(rest):
      return True  # an equation; its value is found later
    if _HAS_DIGIT.search(rest):
      return False
    if gap.strip() or not self.language.spaced:
      return True
    words = [word.strip(".'\"*%$") for word in _SUFFIX.sub("", rest).split()]
    return len(words) <= 3 and all(word in self.closing_words for word in words)

  # ---- what a statement says -------------------------------------------------------------------

  def _stated(
    self, window: str, lowered: str, begin: int, end: int, number: Number
  ) -> _Reading | None:
    """Value of a statement whose first number is `number`: that number, or the formula it is in."""
    if explained := self.explanation.match(lowered, number.end, end):
      end = explained.end(1)
    if not number.ratio:
      if "$" in window or "\\" in window:
        enclosing = self.formulas.enclosing(window, begin, number.start)
        if enclosing is not None:
          return enclosing
      before = lowered[begin : number.start].rstrip("$ ").lstrip(" -–—:*")
      if _OPERATOR_BEFORE.search(before) or _OPERATOR_AFTER.match(lowered, number.end):
        formula = self._formula(window, begin, end)
        if formula is not None:
          return formula
      if lowered.find("=", number.end, end) >= 0:
        number = self.formulas.end_of_equation(lowered, number, end)
    return value_of(number), number.start, number.end

  def _formula(self, window: str, begin: int, end: int) -> _Reading | None:
    """A whole statement as one formula, None if it has words in it or no mathematics."""
    body = window[begin:end].strip(" \t\r*:`._")
    if not body or len(body) > 200 or not _HAS_MATHEMATICS.search(body):
      return None
    start = window.index(body, begin)
    spans = math_spans(body)
    if spans and spans[0][:2] == (0, len(body)):
      value = self.formulas.expression(spans[0][2])
      return None if value is None else (value, start, start + len(body))
    if unit := _LAST_WORDS.search(body, max(0, len(body) - _UNIT_CHARACTERS)):
      body = body[: unit.start()]
    value = self.formulas.range(body)  # "10–12 km/h": short words too, and no product either
    sides = "=".join(body.split("=")[-2:])  # no others are read
    if value is None and not _PROSE.search(sides):
      value = self.formulas.expression(body)
    return None if value is None else (value, start, start + len(body))

  # ---- the last number -------------------------------------------------------------------------

  def last_number(self, text: str, begin: int) -> _Reading | None:
    """The last number of `text[begin:]` that is no list number, step heading or exponent."""
    match = _LAST_DIGIT.match(text, begin)
    if match is not None:
      last = match.end()
      for reach in _LAST_NUMBER_REACH:
        offset = max(begin, last - reach)
        while offset > max(begin, last - reach - 200) and _WITHIN_WORD.match(text, offset - 1):
          offset -= 1
        window = normalise(text[offset : last + 80])
        reading = self._last_of(window, offset == begin)
        if reading is not None:
          return reading[0], reading[1] + offset, reading[2] + offset
        if offset == begin:
          break
    if not self.language.numeral_digits:
      return None
    offset = max(begin, len(text) - _LAST_NUMBER_REACH[1])
    reading = self._last_numeral(normalise(text[offset:]))
    return None if reading is None else (reading[0], reading[1] + offset, reading[2] + offset)

  def _last_of(self, window: str, whole: bool) -> _Reading | None:
    """The last number of a window; at its front, unless it is `whole`, one may have been cut."""
    lowered = window.lower()
    front = 0 if whole else 12
    numbers = [
      number
      for number in self.numbers.read(lowered, 0, len(lowered))
      if not number.bare and number.start >= front
    ]
    chosen = next((n for n in reversed(numbers) if not self._is_heading(lowered, n)), None)
    if chosen is None and whole and numbers:
      chosen = numbers[-1]
    if chosen is None:
      return None
    if "\\" in window:
      enclosing = self.formulas.enclosing(window, 0, chosen.start, only_macros=True)
      if enclosing is not None:
        return enclosing
    return value_of(chosen), chosen.start, chosen.end

  def _is_heading(self, lowered: str, number: Number) -> bool:
    """Is this the number of a step or of a list item?"""
    if self.step_before.search(lowered, max(0, number.start - 30), number.start):
      return True
    if number.end - number.start > 2 or not _LIST_ITEM.match(lowered, number.end):
      return False
    return _LINE_START.search(lowered, max(0, number.start - 12), number.start) is not None

  def _last_numeral(self, window: str) -> _Reading | None:
    """Without any digit, CJK numerals count if they are long or have a classifier: 三个, 三十五."""
    for number in reversed(self.numbers.read(window, 0, len(window))):
      if number.end - number.start > 1 or self.unit.match(window, number.end):
        return number.value, number.start, number.end
    return None


def _end_of(pattern: re.Pattern[str], text: str, position: int) -> int:
  match = pattern.search(text, position)
  return len(text) if match is None else match.start()


def _words(own: tuple[str, ...], spaced: bool, english: tuple[str, ...]) -> re.Pattern[str]:
  """Matches a word of either table; `own` words match inside of others where no spaces are used."""
  whole = word_forms((*english, *own) if spaced else english)
  pattern = rf"(?<!{_LETTER})(?:{'|'.join(map(re.escape, whole))})(?!{_LETTER})"
  if own and not spaced:
    pattern += "|" + "|".join(map(re.escape, word_forms(own)))
  return re.compile(pattern)


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
    The answer, None if there is none. No text raises.

  Raises:
    ValueError: `language` is unknown.
  """
  reader = _reader(language)
  text = text.rstrip()
  dropped = max(0, len(text) - 2 * MAX_CHARACTERS)
  text = text[dropped:]
  begin = max(0, len(text) - MAX_CHARACTERS)
  for tried, (place, rule, marker) in enumerate(reader.statements(text, begin)):
    if tried == MAX_STATEMENTS:
      break
    reading = reader.read_statement(text, place, rule, marker)
    if reading is not None:
      value, start, end = reading
      return Answer(value, rule, start + dropped, end + dropped)
  reading = reader.last_number(text, begin)
  if reading is None:
    return None
  value, start, end = reading
  return Answer(value, LAST_NUMBER, start + dropped, end + dropped)


def read_gold(text: str | None) -> Answer | None:
  """Reads a gold answer, which data sets write in English style (1,234.5) in every language.

  None if there is none or it cannot be read: no single number is taken out of a boxed formula.
  """
  if text is None:
    return None
  answer = read_answer(text, "en")
  if answer is not None and "\\boxed" in text and answer.rule != BOXED:
    return None
  return answer


def same_answer(a: Answer | None, b: Answer | None) -> bool:
  """Do two answers have the same exact value? A missing answer equals nothing, itself included."""
  return a is not None and b is not None and a.value == b.value
