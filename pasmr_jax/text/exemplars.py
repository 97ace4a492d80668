"""Prompts by which models that know nothing of PASMR are asked, with worked examples before.

The prompts are those of the MGSM paper (Shi et al. 2022, arXiv 2210.03057): each example is its
question, a line break and its answer, examples are a blank line apart, and the prompt ends with the
word that calls for an answer.

    native_cot    question and reasoning in the question's language
    english_cot   question in its language, reasoning in English
    direct        question in its language, the answer alone

`cut` takes off what a base model goes on to write after its answer: the next question.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from pasmr_jax.text.answers import read_answer

CHAINS = ("native_cot", "english_cot", "direct")
MAX_EXEMPLARS = 8


@dataclasses.dataclass(frozen=True)
class Words:
  """How a prompt announces its parts in one language, colons included."""

  question: str
  reasoning: str  # calls for an answer step by step
  answer: str  # calls for the answer alone


# The first eleven are those of MGSM's own exemplars, except `answer` where the harness has only
# English. The others are ours.
WORDS = {
  "bn": Words("প্রশ্ন:", "ধাপে ধাপে উত্তর:", "উত্তর:"),
  "de": Words("Frage:", "Schritt-für-Schritt-Antwort:", "Antwort:"),
  "en": Words("Question:", "Step-by-Step Answer:", "Answer:"),
  "es": Words("Pregunta:", "Respuesta paso a paso:", "Respuesta:"),
  "fr": Words("Question :", "Réponse étape par étape :", "Réponse :"),
  "ja": Words("問題：", "ステップごとの答え：", "答え："),
  "ru": Words("Задача:", "Пошаговое решение:", "Ответ:"),
  "sw": Words("Swali:", "Jibu la Hatua kwa Hatua:", "Jibu:"),
  "te": Words("ప్రశ్న:", "దశలవారీగా సమాధానం:", "సమాధానం:"),
  "th": Words("โจทย์:", "คำตอบทีละขั้นตอน:", "คำตอบ:"),
  "zh": Words("问题：", "逐步解答：", "答案："),
  "am": Words("ጥያቄ:", "ደረጃ በደረጃ መልስ:", "መልስ:"),
  "ar": Words("السؤال:", "الإجابة خطوة بخطوة:", "الإجابة:"),
  "fa": Words("پرسش:", "پاسخ گام به گام:", "پاسخ:"),
  "ha": Words("Tambaya:", "Amsa mataki-mataki:", "Amsa:"),
  "hi": Words("प्रश्न:", "चरण-दर-चरण उत्तर:", "उत्तर:"),
  "id": Words("Pertanyaan:", "Jawaban langkah demi langkah:", "Jawaban:"),
  "it": Words("Domanda:", "Risposta passo dopo passo:", "Risposta:"),
  "ko": Words("질문:", "단계별 답변:", "답:"),
  "pl": Words("Pytanie:", "Odpowiedź krok po kroku:", "Odpowiedź:"),
  "pt": Words("Pergunta:", "Resposta passo a passo:", "Resposta:"),
  "ta": Words("கேள்வி:", "படிப்படியான பதில்:", "பதில்:"),
  "tr": Words("Soru:", "Adım adım cevap:", "Cevap:"),
  "uk": Words("Задача:", "Покрокове розв'язання:", "Відповідь:"),
  "ur": Words("سوال:", "مرحلہ وار جواب:", "جواب:"),
  "vi": Words("Câu hỏi:", "Lời giải từng bước:", "Trả lời:"),
  "yo": Words("Ìbéèrè:", "Ìdáhùn ní ìgbésẹ̀-ìgbésẹ̀:", "Ìdáhùn:"),
  "zu": Words("Umbuzo:", "Impendulo yesinyathelo ngesinyathelo:", "Impendulo:"),
}

# What ends a line or sentence, or the answer itself; of straight quotation marks one that closes.
_ENDED = r"(?:[\n.!?。！？।॥؟۔።\d%)\]}$€”’»」』）】]|(?<=\S)\"(?=\s))"

# One worked example: question and answer as the file has them.
Exemplar = tuple[str, str]


def read_exemplars(path: str, count: int, languages: Sequence[str]) -> dict[str, list[Exemplar]]:
  """The first `count` worked examples in each language, from MGSM's exemplars.json.

  The file is `{"exemplars": {LANGUAGE: {"1": {"q": ..., "a": ...}, "2": ...}}}`.

  Raises:
    FileNotFoundError: no such file.
    ValueError: no JSON, a language or an example that is not there, or one without its two texts.
  """
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"evaluation.exemplar_file: {path}: no such file")
  try:
    found: Any = json.loads(pathlib.Path(path).read_bytes())["exemplars"]
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f"{path}: expected JSON with the key 'exemplars': {error!r}") from error
  exemplars = {}
  for language in languages:
    if not isinstance(found, dict) or not isinstance(found.get(language), dict):
      raise ValueError(f"{path}: exemplars has no language {language!r}")
    exemplars[language] = []
    for number in map(str, range(1, count + 1)):
      pair = found[language].get(number)
      texts = (pair.get("q"), pair.get("a")) if isinstance(pair, dict) else (None, None)
      if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(
          f"{path}: exemplars[{language!r}][{number!r}] is {pair!r}; expected texts q and a"
        )
      exemplars[language].append(texts)
  return exemplars


def chain_prompt(
  way: str,
  language: str,
  question: str,
  count: int = 0,
  exemplars: dict[str, list[Exemplar]] | None = None,
) -> str:
  """The prompt of one question.

  Args:
    way: one of `CHAINS`.
    language: of the question, a key of `WORDS`.
    question: its text.
    count: worked examples before it.
    exemplars: in the question's language, and for `english_cot` in English too.

  Raises:
    ValueError: `WORDS` has nothing for the language; or the way is `direct`, and the answer of a
      worked example cannot be read.
  """
  words = _words(language)
  call = {
    "native_cot": words.reasoning,
    "english_cot": WORDS["en"].reasoning,
    "direct": words.answer,
  }[way]
  blocks = []
  for number in range(count):
    asked, reasoned = (exemplars or {})[language][number]
    if way == "english_cot":
      reasoned = (exemplars or {})["en"][number][1]
    elif way == "direct":
      answer = read_answer(reasoned, language)
      if answer is None:
        raise ValueError(f"exemplar {number + 1} in {language}: no answer in {reasoned!r}")
      reasoned = str(answer.value)
    blocks.append(f"{_announced(words.question, asked)}\n{_announced(call, reasoned)}")
  return "\n\n".join([*blocks, f"{_announced(words.question, question)}\n{call}"])


def _words(language: str) -> Words:
  """Raises ValueError for a language that was added to `languages.LANGUAGES` only."""
  if language not in WORDS:
    raise ValueError(
      f"no words to ask in {language!r} with (evaluation.ask or worked examples); expected"
      " Words(question, reasoning, answer) for it in WORDS of pasmr_jax/text/exemplars.py"
    )
  return WORDS[language]


def _announced(word: str, text: str) -> str:
  """Text after its word, unless it begins with it as MGSM's exemplars do."""
  if text.startswith(word):
    return text
  return f"{word}{text.strip()}" if word.endswith("：") else f"{word} {text.strip()}"


def cut(text: str, language: str, stops: Sequence[str], anywhere: bool = False) -> tuple[str, bool]:
  """What a model wrote before it began the next question, and whether anything came off.

  The word that announces a question does so where a line or sentence begins: "Die Frage: ..." does
  not.

  Args:
    text: a continuation of `chain_prompt`.
    language: of the question.
    stops: other texts that end an answer wherever they stand, such as a blank line.
    anywhere: whether the word does too, as in lm-evaluation-harness.
  """
  # A blank line before the first word is no end.
  begin = len(text) - len(text.lstrip())
  places = [place for mark in stops if (place := text.find(mark, begin)) >= 0]
  words = "|".join(re.escape(_words(code).question) for code in (language, "en"))
  before = "" if anywhere else rf"(?:^|{_ENDED})[ \t>#*_]*"
  if match := re.search(rf"{before}({words})", text):
    places.append(match.start(1))
  end = min(places, default=len(text))
  return text[:end], end < len(text)
