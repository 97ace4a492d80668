"""The sampling loop against the scorer, and what must not change a sample."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pasmr_jax.learning import logprobs as scorer
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import Transformer, init_params, logits, output_table
from pasmr_jax.parallel import processes, rules
from pasmr_jax.parallel.mesh import make_mesh, param_shardings, shard_batch
from pasmr_jax.rollout import slots
from pasmr_jax.rollout.engine import Engine
from pasmr_jax.rollout.requests import Request, left_padded, stable_id
from pasmr_jax.rollout.sampling import make_sampling
from pasmr_jax.rollout.sampling import sample as draw

CONFIG = TransformerConfig(
  vocab_size=64,
  embed_dim=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=64,
  query_scale=8**-0.5,
  attention_pattern=("local", "global"),
  sliding_window=6,
  qk_norm=True,
)
VALID_VOCAB = 60
STOPS = (1, 7)
PROMPTS = [[5, 9, 12], [8, 8, 30, 31, 32, 33, 34, 35], [40], [11, 2, 3, 4]]
NAMES = ["a", "b", "c", "d"]
COMPILED = []  # an entry for every program compiled
jax.monitoring.register_event_duration_secs_listener(
  lambda event, *_, **__: COMPILED.append(event) if "backend_compile" in event else None
)


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(-1, 2)  # 4 x 2


@pytest.fixture(scope="module")
def params(mesh):
  initialize = jax.jit(
    lambda key: init_params(CONFIG, key),
    out_shardings=param_shardings(CONFIG, mesh, rules.DECODING),
  )
  return initialize(jax.random.key(0))


@pytest.fixture(scope="module")
def engine(mesh):
  return Engine(CONFIG, mesh, VALID_VOCAB, prompt_bucket=8)


def _generate(
  engine, params, prompts=PROMPTS, names=NAMES, seed=0, temperature=1.0, samples=3, **kw
):
  sampling = make_sampling(temperature, STOPS, **kw)
  with jax.set_mesh(engine.mesh):
    return engine.generate(
      engine.lay_out(params),
      prompts,
      names,
      jax.random.key(seed),
      sampling,
      samples=samples,
      max_new_tokens=24,
      max_prompt_length=8,
    )


@pytest.fixture(scope="module")
def rollouts(engine, params):
  return _generate(engine, params)


def test_shapes_stops_and_truncation(rollouts):
  assert rollouts.tokens.shape == (12, 24)
  for tokens, length, truncated in zip(
    rollouts.tokens, rollouts.lengths, rollouts.truncated, strict=True
  ):
    inside, after = tokens[:length], tokens[length:]
    assert truncated == (inside[-1] not in STOPS)
    assert not np.isin(inside[:-1], STOPS).any()
    assert not after.any()
    assert length == 24 or not truncated
  assert rollouts.truncated.any()
  assert not rollouts.truncated.all()
  assert (rollouts.tokens < VALID_VOCAB).all()
  # Both stop ids end rows.
  ends = rollouts.tokens[np.arange(12), rollouts.lengths - 1][~rollouts.truncated]
  assert set(ends) == set(STOPS)


def _scored(params, prompt, tokens, temperature=1.0):
  row = np.array([[*prompt, *tokens]], np.int32)
  ones = np.ones_like(row)
  rows = scorer.Sequences(row, np.arange(row.shape[1])[None], ones, ones.astype(np.float32))
  scoring = scorer.Scoring(CONFIG, VALID_VOCAB, temperature)
  scored = jax.jit(functools.partial(scorer.token_logprobs, scoring=scoring))(params, rows)
  return np.asarray(scored)[0, len(prompt) :]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampler_and_scorer_agree(engine, params, temperature):
  """Also past the sliding window, with ragged prompts: positions and masks are right."""
  rollouts = _generate(engine, params, temperature=temperature)
  for row in range(0, 12, 2):
    length = rollouts.lengths[row]
    expected = _scored(params, PROMPTS[row // 3], rollouts.tokens[row, :length], temperature)
    np.testing.assert_allclose(rollouts.logprobs[row, :length], expected, atol=1e-4)


def test_noise_differs_by_row_and_step_and_returns(engine, params, rollouts):
  first_tokens = rollouts.tokens[:3]
  assert not (first_tokens[0] == first_tokens[1]).all()
  again, other = _generate(engine, params), _generate(engine, params, seed=1)
  np.testing.assert_array_equal(again.tokens, rollouts.tokens)
  assert not (other.tokens == rollouts.tokens).all(axis=1).any()


@pytest.mark.parametrize(
  "schedule",
  [
    {"slots": 4, "prefill_prompts": 4, "refill_steps": 3},
    {"slots": 8, "prefill_prompts": 8, "refill_steps": 1},
    {"slots": 64, "prefill_prompts": 4, "refill_steps": 50},
    {"slots": 8, "prefill_prompts": 32, "refill_steps": 24},
  ],
)
def test_scheduling_does_not_change_a_row(engine, params, rollouts, schedule):
  """Fewer slots than rows, so that rings turn many times; other neighbours, order and batches."""
  order = [2, 0, 3, 1]
  prompts = [PROMPTS[i] for i in order] + [[50, 51]] * 7
  names = [NAMES[i] for i in order] + list("efghijk")
  shuffled = _generate(dataclasses.replace(engine, **schedule), params, prompts, names)
  for place, original in enumerate(order):
    mine, theirs = slice(3 * place, 3 * place + 3), slice(3 * original, 3 * original + 3)
    np.testing.assert_array_equal(shuffled.tokens[mine], rollouts.tokens[theirs])
    np.testing.assert_allclose(shuffled.logprobs[mine], rollouts.logprobs[theirs], atol=1e-5)


@pytest.mark.parametrize(("dtype", "off"), [("bfloat16", 0.02), ("int8", 0.03)])
def test_a_smaller_cache_is_a_little_off_and_scheduling_still_changes_nothing(
  engine, params, rollouts, dtype, off
):
  small = dataclasses.replace(engine, cache_dtype=dtype)
  found = _generate(small, params)
  both = dataclasses.replace(small, slots=4, prefill_prompts=4, refill_steps=3)
  other = _generate(both, params)
  np.testing.assert_array_equal(other.tokens, found.tokens)
  np.testing.assert_allclose(other.logprobs, found.logprobs, atol=1e-5)
  differences = [
    np.abs(found.logprobs[row, :agreeing] - rollouts.logprobs[row, :agreeing]).max()
    for row, same in enumerate(found.tokens == rollouts.tokens)
    if (agreeing := int(np.append(same, False).argmin()))
  ]
  assert len(differences) > 6
  assert 0 < max(differences) < off


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.7}, {"temperature": 0.0}])
def test_rows_are_those_of_a_sampler_without_cache_slots_or_batches(engine, params, settings):
  found = _generate(engine, params, **settings)
  sampling = make_sampling(settings.pop("temperature", 1.0), STOPS, **settings)
  for row in (0, 4, 11):
    name, ids = NAMES[row // 3], list(PROMPTS[row // 3])
    key = jax.random.fold_in(jax.random.key(0), stable_id(name))
    tokens, logprobs = _simply(params, ids, jax.random.fold_in(key, row % 3), sampling)
    assert found.tokens[row, : len(tokens)].tolist() == tokens
    assert found.lengths[row] == len(tokens)
    np.testing.assert_allclose(found.logprobs[row, : len(tokens)], logprobs, atol=1e-5)


@jax.jit
def _next(params, ids, length, key, sampling):
  """One token after `length` of `ids`, from a forward pass over all of them."""
  row, ones = ids[None], jnp.ones((1, ids.size), jnp.int32)
  hidden, _ = Transformer(CONFIG).apply({"params": params}, row, jnp.arange(ids.size)[None], ones)
  table = output_table(params, CONFIG)
  found = logits(hidden[0, length - 1][None], table, CONFIG, VALID_VOCAB)
  return [array[0] for array in draw(found, key[None], sampling)]


def _simply(params, prompt, key, sampling):
  tokens, logprobs = [], []
  while len(tokens) < 24 and not (tokens and tokens[-1] in STOPS):
    ids = np.zeros(32, np.int32)
    ids[: len(prompt) + len(tokens)] = prompt + tokens
    drawn = jax.random.fold_in(key, len(tokens))
    token, logprob = _next(params, ids, len(prompt) + len(tokens), drawn, sampling)
    tokens.append(int(token))
    logprobs.append(float(logprob))
  return tokens, logprobs


def _request(prompt, name, **changes):
  settings = {
    "key_data": np.asarray(jax.random.key_data(jax.random.key(0))),
    "samples": 3,
    "max_new_tokens": 24,
    "sampling": make_sampling(1.0, STOPS),
  }
  return Request(prompt=prompt, name=name, **settings | changes)


def _serve(engine, params, requests, watch=None):
  with jax.set_mesh(engine.mesh):
    return engine.serve(
      engine.lay_out(params), requests, max_prompt_length=8, max_new_tokens=24, watch=watch
    )


def test_requests_of_different_limits_and_settings_share_slots(engine, params, rollouts):
  few = dataclasses.replace(engine, slots=4, refill_steps=2)
  requests = [
    _request(PROMPTS[0], "a"),
    _request(PROMPTS[1], "b", samples=1, max_new_tokens=5),
    _request(PROMPTS[2], "c", samples=0),
    _request(PROMPTS[3], "d", samples=2, sampling=make_sampling(0.0, STOPS)),
  ]
  served = _serve(few, params, requests)
  assert [found.tokens.shape for found in served.rollouts] == [(3, 24), (1, 5), (0, 24), (2, 24)]
  np.testing.assert_array_equal(served.rollouts[0].tokens, rollouts.tokens[:3])
  np.testing.assert_array_equal(served.rollouts[1].tokens[0], rollouts.tokens[3, :5])
  assert served.rollouts[1].truncated.tolist() == [rollouts.lengths[3] > 5]
  greedy = _generate(engine, params, temperature=0.0, samples=1)
  for row in served.rollouts[3].tokens:
    np.testing.assert_array_equal(row, greedy.tokens[3])
  drawn = sum(int(found.lengths.sum()) for found in served.rollouts)
  assert served.usage.tokens == drawn
  assert drawn <= served.usage.slot_steps <= 4 * drawn


def test_what_a_watch_asks_for_is_served_beside_the_rest(engine, params):
  """A prompt is made of the first tokens of a response while the others are still written."""
  told = {}

  def watch(request, sample, tokens, ended):
    known = told.setdefault((request, sample), [])
    known.append((tokens.tolist(), ended))
    if len(tokens) >= 4 and all(len(earlier) < 4 for earlier, _ in known[:-1]):
      return [_request(tokens[:4].tolist(), f"{request}/{sample}", samples=2)]
    return []

  few = dataclasses.replace(engine, slots=8, refill_steps=2)
  first = [_request(p, n, watched=True) for p, n in zip(PROMPTS, NAMES, strict=True)]
  served = _serve(few, params, first, watch)
  followed = served.rollouts[len(first) :]
  long_enough = [
    (number, sample, found.tokens[sample, :4].tolist())
    for number, found in enumerate(served.rollouts[: len(first)])
    for sample in range(3)
    if found.lengths[sample] >= 4
  ]
  assert len(followed) == len(long_enough) > 3
  expected = {
    tuple(prompt): _generate(engine, params, [prompt], [f"{number}/{sample}"], samples=2).tokens
    for number, sample, prompt in long_enough
  }
  found = {tuple(rollouts.tokens.ravel().tolist()) for rollouts in followed}
  assert found == {tuple(tokens.ravel().tolist()) for tokens in expected.values()}
  for (number, sample), known in told.items():
    tokens = served.rollouts[number].tokens[sample, : served.rollouts[number].lengths[sample]]
    assert known[-1] == (tokens.tolist(), True)
    assert not any(ended for _, ended in known[:-1])
    assert all(tokens[: len(early)].tolist() == early for early, _ in known)


def test_rows_that_go_on_alone_move_together(engine, params):
  """Without stop ids some rows end by their limit early: the others get fewer slots."""
  never = make_sampling(1.0, (63,))  # beyond the valid vocabulary
  requests = [
    _request(PROMPTS[n % 4], str(n), samples=1, sampling=never, max_new_tokens=24 if n < 3 else 4)
    for n in range(32)
  ]
  one = dataclasses.replace(engine, refill_steps=4)
  served = _serve(one, params, requests)
  # 32 slots for 4 steps, then one of a device each for the other 20.
  assert served.usage.slot_steps == 32 * 4 + 4 * 20
  alone = _serve(one, params, requests[:3])
  for found, expected in zip(served.rollouts[:3], alone.rollouts, strict=True):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)


def test_a_layer_that_has_moved_is_deleted_before_the_next_moves(mesh, monkeypatch):
  """So that beside a whole cache there need be room for one layer more only."""
  held = slots.empty(config=CONFIG, mesh=mesh, rows=8, length=32, steps=2, dtype="float32")
  one_after_the_other, deleted = slots._gather, []

  def counted(*arguments, **keywords):
    layers = zip(held.cache.rings, held.cache.recent, strict=True)
    deleted.append([all(leaf.is_deleted() for leaf in jax.tree.leaves(one)) for one in layers])
    return one_after_the_other(*arguments, **keywords)

  monkeypatch.setattr(slots, "_gather", counted)
  rows = shard_batch(np.zeros(4, np.int32), mesh)
  moved = slots.gather(held, rows, config=CONFIG, mesh=mesh)
  assert deleted == [[False, False], [True, False]]
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves((held.cache.rings, held.cache.recent)))
  shapes = [leaf.shape for leaf in jax.tree.leaves(moved.cache.rings)]
  assert shapes == [(4, 2, 8, 6), (4, 2, 6, 8), (4, 2, 8, 32), (4, 2, 32, 8)]


def test_slots_come_back_when_a_watch_asks_for_many_rows(engine, params):
  """One response decodes in one slot a device; its 32 solutions get all slots."""
  never = make_sampling(1.0, (63,))  # beyond the valid vocabulary
  solutions = [_request(PROMPTS[1], str(n), samples=1, sampling=never) for n in range(32)]
  first = _request(PROMPTS[0], "a", samples=1, sampling=never, max_new_tokens=8, watched=True)

  def watch(request, sample, tokens, ended):
    if len(tokens) != 4:
      return []
    return solutions

  one = dataclasses.replace(engine, slots=32, refill_steps=4)
  served = _serve(one, params, [first], watch)
  # One slot a device until the solutions are asked for, eight while they are written; the response
  # has one of these for 4 steps, and so the last solution ends 4 steps after the others.
  assert served.usage.slot_steps == 4 * 4 + 32 * 24 + 4 * 4
  alone = _serve(one, params, solutions)
  for found, expected in zip(served.rollouts[1:], alone.rollouts, strict=True):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)


def test_a_prompt_of_many_samples_is_sampled_on_all_devices(engine, params):
  never = make_sampling(1.0, (63,))  # beyond the valid vocabulary
  served = _serve(engine, params, [_request(PROMPTS[1], "b", samples=32, sampling=never)])
  assert served.usage.slot_steps == served.usage.tokens == 32 * 24
  key = jax.random.fold_in(jax.random.key(0), stable_id("b"))
  for sample in (0, 9, 31):
    tokens, _ = _simply(params, PROMPTS[1], jax.random.fold_in(key, sample), never)
    assert served.rollouts[0].tokens[sample, : len(tokens)].tolist() == tokens


def test_samples_of_several_prompts_are_shared_alike(engine, params):
  """Fifteen prompts of 8 samples are 15 rows a device, of 8 and 7 and not of 8, 7, 1."""
  never = make_sampling(1.0, (63,))  # beyond the valid vocabulary
  requests = [_request(PROMPTS[0], str(n), samples=8, sampling=never) for n in range(15)]
  served = _serve(dataclasses.replace(engine, slots=128), params, requests)
  assert served.usage.tokens == 120 * 24
  assert served.usage.slot_steps == 128 * 24


@pytest.mark.parametrize("samples", [4, 32])
def test_samples_that_a_watch_asks_for_are_shared_too(engine, params, samples):
  never = make_sampling(1.0, (63,))  # beyond the valid vocabulary
  asked = [_request(PROMPTS[1], "b", samples=samples, sampling=never)]
  first = [
    _request(PROMPTS[0], name, samples=8, sampling=never, max_new_tokens=8, watched=name == "a")
    for name in "acde"
  ]

  def watch(request, sample, tokens, ended):
    return asked if ended and sample == 0 else []

  served = _serve(dataclasses.replace(engine, slots=32, refill_steps=4), params, first, watch)
  # All slots for the first, and then as many as there are samples, at once.
  assert served.usage.slot_steps == served.usage.tokens == 32 * 8 + samples * 24


def test_processes_speak_three_times_a_call_of_the_decoder(engine, params, monkeypatch):
  """And once more for each batch of prompts, and for the rows before and the tokens after all."""
  calls = collections.Counter()

  def count(module, name):
    function = getattr(module, name)

    def counted(*arguments, **keywords):
      calls[name] += 1
      return function(*arguments, **keywords)

    monkeypatch.setattr(module, name, counted)

  count(processes, "global_maxima")
  count(processes, "global_sum")
  count(slots, "decode")
  count(slots, "prefill")
  few = dataclasses.replace(engine, slots=4, refill_steps=2)
  _serve(few, params, [_request(prompt, "a") for prompt in PROMPTS])
  assert calls["decode"] > 2 * calls["prefill"] > 0
  assert calls["global_maxima"] == 3 * (calls["decode"] + 1) + calls["prefill"]
  assert calls["global_sum"] == 2


def test_one_device_equals_eight(params, rollouts):
  one = jax.sharding.Mesh(
    np.array(jax.devices()[:1]).reshape(1, 1),
    ("fsdp", "tensor"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  alone = Engine(CONFIG, one, VALID_VOCAB, prompt_bucket=8)
  local = jax.device_put(jax.device_get(params), jax.devices()[0])
  found = _generate(alone, local)
  np.testing.assert_array_equal(found.tokens, rollouts.tokens)
  np.testing.assert_allclose(found.logprobs, rollouts.logprobs, atol=1e-5)


def test_greedy_is_the_scorers_argmax(engine, params):
  rollouts = _generate(engine, params, temperature=0.0, samples=1)
  prompt, length = PROMPTS[1], rollouts.lengths[1]
  tokens = rollouts.tokens[1, :length]
  row = jnp.array([[*prompt, *tokens]], jnp.int32)
  hidden, _ = Transformer(CONFIG).apply(
    {"params": params}, row, jnp.arange(row.shape[1])[None], jnp.ones_like(row)
  )
  logits = np.asarray(hidden @ output_table(params, CONFIG).T)[0, :, :VALID_VOCAB]
  np.testing.assert_array_equal(logits.argmax(-1)[len(prompt) - 1 : -1], tokens)


def test_nothing_is_compiled_after_a_warm_up(engine, params):
  jax.clear_caches()  # other tests compile much of it
  few = dataclasses.replace(engine, slots=8)
  # Two slots on each device, which shrink to one at the end, and one in which rows begin.
  _generate(few, params, prompts=PROMPTS * 3, names=[str(n) for n in range(12)])
  _generate(few, params, samples=1)
  before = len(COMPILED)
  _generate(few, params, temperature=0.3, top_k=5, top_p=0.9, min_p=0.1)
  _generate(few, params, temperature=0.0)
  _generate(few, params, prompts=[[5], [6, 7, 8], [8], [9] * 5])
  _generate(few, params, prompts=PROMPTS * 4, names=[str(n) for n in range(16)], samples=1)
  with jax.set_mesh(few.mesh):
    requests = [_request(PROMPTS[0], "a", sampling=make_sampling(1.0, (5, 6, 7)))] * 3
    few.serve(few.lay_out(params), requests, max_prompt_length=8, max_new_tokens=24)
  assert len(COMPILED) == before
  _generate(dataclasses.replace(few, refill_steps=7), params)
  assert len(COMPILED) > before  # the count does count


def test_no_prompts_no_rollouts(engine, params):
  empty = _generate(engine, params, prompts=[], names=[])
  assert empty.tokens.shape == (0, 24)


def test_prompts_that_do_not_fit_are_refused(engine, params):
  with pytest.raises(ValueError, match="'a' has 9 tokens; expected 1 to 8"):
    _generate(engine, params, prompts=[[3] * 9], names=["a"])
  with pytest.raises(ValueError, match="'b' has 0 tokens"):
    _generate(engine, params, prompts=[[]], names=["b"])


def test_left_padding():
  assert left_padded([[1, 2], [3]], 3).tolist() == [[0, 1, 2], [0, 0, 3]]


@pytest.mark.parametrize(("rows", "count"), [(1, 4), (5, 8), (9, 16), (32, 32), (33, 32)])
def test_few_rows_get_few_slots(engine, rows, count):
  """At most 32, a power of two for each of the four devices that share them."""
  assert dataclasses.replace(engine, slots=32).layout(rows, 40).slots == count
