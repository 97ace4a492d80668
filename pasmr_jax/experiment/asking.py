"""How a model is asked, and what is taken from what it says.

    pasmr        the way it was trained: translation between delimiters, reasoning in the language
    native_cot   reasoning in the question's language          \\
    english_cot  reasoning in English                           } text/exemplars.py
    direct       the answer alone                              /
    translate    it translates as in `pasmr`, then answers its translation in the pivot language
    reference    the set's own pivot question is asked: `translate` with a perfect translation

`Asking.responses` asks some questions once and gives a `Response` for each sample.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from pasmr_jax import Config
from pasmr_jax.data.questions import Question
from pasmr_jax.experiment.items import Response
from pasmr_jax.rollout.engine import Engine
from pasmr_jax.rollout.requests import Rollouts, stable_id
from pasmr_jax.rollout.sampling import make_sampling
from pasmr_jax.text import exemplars, prompts
from pasmr_jax.text.tokenizer import Tokenizer

WAYS = ("pasmr", *exemplars.CHAINS, "translate", "reference")


def answer_language(way: str, question_language: str, pivot: str) -> str:
  """The language in which a way asks for the reasoning."""
  if way == "english_cot":
    return "en"
  return pivot if way in ("translate", "reference") else question_language


@dataclasses.dataclass(frozen=True, eq=False)
class Asking:
  """One way of asking, with its worked examples read."""

  config: Config  # the whole configuration
  engine: Engine
  tokenizer: Tokenizer
  exemplars: dict[str, list[exemplars.Exemplar]]

  @classmethod
  def make(
    cls, config: Config, engine: Engine, tokenizer: Tokenizer, languages: Sequence[str]
  ) -> "Asking":
    """Reads the worked examples in the languages that the way needs.

    Raises what `exemplars.read_exemplars` does.
    """
    evaluation = config.evaluation
    found = {}
    if evaluation.exemplars:
      pivot = config.pivot
      if evaluation.ask in ("translate", "reference"):
        languages = (pivot,)
      elif evaluation.ask == "english_cot":
        languages = (*languages, "en")
      codes = tuple(dict.fromkeys(languages))
      found = exemplars.read_exemplars(evaluation.exemplar_file, evaluation.exemplars, codes)
    return cls(config, engine, tokenizer, found)

  def prompt(self, question: Question) -> list[int]:
    """Token ids of the (first) prompt of a question.

    Raises:
      ValueError: the way is `reference` and the question has no reference translation.
    """
    way, language = self.config.evaluation.ask, question.language
    if way == "reference":
      if language == self.config.pivot:
        return self._pivot_prompt(question.text)
      if question.pivot_text is None:
        raise ValueError(
          f"question {question.id!r} ({language}) has no reference translation, which"
          " evaluation.ask=reference asks"
        )
      return self._pivot_prompt(question.pivot_text)
    if way in exemplars.CHAINS:
      return self._chain_prompt(way, language, question.text)
    return self._question_prompt(question.text)

  def _question_prompt(self, text: str) -> list[int]:
    return prompts.question_prompt(self.tokenizer, self.config.prompt.question, text)

  def _chain_prompt(self, way: str, language: str, text: str) -> list[int]:
    evaluation = self.config.evaluation
    asked = exemplars.chain_prompt(way, language, text, evaluation.exemplars, self.exemplars)
    return prompts.question_prompt(self.tokenizer, evaluation.template, asked)

  def _pivot_prompt(self, text: str) -> list[int]:
    """The bare pivot prompt that self-feedback uses, or worked examples before the question."""
    if self.config.evaluation.exemplars == 0:
      return self._question_prompt(text)
    return self._chain_prompt("native_cot", self.config.pivot, text)

  def responses(
    self,
    params: Any,
    questions: Sequence[Question],
    *,
    temperature: float,
    samples: int,
    key: Key[Array, ""],
  ) -> list[Response]:
    """Asks every question of this process; all processes take part, with as many as they have.

    A response depends on `params`, its prompt, the key, its question's language and id, and its
    sample's number.

    Args:
      params: laid out for decoding.
      questions: with prompts that fit.
      temperature: 0 is greedy.
      samples: responses a question.
      key: of the draws.

    Returns:
      `samples` responses a question, in order.
    """
    asked = [self.prompt(question) for question in questions]
    names = [f"{question.language}/{question.id}" for question in questions]
    rollouts = self._generate(params, asked, names, key, temperature, samples)
    found = [
      self._read(question, rollouts, number * samples + sample, sample)
      for number, question in enumerate(questions)
      for sample in range(samples)
    ]
    evaluation = self.config.evaluation
    if evaluation.ask != "translate" and not evaluation.pivot_agreement:
      return found
    return self._solve_translations(params, found, key, temperature)

  def _generate(
    self,
    params: Any,
    asked: Sequence[Sequence[int]],
    names: Sequence[str],
    key: Key[Array, ""],
    temperature: float,
    samples: int,
  ) -> Rollouts:
    evaluation = self.config.evaluation
    return self.engine.generate(
      params,
      asked,
      names,
      key,
      make_sampling(temperature, self.tokenizer.stop_ids),
      samples=samples,
      max_new_tokens=evaluation.max_new_tokens,
      max_prompt_length=evaluation.max_prompt_length,
    )

  def _read(self, question: Question, rollouts: Rollouts, row: int, sample: int) -> Response:
    ids = _ids(rollouts, row)
    truncated, tokens = bool(rollouts.truncated[row]), len(ids)
    way, pivot = self.config.evaluation.ask, self.config.pivot
    translation = None
    if way in exemplars.CHAINS or way == "reference":
      language = pivot if way == "reference" else question.language
      reasoning, truncated, tokens = self._chain_text(ids, truncated, language)
      well_formed = not truncated
    else:
      response = prompts.split_response(self.tokenizer, ids, truncated)
      reasoning, translation = response.reasoning, response.translation
      well_formed = response.well_formed
    return Response(
      id=question.id,
      language=question.language,
      sample=sample,
      well_formed=well_formed,
      truncated=truncated,
      tokens=tokens,
      translation=translation,
      reasoning=reasoning,
    )

  def _chain_text(self, ids: list[int], truncated: bool, language: str) -> tuple[str, bool, int]:
    """An answer up to where the next question begins, whether it was cut short, its tokens.

    What was asked by `prompt.question` alone is left as it is.
    """
    evaluation = self.config.evaluation
    if evaluation.ask not in exemplars.CHAINS and not evaluation.exemplars:
      return self.tokenizer.decode(ids), truncated, len(ids)
    stops = evaluation.stop if evaluation.exemplars else ()
    answered, anywhere = self.tokenizer.decode(ids), not evaluation.stop
    text, ended = exemplars.cut(answered, language, stops, anywhere)
    if not ended:
      return text, truncated, len(ids)
    return text, False, len(self.tokenizer.encode(text))

  def _solve_translations(
    self, params: Any, found: Sequence[Response], key: Key[Array, ""], temperature: float
  ) -> list[Response]:
    """Has every translation answered in the pivot language, in a second generation.

    For `translate` that answer is the response; without a translation there is none. A translation
    whose prompt is over the limit is not answered.
    """
    limit = self.config.evaluation.max_prompt_length
    wanted = {
      place: self._pivot_prompt(response.translation)
      for place, response in enumerate(found)
      if response.translation is not None and response.language != self.config.pivot
    }
    wanted = {place: prompt for place, prompt in wanted.items() if len(prompt) <= limit}
    names = ["{}/{}/{}".format(*found[place].key) for place in wanted]
    key = jax.random.fold_in(key, stable_id("pivot"))
    rollouts = self._generate(params, list(wanted.values()), names, key, temperature, samples=1)
    rows = {place: row for row, place in enumerate(wanted)}
    return [
      response
      if response.language == self.config.pivot
      else self._solved(response, rollouts, rows.get(place))
      for place, response in enumerate(found)
    ]

  def _solved(self, response: Response, rollouts: Rollouts, row: int | None) -> Response:
    solution, truncated, tokens = None, response.truncated, 0
    if row is not None:
      solution, truncated, tokens = self._chain_text(
        _ids(rollouts, row), bool(rollouts.truncated[row]), self.config.pivot
      )
    if self.config.evaluation.ask != "translate":
      # An answer that met the limit has not stated its result: its last number is only a step.
      return dataclasses.replace(response, pivot_solution=None if truncated else solution)
    return dataclasses.replace(
      response,
      reasoning=solution or "",
      truncated=truncated,
      tokens=response.tokens + tokens,
    )


def _ids(rollouts: Rollouts, row: int) -> list[int]:
  return np.asarray(rollouts.tokens[row, : int(rollouts.lengths[row])]).tolist()
