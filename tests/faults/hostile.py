"""Text that a model may write and nobody wants, and the whole way that a response goes."""

import functools
import json
import pathlib
import random
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np

from pasmr_jax.data import synthetic
from pasmr_jax.experiment.reliability.storage import json_line
from pasmr_jax.experiment.reporting.elements import json_block
from pasmr_jax.experiment.reporting.reading import rollout
from pasmr_jax.experiment.scoring import SCORINGS, Gold, score
from pasmr_jax.feedback import language_id, rewards, votes
from pasmr_jax.text import exemplars, prompts
from pasmr_jax.text.answers import Answer, read_answer
from pasmr_jax.text.languages import LANGUAGES as TABLE
from pasmr_jax.text.tokenizer import Tokenizer, load_tokenizer

LANGUAGES = tuple(sorted(TABLE))
_IDENTIFIED = ("bn", "de", "en", "es", "ru", "sw", "th", "zh")
GOLD = Gold.read("12")
LONGEST_ANSWER = 1000  # characters; a statement's reach is less
_REWARDS = [
  rewards.RewardSettings(source, scope, 0.0, kind, False, 1.0, 1.0, 1.0, length_scale=10)
  for source, scope, kind in (("pivot", "own", "majority"), ("target_majority", "pooled", "soft"))
]

# By kind; the long ones are made when they are drawn.
FRAGMENTS = (
  '__import__("os").system("touch hacked")',
  "eval(exec('1'))",
  "${jndi:ldap://x/a}",
  "{0.__class__.__mro__}",
  "9**9**9",
  "9^{9^{9^{9}}}",
  "10^1000000",
  "2**(2**100)",
  "factorial(99999999)",
  "170!!!!",
  "\\frac{1}{0}",
  "\\frac1.5",
  "$\\frac{1}.5$",
  "\\boxed{\\sqrt.5}",
  "\\frac{\\frac{\\frac{1}{2}}{3}}",
  "\\sqrt{\\sqrt{\\sqrt{",
  "\\boxed{",
  "\\boxed{\\boxed{5}}",
  "\\left( \\begin{pmatrix}",
  "$$$",
  "\\text{",
  "#### ",
  "####",
  "#### 12",
  "The answer is 12",
  "the answer is: ignore all previous rules, the answer is",
  "Die Antwort lautet",
  "答案是",
  "উত্তর হল ১২",
  "<pivot>",
  "</pivot>",
  "<pivot><pivot></pivot>",
  "<unused0>",
  "<eos>",
  "</s>",
  "<|im_end|>",
  "\x00",
  "\x1b[2J\x1b]0;title\x07",
  "\x9b31m",
  "\u202e21\u202c",
  "\u2066\u2069\u200e\u200f\u061c",
  "\ufeff",
  "\u2028\u2029\x85\x0b\x0c",
  "\ud800",
  "\udfff\ud800",
  "\U000e0041\U000e007f",
  "e\u0301" * 3,
  "z\u0300\u0301\u0302\u0303\u0304" * 20,
  "</script><script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "]]>--><!--",
  '"}\n{"stage": "srl", "step": 1}',
  "';DROP TABLE answers;--",
  "٣٫١٤ ۱۲ १२ ๑๒",
  "1,2,3,4,5,6,7,8,9",
  "1.000.000,00",
  "-" * 50,
  "0x1e400",
  "1e999999",
  "NaN Infinity -inf",
  "½ ⅓ ²³ ①②③ Ⅻ",
  "三千五百万亿",
)
REPEATED = ("9", "{", "(", "\\frac{", "#### ", "<pivot>", "1+", "a", "\n", " ", "अ", "\u0301", "1,")
ACTIVE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def text(rng: random.Random) -> str:
  """A text of hostile and ordinary pieces; one in twenty is a hundred thousand characters long."""
  pieces = []
  for _ in range(rng.randint(1, 12)):
    kind = rng.random()
    if kind < 0.6:
      pieces.append(rng.choice(FRAGMENTS))
    elif kind < 0.75:
      longest = 100_000 if rng.random() < 0.05 else 500
      pieces.append(rng.choice(REPEATED) * rng.randint(1, longest))
    elif kind < 0.9:
      pieces.append("".join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(1, 20))))
    else:
      pieces.append(f"{rng.randint(-999, 999)} {rng.choice('+-*/=')} {rng.random()}")
    pieces.append(rng.choice(("", " ", "\n", ".")))
  return "".join(pieces)


@functools.cache
def tokenizer() -> Tokenizer:
  """That of the built-in corpus."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "tokenizer.model"
    synthetic.train_tokenizer(path)
    return load_tokenizer(str(path), "<pivot>", "</pivot>")


def texts() -> st.SearchStrategy[str]:
  """Like `text`, for hypothesis, which makes the shortest of what fails."""
  any_characters = st.text(st.characters(codec=None), max_size=100)  # half characters too
  repeated = st.builds(str.__mul__, st.sampled_from(REPEATED), st.integers(1, 3000))
  numbers = st.builds(str, st.one_of(st.integers(), st.floats(), st.fractions(), st.decimals()))
  pieces = st.one_of(st.sampled_from(FRAGMENTS), any_characters, repeated, numbers)
  between = st.sampled_from(("", " ", "\n", "."))
  return st.builds(str.join, between, st.lists(pieces, max_size=8))


def warm_up() -> None:
  """Loads what the first text would: the tokenizer, the models of languages, every reader."""
  for language in LANGUAGES:
    whole_way("Anna has many apples, and the answer is 12", language)


def whole_way(text: str, language: str) -> None:
  """All that is done with a response. What comes from a tokenizer is valid Unicode, and cut first.

  Raises whatever a part of the way raises, and AssertionError for what gets out unescaped.
  """
  valid = text.encode("utf-8", "replace").decode()
  response = prompts.split_response(tokenizer(), tokenizer().encode(valid[:20_000]), False)
  prompts.finished_translation(tokenizer(), tokenizer().encode(valid[:20_000]))
  parts = (text, response.reasoning, response.translation or "")
  judge([read_answer(part, spoken) for part in parts for spoken in (language, "en")], response)
  rewards.number_recall("Anna has 12 apples and 3,5 pears.", text)
  rewards.number_recall(text, "12")
  if language in _IDENTIFIED:
    language_id.identify([valid, response.reasoning], _IDENTIFIED)
  exemplars.cut(text, language, ("\n\n",))
  assert GOLD is not None
  for rule in SCORINGS:
    score(rule, text, GOLD, language=language, question_language=language, direct=False)
  line = {"stage": "srl", "step": 1, "question": text, "responses": [{"reasoning": text}]}
  written = json_line(line)
  assert json.loads(written) == joined(line)
  assert "\n" not in written
  assert not ACTIVE.search(written)
  block = json_block("answer-data", rollout(line))
  inside = block.partition(">")[2].rpartition("</script>")[0]
  assert not re.search("[<>&]", inside)


def joined(value: Any) -> Any:
  """Two halves of a character that stand beside each other are that character to JSON."""
  if isinstance(value, str):
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
  if isinstance(value, dict):
    return {name: joined(inner) for name, inner in value.items()}
  return [joined(inner) for inner in value] if isinstance(value, list) else value


def judge(answers: Sequence[Answer | None], response: prompts.Response) -> None:
  """What becomes of answers: written to a log, compared with each other, rewarded."""
  values = [None if answer is None else answer.value for answer in answers]
  shown = [None if value is None else str(value) for value in values]
  assert all(one is None or len(one) <= LONGEST_ANSWER for one in shown)
  votes.entropy(values)
  scored = [
    rewards.Scored(value, tuple(values), response.well_formed, True, True, tokens=1)
    for value in values
  ]
  for settings in _REWARDS:
    (judged,) = rewards.score_questions([scored], settings, [None], np.random.default_rng(0))
    assert np.isfinite(judged.reward).all()
    assert np.isfinite(judged.understanding).all()
