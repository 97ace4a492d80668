"""Updates: microbatches equal the whole, eight devices equal one, masked tokens leave no trace."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base as base_config
from pasmr_jax.learning import losses, update
from pasmr_jax.learning.optim import NAMES, make_optimizer
from pasmr_jax.learning.update import Learner
from pasmr_jax.models import lora
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import as_computed, init_params, param_shapes
from pasmr_jax.parallel import rules
from pasmr_jax.parallel.mesh import adapter_shardings, make_mesh, param_shardings, shard_batch

CONFIG = TransformerConfig(
  vocab_size=64,
  embed_dim=32,
  num_layers=1,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=64,
  query_scale=8**-0.5,
)
LENGTH, ROWS, EOS = 10, 8, 1
# Plain descent: parameters move by the gradient itself, so that gradients are what is compared.
DESCENT = optax.sgd(1.0)
SETTINGS = losses.PolicySettings(0.2, 0.2, 0.1, 2.0, 1.0, kl_estimator="k3")


def _rows(seed=0):
  rng = np.random.default_rng(seed)
  ends = rng.integers(5, LENGTH + 1, ROWS)
  inside = np.arange(LENGTH) < ends[:, None]
  tokens = rng.integers(2, 60, (ROWS, LENGTH))
  tokens[np.arange(ROWS), ends - 1] = EOS
  weights = inside & (np.arange(LENGTH) >= 3)
  return losses.Sequences(
    (tokens * inside).astype(np.int32),
    np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape),
    inside.astype(np.int32),
    weights.astype(np.float32),
  )


def _policy_batch(seed=0):
  rng = np.random.default_rng(seed + 100)
  noise = lambda scale: rng.normal(0, scale, (ROWS, LENGTH)).astype(np.float32)  # noqa: E731
  return losses.PolicyBatch(_rows(seed), noise(1), noise(0.1) - 4, noise(0.1) - 4, noise(0.1) - 4)


_INITIAL = jax.tree.map(np.asarray, jax.jit(lambda: init_params(CONFIG, jax.random.key(0)))())


def _params():
  """A fresh copy: updates donate what they are given."""
  return jax.tree.map(jnp.asarray, _INITIAL)


def _learner(**changes):
  learner = Learner(CONFIG, DESCENT, valid_vocab=60, chunk=4, entropy=True)
  return dataclasses.replace(learner, **changes)


def _close(one, other, atol):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(jax.device_get(a), jax.device_get(b), atol=atol)


def _updated(learner, params=None):
  state = learner.init(_params() if params is None else params)
  state, _ = learner.update_supervised(state, _rows())
  return learner.update_policy(state, _policy_batch(), _rows(1), SETTINGS, np.float32(0.5))


@pytest.fixture(scope="module")
def whole():
  return _updated(_learner())


def test_microbatches_equal_the_whole_batch(whole):
  state, metrics = _updated(_learner(microbatches=4))
  assert metrics.keys() == whole[1].keys() >= {"entropy", "exact_entropy"}
  assert 0 < float(metrics["exact_entropy"]) < math.log(60)
  _close(state.params, whole[0].params, 2e-6)
  for name, value in whole[1].items():
    assert float(metrics[name]) == pytest.approx(float(value), rel=2e-4, abs=1e-5), name


def test_microbatches_without_a_weight_are_not_computed(monkeypatch):
  """Six rows of eight, dealt over microbatches of two: the last is empty, and never run."""
  batch, rehearsal = _policy_batch(), _rows(1)
  used = np.array([1, 1, 1, 0, 1, 1, 1, 0], bool)  # `_split`: microbatch 3 has rows 3 and 7
  blank = jax.tree.map(lambda leaf: np.where(used[:, None], leaf, 0).astype(leaf.dtype), batch)
  rows = jax.tree.map(lambda leaf: leaf[used], batch)
  run = []
  token_loss, token_logprobs = update.token_loss, update.token_logprobs

  def counted(name, function):
    def call(params, sequences, *others):
      jax.debug.callback(lambda: run.append((name, sequences.tokens.shape[0])))
      return function(params, sequences, *others)

    return call

  monkeypatch.setattr(update, "token_loss", counted("loss", token_loss))
  monkeypatch.setattr(update, "token_logprobs", counted("score", token_logprobs))
  learner = _learner(microbatches=2, row_bucket=4, chunk=5)
  state, metrics = learner.update_policy(
    learner.init(_params()), blank, rehearsal, SETTINGS, np.float32(0.5)
  )
  scored = learner.score(_params(), blank.sequences, 1.0)
  jax.effects_barrier()
  assert sorted(run) == [("loss", 2)] * 3 + [("loss", 4)] * 2 + [("score", 2)] * 3
  monkeypatch.undo()

  plain = _learner()
  expected, wanted = plain.update_policy(
    plain.init(_params()), rows, rehearsal, SETTINGS, np.float32(0.5)
  )
  _close(state.params, expected.params, 2e-6)
  assert metrics.keys() == wanted.keys()
  for name, value in wanted.items():
    assert float(metrics[name]) == pytest.approx(float(value), rel=2e-4, abs=1e-5), name
  np.testing.assert_allclose(scored[used], plain.score(_params(), rows.sequences, 1.0), atol=1e-5)
  assert not np.asarray(scored)[~used].any()


@pytest.mark.parametrize(("replica", "fsdp"), [(1, 4), (2, 2)])
def test_eight_devices_equal_one(whole, replica, fsdp):
  mesh = make_mesh(fsdp, 2, replica=replica)
  shardings = param_shardings(CONFIG, mesh, rules.TRAINING)
  with jax.set_mesh(mesh):
    params = jax.device_put(_params(), shardings)
    learner = _learner(microbatches=2)
    state = learner.init(params)
    state, _ = learner.update_supervised(state, shard_batch(_rows(), mesh))
    state, metrics = learner.update_policy(
      state,
      shard_batch(_policy_batch(), mesh),
      shard_batch(_rows(1), mesh),
      SETTINGS,
      np.float32(0.5),
    )
  _close(state.params, whole[0].params, 1e-5)
  assert metrics.keys() == whole[1].keys()
  for name, value in whole[1].items():
    assert float(metrics[name]) == pytest.approx(float(value), rel=2e-4, abs=1e-5), name
  kept = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b, a.ndim), state.params, shardings)
  assert all(jax.tree.leaves(kept))


def test_moments_are_born_with_their_parameters_sharding():
  mesh = make_mesh(4, 2)
  shardings = param_shardings(CONFIG, mesh, rules.TRAINING)
  params = jax.device_put(_params(), shardings)
  state = _learner(optimizer=optax.adamw(1e-3)).init(params)
  moments = optax.tree_utils.tree_get(state.opt_state, "mu")
  same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b, a.ndim), moments, shardings)
  assert all(jax.tree.leaves(same))
  assert state.step.sharding.is_fully_replicated


def _compiled(function, *arguments):
  """What a jitted function compiles to for such arguments."""
  # Flat, because a state of shapes is none that the run-time check of types lets pass.
  leaves, tree = jax.tree.flatten(arguments)
  inline = jax.jit(lambda *leaves: function(*jax.tree.unflatten(tree, leaves)))
  return inline.lower(*leaves).compile()


@pytest.mark.parametrize("devices", [1, 8])
def test_no_program_has_the_logits_of_a_microbatch(devices):
  """In what a run calls no array has a number for each token of a device and each id."""
  config = dataclasses.replace(CONFIG, vocab_size=4 * 97, final_softcap=20.0)
  learner = _learner(config=config, microbatches=2, chunk=2, optimizer=optax.adam(1e-3))
  mesh = make_mesh(devices // 2 or 1, min(devices, 2), jax.devices()[:devices])
  vocabulary = config.vocab_size // mesh.shape["tensor"]
  widths = {config.embed_dim, config.embed_dim // mesh.shape["fsdp"]}  # of tables
  with jax.set_mesh(mesh):
    shardings = param_shardings(config, mesh, rules.TRAINING)
    initialize = jax.jit(lambda: init_params(config, jax.random.key(0)), out_shardings=shardings)
    state = learner.init(initialize())
    rows, batch = shard_batch(_rows(), mesh), shard_batch(_policy_batch(), mesh)

    def policy(state, batch, rows):
      return learner.update_policy(state, batch, rows, SETTINGS, np.float32(0.5))

    programs = [
      _compiled(policy, state, batch, rows),
      _compiled(learner.update_supervised, state, rows),
      _compiled(lambda params, rows: learner.score(params, rows, 1.0), state.params, rows),
    ]
  for program in programs:
    arrays = re.findall(r"\[([\d,]+)\]", program.as_text())
    shapes = {tuple(map(int, dims.split(","))) for dims in arrays}
    logits = {
      math.prod(dims) // vocabulary
      for dims in shapes
      if vocabulary in dims and not widths & {*dims}
    }
    # A chunk of two tokens, of ten or of forty that a device has; and the numbers of all ids.
    assert max(logits) == 2


def test_states_are_donated():
  """What an update changes is changed in place: parameters, moments and average."""
  learner = _learner(optimizer=optax.adam(1e-3), average_decay=0.5, microbatches=2)
  state = learner.init(_params(), average=True)
  for update_once in (
    lambda state: learner.update_policy(state, _policy_batch(), None, SETTINGS, np.float32(0)),
    lambda state: learner.update_supervised(state, _rows()),
  ):
    held = jax.tree.leaves(state)
    state, _ = update_once(state)  # a donated array of no use would be a warning, an error here
    assert all(leaf.is_deleted() for leaf in held)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_recomputing_needs_less_memory_in_this_order():
  """What lies between the two passes of a deep model, by the name of what is recomputed."""
  needed = []
  for remat in ("full", "dots", "none"):
    config = dataclasses.replace(CONFIG, num_layers=12, remat=remat)
    learner = _learner(config=config)
    params = jax.jit(lambda config=config: init_params(config, jax.random.key(0)))()
    compiled = _compiled(learner.update_supervised, learner.init(params), _rows())
    needed.append(compiled.memory_analysis().temp_size_in_bytes)
  assert needed[0] < 0.9 * needed[1] < 0.9 * 0.9 * needed[2]


@pytest.mark.parametrize(
  ("dtype", "param_dtype", "moment_dtype"),
  [
    ("float32", "float32", "bfloat16"),
    ("bfloat16", "float32", ""),
    ("bfloat16", "bfloat16", ""),
    ("bfloat16", "bfloat16", "float32"),
  ],
)
def test_dtypes_by_key(dtype, param_dtype, moment_dtype):
  """Parameters and moments stay in their dtype, products are in that of the computation."""
  config = dataclasses.replace(CONFIG, dtype=dtype, param_dtype=param_dtype)
  optimizer = make_optimizer(_settings(moment_dtype=moment_dtype), 9)
  learner = _learner(config=config, optimizer=optimizer)
  state = learner.init(jax.tree.map(lambda leaf: leaf.astype(param_dtype), _params()))
  traced = str(Learner.update_supervised.trace(learner, state, _rows()).jaxpr)
  name = {"float32": "f32", "bfloat16": "bf16"}
  assert re.search(rf"{name[dtype]}\[8,10,64\] = dot_general", traced)  # of the MLP
  state, metrics = learner.update_supervised(state, _rows())
  assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {param_dtype}
  moments = [optax.tree_utils.tree_get(state.opt_state, moment) for moment in ("mu", "nu")]
  assert {leaf.dtype.name for leaf in jax.tree.leaves(moments)} == {moment_dtype or param_dtype}
  assert metrics["loss"].dtype == jnp.float32
  assert float(metrics["loss"]) == pytest.approx(4.928670, rel=0.01)  # as in test_golden_steps


def test_golden_steps():
  """Numbers of five updates as they were when written down: a change of any of them is a change."""
  learner = _learner(optimizer=make_optimizer(_settings(warmup_steps=2), 10))
  state = learner.init(_params())
  seen = []
  for step in range(3):
    state, metrics = learner.update_supervised(state, _rows(step))
    seen.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
  for step in range(2):
    batch = _policy_batch(step)
    state, metrics = learner.update_policy(state, batch, _rows(3), SETTINGS, np.float32(0.5))
    seen.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
  golden = [
    (4.928670, 4.032950),
    (4.384824, 3.778996),
    (4.424620, 3.198573),
    (2.401100, 5.618911),
    (3.784371, 9.685868),
  ]
  np.testing.assert_allclose(seen, golden, rtol=2e-4)


def test_end_of_sequence_is_learned():
  """Trained on one row, the model ends it: the stop id is a target like any other token."""
  learner = _learner(optimizer=optax.adam(3e-2))
  state = learner.init(_params())
  rows = jax.tree.map(lambda x: x[:1], _rows())
  for _ in range(30):
    state, _ = learner.update_supervised(state, rows)
  logprobs = np.asarray(learner.score(state.params, rows, 1.0))[0]
  end = int(rows.segment_ids.sum()) - 1
  assert rows.tokens[0, end] == EOS
  assert logprobs[end] > -0.1


def test_masked_rows_and_prompts_have_zero_gradient():
  """Weights of zero (prompt, padding, truncated responses) leave no trace in the update."""
  learner = _learner()
  batch = _policy_batch()
  weights = batch.sequences.weights.copy()
  weights[3] = 0
  masked = batch.replace(sequences=batch.sequences.replace(weights=weights))
  tokens = batch.sequences.tokens.copy()
  tokens[3] = 9
  advantages = np.where(weights > 0, batch.advantages, 77.0).astype(np.float32)
  other = masked.replace(advantages=advantages, sequences=masked.sequences.replace(tokens=tokens))
  one, _ = learner.update_policy(learner.init(_params()), masked, None, SETTINGS, np.float32(0))
  two, _ = learner.update_policy(learner.init(_params()), other, None, SETTINGS, np.float32(0))
  _close(one.params, two.params, 1e-7)
  none = batch.replace(sequences=batch.sequences.replace(weights=np.zeros_like(weights)))
  still, _ = learner.update_policy(learner.init(_params()), none, None, SETTINGS, np.float32(0))
  _close(still.params, _params(), 0)


def test_the_moving_average_follows_the_parameters():
  learner = _learner(average_decay=0.75)
  state = learner.init(_params(), average=True)
  before = jax.device_get(state.params)
  state, _ = learner.update_supervised(state, _rows())
  expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, before, jax.device_get(state.params))
  _close(state.average, expected, 1e-6)


@pytest.mark.parametrize("begin", [1.0, 0.95])
def test_the_moving_average_of_bfloat16_parameters_is_exact(begin):
  """It stays where the parameters stay, and gets where they went."""
  learner = _learner(optimizer=optax.set_to_zero(), average_decay=0.99)
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), _params())
  goal = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
  state = learner.init(params, average=True)
  state = state.replace(average=jax.tree.map(lambda leaf: begin * leaf, state.average))
  for _ in range(40):
    state, _ = learner.update_supervised(state, _rows())
  assert {leaf.dtype.name for leaf in jax.tree.leaves(state.average)} == {"float32"}
  share = 0.99**40 * begin + 1 - 0.99**40
  _close(state.average, jax.tree.map(lambda leaf: share * leaf, goal), 1e-5)


def _settings(**changes):
  settings = base_config.optimizer(1e-2)
  settings.update(changes)
  return settings


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_descends(name):
  learner = _learner(optimizer=make_optimizer(_settings(name=name, learning_rate=3e-3), 50))
  state = learner.init(_params())
  state, first = learner.update_supervised(state, _rows())
  for _ in range(10):
    state, last = learner.update_supervised(state, _rows())
  assert float(last["loss"]) < float(first["loss"]) - 0.2


# Adapters.

LORA = lora.LoraSettings(rank=3, alpha=6.0, targets=("query", "output", "down"))
_SHAPES = lora.adapter_shapes(param_shapes(CONFIG), LORA)


def _adapters():
  """Ones that add something, as after some steps."""
  made = lora.init_adapters(_SHAPES, jax.random.key(1))
  return jax.tree.map(lambda x: x + 0.2 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), made)


def _frozen(params=None):
  return lora.Frozen(_params() if params is None else params, LORA, "seed:0")


def _adapted(learner):
  """The state after a supervised and a policy step of adapters."""
  state = learner.init(_adapters(), frozen=_frozen())
  state, _ = learner.update_supervised(state, _rows())
  return learner.update_policy(state, _policy_batch(), _rows(1), SETTINGS, np.float32(0.5))


def test_adapters_move_by_the_gradient_through_their_sum_and_nothing_else_moves():
  learner = _learner()
  state, metrics = learner.update_supervised(learner.init(_adapters(), frozen=_frozen()), _rows())

  def loss(adapters, rows):
    merged = lora.merged(lora.Adapted(_params(), adapters, LORA.scale))
    return learner._supervised(merged, losses.normalized(rows))[0]

  expected, gradients = jax.jit(jax.value_and_grad(loss))(_adapters(), _rows())
  assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
  _close(state.params, jax.tree.map(jnp.subtract, _adapters(), gradients), 1e-5)
  assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients)) > 1e-3
  _close(state.frozen.params, _params(), 0)


def test_frozen_weights_have_no_moments_and_their_table_no_gradient():
  config = dataclasses.replace(CONFIG, vocab_size=96)
  learner = _learner(config=config, optimizer=optax.adamw(1e-3))
  params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
  state = learner.init(_adapters(), frozen=_frozen(params))
  moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
  assert moments == 2 * sum(leaf.size for leaf in jax.tree.leaves(_SHAPES)) + 1
  # The output table's gradient has an axis of devices while it is summed: [1, 96, 32].
  traced = str(Learner.update_supervised.trace(learner, state, _rows()).jaxpr)
  assert "f32[1,96,32]" not in traced
  whole = learner.init(params)
  assert "f32[1,96,32]" in str(Learner.update_supervised.trace(learner, whole, _rows()).jaxpr)


@pytest.mark.parametrize(("replica", "fsdp"), [(1, 4), (2, 2)])
def test_adapters_in_microbatches_on_eight_devices_equal_those_of_one(replica, fsdp):
  one, metrics = _adapted(_learner())
  mesh = make_mesh(fsdp, 2, replica=replica)
  shardings = param_shardings(CONFIG, mesh, rules.TRAINING)
  own = adapter_shardings(CONFIG, mesh, rules.TRAINING, LORA)
  learner = _learner(microbatches=2)
  with jax.set_mesh(mesh):
    frozen = _frozen(jax.device_put(_params(), shardings))
    state = learner.init(jax.device_put(_adapters(), own), frozen=frozen)
    state, _ = learner.update_supervised(state, shard_batch(_rows(), mesh))
    state, found = learner.update_policy(
      state,
      shard_batch(_policy_batch(), mesh),
      shard_batch(_rows(1), mesh),
      SETTINGS,
      np.float32(0.5),
    )
  _close(state.params, one.params, 2e-5)
  assert float(found["loss"]) == pytest.approx(float(metrics["loss"]), abs=1e-5)
  for tree, expected in ((state.params, own), (state.frozen.params, shardings)):
    kept = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b, a.ndim), tree, expected)
    assert all(jax.tree.leaves(kept))


def test_a_reference_in_the_compute_dtype_scores_the_same_to_the_bit():
  config = dataclasses.replace(CONFIG, dtype="bfloat16")
  learner, params = _learner(config=config), _params()
  reference = as_computed(params, config)
  assert reference["embedding"].dtype == jnp.bfloat16
  assert reference["final_norm"]["scale"].dtype == jnp.float32
  scored = [learner.score(one, _rows(), 1.0) for one in (params, reference)]
  np.testing.assert_array_equal(*scored)
