"""The tables of the languages: complete, consistent, and free of contradictions."""

import re
import unicodedata

import pytest

from pasmr_jax.text.languages import LANGUAGES, MGSM_CODES, Language, language

MGSM = "bn de en es fr ja ru sw te th zh"
FURTHER = "ar fa hi ur ta ko vi id pt it tr pl uk am ha yo zu"
tables = pytest.mark.parametrize("table", LANGUAGES.values(), ids=lambda table: table.code)


def test_the_languages_that_were_asked_for():
  assert tuple(MGSM.split()) == MGSM_CODES
  assert set(LANGUAGES) == {*MGSM.split(), *FURTHER.split()}


def test_lookup():
  assert language("sw").name == "Swahili"
  assert all(language(code).code == code for code in LANGUAGES)


@pytest.mark.parametrize(
  ("code", "nearest"), [("dee", "de"), ("german", "de"), ("EN", "en"), ("Swahilli", "sw")]
)
def test_unknown_code_names_itself_and_the_nearest(code: str, nearest: str):
  with pytest.raises(ValueError, match=re.escape(repr(code))) as raised:
    language(code)
  assert re.search(rf"nearest: [^;]*\b{nearest}\b", str(raised.value))


def test_unknown_code_without_any_near_one():
  with pytest.raises(ValueError, match="known: am, ar, bn"):
    language("qqqqqq")


@tables
def test_native_digits_are_ten_decimal_digits_in_order(table: Language):
  if table.digits:
    assert [unicodedata.decimal(digit) for digit in table.digits] == list(range(10))
    assert not table.digits.isascii()


@tables
def test_marks_do_not_contradict(table: Language):
  assert table.decimal_mark in (".", ",")
  # Spanish alone is at home in countries of both styles
  assert (table.decimal_mark in table.thousands_marks) == (table.code == "es")
  assert {" ", "\u00a0", "\u202f"} <= set(table.thousands_marks)


@tables
def test_words_are_lower_case_unique_and_present(table: Language):
  assert table.answer_words
  assert table.answer_verbs
  assert table.steps
  assert table.negations
  assert table.currencies
  assert table.scale_words or table.numeral_scales
  scale_words = [word for word, _ in table.scale_words]
  for words in (
    *(table.answer_words, table.answer_verbs, table.negations, table.steps, scale_words),
    *(table.currencies, table.minus_words, table.units, table.not_scales, table.of_words),
  ):
    assert len(set(words)) == len(words)
    assert all(word == word.lower() == word.strip() != "" for word in words)


@tables
def test_scales_are_powers_of_ten(table: Language):
  for word, scale in (*table.scale_words, *table.numeral_scales):
    assert str(scale).rstrip("0") == "1", word


@tables
def test_words_that_are_no_scale_begin_like_one(table: Language):
  scales = [word for word, _ in (*table.scale_words, *table.numeral_scales)]
  for word in table.not_scales:
    assert word.startswith(tuple(scales))
    assert word not in scales


@tables
def test_words_are_in_the_script_of_the_language(table: Language):
  prefixes = {"Han": "CJK", "Latin": "LATIN"}
  known = [prefixes.get(script, script.upper()) for script in table.scripts]
  for word in table.answer_words:
    letters = [unicodedata.name(letter) for letter in word if letter.isalpha()]
    assert all(any(name.startswith(script) for script in known) for name in letters), word


def test_numerals():
  digits, scales = dict(LANGUAGES["zh"].numeral_digits), dict(LANGUAGES["ja"].numeral_scales)
  assert (digits["七"], digits["两"], scales["億"], scales["万"]) == (7, 2, 10**8, 10**4)
  assert dict(LANGUAGES["ko"].numeral_scales)["만"] == 10**4


def test_what_a_million_is_called():
  words = {code: dict(table.scale_words) for code, table in LANGUAGES.items()}
  assert words["de"]["billion"] == words["fr"]["billion"] == words["es"]["billón"] == 10**12
  assert words["en"]["billion"] == words["pt"]["bilhão"] == 10**9
  assert words["hi"]["लाख"] == words["te"]["లక్ష"] == words["ur"]["لاکھ"] == 10**5
