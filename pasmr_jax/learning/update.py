"""One jitted optimizer step: `(state, batch) -> (state, metrics)`, its state donated.

`Learner.update_supervised` and `Learner.update_policy` share one body: make the weights sum to 1
over the global batch (so that microbatches equal the whole), split it into microbatches, add up
their gradients, clip, and apply the optimizer once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pasmr_jax.learning import losses
from pasmr_jax.models.config import TransformerConfig


class TrainState(flax.struct.PyTreeNode):
  """All that an update changes."""

  step: Int[Array, ""]  # updates of this stage done
  params: Any
  opt_state: optax.OptState
  average: Any | None  # moving average of params, held only when it is the teacher


Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Learner:
  """What is fixed about updates during a stage. Hashable, so that methods jit on it."""

  config: TransformerConfig
  optimizer: optax.GradientTransformation
  valid_vocab: int
  microbatches: int = 1
  chunk: int = 128  # tokens of a row whose logits exist at a time
  average_decay: float = 0.0

  def init(self, params, average: bool = False) -> TrainState:
    """A state at step 0. Optimizer moments are born with the parameters' sharding.

    Raises:
      ValueError: on parameters with leaves that are not arrays.
    """
    replicated = _replicated_like(params)
    opt_state = jax.jit(self.optimizer.init, out_shardings=self.opt_shardings(params))(params)
    step = jax.jit(lambda: jnp.int32(0), out_shardings=replicated)()
    return TrainState(step, params, opt_state, jax.tree.map(jnp.copy, params) if average else None)

  def opt_shardings(self, params):
    """Moments are laid out like their parameter; counters and factored moments are replicated."""
    replicated = _replicated_like(params)
    shapes = jax.eval_shape(self.optimizer.init, params)
    return optax.tree_utils.tree_map_params(
      self.optimizer,
      lambda moment, param: param.sharding if moment.shape == param.shape else replicated,
      shapes,
      params,
      transform_non_params=lambda _: replicated,
    )

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
  def update_supervised(
    self, state: TrainState, batch: losses.Sequences
  ) -> tuple[TrainState, Metrics]:
    """One supervised step on a global batch."""

    def loss(params, batch):
      logprobs = self.logprobs(params, batch)
      return losses.supervised_loss(logprobs, batch.weights), {}

    return self._apply(state, losses.normalized(batch), loss)

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

    def loss(params, batches):
      batch, rehearsal = batches
      logprobs = self.logprobs(params, batch.sequences, settings.temperature)
      total, parts = losses.policy_loss(logprobs, batch, settings)
      parts["policy_loss"] = total
      if rehearsal is not None:
        rehearsed = losses.supervised_loss(self.logprobs(params, rehearsal), rehearsal.weights)
        parts["rehearsal_loss"] = rehearsed
        total += rehearsal_weight * rehearsed
      return total, parts

    batch = batch.replace(sequences=losses.normalized(batch.sequences))
    rehearsal = None if rehearsal is None else losses.normalized(rehearsal)
    return self._apply(state, (batch, rehearsal), loss)

  @functools.partial(jax.jit, static_argnums=0)
  def score(
    self, params, sequences: losses.Sequences, temperature: Float[Array, ""]
  ) -> Float[Array, "B T"]:
    """Log-probabilities without a gradient, microbatch by microbatch: old policy, reference."""
    pieces = _split(sequences, self.microbatches)
    scored = jax.lax.map(lambda piece: self.logprobs(params, piece, temperature), pieces)
    return _join(scored)

  def logprobs(
    self, params, sequences: losses.Sequences, temperature: losses.Number = 1.0
  ) -> Float[Array, "B T"]:
    return losses.token_logprobs(
      params,
      sequences,
      self.config,
      valid_vocab=self.valid_vocab,
      temperature=temperature,
      chunk=self.chunk,
    )

  def _apply(self, state: TrainState, batch, loss: Callable) -> tuple[TrainState, Metrics]:
    gradient = jax.value_and_grad(loss, has_aux=True)
    if self.microbatches == 1:
      (total, parts), gradients = gradient(state.params, batch)
    else:
      pieces = _split(batch, self.microbatches)
      shapes = jax.eval_shape(gradient, state.params, jax.tree.map(lambda x: x[0], pieces))
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

      def add(sums, piece):
        (total, parts), gradients = gradient(state.params, piece)
        (total_sum, parts_sum), gradients_sum = sums
        combined = {
          name: jnp.maximum(parts_sum[name], value)
          if name.endswith("_max")
          else parts_sum[name] + value
          for name, value in parts.items()
        }
        gradients = jax.tree.map(jnp.add, gradients_sum, gradients)
        return ((total_sum + total, combined), gradients), None

      ((total, parts), gradients), _ = jax.lax.scan(add, zeros, pieces)

    updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
      keep = self.average_decay
      average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)
    metrics = {"loss": total, "gradient_norm": optax.tree.norm(gradients), **parts}
    return TrainState(state.step + 1, params, opt_state, average), metrics


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
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
  return sharding
