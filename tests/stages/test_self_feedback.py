"""One SRL step with scripted responses: who is asked what, and what is learned from it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base as base_config
from pasmr_jax.data import synthetic
from pasmr_jax.data.questions import Question
from pasmr_jax.experiment.evaluation import judge_accuracy
from pasmr_jax.experiment.setup import make_learner, needs_reference
from pasmr_jax.learning.update import Learner
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import init_params
from pasmr_jax.parallel import processes, rules
from pasmr_jax.parallel.mesh import make_mesh, param_shardings
from pasmr_jax.rollout.engine import Served
from pasmr_jax.rollout.requests import Rollouts, Usage
from pasmr_jax.stages.self_feedback import Clock, SelfFeedbackStage
from pasmr_jax.text import prompts
from pasmr_jax.text.tokenizer import load_tokenizer

LOGGED = (
  "reward",
  "reward/agreement",
  "reward/understanding",
  "reward/format",
  "reward/language",
  "reward/length",
  "vote_confidence",
  "label_rate",
  "zero_variance_share",
  "well_formed_rate",
  "truncation_rate",
  "language/reasoning",
  "language/translation",
  "translation_number_recall",
  "translation_length",
  "response_length",
  "answer_entropy",
  "time/rollout",
  "time/pivot",
  "time/score",
  "time/host",
  "throughput/rollout_tokens_per_second",
  "throughput/slot_use",
  "trained_tokens",
)
MODEL = TransformerConfig(
  vocab_size=768,
  embed_dim=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  mlp_dim=16,
  query_scale=8**-0.5,
)
GERMAN = Question(
  "q1", "de", "Hans hat 12 Äpfel, kauft dann noch 3. Wie viele Äpfel hat Hans jetzt?"
)
SPANISH = Question(
  "q2", "es", "Pablo tiene 9 piñas, luego pierde 2. ¿Cuántas piñas tiene Pablo ahora?"
)
GOOD = "Tom has 12 apples, then buys 3 more. How many apples does Tom have now?"
BAD = "Tom has 12 apples, then loses 3. How many apples does Tom have now?"
OTHER = "Peter has 9 pineapples, then loses 2. How many pineapples does Peter have now?"


ROW, LIMIT = 72, 44  # of a row's tokens, of a response's


def _solved(answer, language="de"):
  opening = {"de": "Lösung", "es": "Solución", "en": "Solution"}[language]
  return f"{opening}: 12 und 3 ergibt {answer}.\n#### {answer}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  synthetic.train_tokenizer(path)
  return load_tokenizer(str(path), "<pivot>", "</pivot>")


@dataclasses.dataclass
class ScriptedEngine:
  """Answers each prompt with the next of its scripted responses and remembers who asked."""

  tokenizer: object
  script: dict  # prompt text -> list of (translation or None, text, ends)
  calls: list = dataclasses.field(default_factory=list)

  def lay_out(self, params):
    return params

  def serve(self, params, requests, *, max_prompt_length, max_new_tokens, watch=None):
    """Tells the watch of half a response and of all of it; what it asks for is a second call."""
    rollouts, followed = [], []
    texts = [self.tokenizer.decode(request.prompt).strip() for request in requests]
    self.calls.append(
      {
        "params": params,
        "texts": texts,
        "names": [request.name for request in requests],
        "samples": {request.samples for request in requests},
      }
    )
    for number, (request, text) in enumerate(zip(requests, texts, strict=True)):
      rows = []
      for translation, answer, ends in self.script[text][: request.samples]:
        ids = prompts.response(self.tokenizer, translation, answer)
        rows.append((ids if ends else ids[:-1], ends))
      for sample, (ids, _) in enumerate(rows):
        if request.watched and watch is not None:
          half = self.tokenizer.close_ids[0] in ids and ids.index(self.tokenizer.close_ids[0]) + 1
          followed += watch(number, sample, np.array(ids[:half]), False) if half else []
          followed += watch(number, sample, np.array(ids), True)
      rollouts.append(self._rollouts(rows, request.max_new_tokens))
    tokens = sum(int(one.lengths.sum()) for one in rollouts)
    served = Served(rollouts, Usage(tokens, 2 * tokens))
    if followed:
      more = self.serve(
        params, followed, max_prompt_length=max_prompt_length, max_new_tokens=max_new_tokens
      )
      served = Served(rollouts + more.rollouts, served.usage + more.usage)
    return served

  def _rollouts(self, rows, limit):
    tokens = np.zeros((len(rows), limit), np.int32)
    logprobs = np.zeros((len(rows), limit), np.float32)
    for row, (ids, _) in enumerate(rows):
      tokens[row, : len(ids)] = ids
      logprobs[row, : len(ids)] = -5.0
    lengths = np.array([len(ids) for ids, _ in rows], np.int32)
    truncated = np.array([not ends for _, ends in rows], bool)
    return Rollouts(tokens, logprobs, lengths, truncated)


def _script():
  return {
    GERMAN.text: [
      (GOOD, _solved(15), True),
      (GOOD, _solved(14), True),
      (BAD, _solved(9), True),
      (GOOD, _solved(15), False),  # met the limit
    ],
    SPANISH.text: [(OTHER, _solved(7, "es"), True)] * 3 + [(None, _solved(7, "es"), True)],
    GOOD: [(None, _solved(15, "en"), True)] * 2,
    BAD: [(None, _solved(9, "en"), True), (None, _solved(15, "en"), True)],
    OTHER: [(None, _solved(7, "en"), True), (None, _solved(8, "en"), False)],
  }


def _config(**changes):
  config = base_config.get_config()
  config.languages = ("de", "es")
  config.srl.group_size = 4
  config.srl.questions = 2
  config.srl.credit = "all"
  config.srl.max_prompt_length = 28
  config.srl.max_new_tokens = LIMIT
  config.srl.row_length = ROW  # so short that every response has a row of its own
  config.feedback.pivot_samples = 2
  config.srl.kl_coef = 0.0
  config.srl.update_rows = 0
  with config.ignore_type():
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


@pytest.fixture(scope="module")
def params():
  return jax.jit(lambda: init_params(MODEL, jax.random.key(0)))()


def _stage(tokenizer, params, questions=(GERMAN, SPANISH), script=None, devices=8, **changes):
  config = _config(**changes)
  mesh = make_mesh(devices, 1, jax.devices()[:devices])
  engine = ScriptedEngine(tokenizer, script or _script())
  shardings = param_shardings(MODEL, mesh, rules.DECODING)
  held = needs_reference(config)
  reference = jax.device_put(params, shardings) if held else None
  stage = SelfFeedbackStage(
    config=config,
    learner=Learner(
      MODEL,
      optax.sgd(0.5),
      valid_vocab=756,
      microbatches=config.srl.microbatches,
      row_bucket=config.srl.row_bucket,
      average_decay=0.5,
    ),
    engine=engine,
    tokenizer=tokenizer,
    mesh=mesh,
    reference=reference,
    questions=iter([list(questions)] * 5),
    rehearsal=None,
  )
  copied = jax.device_put(jax.tree.map(np.asarray, params), shardings)
  state = stage.learner.init(copied, average=config.feedback.teacher == "ema")
  return stage, state, engine


@pytest.fixture(scope="module")
def step(tokenizer, params):
  stage, state, engine = _stage(tokenizer, params)
  (batches, _), seen = stage.batch(state, 0)
  return stage, engine, batches, seen


def test_each_distinct_translation_is_solved_once(step):
  _, engine, _, _ = step
  asked, solved = engine.calls
  assert asked["texts"] == [GERMAN.text, SPANISH.text]
  assert asked["samples"] == {4}
  assert solved["texts"] == [GOOD, BAD, OTHER]
  assert solved["samples"] == {2}
  assert len(set(solved["names"])) == 3


def test_votes_and_rewards(step):
  stage, _, _, seen = step
  german, spanish = stage.rollouts
  # Two responses with GOOD vote 15 twice each; BAD votes 9 and 15; the truncated one votes nothing.
  assert german["pooled_label"] == "15"
  assert german["pooled_confidence"] == pytest.approx(5 / 6)
  assert [one["reward"] for one in german["responses"]] == [1, 0, 0, 0]
  # A pivot solution that met its limit is a vote for nothing: 7 of every pair, 3 of 6 votes.
  assert spanish["pooled_confidence"] == pytest.approx(0.5)
  assert [one["reward"] for one in spanish["responses"]] == [1, 1, 1, 0]
  assert [one["advantage"] for one in german["responses"]] == [0.75, -0.25, -0.25, -0.25]
  assert seen["truncation_rate"] == pytest.approx(1 / 8)
  assert seen["well_formed_rate"] == pytest.approx(6 / 8)
  assert seen["label_rate"] == 1.0
  assert seen["distinct_translations"] == (2 + 1) / 2  # none is no translation


def test_every_metric_of_the_method_is_logged(step):
  *_, seen = step
  for name in LOGGED:
    assert np.isfinite(seen[name]), name


def _asked(stage):
  """The prompt of GERMAN."""
  return prompts.question_prompt(stage.tokenizer, stage.config.prompt.question, GERMAN.text)


def test_rows_hold_prompt_response_weights_and_what_was_drawn(step, tokenizer):
  stage, _, [batch], _ = step
  row = jax.tree.map(lambda x: np.asarray(x)[0], batch)
  asked = _asked(stage)
  said = prompts.response(tokenizer, GOOD, _solved(15))
  end = len(asked) + len(said)
  assert row.sequences.tokens[:end].tolist() == asked + said
  assert row.sequences.tokens[end - 1] == tokenizer.eos_id
  weights = row.sequences.weights
  assert (weights[: len(asked)] == 0).all()
  assert (weights[len(asked) : end] == 1).all()  # end of sequence included
  assert (weights[end:] == 0).all()
  assert (row.advantages[len(asked) : end] == 0.75).all()
  assert (row.sampler_logprobs[len(asked) : end] == -5).all()
  # The truncated response teaches nothing: it has no row.
  drawn = np.asarray(batch.sequences.segment_ids).any(axis=1)
  assert drawn.tolist() == [True] * 7 + [False]


def test_an_update_raises_what_was_rewarded(tokenizer, params):
  stage, state, _ = _stage(tokenizer, params)
  batch, _ = stage.batch(state, 0)
  [rows], _ = batch
  before = np.asarray(stage.learner.score(state.params, rows.sequences, 1.0))
  state, metrics = stage.update(state, batch)
  after = np.asarray(stage.learner.score(state.params, rows.sequences, 1.0))
  weights = np.asarray(rows.sequences.weights)
  assert (weights * rows.advantages * (after - before)).sum() > 0
  change = ((after - before) * weights).sum(axis=1)
  assert change[0] > change[1]
  assert float(metrics["ratio_max"]) == 1.0
  assert int(state.step) == 1


def test_inner_updates_use_the_policy_before_the_first_of_them(tokenizer, params):
  stage, state, _ = _stage(tokenizer, params, srl__inner_epochs=2)
  batch, _ = stage.batch(state, 0)
  first, second = batch[0]
  expected = stage.learner.score(state.params, first.sequences, 1.0)
  np.testing.assert_allclose(first.old_logprobs, expected, atol=1e-6)
  np.testing.assert_array_equal(first.old_logprobs, second.old_logprobs)
  state, metrics = stage.update(state, batch)
  # The second update is away from the old policy, and the stage still counts one step.
  assert abs(float(metrics["ratio_max"]) - 1) > 1e-3
  assert int(state.step) == 1


def test_metrics_are_of_all_updates_of_a_rollout(tokenizer, params):
  """One has nothing to learn from; one is skipped, or all are."""
  stage, state, _ = _stage(tokenizer, params)
  told = iter(
    {"loss": loss, "ratio_max": most, "policy_updates": weighed, "skipped_updates": skipped}
    for loss, most, weighed, skipped in ((1.0, 1.5, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0))
  )

  class Scripted:
    def update_policy(self, state, *_):
      return state.replace(step=state.step + 1), jax.tree.map(jnp.float32, next(told))

  stage.learner = Scripted()
  state, metrics = stage.update(state, ([None, None], None))
  assert int(state.step) == 1
  assert {name: float(value) for name, value in metrics.items()} == {
    "loss": 1.0, "ratio_max": 1.5, "policy_updates": 1.0, "skipped_updates": 0.0
  }  # fmt: skip
  lost = {"loss": jnp.nan, "ratio_max": jnp.nan, "policy_updates": 1.0, "skipped_updates": 1.0}
  made = {"loss": 1.0, "ratio_max": 1.5, "policy_updates": 1.0, "skipped_updates": 0.0}
  told = iter([lost, made])
  _, metrics = stage.update(state, ([None, None], None))
  assert {name: float(value) for name, value in metrics.items()} == made | {
    "policy_updates": 2.0, "skipped_updates": 1.0
  }  # fmt: skip
  told = iter([lost, lost])
  _, metrics = stage.update(state, ([None, None], None))
  assert np.isnan(metrics["loss"])  # the reason of the skips
  assert np.isnan(metrics["ratio_max"])


def test_untranslated_is_not_in_the_pivot(tokenizer, params):
  script = {GERMAN.text: [(None, _solved(15), True)] * 4}
  stage, state, _ = _stage(tokenizer, params, questions=(GERMAN,), script=script)
  _, seen = stage.batch(state, 0)
  assert seen["well_formed_rate"] == seen["language/translation"] == 0


@pytest.mark.parametrize("teacher", ["policy", "reference", "ema"])
def test_the_teacher_answers(tokenizer, params, teacher):
  stage, state, engine = _stage(tokenizer, params, feedback__teacher=teacher)
  moved = jax.tree.map(lambda x: x + 1, state.params)
  averaged = jax.tree.map(lambda x: x + 2, state.params)
  state = state.replace(params=moved, average=averaged)
  stage.batch(state, 0)
  asked, solved = (np.asarray(call["params"]["embedding"]) for call in engine.calls)
  offset = {"policy": 1, "reference": 0, "ema": 2}[teacher]
  np.testing.assert_allclose(asked, np.asarray(params["embedding"]) + 1, atol=1e-6)
  np.testing.assert_allclose(solved, np.asarray(params["embedding"]) + offset, atol=1e-6)


def test_an_average_in_float32_samples_in_the_policys_dtypes(tokenizer, params):
  """Or all that samples would be compiled twice."""
  stage, state, engine = _stage(tokenizer, params, feedback__teacher="ema")
  rounded = jax.tree.map(lambda one: one.astype(jnp.bfloat16), state.params)
  state = state.replace(params=rounded, average=state.params)
  stage.batch(state, 0)
  asked, solved = (jax.tree.map(lambda one: one.dtype, call["params"]) for call in engine.calls)
  assert asked == solved


@pytest.mark.parametrize("waiting", [0, 1])
def test_another_teacher_is_asked_by_all_processes_or_by_none(
  tokenizer, params, monkeypatch, waiting
):
  """What it takes part in is of all: here no translation is closed, elsewhere one may be."""
  script = _script() | {GERMAN.text: [(None, _solved(15), True)] * 4}
  stage, state, engine = _stage(
    tokenizer, params, questions=(GERMAN,), script=script, feedback__teacher="reference"
  )
  monkeypatch.setattr(processes, "global_max", lambda number: max(number, waiting))
  stage.judge(state, [GERMAN], 0, Clock())
  assert [call["texts"] for call in engine.calls] == [[GERMAN.text]] + waiting * [[]]


def test_the_moving_average_keeps_its_share_a_step_however_many_updates_it_has():
  config = _config(srl__inner_batches=2, srl__inner_epochs=3, feedback__ema_decay=0.9)
  assert make_learner(config, "srl", MODEL, 756).average_decay ** 6 == pytest.approx(0.9)
  assert make_learner(_config(), "srl", MODEL, 756).average_decay == 0.99


def test_kl_scores_the_reference(tokenizer, params):
  stage, state, _ = _stage(tokenizer, params, srl__kl_coef=0.1)
  moved = jax.tree.map(lambda x: x * 1.1, state.params)
  ([batch], _), _ = stage.batch(state.replace(params=moved), 0)
  expected = stage.learner.score(params, batch.sequences, 1.0)
  np.testing.assert_allclose(batch.reference_logprobs, expected, atol=1e-5)


def test_without_kl_there_is_no_reference(step):
  stage, _, batches, _ = step
  assert stage.config.srl.kl_coef == 0
  assert stage.reference is None
  assert [batch.reference_logprobs for batch in batches] == [None]


def test_split_credit_teaches_translation_and_reasoning_apart(tokenizer, params):
  stage, state, _ = _stage(tokenizer, params, srl__credit="split")
  ([batch], _), _ = stage.batch(state, 0)
  prompt = len(_asked(stage))
  cut = prompt + 2 + len(tokenizer.encode(GOOD))
  advantages = np.asarray(batch.advantages)
  # Response 1: a good translation, a wrong answer.
  assert (advantages[1, prompt:cut] > 0).all()
  assert (advantages[1, cut : cut + 5] < 0).all()


@pytest.mark.parametrize(
  ("source", "weight", "solved"),
  [
    ("target_majority", 1.0, True),
    ("target_majority", 0.0, False),
    ("random", 1.0, False),
    ("pivot", 0.0, True),
  ],
)
def test_no_translation_is_solved_in_vain(tokenizer, params, source, weight, solved):
  changes = {"srl__credit": "split", "srl__understanding_weight": weight}
  stage, state, _ = _stage(tokenizer, params, feedback__source=source, **changes)
  stage.batch(state, 0)
  solutions = [one["pivot_solutions"] for group in stage.rollouts for one in group["responses"]]
  assert any(solutions) == solved


def test_only_the_most_extreme_rows_are_learned_from(tokenizer, params):
  stage, state, _ = _stage(tokenizer, params, srl__update_rows=5)
  ([batch], _), _ = stage.batch(state, 0)
  rows = jax.tree.map(np.asarray, batch)
  assert rows.sequences.tokens.shape == (8, ROW)  # 5, and padding up to srl.row_bucket
  taught = np.abs(rows.advantages).max(axis=1)
  # The Spanish response without a translation, the German one with reward, three others.
  np.testing.assert_allclose(taught, [0.75, 0.25, 0.25, 0.25, 0.75, 0, 0, 0])
  assert not rows.sequences.segment_ids[5:].any()


def test_truncated_responses_take_no_place_of_those_that_teach(tokenizer, params):
  """Of sixteen responses four met the limit: their reward, 0, is the most extreme."""
  script = _script()
  cut, right = (GOOD, _solved(15), False), (GOOD, _solved(15), True)
  script[GERMAN.text] = [cut] * 4 + [right] * 12
  stage, state, _ = _stage(
    tokenizer,
    params,
    questions=(GERMAN,),
    script=script,
    srl__group_size=16,
    srl__update_rows=4,
  )
  ([batch], _), _ = stage.batch(state, 0)
  taught = np.asarray(batch.sequences.weights).any(axis=1)
  assert taught.sum() == 4
  np.testing.assert_allclose(np.abs(np.asarray(batch.advantages)[taught]).max(axis=1), 0.25)


def test_what_teaches_nothing_comes_after_rows_of_no_advantage(tokenizer, params):
  """One question has no label, of the other all responses are right: it has a gradient of KL."""
  script = _script()
  script[OTHER] = [(None, _solved(7, "en"), True), (None, _solved(8, "en"), True)]
  script[GERMAN.text] = [(GOOD, _solved(15), True)] * 4
  stage, state, _ = _stage(
    tokenizer, params, questions=(SPANISH, GERMAN), script=script, srl__update_rows=4
  )
  ([batch], _), seen = stage.batch(state, 0)
  assert seen["trained_tokens"] == np.count_nonzero(batch.sequences.weights) > 0
  assert seen["taught_tokens"] == 0
  asked = _asked(stage)
  rows = np.asarray(batch.sequences.tokens)[np.asarray(batch.sequences.weights).any(axis=1)]
  assert [row[: len(asked)].tolist() for row in rows] == [asked] * 4


def test_a_question_without_a_confident_label_has_no_gradient_not_even_of_kl(tokenizer, params):
  """Spanish answers vote 7 and 8 alike: the step is that of the German question alone."""
  script = _script()
  script[OTHER] = [(None, _solved(7, "en"), True), (None, _solved(8, "en"), True)]
  learned = []
  for questions in ((GERMAN, SPANISH), (GERMAN,)):
    stage, state, _ = _stage(
      tokenizer, params, questions=questions, script=script, srl__kl_coef=0.1
    )
    state = state.replace(params=jax.tree.map(lambda x: x * 1.1, state.params))
    batch, seen = stage.batch(state, 0)
    [rows], _ = batch
    assert np.asarray(rows.sequences.segment_ids).any(axis=1).sum() == 3
    state, metrics = stage.update(state, batch)
    learned.append((jax.device_get(state.params), float(metrics["kl"]), seen["trained_tokens"]))
  (both, *seen), (alone, *expected) = learned
  assert seen == pytest.approx(expected, rel=1e-5)
  for one, other in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


def _learned(tokenizer, params, **changes):
  """What a step of two inner batches makes of the parameters, its rows and its metrics."""
  stage, state, _ = _stage(tokenizer, params, srl__kl_coef=0.1, srl__inner_batches=2, **changes)
  batch, seen = stage.batch(state, 0)
  state, _ = stage.update(state, batch)
  rows = [np.asarray(one.sequences.segment_ids) for one in batch[0]]
  return jax.device_get(state.params), rows, seen


@pytest.fixture(scope="module")
def single(tokenizer, params):
  return _learned(tokenizer, params)


@pytest.mark.parametrize(
  ("devices", "length", "bucket", "microbatches"),
  [(8, 4 * ROW, 8, 1), (1, 4 * ROW, 2, 1), (1, 2 * ROW, 4, 4), (4, ROW, 8, 2)],
)
def test_packed_responses_teach_what_single_ones_do(
  tokenizer, params, single, devices, length, bucket, microbatches
):
  learned, rows, seen = _learned(
    tokenizer,
    params,
    devices=devices,
    srl__row_length=length,
    srl__row_bucket=bucket,
    srl__microbatches=microbatches,
  )
  # Three responses of German questions and four of Spanish ones, and one that was truncated.
  assert [segments.max(axis=1).sum() for segments in single[1]] == [3, 4]
  assert all(segments.max() == 1 for segments in single[1])
  assert [segments.max(axis=1).sum() for segments in rows] == [3, 4]
  assert all(segments.max() == min(length // ROW, 3 + last) for last, segments in enumerate(rows))
  for one, other in zip(jax.tree.leaves(learned), jax.tree.leaves(single[0]), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)
  assert seen["trained_tokens"] == single[2]["trained_tokens"]
  tokens = sum((segments > 0).sum() for segments in rows)
  each = bucket // microbatches
  computed = sum(-(-segments.any(axis=1).sum() // each) * each * length for segments in rows)
  assert seen["padding_share"] == pytest.approx(1 - tokens / computed)


def test_controls_do_not_ask_the_teacher(tokenizer, params):
  for source in ("target_majority", "random"):
    stage, state, engine = _stage(tokenizer, params, feedback__source=source)
    stage.batch(state, 0)
    assert len(engine.calls) == 1, source


def test_an_answer_that_reaches_the_stage_is_an_error(tokenizer, params):
  leaked = dataclasses.replace(GERMAN, answer="15")
  stage, state, _ = _stage(tokenizer, params, questions=(leaked, SPANISH))
  with pytest.raises(ValueError, match="carries an answer though feedback"):
    stage.batch(state, 0)
  known = (leaked, dataclasses.replace(SPANISH, answer="8"))
  stage, state, _ = _stage(tokenizer, params, questions=known, feedback__source="gold")
  stage.batch(state, 0)
  assert [one["reward"] for one in stage.rollouts[0]["responses"]] == [1, 0, 0, 0]
  assert [one["reward"] for one in stage.rollouts[1]["responses"]] == [0, 0, 0, 0]


def test_reasoning_in_a_script_of_no_language_in_play_is_in_the_wrong_language(tokenizer, params):
  script = _script()
  script[GERMAN.text] = [(GOOD, "安娜有七个苹果又买了五个\n#### 15", True)] * 4
  room = {"srl__max_new_tokens": 64, "srl__row_length": 92}
  stage, state, _ = _stage(tokenizer, params, script=script, **room)
  stage.batch(state, 0)
  assert [one["reward"] for one in stage.rollouts[0]["responses"]] == [0] * 4
  assert not any(one["reasoning_consistent"] for one in stage.rollouts[0]["responses"])


def test_rollout_records_are_plain_json(step):
  stage, *_ = step
  assert json.loads(json.dumps(stage.rollouts))[0]["responses"][0]["pivot_answers"] == ["15", "15"]


def test_rollout_records_hold_the_vote_and_every_reward_term(step):
  stage, *_ = step
  german, _ = stage.rollouts
  assert german["pivot"] == "en"
  right, _, mistranslated, cut = german["responses"]
  assert right["confidence"] == pytest.approx(5 / 6)
  assert right["labelled"] is True
  assert right["length"] == pytest.approx(-right["tokens"] / LIMIT)
  assert (right["reasoning_consistent"], right["translation_consistent"]) == (True, True)
  # Of BAD's two pivot answers one is the label; the cut-off response has no translation to solve.
  assert [one["understanding"] for one in (right, mistranslated, cut)] == [1, 0.5, 0]
  assert mistranslated["pivot_answers"] == ["9", "15"]
  assert (cut["truncated"], cut["pivot_answers"]) == (True, [])
  assert cut["tokens"] == right["tokens"] - 1


def test_whether_labels_and_rewards_are_right_is_judged_against_gold(tokenizer, params):
  """German votes 15, Spanish 7. With gold 15 and 8 Spanish labels, and what they pay, are wrong."""
  stage, state, _ = _stage(tokenizer, params)
  questions = [dataclasses.replace(GERMAN, answer="15"), dataclasses.replace(SPANISH, answer="8")]
  found = judge_accuracy(stage, state, questions)
  # All four German rewards say rightly who is right; all four Spanish ones do not.
  assert found == {"label_accuracy": 0.5, "reward_accuracy": 0.5}
