"""Hidden states to log-probabilities, a few tokens at a time: no `[B, T, V]` array ever exists.

`token_logprobs` scores tokens; `token_loss` sums a loss over their log-probabilities. Both run the
decoder once, put the tokens that matter first (`_arrange`) and walk over these in chunks, as many
as there are: prompts and padding have no logits.

`token_loss` has its gradient ready when it has its value: while a chunk's logits exist they give
the gradient of its hidden states and its part of the output table's. So no logits are computed
twice, and the backward pass of the decoder starts from what is there. On a mesh the table is
gathered once, before the first chunk, and each device sums the table's gradient over its own rows
in a slice of its own; the slices are added up once, after the last.

Axes: B rows, T tokens, F groups of rows (one a device), S slots a group, N tokens a chunk,
D width, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pasmr_jax.models import lora, transformer
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.layers import is_mapped, traced_row_axes

AnyArray = jax.Array | np.ndarray
Number = float | Float[AnyArray, ""]
Parts = dict[str, Float[Array, ""]]
LOGITS = 2**27  # numbers of a chunk's logits, unless another size is asked for: 512 MiB in float32
_LARGE_TABLE = 2**24  # numbers from which on a table's gradient is summed in blocks on a CPU


class Sequences(flax.struct.PyTreeNode):
  """Rows of tokens to be scored. `weights[b, t]` weighs the prediction of `tokens[b, t]`."""

  tokens: Int[AnyArray, "*B T"]
  positions: Int[AnyArray, "*B T"]
  segment_ids: Int[AnyArray, "*B T"]  # 0 is padding
  weights: Float[AnyArray, "*B T"]  # 0 for prompts and padding; relative, see losses.normalized


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How hidden states become probabilities."""

  config: TransformerConfig
  valid_vocab: int  # ids from here on have probability 0
  temperature: Number = 1.0  # logits are divided by it, as they were when the tokens were drawn
  chunk: int = 0  # N; 0 is as many as LOGITS allows
  entropy: bool = False  # `token_loss` also reports the mean entropy, as `exact_entropy`


def chunk_size(tokens: int, vocabulary: int, chunk: int = 0) -> int:
  """N for so many tokens of one device, and so many logits of a token on it."""
  return min(tokens, chunk or max(1, LOGITS // vocabulary))


def token_logprobs(
  params: Any,
  sequences: Sequences,
  scoring: Scoring,
  where: Bool[AnyArray, "B T"] | None = None,
) -> Float[Array, "B T"]:
  """log p(tokens[b, t] | tokens before it in its segment), 0 where there is nothing before it.

  Args:
    params: model parameters, or `lora.Adapted`.
    sequences: the rows; `weights` is not read.
    scoring: how.
    where: the tokens that are asked for, if not all; the others' are 0.
  """
  hidden, predicted = _run(params, sequences, scoring.config)
  wanted = predicted if where is None else predicted & where
  slots = _arrange(hidden, wanted, sequences.tokens, scoring)
  table = _gathered(transformer.output_table(params, scoring.config), hidden.dtype)

  def score(index, scored):
    states, targets = slots.chunk(index)
    logits = transformer.finish_logits(
      _products(states, table), scoring.config, scoring.valid_vocab
    )
    logprobs, _, _ = _logprobs(logits, targets.reshape(-1), scoring.temperature)
    logprobs = jnp.where(slots.inside(index), logprobs.reshape(targets.shape), 0.0)
    return jax.lax.dynamic_update_slice(scored, logprobs, (0, index * slots.size))

  empty = jnp.zeros(slots.hidden.shape[:2], jnp.float32)
  scored = jax.lax.fori_loop(0, slots.chunks, score, empty)
  return _behind(slots.restore(scored, (hidden.shape[0], hidden.shape[1])))


def token_loss(
  params: Any,
  sequences: Sequences,
  rows: Any,
  loss: Callable[[Float[Array, "F N"], Any], tuple[Float[Array, ""], Parts]],
  scoring: Scoring,
) -> tuple[Float[Array, ""], Parts]:
  """The sum of a loss over the tokens whose weight is not 0, and the parts it reports.

  Args:
    params: model parameters; or `lora.Adapted`, whose base has no gradient.
    sequences: the rows.
    rows: tree of [B, T] arrays, what `loss` needs to know of each token.
    loss: log-probabilities of some tokens and their part of `rows` -> their loss and its parts,
      which are sums over these tokens (maxima, at least 0, where the name ends with `_max`). A
      token for which all of `rows` is 0 must leave no trace.
    scoring: how. With `entropy` the parts have one more, `exact_entropy`: the sum over tokens of
      weight times the entropy, in nats, of the distribution that the token was scored by. It has
      no gradient.
  """
  hidden, predicted = _run(params, sequences, scoring.config)
  wanted = predicted & (sequences.weights != 0)
  trained = not isinstance(params, lora.Adapted)

  def sweep(hidden, table):
    """The loss with its parts, and the gradients of hidden states and table."""
    finish = lambda one: transformer.finish_logits(one, scoring.config, scoring.valid_vocab)  # noqa: E731
    weights = sequences.weights if scoring.entropy else None
    slots = _arrange(hidden, wanted, (sequences.tokens, rows, weights), scoring)
    gathered = _gathered(table, hidden.dtype)

    def value(logprobs, told, index):
      inside = slots.inside(index)
      told = jax.tree.map(lambda one: jnp.where(inside, one, jnp.zeros_like(one)), told)
      return loss(jnp.where(inside, logprobs, 0.0), told)

    def add(index, sums):
      totals, to_hidden, to_table = sums
      states, (targets, told, weights) = slots.chunk(index)
      flat = targets.reshape(-1)
      logits, to_before = jax.vjp(finish, _products(states, gathered))
      logprobs, powers, total = _logprobs(logits, flat, scoring.temperature)
      differentiate = jax.value_and_grad(value, has_aux=True)
      found, slopes = differentiate(logprobs.reshape(targets.shape), told, index)
      slopes = (slopes / scoring.temperature).reshape(-1, 1)
      # d log p / d logits is 1 at the target, less each token's probability.
      to_logits = jnp.where(_is(flat, logits), slopes, 0.0) - powers * (slopes / total[:, None])
      if scoring.entropy:
        entropies = _entropies(logits, powers, total, scoring.temperature).reshape(targets.shape)
        found = _with_entropy(found, jnp.where(slots.inside(index), weights * entropies, 0.0).sum())
      (to_products,) = to_before(to_logits)
      to_products = to_products.reshape(*targets.shape, -1)
      to_products = to_products.astype(states.dtype)
      to_states = jnp.einsum("FNV,VD->FND", to_products, gathered)
      to_hidden = jax.lax.dynamic_update_slice(to_hidden, to_states, (0, index * slots.size, 0))
      if trained:
        to_table = _add_products(to_table, to_products, states)
      return add_parts(totals, found), to_hidden, to_table

    empty = jnp.zeros((slots.hidden.shape[0], slots.size), jnp.float32)
    shapes = jax.eval_shape(lambda: value(empty, slots.chunk(0)[1][1], 0))
    totals = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)
    if scoring.entropy:
      totals = _with_entropy(totals, jnp.zeros((), jnp.float32))
    to_table = None
    if trained:
      shape = (slots.hidden.shape[0], *table.shape)
      to_table = _split(jnp.zeros(shape, jnp.float32), slots.axes, _vocabulary_axis(table), None)
    sums = (totals, jnp.zeros_like(slots.hidden), to_table)
    totals, to_hidden, to_table = jax.lax.fori_loop(0, slots.chunks, add, sums)
    if to_table is not None:
      to_table = to_table.sum(axis=0).astype(table.dtype)
    return totals, (slots.restore(to_hidden, hidden.shape[:2]), to_table)

  @jax.custom_vjp
  def swept(hidden, table):
    return sweep(hidden, table)[0]

  def backward(gradients, cotangents):
    scale, _ = cotangents
    return jax.tree.map(lambda one: (scale * one).astype(one.dtype), gradients)

  swept.defvjp(sweep, backward)
  return swept(hidden, transformer.output_table(params, scoring.config))


def add_parts(one: tuple[Array, Parts], other: tuple[Array, Parts]) -> tuple[Array, Parts]:
  """The loss, and its parts, of the tokens of both."""
  (loss, parts), (other_loss, other_parts) = one, other
  combined = {
    name: (jnp.maximum if name.endswith("_max") else jnp.add)(value, other_parts[name])
    for name, value in parts.items()
  }
  return loss + other_loss, combined


def _run(params: Any, sequences: Sequences, config: TransformerConfig) -> tuple[Array, Array]:
  """Hidden states [B, T, D], and which tokens are predicted by the one before them [B, T]."""
  hidden, _ = transformer.Transformer(config).apply(
    lora.variables(params), sequences.tokens, sequences.positions, sequences.segment_ids
  )
  segments = jnp.asarray(sequences.segment_ids)
  same = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (1, 0)))
  return hidden, same & (segments > 0)


def _gathered(table: Float[Array, "V D"], dtype: Any) -> Float[Array, "V D"]:
  """The output table in the compute dtype, its width whole on every device."""
  return _split(table.astype(dtype), _vocabulary_axis(table), None)


def _products(states: Float[Array, "F N D"], table: Float[Array, "V D"]) -> Float[Array, "M V"]:
  """Logits before caps and temperature, in float32, of all groups' tokens: M = F N."""
  flat = states.reshape(-1, states.shape[-1])
  return jnp.einsum("MD,VD->MV", flat, table, preferred_element_type=jnp.float32)


def _add_products(
  sums: Float[Array, "F V D"], weights: Float[Array, "F N V"], states: Float[Array, "F N D"]
) -> Float[Array, "F V D"]:
  """sums + weights transposed times states."""

  def at_once(sums, weights, states):
    return sums + jnp.einsum("FNV,FND->FVD", weights, states, preferred_element_type=jnp.float32)

  def in_blocks(sums, weights, states):
    width = sums.shape[1] // blocks

    def add(index, sums):
      cut = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, index * width, width, axis)  # noqa: E731
      block = at_once(cut(sums, 1), cut(weights, 2), states)
      return jax.lax.dynamic_update_slice_in_dim(sums, block, index * width, 1)

    return jax.lax.fori_loop(0, blocks, add, sums)

  blocks = math.gcd(sums.shape[1], 16)
  if blocks == 1 or sums[0].size < _LARGE_TABLE:
    return at_once(sums, weights, states)
  # A TPU adds while it multiplies; a CPU writes the product down first, by block a small one.
  return jax.lax.platform_dependent(sums, weights, states, cpu=in_blocks, default=at_once)


def _logprobs(
  logits: Float[Array, "M V"], targets: Int[Array, " M"], temperature: Number
) -> tuple[Float[Array, " M"], Float[Array, "M V"], Float[Array, " M"]]:
  """log p of the targets; and exp of all logits, less the largest, with its sum over V.

  Powers over their sum are probabilities: written so that they may take the place of the logits.
  """
  chosen = jax.lax.platform_dependent(logits, targets, cpu=_taken, default=_summed)
  largest = logits.max(axis=-1)
  powers = jnp.exp((logits - largest[..., None]) / temperature)
  total = powers.sum(axis=-1)
  return (chosen - largest) / temperature - jnp.log(total), powers, total


def _entropies(
  logits: Float[Array, "M V"],
  powers: Float[Array, "M V"],
  total: Float[Array, " M"],
  temperature: Number,
) -> Float[Array, " M"]:
  """- sum over V of p log p, of what `_logprobs` gives: log total less the mean exponent."""
  exponents = (logits - logits.max(axis=-1, keepdims=True)) / temperature
  return jnp.log(total) - (powers * exponents).sum(axis=-1) / total


def _with_entropy(found: tuple[Array, Parts], entropy: Array) -> tuple[Array, Parts]:
  loss, parts = found
  return loss, parts | {"exact_entropy": entropy}


def _summed(logits: Float[Array, "M V"], targets: Int[Array, " M"]) -> Float[Array, " M"]:
  """The targets' logits where a sum reads them as they come: needs none of other devices."""
  return jnp.where(_is(targets, logits), logits, 0.0).sum(axis=-1)


def _taken(logits: Float[Array, "M V"], targets: Int[Array, " M"]) -> Float[Array, " M"]:
  """The same on CPUs, which would write down what they sum."""
  return jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]


def _is(targets: Int[Array, " M"], logits: Float[Array, "M V"]) -> Bool[Array, "M V"]:
  return jnp.arange(logits.shape[1]) == targets[:, None]


@dataclasses.dataclass(frozen=True)
class _Slots:
  """The tokens of each group of rows, those that are wanted first; the rest is padding."""

  hidden: Float[Array, "F S D"]  # of the token before
  told: Any  # tree of [F, S] arrays
  order: Int[Array, "F U"]  # which of the U tokens of the group stands in a slot
  counts: Int[Array, " F"]  # wanted tokens
  size: int  # N; it divides S, which may be more than U
  axes: tuple[str, ...] | None  # of the mesh, over which groups are split

  @property
  def chunks(self) -> Int[Array, ""]:
    """How many chunks have wanted tokens in any group, of any replica."""
    most = self.counts.max()
    if is_mapped("replica"):  # a loop that is of another length in each would keep both its results
      most = jax.lax.pmax(most, "replica")
    return (most + self.size - 1) // self.size

  def chunk(self, index: Any) -> tuple[Float[Array, "F N D"], Any]:
    cut = lambda one: jax.lax.dynamic_slice_in_dim(one, index * self.size, self.size, axis=1)  # noqa: E731
    return cut(self.hidden), jax.tree.map(cut, self.told)

  def inside(self, index: Any) -> Bool[Array, "F N"]:
    return index * self.size + jnp.arange(self.size) < self.counts[:, None]

  def restore(self, slots: Float[Array, "F S *D"], rows: tuple[int, int]) -> Array:
    """What stands in slots, back in its row: [B, T, *D]."""
    places = jnp.argsort(self.order, axis=1)
    places = places.reshape(*places.shape, *[1] * (slots.ndim - 2))
    taken = jnp.take_along_axis(slots[:, : places.shape[1]], places, axis=1)
    return taken.reshape(*rows, *slots.shape[2:])


def _arrange(
  hidden: Float[Array, "B T D"], wanted: Bool[Array, "B T"], told: Any, scoring: Scoring
) -> _Slots:
  rows, length, _ = hidden.shape
  mesh = jax.sharding.get_abstract_mesh()
  axes = traced_row_axes(mesh, rows)
  groups = 1 if axes is None else math.prod(mesh.shape[axis] for axis in axes)
  tokens = rows // groups * length
  vocabulary = scoring.config.vocab_size // _vocabulary_parts(scoring.config.vocab_size)
  size = chunk_size(tokens, vocabulary, scoring.chunk)

  def grouped(one):
    return _split(one.reshape(groups, tokens, *one.shape[2:]), axes)

  wanted = grouped(_ahead(wanted))
  order = jnp.argsort(~wanted, axis=1, stable=True)

  def take(one):
    places = order.reshape(*order.shape, *[1] * (one.ndim - 2))
    padding = [(0, 0), (0, -tokens % size), *[(0, 0)] * (one.ndim - 2)]
    return jnp.pad(jnp.take_along_axis(one, places, axis=1), padding)

  return _Slots(
    hidden=take(grouped(hidden)),
    told=jax.tree.map(lambda one: take(grouped(_ahead(one))), told),
    order=order,
    counts=wanted.sum(axis=1),
    size=size,
    axes=axes,
  )


def _ahead(rows: Any) -> Array:
  """What is known of a token, beside the hidden state that predicts it: one place to the left."""
  return jnp.pad(jnp.asarray(rows)[:, 1:], ((0, 0), (0, 1)))


def _behind(rows: Float[Array, "B T"]) -> Float[Array, "B T"]:
  return jnp.pad(rows[:, :-1], ((0, 0), (1, 0)))


def _split(x: Array, *axes: Any) -> Array:
  """x with its first dimensions split over axes of the mesh; as it is where there is no mesh."""
  if not jax.sharding.get_abstract_mesh().axis_names:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def _vocabulary_parts(vocabulary: int) -> int:
  """Over how many devices the vocabulary is split."""
  tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
  return 1 if vocabulary % tensor else tensor


def _vocabulary_axis(table: Float[Array, "V D"]) -> str | None:
  return "tensor" if _vocabulary_parts(table.shape[0]) > 1 else None
