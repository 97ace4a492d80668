"""Answers that are no plain number, brought to one form so that equal ones compare equal.

A small parser of the LaTeX that final answers are written in. It evaluates nothing but bounded exact
arithmetic: an expression becomes a sum of monomials with rational coefficients,

    \\frac{6}{\\sqrt{12}} + 2x  ->  {(3, 1/2): 1, (x, 1): 2}  ->  "3^(1/2) + 2*x"

where the atoms are symbols, primes under a fractional exponent, and whatever is not understood
further (a function of an argument, the inverse of a sum) under its own canonical form. An expression
without atoms is a rational number and is returned as one. Tuples, intervals, sets, relations and
several solutions are built of such forms; a matrix or a word is kept as written, without its spaces.

Every part is limited: characters, depth, terms, digits, exponents, steps. What goes beyond, or is
not understood, is None.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from fractions import Fraction

MAX_CHARACTERS = 400
MAX_DEPTH = 20
MAX_TERMS = 40
MAX_STEPS = 600
MAX_EXPONENT = 200
MAX_EXPONENT_OF_SUM = 12
MAX_BITS = 2_000
MAX_FACTORIAL = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Symbolic:
  """A value that is no rational number, in its canonical form."""

  form: str

  def __str__(self) -> str:
    return self.form


class _NotUnderstood(Exception):
  """The text is outside the grammar or beyond a limit. Never leaves this file."""


# (atom, exponent) pairs in order; the empty monomial is the number 1.
Monomial = tuple[tuple[str, Fraction], ...]
Sum = dict[Monomial, Fraction]

_ONE: Monomial = ()
_PRIMES = tuple(n for n in range(2, 1000) if all(n % d for d in range(2, math.isqrt(n) + 1)))


def _number(value: Fraction | int) -> Sum:
  return {_ONE: Fraction(value)} if value else {}


def _symbol(name: str, exponent: Fraction | int = 1) -> Sum:
  return {((name, Fraction(exponent)),): Fraction(1)}


def _checked(terms: Sum) -> Sum:
  if len(terms) > MAX_TERMS:
    raise _NotUnderstood("too many terms")
  for coefficient in terms.values():
    if max(coefficient.numerator.bit_length(), coefficient.denominator.bit_length()) > MAX_BITS:
      raise _NotUnderstood("too many digits")
  return terms


def _add(a: Sum, b: Sum, sign: int = 1) -> Sum:
  result = dict(a)
  for monomial, coefficient in b.items():
    value = result.get(monomial, Fraction(0)) + sign * coefficient
    if value:
      result[monomial] = value
    else:
      result.pop(monomial, None)
  return _checked(result)


def _multiply_monomials(a: Monomial, b: Monomial) -> tuple[Monomial, Fraction]:
  """Product of two monomials: 3^(1/2) * 3^(1/2) is the coefficient 3."""
  exponents = dict(a)
  for atom, exponent in b:
    exponents[atom] = exponents.get(atom, Fraction(0)) + exponent
  coefficient = Fraction(1)
  kept: list[tuple[str, Fraction]] = []
  for atom, exponent in exponents.items():
    if atom.isdigit():  # a prime: whole powers belong to the coefficient
      whole = math.floor(exponent)
      if abs(whole) > MAX_EXPONENT:
        raise _NotUnderstood("exponent")
      coefficient *= Fraction(int(atom)) ** whole
      exponent -= whole
    elif atom == "i" and exponent.denominator == 1:
      turns = int(exponent) % 4
      coefficient *= -1 if turns >= 2 else 1
      exponent = Fraction(turns % 2)
    if exponent:
      kept.append((atom, exponent))
  return tuple(sorted(kept)), coefficient


def _multiply(a: Sum, b: Sum) -> Sum:
  if len(a) * len(b) > MAX_TERMS**2 // 4:
    raise _NotUnderstood("too many terms")
  result: Sum = {}
  for monomial_a, coefficient_a in a.items():
    for monomial_b, coefficient_b in b.items():
      monomial, factor = _multiply_monomials(monomial_a, monomial_b)
      value = result.get(monomial, Fraction(0)) + coefficient_a * coefficient_b * factor
      if value:
        result[monomial] = value
      else:
        result.pop(monomial, None)
  return _checked(result)


def _root_of_integer(value: int, exponent: Fraction) -> Sum:
  """`value ** exponent` for a positive integer: 12^(1/2) is 2 * 3^(1/2)."""
  result = _number(1)
  for prime in _PRIMES:
    if value == 1:
      return result
    power = 0
    while value % prime == 0:
      value //= prime
      power += 1
    if power:
      result = _multiply(result, _prime_power(prime, power * exponent))
  if value > 1:  # a prime or a product of large primes: its own atom
    root = math.isqrt(value)
    power = 2 if root * root == value else 1
    result = _multiply(result, _prime_power(root if power == 2 else value, power * exponent))
  return result


def _prime_power(prime: int, exponent: Fraction) -> Sum:
  monomial, coefficient = _multiply_monomials(((str(prime), exponent),), _ONE)
  return {monomial: coefficient}


def _invert(a: Sum) -> Sum:
  if not a:
    raise _NotUnderstood("division by zero")
  if len(a) == 1:
    ((monomial, coefficient),) = a.items()
    inverse, factor = _multiply_monomials(tuple((atom, -e) for atom, e in monomial), _ONE)
    return {inverse: factor / coefficient}
  if len(a) == 2:
    # 1 / (a + b) = (a - b) / (a^2 - b^2) where the squares are rational
    (first, second) = a.items()
    squares = _add(_power({first[0]: first[1]}, 2), _power({second[0]: second[1]}, 2), -1)
    if set(squares) == {_ONE}:
      return _multiply({first[0]: first[1], second[0]: -second[1]}, _invert(squares))
  leading = a[min(a)]
  body = {monomial: coefficient / leading for monomial, coefficient in a.items()}
  return {((f"({_form(body)})", Fraction(-1)),): 1 / leading}


def _power(base: Sum, exponent: int) -> Sum:
  if exponent < 0:
    return _power(_invert(base), -exponent)
  limit = MAX_EXPONENT if len(base) <= 1 else MAX_EXPONENT_OF_SUM
  bits = max(
    (c.numerator.bit_length() + c.denominator.bit_length() for c in base.values()), default=0
  )
  if exponent > limit or bits * exponent > MAX_BITS:
    raise _NotUnderstood("exponent")
  result = _number(1)
  for _ in range(exponent):
    result = _multiply(result, base)
  return result


def _raise(base: Sum, exponent: Sum) -> Sum:
  """`base ** exponent` with a number in the exponent, or an atom where it has none."""
  if set(exponent) - {_ONE}:
    return _symbol(f"({_form(base)})^({_form(exponent)})")
  power = exponent.get(_ONE, Fraction(0))
  if power.denominator == 1:
    if not base and power <= 0:
      raise _NotUnderstood("0^0")
    return _power(base, int(power))
  if power.denominator > MAX_EXPONENT or abs(power) > MAX_EXPONENT:
    raise _NotUnderstood("exponent")
  if not base:
    if power < 0:
      raise _NotUnderstood("division by zero")
    return {}
  if len(base) > 1:
    return _symbol(f"({_form(base)})", power)
  ((monomial, coefficient),) = base.items()
  result = _number(1)
  if coefficient < 0:
    if power != Fraction(1, 2):
      return _symbol(f"({_form(base)})", power)
    result, coefficient = _symbol("i"), -coefficient
  result = _multiply(result, _root_of_integer(coefficient.numerator, power))
  result = _multiply(result, _root_of_integer(coefficient.denominator, -power))
  if monomial:
    raised, factor = _multiply_monomials(tuple((atom, e * power) for atom, e in monomial), _ONE)
    result = _multiply(result, {raised: factor})
  return result


def _form(terms: Sum) -> str:
  """The canonical text of a sum: the same for every way to write the same sum."""
  if not terms:
    return "0"
  written = []
  for monomial, coefficient in sorted(terms.items()):
    factors = [atom if e == 1 else f"{atom}^({e})" for atom, e in monomial]
    if coefficient != 1 or not factors:
      factors.insert(0, str(coefficient))
    written.append("*".join(factors))
  form = " + ".join(written)
  if len(form) > 4 * MAX_CHARACTERS:
    raise _NotUnderstood("too long")
  return form


_FUNCTIONS = frozenset(
  "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp max min gcd lcm".split()
)
_GREEK = frozenset(
  "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi "
  "rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega "
  "infty ell emptyset varnothing hbar".split()
)
_TOKEN = re.compile(
  r"\s+|(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|\\(?P<macro>[A-Za-z]+)|(?P<word>[A-Za-z]+)"
  r"|(?P<letter>[^\W\d_])|(?P<mark>[-+*/^_(){}\[\]|!×÷·√:])|(?P<superscript>[⁰¹²³⁴⁵⁶⁷⁸⁹]+)"
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_LETTERS = {"π": "pi", "∞": "infty", "∅": "emptyset", "θ": "theta", "α": "alpha", "β": "beta"}
_OPERATORS = {"times": "*", "cdot": "*", "div": "/", "ast": "*", "×": "*", "·": "*", "÷": "/"}
_OPERATORS |= {":": "/", "lbrace": "{", "vert": "|", "lvert": "|", "rvert": "|"}


def _tokens(text: str) -> list[tuple[str, str]]:
  tokens: list[tuple[str, str]] = []
  position = 0
  while position < len(text):
    match = _TOKEN.match(text, position)
    if match is None:
      raise _NotUnderstood(f"character {text[position]!r}")
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
        raise _NotUnderstood(f"word {value!r}")
      tokens += [("symbol", letter) for letter in value]
    elif kind == "letter":
      tokens.append(("symbol", _LETTERS.get(value, value)))
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
      raise _NotUnderstood("too many steps")
    return token

  def expect(self, mark: str) -> None:
    if self.take() != ("mark", mark):
      raise _NotUnderstood(f"{mark!r} expected")

  def nested(self, rule: Callable[[], Sum]) -> Sum:
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise _NotUnderstood("too deep")
    result = rule()
    self.depth -= 1
    return result

  def parse(self) -> Sum:
    result = self.sum()
    if self.peek()[0] != "end":
      raise _NotUnderstood(f"left over {self.peek()[1]!r}")
    return result

  def sum(self) -> Sum:
    result = self.product()
    while self.peek() in (("mark", "+"), ("mark", "-")):
      sign = 1 if self.take()[1] == "+" else -1
      result = _add(result, self.product(), sign)
    return result

  def product(self) -> Sum:
    result = self.signed()
    while True:
      kind, value = self.peek()
      if kind == "mark" and value in "*/":
        self.take()
        factor = self.signed()
        result = _multiply(result, _invert(factor) if value == "/" else factor)
      elif kind in ("symbol", "macro") or (kind == "mark" and value in "(["):
        result = _multiply(result, self.powered())
      elif kind == "number" and self.tokens[self.position - 1][1] in (")", "}"):
        result = _multiply(result, self.powered())
      else:
        return result

  def signed(self) -> Sum:
    if self.peek() in (("mark", "-"), ("mark", "+")):
      sign = self.take()[1]
      value = self.nested(self.signed)
      return _multiply(_number(-1), value) if sign == "-" else value
    return self.powered()

  def powered(self) -> Sum:
    base = self.atom()
    while self.peek() == ("mark", "!"):
      self.take()
      base = _factorial(base)
    if self.peek() == ("mark", "^"):
      self.take()
      sign = _number(1)
      if self.peek() == ("mark", "-"):
        self.take()
        sign = _number(-1)
      return _raise(base, _multiply(sign, self.nested(self.powered)))
    return base

  def atom(self) -> Sum:
    kind, value = self.take()
    if kind == "number":
      number = Fraction(value)
      if self.peek() == ("mark", "_"):
        self.take()
        return _symbol(f"{value}_{_form(self.argument())}")
      if self.peek() in (("macro", "frac"), ("macro", "dfrac"), ("macro", "tfrac")):
        return self.mixed(number)
      return _number(number)
    if kind == "symbol":
      if self.peek() == ("mark", "_"):
        self.take()
        return _symbol(f"{value}_{_form(self.argument())}")
      return _symbol(value)
    if kind == "mark" and value in "({[":
      result = self.nested(self.sum)
      self.expect({"(": ")", "{": "}", "[": "]"}[value])
      return result
    if kind == "mark" and value == "|":
      result = self.nested(self.sum)
      self.expect("|")
      if set(result) <= {_ONE}:
        return _number(abs(result.get(_ONE, Fraction(0))))
      return _symbol(f"|{_form(result)}|")
    if kind == "macro":
      return self.nested(lambda: self.macro(value))
    raise _NotUnderstood(f"{value!r}")

  def mixed(self, whole: Fraction) -> Sum:
    """3\\frac{1}{2} is three and a half; 3\\frac{x}{2} is a product."""
    part = self.atom()
    fraction = part.get(_ONE)
    if whole.denominator == 1 and set(part) == {_ONE} and fraction and 0 < fraction < 1:
      return _number(whole + fraction)
    return _multiply(_number(whole), part)

  def argument(self) -> Sum:
    """One {group}, or the single digit or token after a macro: \\frac12, \\sqrt2."""
    kind, value = self.peek()
    if kind == "number" and len(value) > 1:
      self.tokens[self.position : self.position + 1] = [("number", digit) for digit in value]
    if kind == "mark" and value == "-":
      raise _NotUnderstood("sign without braces")
    return self.nested(self.atom)

  def macro(self, name: str) -> Sum:
    if name in ("frac", "dfrac", "tfrac", "cfrac"):
      numerator = self.argument()
      return _multiply(numerator, _invert(self.argument()))
    if name == "sqrt":
      index = _number(2)
      if self.peek() == ("mark", "["):
        self.take()
        index = self.sum()
        self.expect("]")
      return _raise(self.argument(), _invert(index))
    if name in ("binom", "dbinom", "tbinom"):
      return _binomial(self.argument(), self.argument())
    if name in _FUNCTIONS:
      decoration = name
      for mark in ("_", "^"):
        if self.peek() == ("mark", mark):
          self.take()
          decoration += f"{mark}({_form(self.argument())})"
      argument = self.powered()
      return _symbol(f"{decoration}({_form(argument)})")
    raise _NotUnderstood(f"macro {name!r}")


def _small_integer(value: Sum, largest: int) -> int:
  number = value.get(_ONE, Fraction(0))
  if set(value) - {_ONE} or number.denominator != 1 or not 0 <= number <= largest:
    raise _NotUnderstood("integer expected")
  return int(number)


def _factorial(value: Sum) -> Sum:
  if set(value) - {_ONE}:
    return _symbol(f"({_form(value)})!")
  return _number(math.factorial(_small_integer(value, MAX_FACTORIAL)))


def _binomial(above: Sum, below: Sum) -> Sum:
  return _number(math.comb(_small_integer(above, 500), _small_integer(below, 500)))


_DROPPED = re.compile(
  r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits|quad|qquad|bf|rm|it)(?![A-Za-z])"
  r"|\\[,;:!> ]|\$|~|\^\s?\{?\s?\\circ\s?\}?|\\degree|°|\\?%|[\u00a0\u200b]"
)
_TEXT = re.compile(
  r"\\(?:text|mathrm|mbox|operatorname|textbf|textit|mathbf|mathit|boldsymbol|bm)\s?\{([^{}]{0,100})\}"
)
_WORD_SEPARATOR = re.compile(r"\s(?:or|and|oder|und|ou|et|o|y|или|и|或|和|または)\s")
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
_OPEN, _CLOSE = "([{⦃", ")]}⦄"


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


def _value(terms: Sum) -> Fraction | Symbolic:
  if set(terms) <= {_ONE}:
    return terms.get(_ONE, Fraction(0))
  return Symbolic(_form(terms))


def _read(text: str, depth: int) -> Fraction | Symbolic:
  """One expression, tuple, set, interval, relation or list of solutions."""
  text = text.strip()
  if depth > 4 or not text:
    raise _NotUnderstood("empty or too deep")
  if len(parts := _split(text, "∪∩")) > 1:
    mark = "∪" if "∪" in text else "∩"
    return Symbolic(f" {mark} ".join(sorted(str(_read(part, depth + 1)) for part in parts)))
  if len(parts := _split(text, ";" if len(_split(text, ";")) > 1 else ",")) > 1:
    return Symbolic(", ".join(sorted({str(_read(part, depth + 1)) for part in parts})))
  if len(parts := _split(text, "∈")) == 2:
    return _read(parts[1], depth + 1)
  if len(parts := _split(text, "=")) > 1:
    if _split(text, "<>≤≥≠") != [text]:
      raise _NotUnderstood("mixed relations")
    left, right = parts[-2].strip(), parts[-1]
    # x = 5, f(2) = 5 and 2 + 3 = 5 say 5; x + y = 5 is an equation with no value of its own
    named = re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([^()]{0,20}\))?", left)
    value = _read(right, depth + 1)
    if named or len(parts) > 2:
      return value
    if isinstance(value, Fraction) and not re.search(r"[^\W\d_]", left):
      return value
    difference = _add(_Parser(left).parse(), _Parser(right).parse(), -1)
    leading = difference[min(difference)] if difference else Fraction(1)
    return Symbolic(f"0 = {_form({m: c / leading for m, c in difference.items()})}")
  if len(parts := _split(text, "<>≤≥≠")) > 1:
    relations = [character for character in text if character in "<>≤≥≠"]
    if len(relations) != len(parts) - 1:
      raise _NotUnderstood("relation inside brackets")
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
  if text.count("±") == 1:
    both = {str(_read(text.replace("±", sign), depth + 1)) for sign in "+-"}
    return Symbolic(", ".join(sorted(both)))
  return _value(_Parser(text).parse())


def read_expression(text: str) -> Fraction | Symbolic | None:
  """Value of a mathematical expression in (optionally) LaTeX, None if it is not understood.

  Args:
    text: normalised by `numerals.normalise`, decimal dot, no thousands marks. At most
      `MAX_CHARACTERS` characters are read.

  Returns:
    A rational number, the canonical form of anything else, or None. Never raises.
  """
  if len(text) > MAX_CHARACTERS:
    return None
  text = _TEXT.sub(lambda match: f" {match[1]} ", text)
  text = _RELATION.sub(lambda match: _RELATION_OF[match[0]], _DROPPED.sub(" ", text))
  text = _WORD_SEPARATOR.sub(" , ", text)
  try:
    return _read(text.rstrip(" .。।"), 0)
  except _NotUnderstood:
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
