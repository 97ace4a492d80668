"""Accuracy per language of a model on questions with gold answers: the only reader of gold.

`evaluate` asks every question the way the model was trained to be asked, reads the final answer and
compares it with gold, by exact value. `judge_accuracy` measures the method itself: how often the
label that self-feedback would train on is right, and how often the reward is.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from pasmr_jax import Config
from pasmr_jax.data.questions import Question
from pasmr_jax.experiment.setup import Run, Stage
from pasmr_jax.learning.update import TrainState
from pasmr_jax.parallel.processes import process_index
from pasmr_jax.rollout.engine import Engine, stable_id
from pasmr_jax.rollout.sampling import make_sampling
from pasmr_jax.stages.self_feedback import Clock, SelfFeedbackStage
from pasmr_jax.text import prompts
from pasmr_jax.text.answers import read_answer, same_answer
from pasmr_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Item:
  """One question, answered."""

  id: str
  language: str
  gold: str
  answer: str | None  # as read from the response
  correct: bool
  well_formed: bool
  truncated: bool
  tokens: int
  translation: str | None
  reasoning: str


def evaluate(
  params: Any,
  questions: Sequence[Question],
  *,
  engine: Engine,
  tokenizer: Tokenizer,
  config: Config,
  key: Key[Array, ""],
  temperature: float,
) -> list[Item]:
  """Answers every question once.

  Args:
    params: laid out for decoding.
    questions: with gold answers.
    engine: decodes `config.evaluation.batch_size` questions together.
    tokenizer: of the model.
    config: the whole configuration.
    key: of the draws; not used when greedy.
    temperature: 0 is greedy.

  Returns:
    The items, in order.

  Raises:
    ValueError: a gold answer that cannot be read, or a prompt longer than
      `evaluation.max_prompt_length`, naming the question.
  """
  evaluation = config.evaluation
  rollouts = engine.generate(
    params,
    [prompts.question_prompt(tokenizer, config.prompt.question, q.text) for q in questions],
    [f"{question.language}/{question.id}" for question in questions],
    key,
    make_sampling(temperature, tokenizer.stop_ids),
    samples=1,
    max_new_tokens=evaluation.max_new_tokens,
    max_prompt_length=evaluation.max_prompt_length,
  )
  items = []
  for row, question in enumerate(questions):
    gold = gold_answer(question)
    length = int(rollouts.lengths[row])
    truncated = bool(rollouts.truncated[row])
    ids = rollouts.tokens[row, :length].tolist()
    response = prompts.split_response(tokenizer, ids, truncated)
    answer = read_answer(response.reasoning, question.language)
    items.append(
      Item(
        id=question.id,
        language=question.language,
        gold=question.answer or "",
        answer=None if answer is None else str(answer.value),
        correct=same_answer(answer, gold),
        well_formed=response.well_formed,
        truncated=truncated,
        tokens=length,
        translation=response.translation,
        reasoning=response.reasoning,
      )
    )
  return items


def gold_answer(question: Question):
  """The question's gold answer. Data sets write it in English style (1,234.5) in every language.

  Raises:
    ValueError: there is none, or it cannot be read.
  """
  gold = None if question.answer is None else read_answer(question.answer, "en")
  if gold is None:
    raise ValueError(
      f"question {question.id!r} ({question.language}): gold answer {question.answer!r} cannot be"
      " read; expected a number"
    )
  return gold


def summarize(items: Sequence[Item], pivot: str) -> dict[str, float]:
  """Accuracy per language (`accuracy/de`), their mean over targets, and well-formed share.

  `target_accuracy` weighs languages alike; `pivot_accuracy` is there if the pivot was asked.
  """
  by_language: dict[str, list[Item]] = collections.defaultdict(list)
  for item in items:
    by_language[item.language].append(item)
  accuracy = {
    language: float(np.mean([item.correct for item in group]))
    for language, group in sorted(by_language.items())
  }
  targets = [language for language in accuracy if language != pivot]
  summary = {f"accuracy/{language}": value for language, value in accuracy.items()}
  if targets:
    summary["target_accuracy"] = float(np.mean([accuracy[language] for language in targets]))
    asked = [item for language in targets for item in by_language[language]]
    summary["well_formed_rate"] = float(np.mean([item.well_formed for item in asked]))
    summary["truncation_rate"] = float(np.mean([item.truncated for item in asked]))
  if pivot in accuracy:
    summary["pivot_accuracy"] = accuracy[pivot]
  return summary


def judge_accuracy(
  stage: SelfFeedbackStage, state: TrainState, questions: Sequence[Question]
) -> dict[str, float]:
  """Whether self-feedback is right, on questions whose gold answer is known here only.

  The stage sees the questions without answers, samples and votes as it does in training, and its
  labels and rewards are compared with gold afterwards.

  Args:
    stage: of the run; nothing in it changes.
    state: the policy to sample.
    questions: target-language questions with gold answers, all sampled in one batch.

  Returns:
    `label_accuracy`: of the responses that have a label, the share whose label is gold;
    `reward_accuracy`: the share of them whose agreement reward says rightly whether they are right.
  """
  hidden = questions
  if stage.config.feedback.source != "gold":
    hidden = [dataclasses.replace(q, answer=None, solution=None) for q in questions]
  # Steps of training start at 0; this key is of none of them.
  experience = stage.judge(state, hidden, 2**31 - 1, Clock())
  label_right, reward_right = [], []
  for question, group, judged in zip(questions, experience.groups, experience.judged, strict=True):
    gold = gold_answer(question).value
    for sample, vote, agreement, valid in zip(
      group, judged.votes, judged.agreement, judged.valid, strict=True
    ):
      if valid:
        label_right.append(vote.label == gold)
        reward_right.append((agreement >= 0.5) == (sample.answer == gold))
  if not label_right:
    return {"label_accuracy": 0.0, "reward_accuracy": 0.0}
  return {
    "label_accuracy": float(np.mean(label_right)),
    "reward_accuracy": float(np.mean(reward_right)),
  }


class Evaluator:
  """Evaluates a run's policies on its development and test pools."""

  def __init__(self, run: Run):
    """Fails early: on gold answers that cannot be read and prompts over the limit."""
    self.run = run
    evaluation = run.config.evaluation
    self.engine = run.engine(evaluation.batch_size)
    limits = {
      "development": evaluation.development_questions,
      "test": evaluation.test_questions,
    }
    self._questions = {
      pool: self._limited(pool, limit) for pool, limit in limits.items() if pool in run.pools
    }

  def _limited(self, pool: str, limit: int) -> list[Question]:
    """The first `limit` questions of each language (0 is all), those over-long left out."""
    taken: dict[str, list[Question]] = collections.defaultdict(list)
    for question in self.run.pools[pool]:
      if limit == 0 or len(taken[question.language]) < limit:
        taken[question.language].append(question)
    questions = [question for group in taken.values() for question in group]
    for question in questions:
      gold_answer(question)
    return self.run.fitting(questions, self.run.config.evaluation.max_prompt_length, pool)

  def development(self, state: TrainState, stage: Stage) -> dict[str, float]:
    """`development/...` metrics of a state in training."""
    params = self.engine.lay_out(state.params)
    questions, pivot = self._questions["development"], self.run.config.pivot
    found = {}
    for way, temperature in self._ways():
      summary = summarize(self._answer(params, questions, temperature), pivot)
      prefix = "" if way == "greedy" else f"{way}/"
      found |= {f"{prefix}{name}": value for name, value in summary.items()}
    del params
    count = self.run.config.evaluation.label_questions
    if count and isinstance(stage, SelfFeedbackStage):
      targets = [question for question in questions if question.language != pivot]
      # Every n-th, so that all languages are asked.
      found |= judge_accuracy(stage, state, targets[:: max(1, len(targets) // count)][:count])
    return {f"development/{name}": value for name, value in found.items()}

  def test(self, stage: str) -> None:
    """Evaluates the stage's last checkpoint on the test pool, unless that was done before."""
    if not (self.run.workdir / "results" / f"{stage}.json").exists():
      params, _ = self.run.checkpoint_params(stage, "last")
      self.write(params, stage)

  def write(self, params: Any, name: str) -> None:
    """Evaluates parameters on the test pool.

    Writes every answered question to `results/NAME_greedy.jsonl` (and `_sampled`), and then the
    summaries to `results/NAME.json`.
    """
    results = self.run.workdir / "results"
    params = self.engine.lay_out(params)
    summaries = {}
    for way, temperature in self._ways():
      items = self._answer(params, self._questions["test"], temperature)
      summaries[way] = summarize(items, self.run.config.pivot)
      lines = [json.dumps(dataclasses.asdict(item), ensure_ascii=False) for item in items]
      write_whole(results / f"{name}_{way}.jsonl", "\n".join(lines) + "\n")
    write_whole(results / f"{name}.json", json.dumps(summaries, indent=2) + "\n")

  def _ways(self) -> list[tuple[str, float]]:
    ways = [("greedy", 0.0)]
    return [*ways, ("sampled", 1.0)] if self.run.config.evaluation.sampled else ways

  def _answer(self, params: Any, questions: Sequence[Question], temperature: float) -> list[Item]:
    return evaluate(
      params,
      questions,
      engine=self.engine,
      tokenizer=self.run.tokenizer,
      config=self.run.config,
      key=jax.random.fold_in(jax.random.key(self.run.config.seed), stable_id("evaluation")),
      temperature=temperature,
    )


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file so that it is there whole or not at all; from one process."""
  if process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
