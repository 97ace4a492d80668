"""The supervised stages: `base` (built-in benchmark only) and `pam` (docs/method.md, stage 1).

A pool of questions becomes examples (`examples`): a prompt and the response to be learned. Batches
of packed examples come from `data.batches`; `SupervisedStage.update` learns from one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pasmr_jax import Config
from pasmr_jax.data.batches import Example, SupervisedBatch, padding_share
from pasmr_jax.data.pools import check_taught
from pasmr_jax.data.questions import Question
from pasmr_jax.learning.losses import Sequences
from pasmr_jax.learning.update import Learner, Metrics, TrainState
from pasmr_jax.parallel import processes
from pasmr_jax.parallel.mesh import shard_batch
from pasmr_jax.text import prompts
from pasmr_jax.text.tokenizer import Tokenizer


def examples(
  kind: str, questions: Sequence[Question], tokenizer: Tokenizer, prompt: Config
) -> list[Example]:
  """What a pool teaches.

  Args:
    kind: `pivot` and `target`: question -> solution in its own language; `translation`: question ->
      its pivot text; `triplets`: question -> <open> pivot text <close> solution, PAM.
    questions: the pool.
    tokenizer: of the model.
    prompt: `config.prompt`.

  Raises:
    ValueError: naming the question that lacks what the kind needs, or cannot be written.
  """
  check_taught(kind, questions)
  made = []
  for question in questions:
    try:
      made.append(_example(kind, question, tokenizer, prompt))
    except ValueError as error:
      place = f"data.{kind}: question {question.id!r} ({question.language})"
      raise ValueError(f"{place}: {error}") from error
  return made


def _example(kind: str, question: Question, tokenizer: Tokenizer, prompt: Config) -> Example:
  template = prompt.translation if kind == "translation" else prompt.question
  asked = prompts.question_prompt(tokenizer, template, question.text)
  if kind == "translation":
    answered = prompts.response(tokenizer, None, str(question.pivot_text))
  elif kind == "triplets":
    answered = prompts.response(tokenizer, question.pivot_text, str(question.solution))
  else:
    answered = prompts.response(tokenizer, None, str(question.solution))
  return Example(tuple(asked), tuple(answered))


def to_sequences(batch: SupervisedBatch, mesh: jax.sharding.Mesh) -> Sequences:
  """A packed batch of this process as the global batch on the devices."""
  rows = Sequences(batch.tokens, batch.positions, batch.segment_ids, batch.loss_mask)
  return shard_batch(rows, mesh)


@dataclasses.dataclass
class SupervisedStage:
  """One supervised stage: what train.py's loop needs of it."""

  name: str
  steps: int
  learner: Learner
  mesh: jax.sharding.Mesh
  batches: Any  # grain iterator of SupervisedBatch; get_state() and set_state() make it resumable
  rollouts: tuple[dict[str, Any], ...] = ()  # this stage samples nothing

  def batch(self, state: TrainState, step: int) -> tuple[Sequences, dict[str, float]]:
    """The next batch on the devices, and what is known of it before learning."""
    del state, step  # supervised data depends on neither
    batch = next(self.batches)
    seen = processes.global_means({"padding_share": [padding_share(batch)]})
    seen["trained_tokens"] = processes.global_sum(int(np.sum(batch.loss_mask > 0)))
    return to_sequences(batch, self.mesh), seen

  def update(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    return self.learner.update_supervised(state, batch)

  def data_state(self) -> dict[str, Any]:
    """Where the data stands, for a checkpoint."""
    return {"batches": self.batches.get_state()}

  def restore_data(self, state: dict[str, Any]) -> None:
    self.batches.set_state(state["batches"])
