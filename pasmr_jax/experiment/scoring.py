"""Four rules by which a response counts as right, so that numbers compare with published ones.

    pasmr             the exact value of the final answer, read by text/answers.py
    lm_eval           lm-evaluation-harness 0.4.13, tasks mgsm_*: filter strict-match
    lm_eval_flexible  the same, filter flexible-extract
    mathoctopus       microsoft/MathOctopus, generate_and_eval.py and svamp_test.py

The last three are rewritten from the published rules and kept as they are, mistakes included:
docs/evaluation.md shows with examples what each of them reads. Strings in, verdicts out.
"""

import dataclasses
import functools
import re
import string
from fractions import Fraction

from pasmr_jax.text.answers import Answer, read_answer, read_gold, same_answer

SCORINGS = ("pasmr", "lm_eval", "lm_eval_flexible", "mathoctopus")


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a rule made of a response."""

  answer: str | None  # as the rule read it; two answers are the same if these strings are
  correct: bool


@dataclasses.dataclass(frozen=True)
class Gold:
  """A gold answer, ready for every rule."""

  text: str  # as the data set writes it
  answer: Answer
  published: str  # as the harness has it: MGSM's column answer_number holds a plain number

  @classmethod
  def read(cls, text: str | None) -> "Gold | None":
    """The gold answer written as `text`; None if there is none or it cannot be read."""
    answer = read_gold(text)
    if text is None or answer is None:
      return None
    return cls(text, answer, _plain(answer.value) or text)


def _plain(value: object) -> str | None:
  """A number as "57500" or "2.5"; None if it has no finite decimal form."""
  if not isinstance(value, Fraction):
    return None
  if value.denominator == 1:
    return str(value.numerator)
  twos_and_fives = value.denominator
  for prime in (2, 5):
    while twos_and_fives % prime == 0:
      twos_and_fives //= prime
  if twos_and_fives != 1:
    return None
  places = value.denominator.bit_length()  # enough: 2**k and 5**k divide 10**k
  digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
  sign = "-" if value < 0 else ""
  return f"{sign}{digits[:-places]}.{digits[-places:].rstrip('0')}"


def score(
  scoring: str, text: str, gold: Gold, *, language: str, question_language: str, direct: bool
) -> Verdict:
  """Judges a response by one rule.

  Args:
    scoring: one of `SCORINGS`.
    text: the reasoning with its final answer; for `direct` the answer only.
    gold: the gold answer.
    language: of the text asked for, whose numbers and answer phrases hold.
    question_language: of the question.
    direct: whether an answer without reasoning was asked for. The harness then compares the whole
      response instead of searching it.

  Raises:
    ValueError: an unknown rule.
  """
  match scoring:
    case "pasmr":
      answer = read_answer(text, language)
      return Verdict(
        None if answer is None else str(answer.value), same_answer(answer, gold.answer)
      )
    case "lm_eval" if direct:
      return _exact_match(text.strip(), gold)
    case "lm_eval":
      # A task exists for reasoning in the question's language and one for English reasoning.
      pattern = _strict_pattern(language if language == question_language else "en")
      return _exact_match(next(iter(pattern.findall(text)), None), gold)
    case "lm_eval_flexible":
      return _exact_match(_last_harness_number(text), gold)
    case "mathoctopus":
      number = _last_octopus_number(text)
      # Comparing with a nan, which inf - inf gives, is false there too.
      return Verdict(str(number), abs(_last_octopus_number(gold.text) - number) < 1e-3)
  raise ValueError(f"scoring {scoring!r}; expected one of {', '.join(SCORINGS)}")


# ---- lm-evaluation-harness -------------------------------------------------------------------

# What stands before and after the number that strict-match looks for. Bengali has the English
# phrase there, so its own exemplars never match. Other languages have no task of this family;
# AfriMGSM's tasks look for the English phrase in every language, and so does this.
_STRICT: dict[str, tuple[str, str]] = {
  "bn": ("The answer is ", ""),
  "de": ("Die Antwort lautet ", ""),
  "en": ("The answer is ", ""),
  "es": ("La respuesta es ", ""),
  "fr": ("La réponse est ", ""),
  "ja": ("答えは", "です。"),
  "ru": ("Ответ — ", ""),
  "sw": ("Jibu ni ", ""),
  "te": ("సమాధానం ", ""),
  "th": ("คำตอบคือ ", ""),
  "zh": ("答案是 ", "。"),
}
_ENGLISH = _STRICT["en"]
# Runs of at least two of these characters, else a run of digits. ASCII digits only.
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@functools.cache
def _strict_pattern(language: str) -> re.Pattern[str]:
  before, after = _STRICT.get(language, _ENGLISH)
  return re.compile(f"{re.escape(before)}(-?[0-9.,]+){re.escape(after)}")


def _last_harness_number(text: str) -> str | None:
  found = _FLEXIBLE.findall(text)
  return found[-1] if found else None


def _exact_match(found: str | None, gold: Gold) -> Verdict:
  """Equal but for case and ASCII punctuation: "1.5" is "15", "-5" is "5", "$5." is "5"."""
  if found is None:
    return Verdict(None, False)  # the harness compares its word for "nothing found"
  read = _bare(found)
  return Verdict(read, read == _bare(gold.published))


def _bare(text: str) -> str:
  return text.lower().translate(_NO_PUNCTUATION)


# ---- MathOctopus -----------------------------------------------------------------------------

_COMMA_BETWEEN_DIGITS = re.compile(r"(\d),(\d)")
_UNSIGNED = re.compile(r"\d+(?:\.\d+)?")


def _last_octopus_number(text: str) -> float:
  """The last number without its sign, 0 if there is none: "2,5" is 25, "no idea" is 0.

  Digits of every script count. A comma is taken out if a digit stands on each side that no earlier
  comma has used up: of "1,2,3" the first only.
  """
  found = _UNSIGNED.findall(_COMMA_BETWEEN_DIGITS.sub(r"\1\2", text))
  return float(found[-1]) if found else 0.0
