"""One jitted optimizer step: `(state, batch) -> (state, metrics)`, its state donated.

`Learner.update_supervised` and `Learner.update_policy` do the same: make the weights sum to 1 over
the global batch (so that microbatches equal the whole), split it into microbatches, add up their
gradients (`_gradients`), clip, and apply the optimizer once (`_apply`). A microbatch in which
nothing has a weight is left out: how many rows a rollout needs is known only then, and one program
with room for the most serves them all. An update whose loss or gradient is not finite is skipped:
the state keeps all but its step, and `skipped_updates` is 1.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from pasmr_jax.learning import losses
from pasmr_jax.learning.logprobs import (
  Number,
  Parts,
  Scoring,
  add_parts,
  token_logprobs,
  token_loss,
)
from pasmr_jax.learning.optim import map_moments
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.lora import Adapted, Frozen
from pasmr_jax.parallel import rules
from pasmr_jax.parallel.mesh import abstract, adapter_shardings, param_shardings


class TrainState(flax.struct.PyTreeNode):
  """All that an update changes."""

  step: Any  # updates of this stage done: Int[Array, ""], or its shape in `Learner.abstract`
  params: Any  # those that are trained: all, or adapters
  opt_state: optax.OptState
  average: Any | None  # float32 moving average of params, held only when it is the teacher
  frozen: Frozen | None = None  # the weights under params where these are adapters

  def whole(self, params: Any = None) -> Any:
    """What a forward pass takes: `params` (the state's own if None) on their frozen weights."""
    params = self.params if params is None else params
    if self.frozen is None:
      return params
    return Adapted(self.frozen.params, params, self.frozen.settings.scale)


Metrics = dict[str, Float[Array, ""]]
Found = tuple[Array, dict[str, Array]]  # a loss and its parts; of each replica where there are any


@dataclasses.dataclass(frozen=True)
class Learner:
  """What is fixed about updates during a stage. Hashable, so that methods jit on it."""

  config: TransformerConfig
  optimizer: optax.GradientTransformation
  valid_vocab: int
  microbatches: int = 1  # of a batch, or of each `row_bucket` rows
  row_bucket: int = 0  # rows of a policy batch that `microbatches` divide; 0 is all of them
  chunk: int = 0  # tokens of a device whose logits exist at a time; 0 is by size (logprobs.LOGITS)
  average_decay: float = 0.0  # of the moving average, an update
  entropy: bool = False  # whether a policy's update reports `exact_entropy`

  def init(self, params, average: bool = False, frozen: Frozen | None = None) -> TrainState:
    """A state at step 0. Optimizer moments are born with the parameters' sharding.

    Args:
      params: what is trained.
      average: whether to hold their moving average.
      frozen: the weights that they are adapters of.

    Raises:
      ValueError: on parameters with leaves that are not arrays.
    """
    replicated = _replicated_like(params)
    opt_state = jax.jit(self.optimizer.init, out_shardings=self.opt_shardings(params))(params)
    step = jax.jit(lambda: jnp.int32(0), out_shardings=replicated)()
    # In bfloat16 a hundredth of a difference would be lost.
    averaged = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params) if average else None
    return TrainState(step, params, opt_state, averaged, frozen)

  def abstract(self, params, average: bool = False, frozen: Frozen | None = None) -> TrainState:
    """What `init` gives without its arrays, to restore a checkpoint into.

    Takes what `init` takes, but `params` is a tree of jax.ShapeDtypeStructs with shardings, as are
    all leaves of the state that is returned but those of `frozen`.
    """
    opt_state = abstract(jax.eval_shape(self.optimizer.init, params), self.opt_shardings(params))
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=_replicated_like(params))
    averaged = None
    if average:
      averaged = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), params
      )
    return TrainState(step, params, opt_state, averaged, frozen)

  def opt_shardings(self, params):
    """Moments are laid out like their parameter; counters and factored moments are replicated."""
    replicated = _replicated_like(params)
    return map_moments(
      lambda moment, param: param.sharding if moment.shape == param.shape else replicated,
      jax.eval_shape(self.optimizer.init, params),
      params,
      lambda _: replicated,
    )

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
  def update_supervised(
    self, state: TrainState, batch: losses.Sequences
  ) -> tuple[TrainState, Metrics]:
    """One supervised step on a global batch."""
    batch = losses.normalized(batch)
    found, gradients = self._gradients(state, batch, self._supervised, self.microbatches)
    return self._apply(state, found, gradients)

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
  def update_policy(
    self,
    state: TrainState,
    batch: losses.PolicyBatch,
    rehearsal: losses.Sequences | None,
    settings: losses.PolicySettings,
    rehearsal_weight: Float[Array, ""],
  ) -> tuple[TrainState, Metrics]:
    """One policy-gradient step, with a supervised rehearsal term unless `rehearsal` is None."""

    def policy(params, batch):
      def loss(logprobs, part):
        return losses.policy_loss(logprobs, part, settings)

      scoring = self._scoring(settings.temperature, self.entropy)
      total, parts = token_loss(params, batch.sequences, batch, loss, scoring)
      return total, parts | {"policy_loss": total}

    def rehearse(params, sequences):
      total, _ = self._supervised(params, sequences)
      return rehearsal_weight * total, {"rehearsal_loss": total}

    weighed = (batch.sequences.weights > 0).any()
    batch = batch.replace(sequences=losses.normalized(batch.sequences))
    pieces, filled = self.pieces(len(batch.advantages)), batch.sequences.weights != 0
    found, gradients = self._gradients(state, batch, policy, pieces, filled=filled)
    if rehearsal is not None:
      (total, parts), rehearsal = found, losses.normalized(rehearsal)
      (more, own), gradients = self._gradients(
        state, rehearsal, rehearse, self.microbatches, start=gradients
      )
      found = total + more, parts | own
    state, metrics = self._apply(state, found, gradients)
    return state, metrics | {"policy_updates": weighed.astype(jnp.float32)}

  @functools.partial(jax.jit, static_argnums=0)
  def score(
    self, params, sequences: losses.Sequences, temperature: Float[Array, ""]
  ) -> Float[Array, "B T"]:
    """Log-probabilities without a gradient of the tokens that have a weight, 0 of the others.

    Microbatch by microbatch: of the old policy, or of the reference.
    """
    scoring, pieces = self._scoring(temperature), self.pieces(len(sequences.weights))

    def score(piece):
      return token_logprobs(params, piece, scoring, piece.weights != 0)

    def score_filled(piece):
      nothing = lambda piece: jnp.zeros_like(piece.weights)  # noqa: E731
      return jax.lax.cond((piece.weights != 0).any(), score, nothing, piece)

    if pieces == 1:
      return score(sequences)
    return _join(jax.lax.map(score_filled, _split(sequences, pieces)))

  def pieces(self, rows: int) -> int:
    """Microbatches of a policy batch of so many rows, those that are left out included."""
    return self.microbatches * rows // (self.row_bucket or rows)

  def _supervised(self, params, sequences: losses.Sequences):
    """The supervised loss of a batch, which has no parts."""

    def loss(logprobs, weights):
      return losses.supervised_loss(logprobs, weights), {}

    return token_loss(params, sequences, sequences.weights, loss, self._scoring(1.0))

  def _scoring(self, temperature: Number, entropy: bool = False) -> Scoring:
    return Scoring(self.config, self.valid_vocab, temperature, self.chunk, entropy)

  def _gradients(
    self,
    state: TrainState,
    batch: Any,
    loss: Callable[[Any, Any], tuple[Array, Parts]],
    pieces: int,
    start: Any = None,
    filled: Bool[Array, "B T"] | None = None,
  ) -> tuple[Found, Any]:
    """A loss with its parts, and its gradients, summed over the microbatches of a batch.

    On a mesh of several replicas each has sums of its own, along a leading axis: `_together` adds
    them up.

    Args:
      state: its parameters are differentiated.
      batch: tree of arrays, rows first.
      loss: parameters (with those that are frozen) and a microbatch -> loss and parts.
      pieces: how many microbatches.
      start: gradients that these are added to.
      filled: a microbatch without any is left out; None computes all.
    """
    differentiate = jax.value_and_grad(
      lambda params, piece: loss(state.whole(params), piece), has_aux=True
    )
    combine, hold = add_parts, lambda gradients: gradients
    if _replicas() > 1:
      differentiate = jax.vmap(
        differentiate, in_axes=(None, 0), axis_name="replica", spmd_axis_name="replica"
      )
      combine, hold = jax.vmap(add_parts), lambda gradients: jax.tree.map(_apart, gradients)
    split = _dealt(batch, pieces)
    first = jax.tree.map(lambda x: x[0], split)
    if pieces == 1:
      found, gradients = differentiate(state.params, first)
      return found, hold(gradients if start is None else jax.tree.map(jnp.add, start, gradients))

    def add(sums, piece):
      found, gradients = differentiate(state.params, piece)
      return combine(sums[0], found), hold(jax.tree.map(jnp.add, sums[1], gradients))

    def step(sums, piece):
      piece, wanted = piece
      if wanted is None:
        return add(sums, piece), None
      return jax.lax.cond(wanted, add, lambda sums, _: sums, sums, piece), None

    wanted = None
    if filled is not None:
      places = _dealt(filled, pieces)
      wanted = places.any(axis=tuple(range(1, places.ndim)))
    shapes = jax.eval_shape(differentiate, state.params, first)
    found, gradients = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums = found, hold(gradients) if start is None else start
    return jax.lax.scan(step, sums, (split, wanted))[0]

  def _apply(self, state: TrainState, found: Found, gradients: Any) -> tuple[TrainState, Metrics]:
    """The state after the optimizer's step, and what is told of it."""
    (total, parts), gradients = _together(found, gradients)
    norm = optax.tree.norm(optax.tree.cast(gradients, jnp.float32))
    # One number that is not finite would spread to every parameter: such a step changes nothing.
    sound = jnp.isfinite(total) & jnp.isfinite(norm)
    held = (state.params, state.opt_state, state.average)
    # Not a choice between new and old arrays: that would keep both.
    params, opt_state, average = jax.lax.cond(
      sound, lambda held: self._moved(gradients, *held), lambda held: held, held
    )
    skipped = 1.0 - sound.astype(jnp.float32)
    metrics = {"loss": total, "gradient_norm": norm, "skipped_updates": skipped, **parts}
    moved = TrainState(state.step + 1, params, opt_state, average, state.frozen)
    return self._laid_out(moved), metrics

  def _laid_out(self, state: TrainState) -> TrainState:
    """The state, split as it was. Unless told, XLA for GPUs leaves all of it on each of them."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
      return state
    shardings = param_shardings(self.config, mesh, rules.TRAINING)
    if state.frozen is not None:
      settings = state.frozen.settings
      shardings = adapter_shardings(self.config, mesh, rules.TRAINING, settings)
    hold = jax.lax.with_sharding_constraint
    placed = self.opt_shardings(abstract(state.params, shardings))
    return state.replace(
      params=hold(state.params, shardings),
      opt_state=hold(state.opt_state, placed),
      average=None if state.average is None else hold(state.average, shardings),
    )

  def _moved(self, gradients, params, opt_state, average):
    """Parameters, optimizer state and moving average a step further."""
    updates, opt_state = self.optimizer.update(gradients, opt_state, params)
    params = optax.apply_updates(params, updates)
    if average is not None:
      keep = self.average_decay
      average = jax.tree.map(
        lambda a, p: keep * a + (1 - keep) * p.astype(a.dtype), average, params
      )
    return params, opt_state, average


def _replicas() -> int:
  """Of the current mesh: each holds all parameters, and a network may be between them."""
  return jax.sharding.get_abstract_mesh().shape.get("replica", 1)


def _together(found: Found, gradients: Any) -> tuple[Found, Any]:
  """Loss, parts and gradients of all replicas: the one time that they tell each other."""
  if _replicas() == 1:
    return found, gradients
  each = [jax.tree.map(lambda x, one=one: x[one], found) for one in range(_replicas())]
  return functools.reduce(add_parts, each), jax.tree.map(lambda x: x.sum(axis=0), gradients)


def _dealt(tree: Any, pieces: int) -> Any:
  """The microbatches of a batch, `[pieces, rows, ...]`; or `[pieces, replicas, rows, ...]`."""
  replicas = _replicas()
  if replicas == 1:
    return _split(tree, pieces)
  apart = jax.tree.map(lambda x: _apart(x.reshape(replicas, -1, *x.shape[1:]), "fsdp"), tree)
  return jax.vmap(lambda own: _split(own, pieces), out_axes=1)(apart)


def _apart(array: Array, *axes: str) -> Array:
  """An array of replicas with each one's part on its own devices, split there over `axes`."""
  rest = [PartitionSpec.UNCONSTRAINED] * (array.ndim - 1 - len(axes))
  return jax.lax.with_sharding_constraint(array, PartitionSpec("replica", *axes, *rest))


def _split(tree, pieces: int):
  """`[B, ...] -> [pieces, B / pieces, ...]`, every piece taking rows from every device's share."""
  return jax.tree.map(
    lambda x: jnp.swapaxes(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 0, 1), tree
  )


def _join(array: Float[Array, "M N T"]) -> Float[Array, "B T"]:
  return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])


def _replicated_like(params):
  sharding = jax.tree.leaves(params)[0].sharding
  if isinstance(sharding, jax.sharding.NamedSharding):
    return jax.sharding.NamedSharding(sharding.mesh, PartitionSpec())
  return sharding
