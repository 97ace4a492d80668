"""Exact sums of monomials: the form in which two ways to write an answer become the same.

    \\frac{6}{\\sqrt{12}} + 2x  ->  {((3, 1/2),): 1, ((x, 1),): 2}  ->  "3^(1/2) + 2*x"

A monomial is a product of atoms with rational exponents; the empty one is the number 1. Atoms are
symbols, primes under a fractional exponent, and whatever is not understood further (a function of
an argument, the inverse of a sum) under its own canonical form. Everything is limited, in terms,
digits and exponents; beyond the limits `NotUnderstood` is raised.
"""

import math
from fractions import Fraction

MAX_TERMS = 40
MAX_EXPONENT = 200
MAX_EXPONENT_OF_SUM = 12
MAX_BITS = 2_000
MAX_FACTORIAL = 100
MAX_FORM = 1_600


class NotUnderstood(Exception):
  """The text is outside the grammar or beyond a limit. Never leaves `symbolic.py`."""


# (atom, exponent) pairs in order; the empty monomial is the number 1.
Monomial = tuple[tuple[str, Fraction], ...]
Sum = dict[Monomial, Fraction]

ONE: Monomial = ()
_PRIMES = tuple(n for n in range(2, 1000) if all(n % d for d in range(2, math.isqrt(n) + 1)))


def constant(value: Fraction | int) -> Sum:
  """A number as a sum; zero has no terms."""
  return {ONE: Fraction(value)} if value else {}


def symbol(name: str, exponent: Fraction | int = 1) -> Sum:
  """An atom as a sum."""
  return {((name, Fraction(exponent)),): Fraction(1)}


def _checked(terms: Sum) -> Sum:
  if len(terms) > MAX_TERMS:
    raise NotUnderstood("too many terms")
  for coefficient in terms.values():
    if max(coefficient.numerator.bit_length(), coefficient.denominator.bit_length()) > MAX_BITS:
      raise NotUnderstood("too many digits")
  return terms


def add(a: Sum, b: Sum, sign: int = 1) -> Sum:
  """`a + sign * b`."""
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
        raise NotUnderstood("exponent")
      coefficient *= Fraction(int(atom)) ** whole
      exponent -= whole
    elif atom == "i" and exponent.denominator == 1:
      turns = int(exponent) % 4
      coefficient *= -1 if turns >= 2 else 1
      exponent = Fraction(turns % 2)
    if exponent:
      kept.append((atom, exponent))
  return tuple(sorted(kept)), coefficient


def multiply(a: Sum, b: Sum) -> Sum:
  """The product, multiplied out."""
  if len(a) * len(b) > MAX_TERMS**2 // 4:
    raise NotUnderstood("too many terms")
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
  result = constant(1)
  for prime in _PRIMES:
    if value == 1:
      return result
    power = 0
    while value % prime == 0:
      value //= prime
      power += 1
    if power:
      result = multiply(result, _prime_power(prime, power * exponent))
  if value > 1:  # a prime or a product of large primes: its own atom
    root = math.isqrt(value)
    power = 2 if root * root == value else 1
    result = multiply(result, _prime_power(root if power == 2 else value, power * exponent))
  return result


def _prime_power(prime: int, exponent: Fraction) -> Sum:
  monomial, coefficient = _multiply_monomials(((str(prime), exponent),), ONE)
  return {monomial: coefficient}


def invert(a: Sum) -> Sum:
  """`1 / a`; a sum of two square roots is made rational, another sum becomes an atom."""
  if not a:
    raise NotUnderstood("division by zero")
  if len(a) == 1:
    ((monomial, coefficient),) = a.items()
    inverse, factor = _multiply_monomials(tuple((atom, -e) for atom, e in monomial), ONE)
    return {inverse: factor / coefficient}
  if len(a) == 2:
    # 1 / (a + b) = (a - b) / (a^2 - b^2) where the squares are rational
    (first, second) = a.items()
    squares = add(_power({first[0]: first[1]}, 2), _power({second[0]: second[1]}, 2), -1)
    if set(squares) == {ONE}:
      return multiply({first[0]: first[1], second[0]: -second[1]}, invert(squares))
  leading = a[min(a)]
  body = {monomial: coefficient / leading for monomial, coefficient in a.items()}
  return {((f"({form(body)})", Fraction(-1)),): 1 / leading}


def _power(base: Sum, exponent: int) -> Sum:
  if exponent < 0:
    return _power(invert(base), -exponent)
  limit = MAX_EXPONENT if len(base) <= 1 else MAX_EXPONENT_OF_SUM
  if exponent > limit:
    raise NotUnderstood("exponent")
  result = constant(1)
  for _ in range(exponent):  # each step is checked, so the first too large one ends it
    result = multiply(result, base)
  return result


def raise_to(base: Sum, exponent: Sum) -> Sum:
  """`base ** exponent` with a number in the exponent, or an atom where it has none."""
  if set(exponent) - {ONE}:
    return symbol(f"({form(base)})^({form(exponent)})")
  power = exponent.get(ONE, Fraction(0))
  if power.denominator == 1:
    if not base and power <= 0:
      raise NotUnderstood("0^0")
    return _power(base, int(power))
  if power.denominator > MAX_EXPONENT or abs(power) > MAX_EXPONENT:
    raise NotUnderstood("exponent")
  if not base:
    if power < 0:
      raise NotUnderstood("division by zero")
    return {}
  if len(base) > 1:
    return symbol(f"({form(base)})", power)
  ((monomial, coefficient),) = base.items()
  result = constant(1)
  if coefficient < 0:
    if power != Fraction(1, 2):
      return symbol(f"({form(base)})", power)
    result, coefficient = symbol("i"), -coefficient
  result = multiply(result, _root_of_integer(coefficient.numerator, power))
  result = multiply(result, _root_of_integer(coefficient.denominator, -power))
  if monomial:
    raised, factor = _multiply_monomials(tuple((atom, e * power) for atom, e in monomial), ONE)
    result = multiply(result, {raised: factor})
  return result


def form(terms: Sum) -> str:
  """The canonical text of a sum: the same for every way to write the same sum."""
  if not terms:
    return "0"
  written = []
  for monomial, coefficient in sorted(terms.items()):
    factors = [atom if e == 1 else f"{atom}^({e})" for atom, e in monomial]
    if coefficient != 1 or not factors:
      factors.insert(0, str(coefficient))
    written.append("*".join(factors))
  joined = " + ".join(written)
  if len(joined) > MAX_FORM:
    raise NotUnderstood("too long")
  return joined


def _small_integer(value: Sum, largest: int) -> int:
  number = value.get(ONE, Fraction(0))
  if set(value) - {ONE} or number.denominator != 1 or not 0 <= number <= largest:
    raise NotUnderstood("integer expected")
  return int(number)


def factorial(value: Sum) -> Sum:
  """`value!` of a small whole number, an atom where there are symbols."""
  if set(value) - {ONE}:
    return symbol(f"({form(value)})!")
  return constant(math.factorial(_small_integer(value, MAX_FACTORIAL)))


def binomial(above: Sum, below: Sum) -> Sum:
  """`above` choose `below`, of whole numbers up to 500."""
  return constant(math.comb(_small_integer(above, 500), _small_integer(below, 500)))
