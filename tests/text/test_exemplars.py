"""Prompts of chains of thought, to the character, and where an answer ends."""

import json

import pytest

from pasmr_jax.text.exemplars import WORDS, chain_prompt, cut, read_exemplars
from pasmr_jax.text.languages import LANGUAGES

EXEMPLARS = {
  "en": [("Question: 1 + 1?", "Step-by-Step Answer: 1 + 1 = 2. The answer is 2.")],
  "de": [
    ("Frage: 1 + 1?", "Schritt-für-Schritt-Antwort: 1 + 1 = 2. Die Antwort lautet 2."),
    ("2 + 2?", "Die Antwort lautet 4."),
  ],
  "zh": [("问题：1 + 1？", "逐步解答：答案是 2。")],
}


def test_native_chain_of_thought():
  assert chain_prompt("native_cot", "de", " 3 + 4? ", 2, EXEMPLARS) == (
    "Frage: 1 + 1?\nSchritt-für-Schritt-Antwort: 1 + 1 = 2. Die Antwort lautet 2.\n\n"
    "Frage: 2 + 2?\nSchritt-für-Schritt-Antwort: Die Antwort lautet 4.\n\n"
    "Frage: 3 + 4?\nSchritt-für-Schritt-Antwort:"
  )
  # Full-width colons take no space after them.
  assert chain_prompt("native_cot", "zh", "3 + 4？", 1, EXEMPLARS) == (
    "问题：1 + 1？\n逐步解答：答案是 2。\n\n问题：3 + 4？\n逐步解答："
  )


def test_english_reasoning_on_native_questions():
  assert chain_prompt("english_cot", "de", "3 + 4?", 1, EXEMPLARS) == (
    "Frage: 1 + 1?\nStep-by-Step Answer: 1 + 1 = 2. The answer is 2.\n\n"
    "Frage: 3 + 4?\nStep-by-Step Answer:"
  )


def test_direct_answers_are_the_exemplars_results_alone():
  assert chain_prompt("direct", "de", "3 + 4?", 2, EXEMPLARS) == (
    "Frage: 1 + 1?\nAntwort: 2\n\nFrage: 2 + 2?\nAntwort: 4\n\nFrage: 3 + 4?\nAntwort:"
  )
  broken = {"de": [("Frage: ?", "keine Ahnung")]}
  with pytest.raises(ValueError, match=r"exemplar 1 in de: no answer in 'keine Ahnung'"):
    chain_prompt("direct", "de", "?", 1, broken)


def test_without_exemplars_every_language_can_be_asked():
  assert set(WORDS) == set(LANGUAGES)
  for code, words in WORDS.items():
    asked = chain_prompt("native_cot", code, "3 + 4?")
    assert asked.startswith(words.question)
    assert asked.endswith("\n" + words.reasoning)
    assert len({words.question, words.reasoning, words.answer}) == 3


def test_a_language_without_words_is_told_where_they_belong(monkeypatch):
  monkeypatch.delitem(WORDS, "zu")
  said = r"no words to ask in 'zu' with .*Words\(question, reasoning, answer\).*text/exemplars\.py"
  with pytest.raises(ValueError, match=said):
    chain_prompt("direct", "zu", "3 + 4?")
  with pytest.raises(ValueError, match=said):
    cut("7", "zu", ())


@pytest.mark.parametrize(
  ("text", "language", "stops", "expected"),
  [
    (" 7.\n\nFrage: 5 + 5?", "de", (), " 7.\n\n"),
    (" 7.\n\nFrage: 5 + 5?", "de", ("\n\n",), " 7."),
    (" 7. Question: 5?", "de", (), " 7. "),
    ("\n\n7.\n\nmore", "de", ("\n\n",), "\n\n7."),  # a blank line before the answer is no end
    (" 7.\nDie Antwort lautet 7.", "de", ("\n\n",), None),
    (" 七。问题：", "zh", (), " 七。"),
    (" 7\n **Frage:** 5?", "de", (), " 7\n **"),
    (" 7 Frage: 5?", "de", (), " 7 "),
    ("Frage: 5?", "de", (), ""),
    (" উত্তর হল ১১ প্রশ্ন: 5?", "bn", (), " উত্তর হল ১১ "),  # a digit of any script
    (" คำตอบคือ ๑๑ โจทย์: 5?", "th", (), " คำตอบคือ ๑๑ "),
    (" 50% Question: 5?", "en", (), " 50% "),
    (" 11 € Question : 5?", "fr", (), " 11 € "),
    (' "7." Question: 5?', "en", (), ' "7." '),
    (' "seven" Question: 5?', "en", (), ' "seven" '),
    (' "Question: how many?" and then 5.', "en", (), None),  # a quotation mark that opens
    (' fragte "Frage: wie viele?" und dann 5.', "de", (), None),
    ('他问"问题：多少？" 5。', "zh", (), None),
    ("答案是11个。」问题：5？", "zh", (), "答案是11个。」"),
    ("答案是（11）问题：5？", "zh", (), "答案是（11）"),
    # The word inside a sentence announces nothing.
    ("让我们来解决这个问题：\n9 + 9 = 18。答案是 18。", "zh", (), None),
    ("この問題：9 + 9 = 18。答えは18。", "ja", (), None),
    ("Die Frage: Was ist 9 + 9?\n18\nFrage: 5?", "de", (), "Die Frage: Was ist 9 + 9?\n18\n"),
  ],
)
def test_an_answer_ends_where_the_next_question_begins(text, language, stops, expected):
  whole = (text, False)
  assert cut(text, language, stops) == (whole if expected is None else (expected, True))


@pytest.mark.parametrize(
  ("content", "said"),
  [
    ("{", "expected JSON with the key 'exemplars'"),
    ("[]", "expected JSON with the key 'exemplars'"),
    ('{"exemplars": {"en": {}}}', "exemplars has no language 'de'"),
    ('{"exemplars": {"de": {"1": {"q": "?"}}}}', r"exemplars\['de'\]\['1'\] is {'q': '\?'}"),
    ('{"exemplars": {"de": {"1": {"q": "?", "a": " "}}}}', "expected texts q and a"),
  ],
)
def test_broken_files_are_named(tmp_path, content, said):
  path = tmp_path / "exemplars.json"
  path.write_text(content)
  with pytest.raises(ValueError, match=said):
    read_exemplars(str(path), 1, ["de"])


def test_a_missing_file_is_named():
  with pytest.raises(FileNotFoundError, match=r"evaluation.exemplar_file: /nowhere.json: no such"):
    read_exemplars("/nowhere.json", 1, ["de"])


def test_the_first_exemplars_are_read(tmp_path):
  path = tmp_path / "exemplars.json"
  pairs = {str(n): {"q": f"Q{n}", "a": f"A{n}"} for n in (2, 1, 3)}
  path.write_text(json.dumps({"exemplars": {"de": pairs}}))
  assert read_exemplars(str(path), 2, ["de"]) == {"de": [("Q1", "A1"), ("Q2", "A2")]}


@pytest.mark.shared_data
def test_mgsms_exemplars_begin_with_the_words_of_the_table(shared_data):
  languages = ["bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh"]
  found = read_exemplars(str(shared_data / "mgsm" / "exemplars.json"), 8, languages)
  for code, pairs in found.items():
    assert all(question.startswith(WORDS[code].question) for question, _ in pairs)
    assert all(answer.startswith(WORDS[code].reasoning) for _, answer in pairs)


def test_as_in_the_harness_the_word_ends_an_answer_anywhere():
  text = "Die Frage: Was ist 9 + 9?"
  assert cut(text, "de", (), anywhere=True) == ("Die ", True)
  assert cut(text, "de", ()) == (text, False)
