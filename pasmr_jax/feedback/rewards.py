"""The method's heart: own pivot answers in, rewards out. Change the reward here.

`score_questions` chooses what supervises each response of a step's questions (`labels`; for the
control `shuffled` another question's vote). `_score_question` then compares the G responses of one
question with it (`agreement`), adds the small terms, and says which of them may teach at all
(`valid`; `translation_valid` for translations).

Equations are those of docs/method.md.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from pasmr_jax.feedback.votes import Value, Vote, count_votes, settled

SOURCES = ("pivot", "target_majority", "gold", "random", "shuffled")
SCOPES = ("own", "pooled")
KINDS = ("majority", "soft")


@dataclasses.dataclass(frozen=True)
class Scored:
  """One response as the reward sees it: no token ids, no gold."""

  answer: Value | None  # y_i, the final answer of the reasoning
  pivot_answers: tuple[Value | None, ...]  # the K answers to its own translation; () if it has none
  well_formed: bool  # both delimiters, a translation, a reasoning and an end
  reasoning_consistent: bool  # the reasoning is in the question's language, or too short to tell
  translation_consistent: bool  # the translation is in the pivot language, or too short to tell
  tokens: int  # response length


@dataclasses.dataclass(frozen=True)
class RewardSettings:
  """`config.feedback` and `config.reward` as plain values; see configs/base.py for each."""

  source: str
  scope: str
  confidence: float
  kind: str
  gate: bool
  format_weight: float
  language_weight: float
  length_weight: float
  length_scale: int  # the token limit: a response of that length has length term -1


@dataclasses.dataclass(frozen=True)
class Rewards:
  """Rewards of one question's G responses; every array is float32 [G] unless said otherwise."""

  reward: np.ndarray  # what reasoning tokens are taught with
  understanding: np.ndarray  # what translation tokens are taught with under split credit
  labelled: np.ndarray  # bool: a label of enough confidence exists for this response
  valid: np.ndarray  # bool: it may teach, or be what others of its question are better than
  translation_valid: np.ndarray  # bool: so may its translation, under split credit
  agreement: np.ndarray  # 0 without a label of enough confidence
  format: np.ndarray
  language: np.ndarray
  length: np.ndarray
  votes: tuple[Vote, ...]  # G votes that supervised each response
  pooled: Vote  # the vote of all G * K pivot answers (empty when none were sampled)


def needs_pivot_answers(source: str, credit: str, understanding_weight: float) -> bool:
  """Whether translations must be solved at all: for labels, or to teach translations by them."""
  taught = credit == "split" and understanding_weight > 0
  return source in ("pivot", "shuffled") or (taught and source != "random")


def labels(
  responses: Sequence[Scored], settings: RewardSettings, gold: Value | None, pooled: Vote
) -> tuple[Vote, ...]:
  """The vote that supervises each response, before any shuffling.

  Raises ValueError for the source 'gold' without a gold answer.
  """
  if settings.source == "gold":
    if gold is None:
      raise ValueError("feedback.source is 'gold' but the question has no readable answer")
    return (settled(gold),) * len(responses)
  if settings.source == "target_majority":
    return (count_votes([response.answer for response in responses]),) * len(responses)
  if settings.scope == "own":
    return tuple(count_votes(response.pivot_answers) for response in responses)
  return (pooled,) * len(responses)


def pooled_vote(responses: Sequence[Scored]) -> Vote:
  """The vote of all G * K pivot answers; a shared translation counts once a response."""
  return count_votes([answer for response in responses for answer in response.pivot_answers])


def agreement(answer: Value | None, vote: Vote, kind: str) -> float:
  """`majority`: 1 if the answer is the label. `soft`: the share of votes equal to the answer."""
  if kind == "majority":
    return float(answer is not None and answer == vote.label)
  return vote.share(answer)


def score_questions(
  groups: Sequence[Sequence[Scored]],
  settings: RewardSettings,
  golds: Sequence[Value | None],
  rng: np.random.Generator,
  ids: Sequence[str] | None = None,
) -> list[Rewards]:
  """Rewards for each question's responses.

  Args:
    groups: the G responses of each question.
    settings: what supervises and how.
    golds: each question's gold answer; all None unless `settings.source` is 'gold'.
    rng: used by the source 'random' only.
    ids: of the questions, used by the source 'shuffled' only: one problem in several languages may
      have one id, and a vote on it in one language is a label in the others. None: all differ.

  Returns:
    One `Rewards` a question, in order.

  Raises:
    ValueError: `settings.source` is 'shuffled' and there is one question alone, or it is 'gold' and
      a gold answer is missing.
  """
  if settings.source == "shuffled" and len(groups) < 2:
    raise ValueError("feedback.source is 'shuffled'; expected two questions or more, found one")
  pooled = [pooled_vote(responses) for responses in groups]
  votes = [
    labels(responses, settings, gold, vote)
    for responses, gold, vote in zip(groups, golds, pooled, strict=True)
  ]
  if settings.source == "shuffled":
    # Another question's votes: real labels of the right kind that say nothing about this question.
    others = _others(ids or [str(place) for place in range(len(groups))])
    votes = [votes[place] for place in others]
    understood_by = [pooled[place] for place in others]
  elif settings.source in ("gold", "target_majority"):
    understood_by = [group[0] for group in votes]
  else:
    understood_by = pooled
  return [
    _score_question(responses, votes_of, label, vote, settings, rng)
    for responses, votes_of, label, vote in zip(groups, votes, understood_by, pooled, strict=True)
  ]


def _others(ids: Sequence[str]) -> list[int]:
  """For each question the place of the next one with another id; of the next if there is none."""
  size = len(ids)
  return [
    next((p for p in range(place + 1, place + size) if ids[p % size] != one), place + 1) % size
    for place, one in enumerate(ids)
  ]


def _score_question(
  responses: Sequence[Scored],
  votes: tuple[Vote, ...],
  understood_by: Vote,
  pooled: Vote,
  settings: RewardSettings,
  rng: np.random.Generator,
) -> Rewards:
  size = len(responses)
  well_formed = np.array([r.well_formed for r in responses], bool)
  if settings.source == "random":
    agreements = rng.integers(0, 2, size).astype(np.float32)
    understanding = rng.integers(0, 2, size).astype(np.float32)
    labelled = np.zeros(size, bool)  # a coin is no label
    valid = translations_labelled = np.ones(size, bool)
  else:
    agreements = np.array(
      [agreement(r.answer, vote, settings.kind) for r, vote in zip(responses, votes, strict=True)],
      np.float32,
    )
    understanding = np.array([_understanding(r, understood_by) for r in responses], np.float32)
    labelled = np.array([_confident(vote, settings) for vote in votes], bool)
    agreements *= labelled
    # Under the scope 'own' what has no translation has no vote: it is worse than what agrees.
    valid = labelled | (~well_formed & labelled.any())
    translations_labelled = np.full(size, _confident(understood_by, settings))
  answered = np.array([r.answer is not None for r in responses], bool)
  formats = (well_formed & answered).astype(np.float32)
  languages = np.array(
    [(r.reasoning_consistent + r.translation_consistent) / 2 for r in responses], np.float32
  )
  lengths = np.array([-r.tokens / settings.length_scale for r in responses], np.float32)
  gate = formats * (languages == 1) if settings.gate else np.ones(size, np.float32)
  # What the reasoning comes to is no fault of the translation.
  in_pivot = np.array([r.translation_consistent or not settings.gate for r in responses], bool)
  small_terms = (
    settings.format_weight * formats
    + settings.language_weight * languages
    + settings.length_weight * lengths
  )
  return Rewards(
    reward=(agreements * gate + small_terms).astype(np.float32),
    understanding=(understanding * in_pivot + small_terms).astype(np.float32),
    labelled=labelled,
    valid=valid,
    translation_valid=valid & translations_labelled & well_formed,
    agreement=agreements,
    format=formats,
    language=languages,
    length=lengths,
    votes=votes,
    pooled=pooled,
  )


def _confident(vote: Vote, settings: RewardSettings) -> bool:
  return vote.label is not None and vote.confidence >= settings.confidence


def _understanding(response: Scored, vote: Vote) -> float:
  """The share of the pivot answers to this response's translation that equal the label."""
  if vote.label is None or not response.pivot_answers:
    return 0.0
  return sum(a == vote.label for a in response.pivot_answers) / len(response.pivot_answers)


_DIGITS = re.compile(r"\d+")


def number_recall(question: str, translation: str) -> float:
  """The share of the question's whole numbers (any script's digits) that the translation keeps.

  A question without numbers has recall 1. Words for numbers are not looked at.
  """
  asked = [int(run) for run in _DIGITS.findall(question)[:100] if len(run) <= 30]
  kept = [int(run) for run in _DIGITS.findall(translation)[:100] if len(run) <= 30]
  if not asked:
    return 1.0
  found = 0
  for number in asked:
    if number in kept:
      kept.remove(number)
      found += 1
  return found / len(asked)
