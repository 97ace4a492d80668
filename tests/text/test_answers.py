"""The final-answer reader, case by case, by property, on real exemplars, and under attack."""

import json
from fractions import Fraction

import pytest

from pasmr_jax.text.answers import Answer, read_answer
from tests.text.answer_cases import BOX_CASES, NOTHING_CASES, NUMBER_CASES, RULE_CASES


def value_of(answer: Answer | None) -> str | None:
  """The value as the case tables write it."""
  if answer is None:
    return None
  return str(answer.value) if isinstance(answer.value, Fraction) else f"{{{answer.value}}}"


@pytest.mark.parametrize(("language", "text", "value", "rule", "why"), RULE_CASES)
def test_rule(language: str, text: str, value: str, rule: str, why: str):
  answer = read_answer(text, language)
  assert answer is not None, why
  assert (value_of(answer), answer.rule) == (value, rule), why


@pytest.mark.parametrize(("language", "text", "value", "why"), NUMBER_CASES)
@pytest.mark.parametrize("form", ["{}", "#### {}", "so that is {}"])
def test_number(language: str, text: str, value: str, why: str, form: str):
  assert value_of(read_answer(form.format(text), language)) == value, why


@pytest.mark.parametrize(("language", "text", "value", "why"), BOX_CASES)
def test_box(language: str, text: str, value: str, why: str):
  assert value_of(read_answer("so 7 gives $\\boxed{" + text + "}$.", language)) == value, why


@pytest.mark.parametrize(("language", "text", "value", "why"), NOTHING_CASES)
def test_nothing(language: str, text: str, value: None, why: str):
  assert value_of(read_answer(text, language)) is value, why
