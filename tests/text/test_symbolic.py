"""The parser of formulas: one form for every way to write a value, and limits on everything."""

from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from pasmr_jax.text.symbolic import MAX_CHARACTERS, Symbolic, read_expression, read_words

properties = settings(derandomize=True, deadline=None, database=None, max_examples=200)


@st.composite
def arithmetic(draw: st.DrawFn, depth: int = 3) -> tuple[str, Fraction]:
  """An expression in LaTeX and its exact value; a denominator that is zero is left out."""
  if depth == 0 or draw(st.booleans()):
    number = draw(st.integers(0, 50))
    return str(number), Fraction(number)
  left, a = draw(arithmetic(depth=depth - 1))
  right, b = draw(arithmetic(depth=depth - 1))
  kind = draw(st.sampled_from(["+", "-", r"\cdot", r"\times", "*", "frac", "/", "^2"]))
  if kind == "+":
    return f"{left} + {right}", a + b
  if kind == "-":
    return f"{left} - ({right})", a - b
  if kind == "^2":
    return f"({left})^2", a**2
  if kind in ("frac", "/") and b == 0:
    return left, a
  if kind == "frac":
    # a number before a fraction would make it a mixed number, hence the parentheses
    return rf"(\frac{{{left}}}{{{right}}})", a / b
  if kind == "/":
    return f"({left}) / ({right})", a / b
  return rf"({left}) {kind} \left({right}\right)", a * b


@properties
@given(arithmetic())
def test_arithmetic_is_exact(written: tuple[str, Fraction]):
  text, value = written
  if len(text) <= MAX_CHARACTERS:
    assert read_expression(text) == value


@properties
@given(
  st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 3)), min_size=1, max_size=5), st.data()
)
def test_the_order_of_terms_does_not_count(terms: list[tuple[int, int]], data: st.DataObject):
  written = [f"({coefficient})x^{{{power}}}" for coefficient, power in terms]
  shuffled = data.draw(st.permutations(written))
  assert read_expression(" + ".join(written)) == read_expression(" + ".join(shuffled))
  assert read_expression(" + ".join(written)) is not None


@st.composite
def polynomials(draw: st.DrawFn, depth: int = 3) -> tuple[str, sympy.Expr]:
  """An expression in LaTeX with symbols and roots, and the same as sympy has it."""
  if depth == 0 or draw(st.integers(0, 3)) == 0:
    kind = draw(st.sampled_from(["x", "y", "number", "root", "ratio"]))
    number = draw(st.integers(1, 12))
    if kind == "number":
      return str(number), sympy.Integer(number)
    if kind == "root":
      return rf"\sqrt{{{number}}}", sympy.sqrt(number)
    if kind == "ratio":
      return rf"(\frac{{{number}}}{{7}})", sympy.Rational(number, 7)
    return kind, sympy.Symbol(kind)
  left, a = draw(polynomials(depth=depth - 1))
  if draw(st.integers(0, 3)) == 0:
    power = draw(st.integers(0, 3))
    return f"({left})^{power}", a**power
  right, b = draw(polynomials(depth=depth - 1))
  kind = draw(st.sampled_from(["+", "-", "*"]))
  if kind == "+":
    return f"{left} + {right}", a + b
  if kind == "-":
    return f"{left} - ({right})", a - b
  return f"({left})({right})", a * b


@properties
@given(polynomials(), polynomials())
def test_formulas_are_equal_where_sympy_says_so(one: tuple[str, sympy.Expr], other):
  (text, value), (other_text, other_value) = one, other
  if max(len(text), len(other_text)) > MAX_CHARACTERS:
    return
  found, expanded = read_expression(text), sympy.expand(value)
  assert found is not None
  written = sympy.latex(expanded)
  if len(written) <= MAX_CHARACTERS:
    assert read_expression(written) == found
  if (compared := read_expression(other_text)) is not None:
    assert (compared == found) == (sympy.expand(value - other_value) == 0)


@properties
@given(st.integers(1, 400), st.integers(1, 400))
def test_roots_multiply(a: int, b: int):
  product = read_expression(rf"\sqrt{{{a}}} \cdot \sqrt{{{b}}}")
  assert product == read_expression(rf"\sqrt{{{a * b}}}")
  assert isinstance(product, Fraction) == ((a * b) ** 0.5 == int((a * b) ** 0.5))


@properties
@given(st.integers(2, 99), st.integers(2, 99))
def test_a_root_in_the_denominator_moves_up(a: int, b: int):
  below = read_expression(rf"\frac{{{a}}}{{\sqrt{{{b}}}}}")
  assert below == read_expression(rf"\frac{{{a}\sqrt{{{b}}}}}{{{b}}}")
  assert below is not None


SAME = (
  (r"\frac{1}{2x+2}", r"\frac{1}{2(x+1)}"),
  (r"\frac{1}{\sqrt{3}-\sqrt{2}}", r"\sqrt{3}+\sqrt{2}"),
  (r"2^{1/2}", r"\sqrt2"),
  (r"\sqrt[3]{16}", r"2\sqrt[3]{2}"),
  (r"i^2", "-1"),
  (r"\sqrt{-4}", "2i"),
  (r"\frac{\pi}{4}", r"0.25\pi"),
  (r"\pi/2", r"\frac12\pi"),
  (r"|{-3}|", "3"),
  (r"\sin(2x)", r"\sin(x+x)"),
  (r"x \ge 2", r"2 \le x"),
  (r"\{3,1,2\}", r"\{1, 2, 3\}"),
  (r"(-\infty,1)\cup(2,3)", r"(2,3) \cup (-\infty, 1)"),
  (r"x=2,\ x=3", r"x=3 \text{ or } x=2"),
  (r"x = 2 \text{ y } x = 3", "2, 3"),
  (r"\dfrac{a}{b}", r"a \div b"),
  (r"5\,\text{cm}", "5"),
  (r"√2", r"\sqrt{2}"),
  (r"x²", "x^2"),
  (r"\binom{5}{2}", r"\frac{5!}{3! \cdot 2!}"),
)


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same(a: str, b: str):
  assert read_expression(a) is not None
  assert read_expression(a) == read_expression(b)


DIFFERENT = (
  ("(1,2)", "(2,1)"),
  ("[0,1)", "(0,1)"),
  ("x+1", "x-1"),
  (r"\sqrt{2}", "1.41421356"),
  (r"\pi", "3.14159"),
  ("2^{x}", "x^2"),
  (r"\sin x", r"\cos x"),
  (r"\log_2 8", r"\log_3 8"),
  ("x < 2", "2 < x"),
  ("X", "x"),
)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different(a: str, b: str):
  assert read_expression(a) is not None
  assert read_expression(b) is not None
  assert read_expression(a) != read_expression(b)


NOT_READ = (
  ("", "nothing"),
  ("1/0", "division by zero"),
  ("0^0", "not defined"),
  ("0^{-1}", "division by zero"),
  (r"9^{9^{9^{9}}}", "an exponent beyond the limit"),
  ("(x+y+z)^{99}", "a power of a sum beyond the limit"),
  ("(" * 30 + "1" + ")" * 30, "too deep"),
  ("101!", "a factorial beyond the limit"),
  ("1+" * 300 + "1", "too long"),
  ("(1", "a bracket that is not closed"),
  ("1 + ", "an operand missing"),
  (r"\frac1.5", "a decimal number without braces"),
  (r"\frac{1}.5", "a decimal number without braces"),
  (r"\sqrt.5", "a decimal number without braces"),
  ("2 apples and", "words"),
  (r"\input{file}", "a macro that is no mathematics"),
  ("__import__('os')", "code"),
  ("lambda: 0", "code"),
  ("x if x else y", "code"),
)


@pytest.mark.parametrize(("text", "why"), NOT_READ)
def test_not_read(text: str, why: str):
  assert read_expression(text) is None, why


@settings(properties, max_examples=500)
@given(
  st.lists(
    st.sampled_from(
      [
        *"0129xyi+-*/^_()[]{}|!,;=<>≤∈∪±. π",
        *("\\frac", "\\sqrt", "\\pi", "\\sin", "\\log", "\\text{", "\\binom", "\\pm", "\\in"),
        *("\\cup", "\\{", "\\}", "\\left(", "^{-1}", "^\\circ", " or "),
      ]
    ),
    max_size=20,
  ).map("".join)
)
def test_never_raises(text: str):
  assert isinstance(read_expression(text), Fraction | Symbolic | None)
  read_words(text)


def test_words():
  assert read_words(r"\text{Monday}") == read_words("monday.") == Symbolic("monday")
  assert read_words("(C)") == Symbolic("c")
  assert read_words(r"\{\}") is None
