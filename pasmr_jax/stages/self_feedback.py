"""Self-feedback reinforcement learning (docs/method.md, stage 2): one step, told in order.

`SelfFeedbackStage.batch` narrates it:

1. `_sample` G responses a question from the policy, split each into translation and reasoning, and
2. have each distinct translation solved K times in the pivot language by the teacher: as soon as it
   is closed, beside the responses that are still being written, where the teacher is the policy
   (`translations.py`);
3. `score_questions` (feedback/rewards.py) turns the answers into rewards: no gold, no reward model;
4. `_advantages` compares the responses of a question with each other;
5. `_assemble` lays out the most telling rows as arrays, with the log-probabilities they were drawn
   with (`experience.py`), and scores them under the frozen reference and, if several updates
   follow, the old policy.

`update` then takes the policy-gradient steps. Rows R = B questions * G responses.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pasmr_jax import Config
from pasmr_jax.data.questions import Question
from pasmr_jax.feedback import language_id, rewards, votes
from pasmr_jax.learning import advantages, losses
from pasmr_jax.learning.update import Learner, Metrics, TrainState
from pasmr_jax.models import lora
from pasmr_jax.parallel import mesh as meshes
from pasmr_jax.parallel import processes
from pasmr_jax.rollout.engine import Engine, Served
from pasmr_jax.rollout.requests import Request, Rollouts, Usage, Watch
from pasmr_jax.rollout.sampling import Sampling, make_sampling
from pasmr_jax.stages import packing
from pasmr_jax.stages.experience import Experience, Sample, policy_row, rollout_records
from pasmr_jax.stages.supervised import to_sequences
from pasmr_jax.stages.translations import Solutions, Translations
from pasmr_jax.text import prompts
from pasmr_jax.text.answers import read_answer, read_gold
from pasmr_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass
class SelfFeedbackStage:
  """Stage 2: what train.py's loop needs of it."""

  config: Config  # the whole configuration
  learner: Learner
  engine: Engine
  tokenizer: Tokenizer
  mesh: jax.sharding.Mesh
  reference: Any  # stage 1's last of what is trained; None if neither KL nor teacher uses them
  questions: Any  # grain iterator of lists of Question
  rehearsal: Any | None  # grain iterator of SupervisedBatch
  name: str = "srl"

  def __post_init__(self):
    srl, feedback, reward = self.config.srl, self.config.feedback, self.config.reward
    self.steps = srl.steps
    self.languages = tuple(sorted({*self.config.languages, self.config.pivot}))
    self.drawing = self._sampling(srl.temperature)
    self.pivot_drawing = self._sampling(feedback.pivot_temperature)
    self.reward_settings = rewards.RewardSettings(
      source=feedback.source,
      scope=feedback.scope,
      confidence=feedback.confidence,
      kind=reward.kind,
      gate=reward.gate,
      format_weight=reward.format_weight,
      language_weight=reward.language_weight,
      length_weight=reward.length_weight,
      length_scale=srl.max_new_tokens,
    )
    self.policy_settings = losses.policy_settings(srl)
    self.decoded_reference = None  # laid out once: it never changes
    self.rollouts: list[dict[str, Any]] = []  # of the newest step, for the log

  def _sampling(self, temperature: float) -> Sampling:
    srl = self.config.srl
    return make_sampling(temperature, self.tokenizer.stop_ids, srl.top_k, srl.top_p, srl.min_p)

  # One step.

  def batch(
    self, state: TrainState, step: int
  ) -> tuple[tuple[list[losses.PolicyBatch], losses.Sequences | None], dict[str, float]]:
    """Samples, judges and lays out one step's experience.

    Returns:
      The batches of this rollout's updates with the rehearsal batch, and the step's metrics.
    """
    clock = Clock()
    questions: list[Question] = next(self.questions)
    experience = self.judge(state, questions, step, clock)
    reasoning, understanding = self._advantages(experience.judged)
    seen = self._summary(experience)
    self.rollouts = rollout_records(experience, self.config.pivot, reasoning, understanding)
    clock.lap("host")

    batches, packed = self._assemble(state, experience, reasoning, understanding)
    jax.block_until_ready(batches)
    clock.lap("score")
    rehearsal, rehearsed = None, 0
    if self.rehearsal is not None:
      rows = next(self.rehearsal)
      rehearsed = processes.global_sum(int(np.count_nonzero(rows.loss_mask)))
      rehearsal = to_sequences(rows, self.mesh)
    clock.lap("host")
    seen |= {f"time/{name}": seconds for name, seconds in clock.seconds.items()}
    seen |= packed
    # Over all updates, of each what it teaches and what it rehearses.
    learned = packed["trained_tokens"] * self.config.srl.inner_epochs + len(batches) * rehearsed
    seen["learned_tokens"] = learned
    seconds, usage = clock.seconds["rollout"] + clock.seconds["pivot"], experience.usage
    seen["throughput/rollout_tokens_per_second"] = usage.tokens / seconds
    seen["throughput/slot_use"] = usage.tokens / max(usage.slot_steps, 1)
    return (batches, rehearsal), seen

  def judge(
    self, state: TrainState, questions: Sequence[Question], step: int, clock: "Clock"
  ) -> Experience:
    """Samples responses, solves their translations and rewards them; learns nothing."""
    key = jax.random.fold_in(jax.random.key(self.config.seed), step)
    response_key, pivot_key = jax.random.split(key)
    wanted = Translations(self.config, self.tokenizer, self.pivot_drawing, questions, pivot_key)
    groups, usage = self._sample(self._laid_out(state), questions, response_key, wanted)
    clock.lap("rollout")
    if processes.global_max(len(wanted.waiting)):  # for another teacher, and all take part
      served = self._serve(self._teacher(state), wanted.waiting)
      wanted.rollouts, usage = served.rollouts, usage + served.usage
    solved = wanted.solutions([[sample.response for sample in group] for group in groups])
    clock.lap("pivot")
    scored = self._describe(questions, groups, solved)
    golds = [self._gold(question) for question in questions]
    rng = np.random.default_rng([self.config.seed, step, processes.process_index()])
    ids = [question.id for question in questions]
    judged = rewards.score_questions(scored, self.reward_settings, golds, rng, ids)
    return Experience(list(questions), groups, solved, scored, judged, usage)

  def update(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    """One optimizer step for each inner batch, and the metrics of all."""
    batches, rehearsal = batch
    weight = np.float32(self.config.srl.rehearsal_weight)
    metrics: list[Metrics] = []
    for policy_batch in batches:
      state, learned = self.learner.update_policy(
        state, policy_batch, rehearsal, self.policy_settings, weight
      )
      metrics.append(learned)
    # TrainState counts stage steps, a rollout each, whatever the number of inner updates.
    step = state.step - (len(batches) - 1)
    return state.replace(step=step), metrics[0] if len(metrics) == 1 else _of_all(metrics)

  def data_state(self) -> dict[str, Any]:
    """Where the data stands, for a checkpoint."""
    state = {"questions": self.questions.get_state()}
    if self.rehearsal is not None:
      state["rehearsal"] = self.rehearsal.get_state()
    return state

  def restore_data(self, state: dict[str, Any]) -> None:
    self.questions.set_state(state["questions"])
    if self.rehearsal is not None:
      self.rehearsal.set_state(state["rehearsal"])

  # The pieces of a step, in order.

  def _sample(
    self, params, questions: Sequence[Question], key, wanted: Translations
  ) -> tuple[list[list[Sample]], Usage]:
    """G responses a question; those who solve translations meanwhile leave them in `wanted`."""
    srl, key_data = self.config.srl, np.asarray(jax.random.key_data(key))
    requests = [
      Request(
        prompt=prompts.question_prompt(self.tokenizer, self.config.prompt.question, question.text),
        name=f"{question.language}/{question.id}",
        key_data=key_data,
        samples=srl.group_size,
        max_new_tokens=srl.max_new_tokens,
        sampling=self.drawing,
        watched=True,
      )
      for question in questions
    ]
    served = self._serve(params, requests, wanted.watch)
    groups = [
      [self._read(question, request.prompt, rollouts, row) for row in range(srl.group_size)]
      for question, request, rollouts in zip(
        questions, requests, served.rollouts[: len(requests)], strict=True
      )
    ]
    wanted.rollouts = served.rollouts[len(requests) :]
    return groups, served.usage

  def _serve(self, params, requests: Sequence[Request], watch: Watch | None = None) -> Served:
    srl = self.config.srl
    return self.engine.serve(
      params,
      requests,
      max_prompt_length=srl.max_prompt_length,
      max_new_tokens=max(srl.max_new_tokens, srl.max_pivot_tokens),
      watch=watch,
    )

  def _read(
    self, question: Question, prompt: Sequence[int], rollouts: Rollouts, row: int
  ) -> Sample:
    length = int(rollouts.lengths[row])
    ids = np.asarray(rollouts.tokens[row, :length])
    response = prompts.split_response(self.tokenizer, ids.tolist(), bool(rollouts.truncated[row]))
    # A response that met the limit has not stated its answer: the last number is only a step.
    answer = None if response.truncated else read_answer(response.reasoning, question.language)
    return Sample(
      prompt=list(prompt),
      ids=ids,
      sampler_logprobs=np.asarray(rollouts.logprobs[row, :length]),
      response=response,
      answer=None if answer is None else answer.value,
    )

  def _teacher(self, state: TrainState) -> Any:
    """Parameters of a teacher that is not the policy."""
    if self.config.feedback.teacher == "ema":
      # The average is float32; sampling is compiled for the policy's dtypes.
      average = jax.tree.map(lambda one, of: one.astype(of.dtype), state.average, state.params)
      return self._laid_out(state, average)
    if self.decoded_reference is None:
      self.decoded_reference = self._laid_out(state, self.reference)
    return self.decoded_reference

  def _laid_out(self, state: TrainState, trained: Any = None) -> Any:
    """Parameters for the engine: the state's, or others in place of those it trains."""
    return self.engine.lay_out(lora.merged(state.whole(trained), self.learner.config.dtype))

  def _describe(
    self,
    questions: Sequence[Question],
    groups: Sequence[Sequence[Sample]],
    solved: Sequence[Sequence[Solutions]],
  ) -> list[list[rewards.Scored]]:
    """Responses as the reward sees them; languages are identified for the whole step at once."""
    samples = [sample for group in groups for sample in group]
    reasoning = language_id.identify([s.response.reasoning for s in samples], self.languages)
    translation = language_id.identify(
      [s.response.translation or "" for s in samples], self.languages
    )
    found = iter(zip(reasoning, translation, strict=True))

    def scored(question: Question, sample: Sample, solutions: Solutions) -> rewards.Scored:
      reasoned, translated = next(found)
      return rewards.Scored(
        answer=sample.answer,
        pivot_answers=solutions.answers,
        well_formed=sample.response.well_formed,
        reasoning_consistent=reasoned in (question.language, language_id.UNKNOWN),
        translation_consistent=sample.response.translation is not None
        and translated in (self.config.pivot, language_id.UNKNOWN),
        tokens=sample.ids.size,
      )

    return [
      [scored(question, *pair) for pair in zip(group, solutions, strict=True)]
      for question, group, solutions in zip(questions, groups, solved, strict=True)
    ]

  def _gold(self, question: Question) -> votes.Value | None:
    """The gold answer if feedback.source is gold; else the reader dropped it."""
    if self.config.feedback.source != "gold":
      if question.answer is not None or question.solution is not None:
        raise ValueError(
          f"question {question.id!r} carries an answer though feedback.source is"
          f" {self.config.feedback.source!r}; the reader must drop it"
        )
      return None
    found = read_gold(question.answer)
    return None if found is None else found.value

  def _advantages(self, judged: Sequence[rewards.Rewards]) -> tuple[np.ndarray, np.ndarray]:
    """Reasoning and understanding advantages, float32 [B, G]."""
    srl = self.config.srl
    reasoning = advantages.estimate(
      np.stack([one.reward for one in judged]),
      np.stack([one.valid for one in judged]),
      srl.advantage,
    )
    understanding = advantages.estimate(
      np.stack([one.understanding for one in judged]),
      np.stack([one.translation_valid for one in judged]),
      srl.advantage,
    )
    return reasoning, understanding * np.float32(srl.understanding_weight)

  def _assemble(
    self,
    state: TrainState,
    experience: Experience,
    reasoning: np.ndarray,
    understanding: np.ndarray,
  ) -> tuple[list[losses.PolicyBatch], dict[str, float]]:
    """The batches of this rollout's updates, how many tokens they teach and how much is padding."""
    srl = self.config.srl
    samples = [sample for group in experience.groups for sample in group]
    # No gradient, that of KL included, where no confident label is, nor of what met the limit.
    masked = ~np.concatenate([one.valid for one in experience.judged])
    if srl.mask_truncated:
      masked |= [sample.response.truncated for sample in samples]
    reasoning, understanding = reasoning.reshape(-1), understanding.reshape(-1)
    strength = np.abs(reasoning)
    if srl.credit == "split":
      strength = np.maximum(strength, np.abs(understanding))
    strength[masked] = -1.0  # chosen after all that teach

    def row_of(row: int) -> losses.PolicyBatch:
      sample = samples[row]
      return policy_row(
        sample,
        advantages.token_advantages(
          float(reasoning[row]),
          float(understanding[row]),
          sample.ids.size,
          sample.response.reasoning_start,
          srl.credit,
        ),
        srl.max_prompt_length + srl.max_new_tokens,
        masked=bool(masked[row]),
        aggregation=srl.aggregation,
      )

    # One row too many and cut again: a process of which no row was chosen still has the shapes.
    rows = [row_of(row) for row in (*self._chosen(strength), 0)]
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays)[:-1], *rows)
    everyone = processes.gather_rows(stacked)
    size = len(everyone.advantages) // srl.inner_batches
    batches, places, filled = [], 0, 0
    for first in range(0, size * srl.inner_batches, size):
      part = jax.tree.map(lambda array, first=first: array[first : first + size], everyone)
      packed, layout = packing.pack(part, srl)
      places += layout.places
      filled += int(np.count_nonzero(packed.sequences.segment_ids))
      own = meshes.shard_batch(processes.own_rows(packed), self.mesh)
      batches.append(self._with_scores(state, own))
    trained = everyone.sequences.weights > 0
    # Advantages are 0 where a question's rewards are alike, but for rounding.
    taught = trained & (np.abs(everyone.advantages) > 1e-6)
    seen = {
      "trained_tokens": int(np.count_nonzero(trained)),
      "taught_tokens": int(np.count_nonzero(taught)),
      "padding_share": 1 - filled / places,
    }
    return batches * srl.inner_epochs, seen

  def _chosen(self, strength: np.ndarray) -> list[int]:
    """Which rows of this process are among the `update_rows` strongest of all processes."""
    chosen = advantages.strongest(processes.gather_rows(strength), self.config.srl.update_rows)
    first = processes.process_index() * strength.size
    return [int(row) - first for row in chosen if first <= row < first + strength.size]

  def _with_scores(self, state: TrainState, batch: losses.PolicyBatch) -> losses.PolicyBatch:
    srl = self.config.srl
    temperature = np.float32(srl.temperature)
    if srl.inner_batches * srl.inner_epochs > 1:
      old = self.learner.score(state.whole(), batch.sequences, temperature)
      batch = batch.replace(old_logprobs=old)
    if srl.kl_coef > 0:
      reference = state.whole(self.reference)
      reference = self.learner.score(reference, batch.sequences, temperature)
      batch = batch.replace(reference_logprobs=reference)
    return batch

  def _summary(self, experience: Experience) -> dict[str, float]:
    """What is logged every step, over the questions of all processes."""
    questions, groups, judged = experience.questions, experience.groups, experience.judged
    samples = [sample for group in groups for sample in group]
    flat = [one for group in experience.scored for one in group]
    translated = [
      (question.text, sample.response.translation)
      for question, group in zip(questions, groups, strict=True)
      for sample in group
      if sample.response.translation
    ]
    lengths = [len(self.tokenizer.encode(text)) for _, text in translated]
    reward = np.stack([one.reward for one in judged])
    valid = np.stack([one.valid for one in judged])
    values = {
      "reward": reward.reshape(-1),
      "reward/agreement": np.concatenate([one.agreement for one in judged]),
      "reward/understanding": np.concatenate([one.understanding for one in judged]),
      "reward/format": np.concatenate([one.format for one in judged]),
      "reward/language": np.concatenate([one.language for one in judged]),
      "reward/length": np.concatenate([one.length for one in judged]),
      "vote_confidence": [vote.confidence for one in judged for vote in one.votes],
      "label_rate": np.concatenate([one.labelled for one in judged]),
      "zero_variance_share": advantages.zero_variance(reward, valid),
      "well_formed_rate": [one.well_formed for one in flat],
      "truncation_rate": [sample.response.truncated for sample in samples],
      "answered_rate": [sample.answer is not None for sample in samples],
      "language/reasoning": [one.reasoning_consistent for one in flat],
      "language/translation": [one.translation_consistent for one in flat],
      "translation_number_recall": [rewards.number_recall(*pair) for pair in translated],
      "translation_length": lengths,
      "response_length": [sample.ids.size for sample in samples],
      "answer_entropy": [votes.entropy([s.answer for s in group]) for group in groups],
      "distinct_translations": [
        len({s.response.translation for s in group} - {None}) for group in groups
      ],
    }
    return processes.global_means(values)


@jax.jit
def _of_all(metrics: Sequence[Metrics]) -> Metrics:
  """Several updates' counts added, and means and maxima of what those told that taught something.

  An update that was skipped tells of itself only if all were.
  """
  told = jax.tree.map(lambda *values: jnp.stack(values), *metrics)
  made = told["skipped_updates"] == 0
  made = jnp.where(made.any(), made, True)
  taught = made & (told["policy_updates"] > 0)
  taught = jnp.where(taught.any(), taught, made)

  def of_all(name: str, values: jax.Array) -> jax.Array:
    if name.endswith("_updates"):
      return values.sum()
    among = made if name == "rehearsal_loss" else taught  # which all updates have
    if name.endswith("_max"):
      return jnp.where(among, values, -jnp.inf).max()
    return jnp.where(among, values, 0).sum() / among.sum()

  return {name: of_all(name, values) for name, values in told.items()}


class Clock:
  """Seconds of a step by phase."""

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._last = time.perf_counter()

  def lap(self, phase: str) -> None:
    now = time.perf_counter()
    self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
    self._last = now
