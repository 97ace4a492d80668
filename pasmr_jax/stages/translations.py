"""A step's own translations, and the teacher's solutions of them in the pivot language."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from pasmr_jax import Config
from pasmr_jax.data.questions import Question
from pasmr_jax.feedback import rewards, votes
from pasmr_jax.rollout.requests import Request, Rollouts
from pasmr_jax.rollout.sampling import Sampling
from pasmr_jax.text import prompts
from pasmr_jax.text.answers import read_answer
from pasmr_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Solutions:
  """The teacher's K pivot solutions of one translation."""

  texts: tuple[str, ...]
  answers: tuple[votes.Value | None, ...]


NO_SOLUTIONS = Solutions((), ())


class Translations:
  """The distinct translations of a step's responses, and their solutions in the pivot language.

  Requests are made as soon as a translation is closed. Where the teacher is the policy they are
  served beside the responses, else they are left `waiting`; `rollouts` are theirs in either case.
  """

  def __init__(
    self,
    config: Config,
    tokenizer: Tokenizer,
    drawing: Sampling,
    questions: Sequence[Question],
    key: jax.Array,
  ):
    """`config` is the whole configuration; solutions are drawn as `drawing` says, with `key`."""
    self.config, self.tokenizer, self.drawing = config, tokenizer, drawing
    self.questions = questions
    self.key_data = np.asarray(jax.random.key_data(key))
    self.needed = rewards.needs_pivot_answers(
      config.feedback.source, config.srl.credit, config.srl.understanding_weight
    )
    self.places: dict[tuple[int, str], int | None] = {}  # (question, text) -> request, if it fits
    self.closed: set[tuple[int, int]] = set()  # responses whose translation is known
    self.waiting: list[Request] = []
    self.rollouts: list[Rollouts] = []

  def watch(self, question: int, sample: int, ids: np.ndarray, ended: bool) -> Sequence[Request]:
    """Told of responses as they are written; see `requests.Watch`."""
    if not self.needed or (question, sample) in self.closed:
      return ()
    text = prompts.finished_translation(self.tokenizer, ids.tolist())
    if text is None:
      return ()
    if not ended:
      self.closed.add((question, sample))
    elif ids[-1] not in self.tokenizer.stop_ids:
      return ()  # it met the limit: a truncated response is not well-formed, and has no votes
    return self._wanted(question, text)

  def _wanted(self, question: int, text: str) -> Sequence[Request]:
    if (question, text) in self.places:
      return ()
    srl, feedback = self.config.srl, self.config.feedback
    prompt = prompts.question_prompt(self.tokenizer, self.config.prompt.question, text)
    if len(prompt) > srl.max_prompt_length:
      self.places[question, text] = None
      return ()
    asked = self.questions[question]
    request = Request(
      prompt=prompt,
      name=f"{asked.language}/{asked.id}/{text}",
      key_data=self.key_data,
      samples=feedback.pivot_samples,
      max_new_tokens=srl.max_pivot_tokens,
      sampling=self.drawing,
    )
    self.places[question, text] = sum(place is not None for place in self.places.values())
    if feedback.teacher == "policy":
      return (request,)
    self.waiting.append(request)
    return ()

  def solutions(self, groups: Sequence[Sequence[prompts.Response]]) -> list[list[Solutions]]:
    """Of each well-formed response's translation; `groups` has a question's responses in each."""
    read = [self._read(rollouts) for rollouts in self.rollouts]

    def of(question: int, response: prompts.Response) -> Solutions:
      if not response.well_formed or response.translation is None:
        return NO_SOLUTIONS
      place = self.places.get((question, response.translation))
      return NO_SOLUTIONS if place is None else read[place]

    return [[of(number, response) for response in group] for number, group in enumerate(groups)]

  def _read(self, rollouts: Rollouts) -> Solutions:
    texts = tuple(
      self.tokenizer.decode(tokens[:length].tolist())
      for tokens, length in zip(rollouts.tokens, rollouts.lengths, strict=True)
    )
    found = [read_answer(text, self.config.pivot) for text in texts]
    # A solution that met the limit has not stated its answer.
    answers = tuple(
      None if answer is None or truncated else answer.value
      for answer, truncated in zip(found, rollouts.truncated, strict=True)
    )
    return Solutions(texts, answers)
