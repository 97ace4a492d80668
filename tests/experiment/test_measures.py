"""Every reported number, from a handful of answers whose numbers are known by hand."""

import math

import pytest

from pasmr_jax.data.questions import Question
from pasmr_jax.experiment.items import Response
from pasmr_jax.experiment.measures import averaged, judge, measure, summarize
from pasmr_jax.experiment.scoring import SCORINGS

LANGUAGES = ("bn", "de", "en")
# Sentences long enough to be told apart.
GERMAN = "Wir rechnen zuerst zusammen, was die Kinder am Anfang haben. 4 + 5 = 9\n#### 9"
ENGLISH = "We first add up what the children have at the beginning. 4 + 5 = 9\n#### 9"
BENGALI = "প্রথমে আমরা যোগ করি। 4 + 5 = 9\n#### 9"


def _question(language, number=1, answer="9", text="4 Stifte und 5 Stifte?"):
  return Question(f"q{number}", language, text, answer=answer)


def _response(question, reasoning, **changes):
  values = {
    "id": question.id,
    "language": question.language,
    "well_formed": True,
    "truncated": False,
    "tokens": 10,
    "translation": None if question.language == "en" else "4 pens and 5 pens?",
    "reasoning": reasoning,
  }
  return Response(**(values | changes))


def _judge(pairs, way="pasmr", scoring="pasmr", languages=LANGUAGES):
  questions, responses = zip(*pairs, strict=True)
  return judge(responses, questions, way=way, scoring=scoring, pivot="en", languages=languages)


def _items(*answers, **changes):
  """German items: each answer's number, 9 being right."""
  pairs = []
  for number, answer in enumerate(answers):
    question = _question("de", number)
    pairs.append((question, _response(question, f"#### {answer}", **changes)))
  return _judge(pairs)


def test_an_item_is_judged_by_every_rule():
  question = _question("bn")
  (item,) = _judge([(question, _response(question, "উত্তর হল ৯। 2"))], scoring="mathoctopus")
  assert item.scores == {
    "pasmr": True, "lm_eval": False, "lm_eval_flexible": False, "mathoctopus": False,
  }  # fmt: skip
  assert not item.correct
  assert item.answer == "2.0"
  assert item.rule == "phrase"
  assert item.gold == "9"


@pytest.mark.parametrize(
  ("way", "language", "reasoning", "expected"),
  [
    ("pasmr", "de", GERMAN, True),
    ("pasmr", "de", ENGLISH, False),
    ("pasmr", "de", "#### 9", True),  # too short to tell
    ("english_cot", "de", ENGLISH, True),
    ("english_cot", "de", GERMAN, False),
    ("translate", "bn", ENGLISH, True),
    ("native_cot", "bn", BENGALI, True),
    ("native_cot", "bn", ENGLISH, False),
  ],
)
def test_reasoning_is_expected_in_the_language_asked_for(way, language, reasoning, expected):
  question = _question(language)
  (item,) = _judge([(question, _response(question, reasoning))], way=way)
  assert item.reasoning_consistent is expected
  assert item.correct  # the answer is right in any language


def test_translations_are_judged_where_there_are_any():
  de, en = _question("de"), _question("en", text="4 pens and 5 pens?")
  wrong = "Wir haben am Anfang vier Stifte und dann noch einmal 5 Stifte?"
  items = _judge(
    [
      (de, _response(de, "9", translation=wrong)),
      (de, _response(de, "9", translation=None, well_formed=False)),
      (en, _response(en, "9", translation="unasked")),
    ]
  )
  assert [item.translation_consistent for item in items] == [False, None, None]
  assert [item.number_recall for item in items] == [0.5, None, None]


def test_agreement_with_the_pivot_answer():
  de = _question("de")
  solutions = ("The answer is 8.", "8.0", "I do not know", None)
  items = _judge([(de, _response(de, "#### 8", pivot_solution=text)) for text in solutions])
  assert [item.agrees for item in items] == [True, True, False, None]
  assert [item.pivot_answer for item in items] == ["8", "8", None, None]
  (silent,) = _judge([(de, _response(de, "", pivot_solution="nothing"))])
  assert silent.agrees is False  # two missing answers do not agree


def test_without_identification_no_language_is_judged():
  (item,) = _judge([(_question("de"), _response(_question("de"), ENGLISH))], languages=None)
  assert item.reasoning_consistent is None
  found = measure([item], {}, "en", "pasmr")
  assert not any(name.startswith("language/") for name in found)


def test_averages_weigh_languages_alike_and_targets_leave_the_pivot_out():
  questions = {
    "de": [(_question("de", n), "9" if n < 3 else "1") for n in range(4)],
    "bn": [(_question("bn", n), "9" if n < 1 else "1") for n in range(2)],
    "en": [(_question("en", n), "9") for n in range(4)],
  }
  items = _judge([(q, _response(q, f"#### {a}")) for group in questions.values() for q, a in group])
  found = measure(items, {}, "en", "pasmr")
  assert found["accuracy/de"] == 0.75
  assert found["accuracy/bn"] == 0.5
  assert found["target_accuracy"] == 0.625
  assert found["pivot_accuracy"] == found["accuracy/en"] == 1.0
  assert found["high_resource_accuracy"] == 0.75
  assert found["low_resource_accuracy"] == 0.5
  assert found["all_accuracy"] == 0.75
  assert found["questions/bn"] == 2
  assert found["interval/de/low"] <= 0.75 <= found["interval/de/high"]
  assert found["interval/en/high"] == 1.0
  assert found["interval/en/low"] == pytest.approx(0.5101, abs=1e-3)  # Wilson, 4 of 4
  assert found["interval/target/low"] < 0.625 < found["interval/target/high"]
  assert found["rule/hash"] == 1.0
  assert found["rule/none"] == 0.0
  assert all(math.isfinite(value) for value in found.values())
  assert summarize(items, "en").items() <= found.items()


def test_averages_that_have_no_language_are_left_out():
  assert averaged(["de", "en"], "en") == {
    "target": ["de"], "high_resource": ["de"], "all": ["de", "en"],
  }  # fmt: skip
  assert averaged(["en"], "en") == {"all": ["en"]}
  # Every language of the project is in one of the two.
  from pasmr_jax.text.languages import LANGUAGES as known
  from pasmr_jax.text.resources import HIGH_RESOURCE, LOW_RESOURCE

  assert set(known) == HIGH_RESOURCE | LOW_RESOURCE
  assert not HIGH_RESOURCE & LOW_RESOURCE


def test_samples_of_a_question_are_averaged_and_voted():
  question = _question("de")
  other = _question("de", 2)
  answers = {question: ("9", "9", "1"), other: ("9", "1", "1")}
  items = _judge(
    [
      (q, _response(q, f"#### {a}", sample=n))
      for q, group in answers.items()
      for n, a in enumerate(group)
    ]
  )
  found = measure(items, {}, "en", "pasmr")
  assert found["accuracy/de"] == found["mean@3/de"] == found["mean@3/target"] == 0.5
  assert found["maj@3/de"] == found["maj@3/target"] == 0.5
  assert found["questions/de"] == 2
  assert not any("@" in name for name in measure(_items("9", "1"), {}, "en", "pasmr"))


def test_other_rules_are_reported_beside_the_chosen_one():
  question = _question("de")
  items = _judge([(question, _response(question, "Die Antwort ist 9."))])
  found = measure(items, {}, "en", "pasmr")
  assert found["scoring/lm_eval/de"] == 0.0
  assert found["scoring/lm_eval_flexible/target"] == 1.0
  assert "scoring/pasmr/de" not in found
  items = _judge([(question, _response(question, "Die Antwort ist 9."))], scoring="lm_eval")
  found = measure(items, {}, "en", "lm_eval")
  assert found["accuracy/de"] == 0.0
  assert found["scoring/pasmr/de"] == 1.0
  assert {name.split("/")[1] for name in found if name.startswith("scoring/")} == set(SCORINGS) - {
    "lm_eval"
  }


def test_translations_are_compared_with_references():
  from sacrebleu import sentence_chrf

  items = _items("9", "9", translation="4 pens and 5 pens?")
  perfect = measure(items, {("de", "q0"): "4 pens and 5 pens?"}, "en", "pasmr")
  assert perfect["chrf/de"] == perfect["chrf/target"] == 100
  reference = "Four pens and five pencils?"
  found = measure(items, {("de", "q0"): reference}, "en", "pasmr")
  expected = sentence_chrf("4 pens and 5 pens?", [reference], word_order=2).score
  assert found["chrf/de"] == pytest.approx(expected)
  assert 0 < expected < 100
  assert "chrf/de" not in measure(items, {}, "en", "pasmr")
  # What was not translated counts as an empty translation.
  half = [*items[:1], *_items("9", translation=None)[:1]]
  references = {("de", "q0"): "4 pens and 5 pens?", ("de", "q1"): "6 pens?"}
  renamed = [half[0], type(half[1])(**(vars(half[1]) | {"id": "q1"}))]
  assert measure(renamed, references, "en", "pasmr")["chrf/de"] < 100
  # So does a language of which nothing was, but not where nobody is asked to translate.
  swahili = type(half[0])(**(vars(half[1]) | {"language": "sw"}))
  references |= {("sw", half[1].id): "6 pens?"}
  found = measure([items[0], swahili], references, "en", "pasmr")
  assert (found["chrf/de"], found["chrf/sw"], found["chrf/target"]) == (100, 0, 50)
  assert "chrf/target" not in measure([swahili], references, "en", "pasmr")
  # The pivot's questions may have an English text of their own, which nobody is asked for.
  english = type(half[0])(**(vars(half[1]) | {"language": "en"}))
  references |= {("en", english.id): "6 pens?"}
  found = measure([items[0], english], references, "en", "pasmr")
  assert found["chrf/all"] == found["chrf/target"] == 100
  assert "chrf/en" not in found


def test_lengths_and_truncation():
  found = measure(
    [*_items("9", tokens=10), *_items("9", "9", tokens=40, truncated=True)[1:]], {}, "en", "pasmr"
  )
  assert found["tokens/de"] == 25
  assert found["truncated/de"] == found["truncated/target"] == 0.5


def test_msvamp_bengali_without_its_cut_off_questions():
  texts = {1: ("কতগুলি কলম আছে?", "9"), 2: ("কতগুলি কল", "1"), 3: ("কতগুলি বই আছে?", "1")}
  pairs = []
  for number, (text, answer) in texts.items():
    question = Question(f"msvamp-000{number}", "bn", text, answer="9")
    pairs.append((question, _response(question, f"#### {answer}")))
  german = Question("msvamp-0001", "de", "Wie viele", answer="9")
  pairs.append((german, _response(german, "#### 9")))
  found = measure(_judge(pairs), {}, "en", "pasmr")
  assert found["accuracy/bn"] == pytest.approx(1 / 3)
  assert found["whole_questions/bn"] == 0.5
  assert found["whole_questions/target"] == 0.75
  assert found["cut_off_questions/bn"] == 1
  assert not any("whole" in name for name in measure(_items("9"), {}, "en", "pasmr"))
