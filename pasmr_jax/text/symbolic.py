"""Answers that are no plain number, brought to one form so that equal ones compare equal.

A small parser of the LaTeX that final answers are written in. It evaluates nothing but bounded
exact arithmetic: an expression becomes a sum of monomials (`polynomials.py`) and is compared by its
canonical text; one without symbols and roots is a rational number and is returned as one. Tuples,
intervals, sets, ratios, relations and several solutions are built of such forms. A word or a matrix
is kept as it is written, without its spaces.

Every part is limited: characters, depth, steps, terms, digits, exponents. What goes beyond, or is
not understood, is None.
"""

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction

from pasmr_jax.text.polynomials import (
  ONE,
  NotUnderstood,
  Sum,
  add,
  binomial,
  constant,
  factorial,
  form,
  invert,
  multiply,
  raise_to,
  symbol,
)

MAX_CHARACTERS = 400
MAX_DEPTH = 20
MAX_STEPS = 600


@dataclasses.dataclass(frozen=True, slots=True)
class Symbolic:
  """A value that is no rational number, in its canonical form."""

  form: str

  def __str__(self) -> str:
    return self.form


_FUNCTIONS = frozenset(
  """
  sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp max min gcd lcm
  """.split()  # noqa: SIM905
)
_GREEK = frozenset(
  """
  alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi
  rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega
  infty ell emptyset varnothing hbar
  """.split()  # noqa: SIM905
)
_TOKEN = re.compile(
  r"\s+|(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|\\(?P<macro>[A-Za-z]+)|(?P<word>[A-Za-z]+)"
  r"|(?P<superscript>[⁰¹²³⁴⁵⁶⁷⁸⁹]+)|(?P<letter>[^\W\d_])|(?P<mark>[-+*/^_(){}\[\]|!×÷·√])"
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_LETTERS = {"π": "pi", "∞": "infty", "∅": "emptyset", "θ": "theta", "α": "alpha", "β": "beta"}
_OPERATORS = {"times": "*", "cdot": "*", "div": "/", "ast": "*", "×": "*", "·": "*", "÷": "/"}
_OPERATORS |= {"lbrace": "{", "vert": "|", "lvert": "|", "rvert": "|"}


def _tokens(text: str) -> list[tuple[str, str]]:
  tokens: list[tuple[str, str]] = []
  position = 0
  while position < len(text):
    match = _TOKEN.match(text, position)
    if match is None:
      raise NotUnderstood(f"character {text[position]!r}")
    position = match.end()
    kind, value = match.lastgroup, match.group().lstrip("\\")
    if kind is None:
      continue
    if kind == "superscript":
      tokens += [("mark", "^"), ("number", value.translate(_SUPERSCRIPTS))]
    elif value in _OPERATORS and kind in ("macro", "mark"):
      tokens.append(("mark", _OPERATORS[value]))
    elif kind == "word" and value not in _FUNCTIONS and value not in ("sqrt", "pi"):
      if len(value) > 3:
        raise NotUnderstood(f"word {value!r}")
      tokens += [("symbol", letter) for letter in value]
    elif kind == "letter":
      if value not in _LETTERS:
        raise NotUnderstood(f"letter {value!r}")
      tokens.append(("symbol", _LETTERS[value]))
    elif value in _GREEK:
      tokens.append(("symbol", value))
    elif kind == "word":
      tokens.append(("macro", value))
    else:
      tokens.append(("macro", "sqrt") if value == "√" else (kind, value))
  return tokens


class _Parser:
  """Recursive descent over the tokens of one expression; depth and steps are counted."""

  def __init__(self, text: str):
    self.tokens = _tokens(text)
    self.position = self.steps = self.depth = 0

  def peek(self) -> tuple[str, str]:
    return self.tokens[self.position] if self.position < len(self.tokens) else ("end", "")

  def take(self) -> tuple[str, str]:
    token = self.peek()
    self.position += 1
    self.steps += 1
    if self.steps > MAX_STEPS:
      raise NotUnderstood("too many steps")
    return token

  def expect(self, mark: str) -> None:
    if self.take() != ("mark", mark):
      raise NotUnderstood(f"{mark!r} expected")

  def nested(self, rule: Callable[[], Sum]) -> Sum:
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise NotUnderstood("too deep")
    result = rule()
    self.depth -= 1
    return result

  def parse(self) -> Sum:
    result = self.sum()
    if self.peek()[0] != "end":
      raise NotUnderstood(f"left over {self.peek()[1]!r}")
    return result

  def sum(self) -> Sum:
    result = self.product()
    while self.peek() in (("mark", "+"), ("mark", "-")):
      sign = 1 if self.take()[1] == "+" else -1
      result = add(result, self.product(), sign)
    return result

  def product(self) -> Sum:
    result = self.signed()
    while True:
      kind, value = self.peek()
      if kind == "mark" and value in "*/":
        self.take()
        factor = self.signed()
        result = multiply(result, invert(factor) if value == "/" else factor)
      elif self.multiplies(kind, value):
        result = multiply(result, self.powered())
      else:
        return result

  def multiplies(self, kind: str, value: str) -> bool:
    """Does the next token stand beside the last as a factor: 2x, (x)(y), \\sqrt{2}3?"""
    if kind == "number":
      return self.tokens[self.position - 1][1] in (")", "}")
    return kind in ("symbol", "macro") or (kind == "mark" and value in "([")

  def signed(self) -> Sum:
    if self.peek() in (("mark", "-"), ("mark", "+")):
      sign = self.take()[1]
      value = self.nested(self.signed)
      return multiply(constant(-1), value) if sign == "-" else value
    return self.powered()

  def powered(self) -> Sum:
    base = self.atom()
    while self.peek() == ("mark", "!"):
      self.take()
      base = factorial(base)
    if self.peek() == ("mark", "^"):
      self.take()
      sign = constant(1)
      if self.peek() == ("mark", "-"):
        self.take()
        sign = constant(-1)
      return raise_to(base, multiply(sign, self.nested(self.powered)))
    return base

  def atom(self) -> Sum:
    kind, value = self.take()
    if kind == "number":
      number = Fraction(value)
      if self.peek() == ("mark", "_"):
        self.take()
        return symbol(f"{value}_{form(self.argument())}")
      if self.peek() in (("macro", "frac"), ("macro", "dfrac"), ("macro", "tfrac")):
        return self.mixed(number)
      return constant(number)
    if kind == "symbol":
      if self.peek() == ("mark", "_"):
        self.take()
        return symbol(f"{value}_{form(self.argument())}")
      return symbol(value)
    if kind == "mark" and value in "({[":
      result = self.nested(self.sum)
      self.expect({"(": ")", "{": "}", "[": "]"}[value])
      return result
    if kind == "mark" and value == "|":
      result = self.nested(self.sum)
      self.expect("|")
      if set(result) <= {ONE}:
        return constant(abs(result.get(ONE, Fraction(0))))
      return symbol(f"|{form(result)}|")
    if kind == "macro":
      return self.nested(lambda: self.macro(value))
    raise NotUnderstood(f"{value!r}")

  def mixed(self, whole: Fraction) -> Sum:
    """3\\frac{1}{2} is three and a half; 3\\frac{x}{2} is a product."""
    part = self.atom()
    fraction = part.get(ONE)
    if whole.denominator == 1 and set(part) == {ONE} and fraction and 0 < fraction < 1:
      return constant(whole + fraction)
    return multiply(constant(whole), part)

  def argument(self) -> Sum:
    """One {group}, or the single digit or token after a macro: \\frac12, \\sqrt2."""
    kind, value = self.peek()
    if kind == "number" and "." in value:
      raise NotUnderstood("decimal without braces")
    if kind == "number" and len(value) > 1:
      self.tokens[self.position : self.position + 1] = [("number", digit) for digit in value]
    if kind == "mark" and value == "-":
      raise NotUnderstood("sign without braces")
    return self.nested(self.atom)

  def macro(self, name: str) -> Sum:
    if name in ("frac", "dfrac", "tfrac", "cfrac"):
      numerator = self.argument()
      return multiply(numerator, invert(self.argument()))
    if name == "sqrt":
      index = constant(2)
      if self.peek() == ("mark", "["):
        self.take()
        index = self.sum()
        self.expect("]")
      return raise_to(self.argument(), invert(index))
    if name in ("binom", "dbinom", "tbinom"):
      return binomial(self.argument(), self.argument())
    if name in _FUNCTIONS:
      decoration = name
      for mark in ("_", "^"):
        if self.peek() == ("mark", mark):
          self.take()
          decoration += f"{mark}({form(self.argument())})"
      argument = self.powered()
      return symbol(f"{decoration}({form(argument)})")
    raise NotUnderstood(f"macro {name!r}")


_DROPPED = re.compile(
  r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits|quad|qquad|bf|rm|it)(?![A-Za-z])"
  r"|\\[,;:!> ]|\$|~|(?:\^\s?\{?\s?\\circ\s?\}?|\\degree|°)(?:\s?[CF](?![A-Za-z]))?|\\?%"
  r"|[\u00a0\u200b]"
)
_TEXT = re.compile(
  r"\\(?:text|mathrm|mbox|operatorname|textbf|textit|mathbf|mathit|boldsymbol|bm)\s?"
  r"\{([^{}]{0,100})\}"
)
_TRAILING_UNIT = re.compile(
  r"(?<=[\w)}\]°])(?:\s|~|\\[,;:! ]){0,8}(?:\\(?:text|mathrm|mbox)\s?\{[^{}]{1,60}\}"
  r"|\\frac\s?\{\\(?:text|mathrm)\{[^{}]{1,30}\}\}\{\\(?:text|mathrm)\{[^{}]{1,30}\}\})"
  r"(?:\^\{?[23]\}?)?[\s.]*$"
)
_JOINING_WORDS = frozenset(
  ("or", "and", "oder", "und", "ou", "et", "o", "y", "e", "или", "и", "або", "أو", "或", "和")
)
WORDS = (*sorted(_FUNCTIONS | _JOINING_WORDS), "sqrt", "pi")  # that a formula may have
_WORD_SEPARATOR = re.compile(r"\s(?:or|and|oder|und|ou|et|или|或|和|または)\s")
_RELATIONS = (
  *(("\\leq", "≤"), ("\\geq", "≥"), ("\\neq", "≠"), ("\\le", "≤"), ("\\ge", "≥"), ("\\ne", "≠")),
  *(("\\lt", "<"), ("\\gt", ">"), ("\\approx", "="), ("≈", "="), ("\\in", "∈"), ("\\cup", "∪")),
  *(("\\cap", "∩"), ("\\{", "⦃"), ("\\}", "⦄"), ("\\lbrace", "⦃"), ("\\rbrace", "⦄")),
  *(("\\pm", "±"), ("\\mp", "±"), ("\\ldots", "…"), ("\\dots", "…"), ("\\equiv", "=")),
)
_RELATION = re.compile(
  "|".join(
    re.escape(macro) + ("(?![A-Za-z])" if macro[-1].isalpha() else "") for macro, _ in _RELATIONS
  )
)
_RELATION_OF = dict(_RELATIONS)
_LONG_WORD = re.compile(r"[^\W\d_]{2,}")
_WORD = re.compile(r"\s*[A-Za-z]{2,}\s*")
_OPEN, _CLOSE = "([{⦃", ")]}⦄"
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([^()]{0,20}\))?")
IDENTITY = Symbolic("0 = 0")  # 2x + x = 3x


def _split(text: str, marks: str) -> list[str]:
  """Splits at the characters `marks` outside of any bracket."""
  parts, depth, begin = [], 0, 0
  for index, character in enumerate(text):
    if character in _OPEN:
      depth += 1
    elif character in _CLOSE:
      depth -= 1
    elif depth == 0 and character in marks:
      parts.append(text[begin:index])
      begin = index + 1
  return [*parts, text[begin:]]


def is_name(side: str) -> bool:
  """Is a side of an equation one name or function: x, A_1, f(2)?"""
  return _NAME.fullmatch(side.strip()) is not None


def has_symbol(side: str) -> bool:
  """Has a side of an equation a letter that belongs to no macro?"""
  return re.search(r"[^\W\d_]", re.sub(r"\\[A-Za-z]+", "", side)) is not None


def _refuse_words(parts: list[str]) -> None:
  """Raises NotUnderstood for "Yes, 18" and "Tom: 18", where a word is no product of letters."""
  words = any(_WORD.fullmatch(part) and part.strip() not in WORDS for part in parts)
  if words and any(character.isdigit() for part in parts for character in part):
    raise NotUnderstood("a word beside a number")


def _value(terms: Sum) -> Fraction | Symbolic:
  if set(terms) <= {ONE}:
    return terms.get(ONE, Fraction(0))
  return Symbolic(form(terms))


def _read(text: str, depth: int) -> Fraction | Symbolic:
  """One expression, tuple, set, interval, ratio, relation or list of solutions."""
  text = text.strip()
  if depth > 4 or not text:
    raise NotUnderstood("empty or too deep")
  if len(parts := _split(text, "∪∩")) > 1:
    mark = "∪" if "∪" in text else "∩"
    return Symbolic(f" {mark} ".join(sorted(str(_read(part, depth + 1)) for part in parts)))
  if len(parts := _split(text, ";" if len(_split(text, ";")) > 1 else ",")) > 1:
    _refuse_words(parts)
    if all("=" in part and not has_symbol(part) for part in parts):
      return _read(parts[-1], depth + 1)  # 4 + 5 = 9 and 9 * 2 = 18
    return Symbolic(", ".join(sorted({str(_read(part, depth + 1)) for part in parts})))
  if len(parts := _split(text, "∈")) == 2:
    return _read(parts[1], depth + 1)
  if len(parts := _split(text, "=")) > 1:
    if _split(text, "<>≤≥≠") != [text]:
      raise NotUnderstood("mixed relations")
    left, right = parts[-2].strip(), parts[-1]
    # x = 5, f(2) = 5 and 2 + 3 = 5 say 5; x + y = 5 is an equation with no value of its own
    value = _read(right, depth + 1)
    if is_name(left) or len(parts) > 2 or (isinstance(value, Fraction) and not has_symbol(left)):
      return value
    difference = add(_Parser(left).parse(), _Parser(right).parse(), -1)
    leading = difference[min(difference)] if difference else Fraction(1)
    return Symbolic(f"0 = {form({m: c / leading for m, c in difference.items()})}")
  if len(parts := _split(text, "<>≤≥≠")) > 1:
    relations = [character for character in text if character in "<>≤≥≠"]
    if len(relations) != len(parts) - 1:
      raise NotUnderstood("relation inside brackets")
    if relations[0] in ">≥":  # x > 5 is 5 < x
      parts.reverse()
      relations = [{">": "<", "≥": "≤"}.get(mark, mark) for mark in reversed(relations)]
    forms = [str(_read(part, depth + 1)) for part in parts]
    return Symbolic(
      forms[0] + "".join(f" {m} {f}" for m, f in zip(relations, forms[1:], strict=True))
    )
  if text[0] in "([⦃" and text[-1] in ")]⦄" and len(_split(text[1:-1], ",;")) > 1:
    inner = text[1:-1]
    parts = _split(inner, ";" if len(_split(inner, ";")) > 1 else ",")
    forms = [str(_read(part, depth + 1)) for part in parts]
    if text[0] == "⦃":
      return Symbolic("{" + ", ".join(sorted(set(forms))) + "}")
    return Symbolic(text[0] + ", ".join(forms) + text[-1])
  if text[0] == "⦃" and text[-1] == "⦄":
    return Symbolic("{" + str(_read(text[1:-1], depth + 1)) + "}" if text[1:-1].strip() else "{}")
  if len(parts := _split(text, ":")) > 1:  # a ratio: 1:2 is not 2:4, nor 1:2:3 equal to 1:3:2
    _refuse_words(parts)
    return Symbolic(":".join(str(_read(part, depth + 1)) for part in parts))
  if text.count("±") == 1:
    both = {str(_read(text.replace("±", sign), depth + 1)) for sign in "+-"}
    return Symbolic(", ".join(sorted(both)))
  return _value(_Parser(text).parse())


def _spelled(match: re.Match[str]) -> str:
  """The content of \\text{...}; a joining word is a comma: \\text{ or }, \\text{ y }."""
  content = match[1].strip()
  if content in _JOINING_WORDS:
    return " , "
  if match[0].startswith(("\\text", "\\mbox")) and any(
    word not in WORDS for word in _LONG_WORD.findall(content)
  ):
    raise NotUnderstood(f"text {content!r}")
  return f" {match[1]} "


def read_expression(text: str) -> Fraction | Symbolic | None:
  """Value of a mathematical expression in (optionally) LaTeX, None if it is not understood.

  Args:
    text: normalised by `characters.normalise`, decimal dot, no thousands marks. At most
      `MAX_CHARACTERS` characters are read.

  Returns:
    A rational number, the canonical form of anything else, or None. Never raises.
  """
  if len(text) > MAX_CHARACTERS:
    return None
  try:
    text = _TEXT.sub(_spelled, _TRAILING_UNIT.sub("", text))
    if _WORD.fullmatch(text) and text.strip() not in _LETTERS.values():
      return None  # a word, not a product
    text = _RELATION.sub(lambda match: _RELATION_OF[match[0]], _DROPPED.sub(" ", text))
    text = _WORD_SEPARATOR.sub(" , ", text)
    return _read(text.rstrip(" .。।"), 0)
  except NotUnderstood:
    return None


def read_words(text: str) -> Symbolic | None:
  r"""A word as an answer: \text{Monday}, (B), a matrix; case, spaces and mark-up do not count."""
  if len(text) > MAX_CHARACTERS:
    return None
  text = _DROPPED.sub(" ", _TEXT.sub(lambda match: match[1], text))
  form = "".join(text.split()).strip(".。।*").casefold()
  if len(form) == 3 and form[0] == "(" and form[2] == ")":
    form = form[1]
  return Symbolic(form) if any(character.isalnum() for character in form) else None
