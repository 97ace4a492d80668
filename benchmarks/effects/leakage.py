"""Is a test question in the training or development questions, in whatever language?

Questions are read as train.py reads them. Texts are compared without case, punctuation, spaces and
width of characters; each training and development question counts with its text and with its pivot
text, each test question likewise, so that a translation of a test question is found by the English
original that stands beside it. A test question of which another has half of the runs of eight
English words is a near copy: it is counted and named, not refused, because different problems
share phrases. That the comparison can find anything is shown by MGSM's English questions, which are
taken from GSM8K's test file.
"""

import ast
import collections
import dataclasses
import itertools
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from pasmr_jax import Config
from pasmr_jax.data.overlap import keys, normalized
from pasmr_jax.data.pools import EVALUATED, read_pool
from pasmr_jax.data.questions import Question, read_questions
from pasmr_jax.experiment.questions import pools_used

_RUN = 8  # words
_NEAR = 0.5  # share of a test question's runs
_NAMED = 5  # questions in an error


class LeakError(ValueError):
  """A test question is among those that a model learns from or is chosen by."""


@dataclasses.dataclass(frozen=True)
class Leakage:
  """What the comparison found."""

  seen: Mapping[str, int]  # pool -> questions of training and development
  tested: Mapping[str, int]  # set -> questions, in all its languages
  shared_ids: Sequence[str]
  shared_texts: Sequence[str]  # ids of test questions
  near_copies: Sequence[str]  # ids of test questions, each with the id that is near it
  development_in_training: Sequence[str]  # ids
  trained: Sequence[str]  # languages of the questions that PAM learns from
  control: tuple[int, int] | None  # MGSM's English questions found in GSM8K's test, of how many

  @property
  def leaks(self) -> bool:
    return bool(self.shared_ids or self.shared_texts or self.development_in_training)

  def told(self) -> str:
    """The findings as sentences."""
    seen = ", ".join(f"{count} of {pool}" for pool, count in self.seen.items())
    tested = ", ".join(f"{count} of {name}" for name, count in self.tested.items())
    told = (
      f"{seen} were compared with {tested}, by id and by text without case, punctuation and"
      f" spaces, in every language and in English: {len(self.shared_ids)} ids and"
      f" {len(self.shared_texts)} texts in common; {len(self.development_in_training)} development"
      f" questions in training. {len(self.near_copies)} test questions have half of their"
      f" {_RUN}-word runs in common with a training or development question"
    )
    if self.near_copies:
      told += f" ({', '.join(self.near_copies)})"
    if self.control is not None:
      found, asked = self.control
      told += (
        f". That the comparison finds what is there: {found} of MGSM's {asked} English questions"
        " are found in GSM8K's test file"
      )
    return told + "."


def _runs(text: str) -> set[tuple[str, ...]]:
  """Every eight words that follow one another."""
  words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
  return {tuple(words[place : place + _RUN]) for place in range(len(words) - _RUN + 1)}


def _english(question: Question, pivot: str) -> str | None:
  return question.text if question.language == pivot else question.pivot_text


def compare(
  seen: Mapping[str, Sequence[Question]], tested: Mapping[str, Sequence[Question]], pivot: str
) -> Leakage:
  """Looks for each test question among the others.

  Args:
    seen: pool -> questions of training and development; the latter under `development`.
    tested: set -> its questions in all languages.
    pivot: language of pivot texts.
  """
  ids = {question.id for questions in seen.values() for question in questions}
  known = {text for questions in seen.values() for one in questions for text in keys(one)}
  everything = [question for questions in tested.values() for question in questions]
  training = [question for pool in seen if pool != "development" for question in seen[pool]]
  trained_ids = {question.id for question in training}
  trained_texts = {text for question in training for text in keys(question)}
  control = None
  if "mgsm" in tested and "gsm8k test" in tested:
    source = {normalized(question.text) for question in tested["gsm8k test"]}
    asked = [normalized(q.text) for q in tested["mgsm"] if q.language == "en"]
    control = (sum(text in source for text in asked), len(asked))
  return Leakage(
    seen={pool: len(questions) for pool, questions in seen.items()},
    tested={name: len(questions) for name, questions in tested.items()},
    shared_ids=sorted({question.id for question in everything} & ids),
    shared_texts=sorted({question.id for question in everything if keys(question) & known}),
    near_copies=_near_copies(seen, everything, pivot),
    development_in_training=sorted(
      {
        question.id
        for question in seen.get("development", ())
        if question.id in trained_ids or keys(question) & trained_texts
      }
    ),
    trained=sorted({question.language for question in seen.get("triplets", ())}),
    control=control,
  )


def _near_copies(
  seen: Mapping[str, Sequence[Question]], tested: Sequence[Question], pivot: str
) -> list[str]:
  """Test questions that share half of their runs of words with another, as 'ID near ID'."""
  runs_of = {q.id: _runs(text) for q in tested if (text := _english(q, pivot)) is not None}
  holders: dict[tuple[str, ...], set[str]] = collections.defaultdict(set)
  for name, runs in runs_of.items():
    for run in runs:
      holders[run].add(name)
  others = {
    (question.id, text)
    for questions in seen.values()
    for question in questions
    if (text := _english(question, pivot)) is not None
  }
  found: dict[str, str] = {}
  for name, text in sorted(others):
    shared: collections.Counter[str] = collections.Counter()
    for run in _runs(text):
      shared.update(holders.get(run, ()))
    for test, count in shared.items():
      if count >= _NEAR * len(runs_of[test]):
        found.setdefault(test, name)
  return [f"{test} near {name}" for test, name in sorted(found.items())]


def check(config: Config, test_sets: Mapping[str, str]) -> Leakage:
  """Compares all that a study learns from with all that it is tested on, and with GSM8K's test.

  Args:
    config: of the study.
    test_sets: name -> sources of data.test; "" is the configuration's own.

  Raises:
    LeakError: a question of the tests, or of development in training.
  """
  seen = {pool: _read(pool, config) for pool in (*_learned(config), "development")}
  tested = {
    name: _read("test", config, ast.literal_eval(sources) if sources else None)
    for name, sources in test_sets.items()
  }
  path = os.path.join(config.data.root, "gsm8k", "test.jsonl")
  if config.data.root and os.path.isfile(path):
    # A format reads what it is asked for: no answer here.
    tested["gsm8k test"] = read_questions(path, "gsm8k", "en", solutions=False, answers=False)
  found = compare(seen, tested, config.pivot)
  if found.leaks:
    common = (found.shared_ids, found.shared_texts, found.development_in_training)
    named = list(dict.fromkeys(itertools.chain(*common)))[:_NAMED]
    raise LeakError(
      f"training, development and tests overlap, first {', '.join(named)}: {found.told()}"
    )
  return found


def _learned(config: Config) -> list[str]:
  """The pools that a model learns from; self-feedback's too, which is a stage of the arms."""
  whole: Any = config.copy_and_resolve_references()
  whole.stages = (*config.stages, "srl")
  return [name for name in pools_used(whole) if name not in EVALUATED and config.data[name]]


def _read(pool: str, config: Config, sources: Sequence[str] | None = None) -> list[Question]:
  """A pool's questions; ids that only count lines begin with the file whose lines they count."""
  found = []
  for source in config.data[pool] if sources is None else sources:
    changed: Any = config.copy_and_resolve_references()
    changed.data[pool] = (source,)
    questions = read_pool(pool, changed, references=True)
    if _counts_lines(source, config):
      file = source.partition("[")[0]
      questions = [dataclasses.replace(one, id=f"{file}:{one.id}") for one in questions]
    found += questions
  return found


def _counts_lines(source: str, config: Config) -> bool:
  format = source.partition(":")[0]
  by_column = format in ("json", "huggingface")
  return format == "mgsm8k_instruct" or (by_column and not config.data.columns.id)
