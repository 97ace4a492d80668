"""What one step of self-feedback made of its questions: as objects, as rows to learn, as a log."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pasmr_jax.data.questions import Question
from pasmr_jax.feedback import rewards, votes
from pasmr_jax.learning import losses
from pasmr_jax.rollout.requests import Usage
from pasmr_jax.stages.translations import Solutions
from pasmr_jax.text import prompts


@dataclasses.dataclass(frozen=True)
class Sample:
  """One response and what was found in it."""

  prompt: list[int]
  ids: np.ndarray  # int32, the stop id included
  sampler_logprobs: np.ndarray  # float32, one a token, of the policy as sampled
  response: prompts.Response
  answer: votes.Value | None


@dataclasses.dataclass(frozen=True)
class Experience:
  """One step's questions, what the policy made of them and how it was judged; B of each."""

  questions: list[Question]
  groups: list[list[Sample]]
  solved: list[list[Solutions]]
  scored: list[list[rewards.Scored]]
  judged: list[rewards.Rewards]
  usage: Usage


def policy_row(
  sample: Sample, token_advantages: np.ndarray, length: int, *, masked: bool, aggregation: str
) -> losses.PolicyBatch:
  """One response as a row of `length` tokens: prompt, response, padding; arrays are [length].

  Prompt and padding weigh 0, and so does a `masked` response. `token` aggregation weighs every
  response token alike, `sequence` every response alike.
  """
  begin, end = len(sample.prompt), len(sample.prompt) + sample.ids.size
  tokens = np.zeros(length, np.int32)
  tokens[:begin], tokens[begin:end] = sample.prompt, sample.ids
  weights = np.zeros(length, np.float32)
  if not masked:
    weights[begin:end] = 1.0 if aggregation == "token" else 1.0 / sample.ids.size
  spread = np.zeros((2, length), np.float32)
  spread[:, begin:end] = token_advantages, sample.sampler_logprobs
  return losses.PolicyBatch(
    sequences=losses.Sequences(
      tokens=tokens,
      positions=np.minimum(np.arange(length), end - 1).astype(np.int32),
      segment_ids=(np.arange(length) < end).astype(np.int32),
      weights=weights,
    ),
    advantages=spread[0],
    sampler_logprobs=spread[1],
    old_logprobs=None,
    reference_logprobs=None,
  )


def rollout_records(
  experience: Experience, pivot: str, reasoning: np.ndarray, understanding: np.ndarray
) -> list[dict[str, Any]]:
  """Each question's samples for rollouts.jsonl; the advantages are float32 [B, G]."""
  return [
    _record(pivot, *parts)
    for parts in zip(
      experience.questions,
      experience.groups,
      experience.solved,
      experience.scored,
      experience.judged,
      reasoning,
      understanding,
      strict=True,
    )
  ]


def _record(
  pivot: str,
  question: Question,
  group: Sequence[Sample],
  solved: Sequence[Solutions],
  scored: Sequence[rewards.Scored],
  judged: rewards.Rewards,
  reasoning: np.ndarray,
  understanding: np.ndarray,
) -> dict[str, Any]:
  show = lambda value: None if value is None else str(value)  # noqa: E731
  return {
    "id": question.id,
    "language": question.language,
    "pivot": pivot,
    "question": question.text,
    "pooled_label": show(judged.pooled.label),
    "pooled_confidence": judged.pooled.confidence,
    "responses": [
      {
        "translation": sample.response.translation,
        "reasoning": sample.response.reasoning,
        "answer": show(sample.answer),
        "well_formed": sample.response.well_formed,
        "truncated": sample.response.truncated,
        "reasoning_consistent": described.reasoning_consistent,
        "translation_consistent": described.translation_consistent,
        "tokens": described.tokens,
        "pivot_solutions": list(solutions.texts),
        "pivot_answers": [show(answer) for answer in solutions.answers],
        "label": show(judged.votes[place].label),
        "confidence": judged.votes[place].confidence,
        "labelled": bool(judged.labelled[place]),
        "reward": float(judged.reward[place]),
        "agreement": float(judged.agreement[place]),
        "understanding": float(judged.understanding[place]),
        "format": float(judged.format[place]),
        "language": float(judged.language[place]),
        "length": float(judged.length[place]),
        "advantage": float(reasoning[place]),
        "understanding_advantage": float(understanding[place]),
      }
      for place, (sample, solutions, described) in enumerate(
        zip(group, solved, scored, strict=True)
      )
    ],
  }
