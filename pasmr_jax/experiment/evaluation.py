"""Accuracy per language of a model on questions with gold answers.

`Evaluator.write` narrates an evaluation: the questions are asked in chunks (`asking.py`), each
process its share; every chunk's answers are judged (`measures.judge`), written down (`items.py`)
and, in the end, summed up (`measures.measure`, `result_files.py`). An evaluation that was
interrupted asks what it has not asked yet. `judge_accuracy` measures the method itself: how often
the label that self-feedback would train on is right, and how often the reward is.
"""

import collections
import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pasmr_jax.data.questions import Question
from pasmr_jax.experiment.asking import Asking
from pasmr_jax.experiment.items import (
  Item,
  PartialItems,
  Response,
  to_line,
  to_response,
)
from pasmr_jax.experiment.measures import (
  gold_answer,
  has_unreadable_formula,
  judge,
  measure,
  reads_otherwise,
  summarize,
)
from pasmr_jax.experiment.origins import base_model
from pasmr_jax.experiment.reliability.identity import tokenizer_checksum
from pasmr_jax.experiment.result_files import ResultFiles
from pasmr_jax.experiment.setup import Run, Stage
from pasmr_jax.feedback import language_id
from pasmr_jax.learning.update import TrainState
from pasmr_jax.models.lora import merged
from pasmr_jax.parallel import processes
from pasmr_jax.rollout.requests import stable_id
from pasmr_jax.stages.self_feedback import Clock, SelfFeedbackStage


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
    Neither if no response has a label.
  """
  hidden = questions
  if stage.config.feedback.source != "gold":
    hidden = [dataclasses.replace(q, answer=None, solution=None) for q in questions]
  # Steps of training start at 0; this key is of none of them.
  experience = stage.judge(state, hidden, 2**31 - 1, Clock())
  label_right, reward_right = [], []
  for question, group, judged in zip(questions, experience.groups, experience.judged, strict=True):
    gold = gold_answer(question).answer.value
    for sample, vote, agreement, labelled in zip(
      group, judged.votes, judged.agreement, judged.labelled, strict=True
    ):
      if labelled:
        label_right.append(vote.label == gold)
        reward_right.append((agreement >= 0.5) == (sample.answer == gold))
  if not label_right:
    return {}
  return {
    "label_accuracy": float(np.mean(label_right)),
    "reward_accuracy": float(np.mean(reward_right)),
  }


def _tell_styles(pool: str, questions: Sequence[Question]) -> None:
  """Tells of gold answers whose value hangs on the style that numbers are written in."""
  found = [question for question in questions if reads_otherwise(question)]
  if found:
    first = found[0]
    processes.say(
      f"{pool}: {len(found)} of {len(questions)} gold answers would be other numbers in the style"
      f" of their language; all are read in English style (1,234.5), so that {first.answer!r} of"
      f" question {first.id!r} ({first.language}) is {gold_answer(first).published}"
    )


class Evaluator:
  """Evaluates a run's policies on its development and test pools."""

  def __init__(
    self, run: Run, *, progress: bool = False, between: Callable[[bool], None] | None = None
  ):
    """Fails early: on gold answers that cannot be read, prompts over the limit, and a
    checkpoint.metric that development questions do not give.

    Args:
      run: whose policies are evaluated.
      progress: shows a bar of every evaluation of the test pool.
      between: called after every chunk of questions, with whether the evaluation would go on there
        if it were interrupted now.
    """
    self.run = run
    self._progress = progress
    self._between = between
    config, evaluation = run.config, run.config.evaluation
    self.engine = run.engine(evaluation.batch_size)
    limits = {
      "development": evaluation.development_questions,
      "test": evaluation.test_questions,
    }
    limits = {pool: limit for pool, limit in limits.items() if pool in run.pools}
    asked = sorted({q.language for pool in limits for q in run.pools[pool]})
    self._asking = Asking.make(config, self.engine, run.tokenizer, asked)
    english = ("en",) if evaluation.ask == "english_cot" else ()
    self._languages = _identifiable((*config.languages, config.pivot, *english))
    self._questions = {pool: self._limited(pool, limit) for pool, limit in limits.items()}
    self._judged = self._to_judge()
    if "development" in self._questions:
      self._check_metric()

  def _limited(self, pool: str, limit: int) -> list[Question]:
    """The first `limit` questions of each language (0 is all), those over-long left out."""
    taken: dict[str, list[Question]] = collections.defaultdict(list)
    for question in self.run.pools[pool]:
      if limit == 0 or len(taken[question.language]) < limit:
        taken[question.language].append(question)
    questions = [question for group in taken.values() for question in group]
    formulas = [q for q in questions if has_unreadable_formula(q)]
    if formulas:
      processes.say(
        f"{pool}: {len(formulas)} questions left out, whose gold formula has no exact value"
      )
      questions = [question for question in questions if question not in formulas]
    for question in questions:
      gold_answer(question)
    _tell_styles(pool, questions)
    limit = self.run.config.evaluation.max_prompt_length
    return self.run.fitting(questions, limit, pool, self._asking.prompt)

  def _to_judge(self) -> list[Question]:
    """Development questions on which labels are checked: SRL's own limit is on their prompts."""
    config = self.run.config
    count = config.evaluation.label_questions
    if not count or "srl" not in config.stages or "development" not in self._questions:
      return []
    targets = [q for q in self._questions["development"] if q.language != config.pivot]
    if not targets:
      return []
    targets = self.run.fitting(targets, config.srl.max_prompt_length, "development")
    by_language: dict[str, list[Question]] = collections.defaultdict(list)
    for question in targets:
      by_language[question.language].append(question)
    # One of each language after the other, so that all are asked.
    rounds = itertools.zip_longest(*by_language.values())
    judged = [question for one in rounds for question in one if question is not None][:count]
    if len(judged) == 1 and config.feedback.source == "shuffled":
      raise ValueError(
        "evaluation.label_questions: one development question has its labels checked, which are"
        " another's with feedback.source=shuffled; expected two or more, or 0"
      )
    return judged

  def _check_metric(self) -> None:
    config, lacking = self.run.config, ""
    metric = config.checkpoint.metric
    languages = (config.pivot,) if metric.endswith("pivot_accuracy") else tuple(config.languages)
    if not any(q.language in languages for q in self._questions["development"]):
      lacking = f"data.development has no question in {', '.join(languages)}"
    elif "/sampled/" in metric and not config.evaluation.sampled:
      lacking = "evaluation.sampled is False"
    if lacking:
      raise ValueError(
        f"checkpoint.metric is {metric!r}, but {lacking}; expected one that is measured"
      )

  def development(self, state: TrainState, stage: Stage) -> dict[str, float]:
    """`development/...` metrics of a state in training."""
    params = self.engine.lay_out(merged(state.whole(), self.run.model.dtype))
    questions, pivot = self._questions["development"], self.run.config.pivot
    found = {}
    for decoding, temperature, _ in self._decodings():
      summary = summarize(self._answer(params, questions, temperature, samples=1), pivot)
      prefix = "" if decoding == "greedy" else f"{decoding}/"
      found |= {f"{prefix}{name}": value for name, value in summary.items()}
    del params
    if self._judged and isinstance(stage, SelfFeedbackStage):
      found |= judge_accuracy(stage, state, self._judged)
    return {f"development/{name}": value for name, value in found.items()}

  def test(self, stage: str) -> None:
    """Evaluates the stage's last checkpoint on the test pool, unless that was done before."""
    files = ResultFiles(self.run.workdir, stage)
    differing = files.differing(self._made_of(self._fingerprint()))
    if differing:
      processes.say(f"{stage}: asked again (other {differing})")
    if differing == "":
      # It may have been killed between writing the results and removing these.
      files.remove_partials()
    else:
      params, _ = self.run.origins.checkpoint_params(stage, "last")
      self.write(params, stage)

  def take_back(self, stage: str) -> None:
    """Removes the results of a stage that is about to be trained on, and answers of a part."""
    files = ResultFiles(self.run.workdir, stage)
    files.remove(but=[decoding for decoding, _, _ in self._decodings()])
    files.remove_partials()

  def write(self, params: Any, name: str, *, overwrite: bool = True) -> None:
    """Evaluates parameters on the test pool, going on where an interrupted evaluation stopped.

    Writes every answered question to `results/NAME_greedy.jsonl` (and `_sampled`), and then what
    was evaluated to `results/NAME.settings` and all measures to `results/NAME.json`.

    Args:
      params: of the model.
      name: of the results.
      overwrite: also results of that name that are of another evaluation.

    Raises:
      ValueError: there are such results, and they are not to be overwritten.
    """
    config, questions = self.run.config, self._questions["test"]
    params = self.engine.lay_out(params)
    checksum = f"{int(_checksum(params)):08x}"
    references = {(q.language, q.id): q.pivot_text for q in questions if q.pivot_text}
    fingerprint = self._fingerprint() | {"parameters": checksum}
    made_of = self._made_of(fingerprint)
    files = ResultFiles(self.run.workdir, name)
    if not overwrite:
      files.expect_free(made_of)
    measures = {}
    for decoding, temperature, samples in self._decodings():
      settings = fingerprint | {"temperature": temperature, "samples": samples}
      partial = PartialItems(files.partial(decoding), settings)
      items = self._answer(params, questions, temperature, samples, partial, f"{name}, {decoding}")
      files.write_items(decoding, items)
      measures[decoding] = measure(items, references, config.pivot, config.evaluation.scoring)
    files.write(measures, made_of)

  def _decodings(self) -> list[tuple[str, float, int]]:
    """Each decoding, its temperature, and samples a test question."""
    evaluation = self.run.config.evaluation
    decodings = [("greedy", 0.0, 1)]
    if evaluation.sampled:
      decodings.append(("sampled", evaluation.temperature, evaluation.samples))
    return decodings

  def _fingerprint(self) -> dict[str, Any]:
    """All that test answers depend on but parameters and sampling, as a file can hold it."""
    config, evaluation = self.run.config, self.run.config.evaluation
    asked = "\0".join(
      f"{q.language}/{q.id}/{q.text}/{q.pivot_text}" for q in self._questions["test"]
    )
    return {
      "questions": stable_id(asked),
      "tokenizer": tokenizer_checksum(self.run.tokenizer),
      **{
        f"prompt.{key}": config.prompt[key] for key in ("question", "style", "system", "thinking")
      },
      "pivot": config.pivot,
      "model": f"{base_model(config)} {config.model.dtype}",
      "rollout.cache_dtype": config.rollout.cache_dtype,
      "seed": config.seed,
      "exemplars": stable_id(json.dumps(self._asking.exemplars)),
      **{
        f"evaluation.{key}": evaluation[key]
        for key in (
          "ask",
          "template",
          "stop",
          "pivot_agreement",
          "max_new_tokens",
          "max_prompt_length",
        )
      },
    }

  def _made_of(self, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """All that results depend on: the answers' fingerprint, and how they are drawn and judged."""
    return {
      **fingerprint,
      "sampling": self._decodings(),
      "evaluation.scoring": self.run.config.evaluation.scoring,
      "languages": tuple(self.run.config.languages),
      "gold answers": stable_id("\0".join(str(q.answer) for q in self._questions["test"])),
    }

  def _answer(
    self,
    params: Any,
    questions: Sequence[Question],
    temperature: float,
    samples: int,
    partial: PartialItems | None = None,
    use: str = "",
  ) -> list[Item]:
    """Answers all questions, in chunks of one layout whatever was answered before.

    A chunk that an interrupted evaluation did not finish is asked again as a whole: so every
    question is decoded in the company it would have had without the interruption.
    """
    evaluation = self.run.config.evaluation
    size = max(1, evaluation.batch_size // samples)
    chunks = [questions[begin : begin + size] for begin in range(0, len(questions), size)]
    done = self._done(partial, chunks, samples)
    key = jax.random.fold_in(jax.random.key(self.run.config.seed), stable_id("evaluation"))
    items: list[Item] = []
    with self._bar() as bar:
      task = bar.add_task(use, total=len(questions))
      for number, chunk in enumerate(chunks):
        responses = done.get(number)
        if responses is None:
          responses = self._ask(params, chunk, temperature, samples, key)
        judged = self._judge(responses, chunk, samples)
        if partial is not None and number not in done:
          partial.append(judged)
        items += judged
        bar.advance(task, len(chunk))
        if self._between is not None:
          self._between(partial is not None)
    return items

  def _done(
    self, partial: PartialItems | None, chunks: Sequence[Sequence[Question]], samples: int
  ) -> dict[int, list[Response]]:
    """The responses of the chunks that were finished before, the same in every process."""
    if partial is None:
      return {}
    found, refused = partial.read()
    if refused:
      processes.say(f"{refused}: starting anew")
    # Process 0 alone has read; the others need to know what is left to ask.
    lines = processes.gather_text("\n".join(map(to_line, found)))[0].split("\n")
    known = {r.key: r for line in lines if line for r in [to_response(json.loads(line))]}
    done = {}
    for number, chunk in enumerate(chunks):
      keys = [(q.language, q.id, sample) for q in chunk for sample in range(samples)]
      if all(key in known for key in keys):
        done[number] = [known[key] for key in keys]
    kept = [response for responses in done.values() for response in responses]
    partial.start(kept)
    if kept:
      processes.say(f"going on after {len(kept)} answers that an interrupted evaluation left")
    return done

  def _ask(
    self,
    params: Any,
    chunk: Sequence[Question],
    temperature: float,
    samples: int,
    key: jax.Array,
  ) -> list[Response]:
    """A chunk's responses, each process having asked every n-th question."""
    count = processes.process_count()
    mine = chunk[processes.process_index() :: count]
    found = self._asking.responses(params, mine, temperature=temperature, samples=samples, key=key)
    shares = [
      [to_response(json.loads(line)) for line in text.split("\n") if line]
      for text in processes.gather_text("\n".join(map(to_line, found)))
    ]
    return [
      response
      for place in range(len(chunk))
      for response in shares[place % count][place // count * samples :][:samples]
    ]

  def _judge(
    self, responses: Sequence[Response], chunk: Sequence[Question], samples: int
  ) -> list[Item]:
    config = self.run.config
    return judge(
      responses,
      [question for question in chunk for _ in range(samples)],
      way=config.evaluation.ask,
      scoring=config.evaluation.scoring,
      pivot=config.pivot,
      languages=self._languages,
    )

  def _bar(self) -> Progress:
    return Progress(
      TextColumn("{task.description}"),
      BarColumn(),
      MofNCompleteColumn(),
      TimeRemainingColumn(),
      console=Console(stderr=True),
      disable=not (self._progress and processes.process_index() == 0),
    )


def _identifiable(codes: Sequence[str]) -> tuple[str, ...] | None:
  """The languages that texts may be in, or None where two of them cannot be told apart."""
  languages = tuple(sorted(set(codes)))
  try:
    language_id.identify([""], languages)
  except ValueError as error:
    processes.say(f"languages of answers are not judged: {error}")
    return None
  return languages


@jax.jit
def _checksum(params: Any) -> jax.Array:
  """A number that differs for certain where one weight differs, and almost surely where more do.

  The sum of the weights' bits, each times an odd number of its own, modulo 2**32: the same however
  they are laid out on devices.
  """
  total = jnp.uint32(0)
  for number, leaf in enumerate(jax.tree.leaves(params)):
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    bits ^= bits >> 16  # else two changed signs would cancel, and bfloat16 fill half of the sum
    place = jnp.uint32(0)  # axis by axis: to flatten the leaf would gather it on each device
    for axis, size in enumerate(bits.shape):
      place = size * place + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    total += (2 * number + 1) * (bits * (2 * place + 1)).sum(dtype=jnp.uint32)
  return total
