"""Each scoring rule does what is published, mistakes included, and here is where they differ."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasmr_jax.experiment.scoring import SCORINGS, Gold, score
from pasmr_jax.text.exemplars import WORDS


def _correct(rule, text, gold, language="en", question_language=None, direct=False):
  read = Gold.read(gold)
  assert read is not None
  verdict = score(
    rule,
    text,
    read,
    language=language,
    question_language=question_language or language,
    direct=direct,
  )
  return verdict.correct


# (text, language, gold): what pasmr, lm_eval, lm_eval_flexible and mathoctopus say. The last three
# columns were also obtained by running the published code itself, version 0.4.13 and the file of
# 2023, on these texts and on 20,000 random ones.
DIFFERENCES = [
  ("The answer is 11.", "en", "11", (True, True, True, True)),
  ("Die Antwort lautet 29.", "de", "29", (True, True, True, True)),
  # One phrase a language is known to strict-match, and Bengali's is the English one.
  ("Die Antwort ist 11.", "de", "11", (True, False, True, True)),
  ("উত্তর হল 11।", "bn", "11", (True, False, True, True)),
  ("答えは 29 です。", "ja", "29", (True, False, True, True)),
  # Digits of other scripts.
  ("উত্তর হল ২৯।", "bn", "29", (True, False, False, True)),
  ("คำตอบคือ ๓๐,๐๕๗", "th", "30057", (True, False, False, True)),
  # Signs and points are punctuation to the harness; MathOctopus has no signs and no comma.
  ("The answer is -5.", "en", "5", (False, True, True, True)),
  ("The answer is 1.5.", "en", "15", (False, True, True, False)),
  ("Die Antwort lautet 2,5.", "de", "25", (False, True, True, True)),
  ("Die Antwort lautet 2,5.", "de", "2.5", (True, True, True, False)),
  ("La réponse est 57 500.", "fr", "57500", (True, False, False, False)),
  ("La réponse est 57 500.", "fr", "57", (False, True, False, False)),
  ("Die Antwort lautet 57.500.", "de", "57500", (True, True, True, False)),
  ("The answer is 1/2.", "en", "0.5", (True, False, False, False)),
  ("The answer is 1/2.", "en", "2", (False, False, True, True)),
  # The first statement is the harness' answer, the last is ours.
  ("The answer is 10. No: the answer is 11.", "en", "11", (True, False, True, True)),
  # A number after the answer.
  ("The answer is 11. I checked 2 times.", "en", "11", (True, True, False, False)),
  # Saying nothing is saying 0.
  ("I do not know.", "en", "0", (False, False, False, True)),
]


@pytest.mark.parametrize(("text", "language", "gold", "expected"), DIFFERENCES)
def test_where_the_rules_differ(text, language, gold, expected):
  found = tuple(_correct(rule, text, gold, language) for rule in SCORINGS)
  assert found == expected


def test_strict_match_follows_the_language_of_the_reasoning():
  text = "Step by step: 5 + 6. The answer is 11."
  assert _correct("lm_eval", text, "11", language="en", question_language="sw")
  assert not _correct("lm_eval", text, "11", language="sw")
  # Languages without a task of their own have the English phrase, as AfriMGSM's tasks do.
  assert _correct("lm_eval", text, "11", language="yo")


def test_a_direct_answer_is_compared_as_a_whole():
  assert _correct("lm_eval", " 11 \n", "11", direct=True)
  assert _correct("lm_eval", "$11.", "11", direct=True)
  assert not _correct("lm_eval", "11 apples", "11", direct=True)
  assert _correct("lm_eval_flexible", "11 apples", "11", direct=True)


@pytest.mark.parametrize(
  ("written", "published"),
  [
    ("57,500", "57500"),  # as MGSM's files write what its column answer_number holds
    ("8.0", "8"),
    ("-3", "-3"),
    ("0.125", "0.125"),
    ("2.50", "2.5"),
    ("1/3", "1/3"),
    ("\\boxed{204}", "204"),
  ],
)
def test_golds_are_given_to_the_harness_as_plain_numbers(written, published):
  gold = Gold.read(written)
  assert gold is not None
  assert gold.published == published


def test_a_gold_that_is_no_number_is_none():
  assert Gold.read(None) is None
  assert Gold.read("blue") is None
  # A formula too long to read is not its last number.
  assert Gold.read("\\boxed{" + "x + " * 200 + "5}") is None
  assert Gold.read("\\boxed{(-\\infty, 2)}") is not None


def test_an_unknown_rule_is_named():
  with pytest.raises(ValueError, match=r"scoring 'strict'; expected one of pasmr, lm_eval"):
    _correct("strict", "5", "5")


@settings(deadline=None)  # the first example builds the readers of three languages
@given(st.text(alphabet="0123456789٣৫๗.,-$ a=\n。", max_size=40), st.sampled_from(SCORINGS))
def test_no_text_raises_and_verdicts_are_consistent(text, rule):
  gold = Gold.read("15")
  assert gold is not None
  verdicts = [
    score(rule, text, gold, language=code, question_language=code, direct=direct)
    for code in ("en", "bn", "ja")
    for direct in (False, True)
  ]
  assert all(verdict.answer is not None or not verdict.correct for verdict in verdicts)


@pytest.mark.shared_data
def test_the_rules_on_the_exemplars_of_mgsm(shared_data):
  """Ours reads every native answer; strict-match none of its own Bengali ones."""
  found = json.loads((shared_data / "mgsm" / "exemplars.json").read_text("utf-8"))
  right = {rule: dict.fromkeys(found["exemplars"], 0) for rule in SCORINGS}
  for language, pairs in found["exemplars"].items():
    for number, pair in pairs.items():
      gold = str(found["number_answers"][int(number) - 1])
      for rule in SCORINGS:
        right[rule][language] += _correct(rule, pair["a"], gold, language)
  assert set(right["pasmr"].values()) == {8}
  assert right["lm_eval"]["bn"] == 0
  assert right["lm_eval"]["en"] == 8
  assert right["lm_eval"]["de"] < 8
  assert set(right["mathoctopus"].values()) == {8}
  assert set(found["exemplars"]) <= set(WORDS)
