"""Drawing one token a row, without sorting the vocabulary.

`sample` narrates the path: scale the logits by the temperature, weigh the ids against the likeliest
in blocks of ids, find the smallest weight that top-k, top-p and min-p keep (`truncation_threshold`,
a search of few passes over the vocabulary instead of a sort), and invert the cumulative
distribution at one uniform number a row (`inverse_cdf`).

Sums over ids are taken block by block, so that the float32 sums stay short. They are what drawing
costs, and on a CPU it matters much how they are written: the ids of a block side by side, and
nothing in them that XLA does not fuse into a sum (`_kept`, `_in_blocks`).

R rows, V vocabulary in N blocks of B ids, S stop ids.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

MAX_STOP_IDS = 8  # places for them, so that another number of them never recompiles

AnyArray = jax.Array | np.ndarray
_ONE_AS_BITS = 0x3F800000  # the bit pattern of float32 1.0; probabilities never exceed it
_DEVICES = 8  # and what divides it: a vocabulary may be split over so many
_ROUNDING = 1e-6  # of sums of float32
_STRAIGHT = 20  # passes of a search that halves its interval from then on


class Sampling(flax.struct.PyTreeNode):
  """How to draw: one for all rows, or a value a row.

  Every field is an array, so that changing one never recompiles.
  """

  temperature: Float[AnyArray, "*R"]  # 0 is greedy
  top_k: Int[AnyArray, "*R"]  # keep the k likeliest; 0 keeps all
  top_p: Float[AnyArray, "*R"]  # keep the smallest likeliest set with this mass; 1 keeps all
  min_p: Float[AnyArray, "*R"]  # keep ids at least this share as likely as the likeliest
  stop_ids: Int[AnyArray, "*R S"]  # any of these ends a row; -1 fills unused places

  def for_rows(self, rows: int) -> "Sampling":
    """The same with a value a row."""
    if self.temperature.ndim:
      return self
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape)), self)


def make_sampling(
  temperature: float,
  stop_ids: tuple[int, ...],
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
) -> Sampling:
  """Checks the settings and makes arrays of them.

  Raises:
    ValueError: naming the setting, what was found and what was expected.
  """
  if temperature < 0:
    raise ValueError(f"temperature is {temperature}; expected 0 (greedy) or more")
  if top_k < 0:
    raise ValueError(f"top_k is {top_k}; expected 0 (off) or more")
  if not 0 < top_p <= 1:
    raise ValueError(f"top_p is {top_p}; expected more than 0 and at most 1 (off)")
  if not 0 <= min_p < 1:
    raise ValueError(f"min_p is {min_p}; expected 0 (off) or more, and less than 1")
  if not 0 < len(stop_ids) <= MAX_STOP_IDS:
    raise ValueError(f"there are {len(stop_ids)} stop ids; expected 1 to {MAX_STOP_IDS}")
  padded = tuple(stop_ids) + (-1,) * (MAX_STOP_IDS - len(stop_ids))
  return Sampling(
    temperature=np.asarray(temperature, np.float32),
    top_k=np.asarray(top_k, np.int32),
    top_p=np.asarray(top_p, np.float32),
    min_p=np.asarray(min_p, np.float32),
    stop_ids=np.asarray(padded, np.int32),
  )


def is_stop(tokens: Int[Array, " R"], sampling: Sampling) -> Bool[Array, " R"]:
  """Whether each token ends its row."""
  return (tokens[:, None] == sampling.stop_ids).any(axis=-1)


def sample(
  logits: Float[Array, "R V"], keys: Key[Array, " R"], sampling: Sampling
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
  """Draws one token a row.

  Args:
    logits: float32, before the temperature; forbidden ids are very negative.
    keys: one random key a row, so that a row's draw does not depend on its neighbours.
    sampling: the settings.

  Returns:
    The tokens, and their log-probability under `softmax(logits / temperature)` (temperature 1 when
    greedy), which is the policy that learning scores, whatever truncation left of it.
  """
  sampling = sampling.for_rows(logits.shape[0])
  greedy = sampling.temperature == 0
  temperature = jnp.where(greedy, 1.0, sampling.temperature)
  blocks = _blocked(logits)
  block_tops = blocks.max(2)
  top = block_tops.max(0)
  # The likeliest id weighs 1.
  weights = jnp.exp((blocks - top[:, None]) / temperature[:, None])
  sums = _in_blocks(weights)
  total = sums.sum(0)

  truncates = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
  least, sums = jax.lax.cond(
    (truncates & ~greedy).any(),
    lambda: _truncated(weights, sums, sampling),
    lambda: (jnp.zeros_like(total), sums),
  )
  uniform = jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(keys)
  drawn = inverse_cdf(weights, sums, least, uniform)
  tokens = jnp.where(greedy, _likeliest(blocks, block_tops), drawn)

  chosen = (jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0] - top) / temperature
  return tokens, chosen - jnp.log(total)


def block_size(vocabulary: int) -> int:
  """Ids in a block: a power of two about as large as the number of blocks.

  It is smaller where that makes blocks divide over the devices that the ids are split over, or
  every device would be sent all logits for every token.
  """
  largest = 1 << ((vocabulary - 1).bit_length() + 1) // 2
  smaller = [largest >> halvings for halvings in range(6)]
  return next((size for size in smaller if size and vocabulary % (_DEVICES * size) == 0), largest)


def _blocked(logits: Float[Array, "R V"]) -> Float[Array, "N R B"]:
  """Ids in blocks; what fills the last block weighs nothing."""
  rows, vocabulary = logits.shape
  size = block_size(vocabulary)
  missing = -vocabulary % size
  padded = jnp.pad(logits, ((0, 0), (0, missing)), constant_values=-jnp.inf) if missing else logits
  # From ids first, as a CPU's product of few rows gives them, so that blocks are turned one by one.
  return jax.lax.optimization_barrier(padded.T.reshape(-1, size, rows).swapaxes(1, 2))


def _in_blocks(weights: Float[Array, "N R B"]) -> Float[Array, "N R"]:
  """Sums of blocks, each of which is taken as it is: a CPU takes longer for a sum of both axes."""
  return jax.lax.optimization_barrier(weights.sum(2))


def _likeliest(blocks: Float[Array, "N R B"], block_tops: Float[Array, "N R"]) -> Int[Array, " R"]:
  block = jnp.argmax(block_tops, axis=0)
  return block * blocks.shape[2] + jnp.argmax(_of_block(blocks, block), axis=1)


def _of_block(array: Float[Array, "N R B"], block: Int[Array, " R"]) -> Float[Array, "R B"]:
  return jnp.take_along_axis(array, block[None, :, None], axis=0)[0]


def _truncated(
  weights: Float[Array, "N R B"], sums: Float[Array, "N R"], sampling: Sampling
) -> tuple[Float[Array, " R"], Float[Array, "N R"]]:
  """The smallest weight that is kept, and the sums of blocks of what is kept."""
  least = truncation_threshold(weights, sums.sum(0), sampling)
  return least, _in_blocks(weights * _kept(weights, least))


def _kept(weights: Float[Array, "*N R B"], least: Float[Array, " R"]) -> Float[Array, "*N R B"]:
  """1 where a weight is not 0 and at least `least`, which is 1 at most, else 0.

  In arithmetic, which XLA fuses into a sum over it on a CPU. Of a comparison it would write all
  results down first, and take up to three times as long. Weights are 0 to 1.
  """
  less = _as_float(jnp.maximum(jax.lax.bitcast_convert_type(least, jnp.int32) - 1, 0))
  return jnp.ceil(weights - less[:, None])


def truncation_threshold(
  weights: Float[Array, "N R B"], total: Float[Array, " R"], sampling: Sampling
) -> Float[Array, " R"]:
  """The smallest weight kept: top-k first, then top-p of what is left, then min-p.

  Ids as likely as the last one kept are kept too.

  Args:
    weights: probabilities up to a factor a row, the largest 1.
    total: their sum.
    sampling: with a value a row.
  """
  off = jnp.zeros_like(total)
  size = weights[:, 0].size

  def below(least: Float[Array, " R"]) -> Float[Array, " R"]:
    return jax.lax.optimization_barrier((weights * (1 - _kept(weights, least))).max(2)).max(0)

  def by_count() -> Float[Array, " R"]:
    wanted = jnp.minimum(jnp.where(sampling.top_k > 0, sampling.top_k, size), size)
    return _last_kept(
      lambda least: _in_blocks(_kept(weights, least)).sum(0),
      wanted.astype(jnp.float32),
      most=off + size,
      low=off,
      smallest=lambda least: jnp.ones_like(least),
      slack=off,
      next_below=below,
    )

  top_k = jax.lax.cond((sampling.top_k > 0).any(), by_count, lambda: off)
  top_k = jnp.where(sampling.top_k > 0, top_k, 0.0)

  def mass_from(least: Float[Array, " R"]) -> Float[Array, " R"]:
    return _in_blocks(weights * _kept(weights, jnp.maximum(least, top_k))).sum(0)

  def by_mass() -> Float[Array, " R"]:
    mass = jax.lax.cond((top_k > 0).any(), lambda: mass_from(top_k), lambda: total)
    return _last_kept(
      mass_from,
      jnp.asarray(sampling.top_p) * mass,
      most=mass,
      # Everything below this together is less than what may be left out.
      low=jnp.maximum(0.99 * (1 - jnp.asarray(sampling.top_p)) * mass / size, top_k),
      smallest=lambda least: least,
      slack=_ROUNDING * mass,
      next_below=below,
    )

  top_p = jax.lax.cond((sampling.top_p < 1).any(), by_mass, lambda: off)
  top_p = jnp.where(sampling.top_p < 1, top_p, 0.0)
  return jnp.maximum(jnp.maximum(top_k, top_p), sampling.min_p)


def _last_kept(
  measure: Callable[[Array], Array],
  wanted: Float[Array, " R"],
  *,
  most: Float[Array, " R"],
  low: Float[Array, " R"],
  smallest: Callable[[Array], Array],
  slack: Float[Array, " R"],
  next_below: Callable[[Array], Array],
) -> Float[Array, " R"]:
  """A weight t in (0, 1] such that `measure(t)` still is what is wanted, and of no larger one is.

  The search narrows an interval of weights over their bit patterns, which for positive floats are
  in the order of the numbers. It goes where a straight line through the log-odds of what is
  measured at both ends says; an end that stays counts for less from turn to turn (Anderson and
  Björck, BIT 13:3, 1973), so that both ends come near. It ends when one id at most is left to
  decide on, or so little that rounding of the sums is more. On a vocabulary of 262,144 that takes a
  row 4 to 9 passes and seldom more than a dozen; a batch takes as many as its slowest row. After
  `_STRAIGHT` passes the interval is halved, so that the search ends whatever the weights are.

  Args:
    measure: of all ids whose weight is at least so much; falls as that rises.
    wanted: reached by every id together.
    most: at least what is measured at `low`.
    low: where enough is measured.
    smallest: what one id of at least so much weight adds at least.
    slack: measured too much by so much is exact.
    next_below: the largest weight that is less.
  """
  share = wanted / most
  edge = jnp.minimum(1e-4, 0.1 * jnp.minimum(share, 1 - share))

  def above(measured):
    """How far the log-odds of a measure are above those of what is wanted."""
    found = jnp.clip(measured / most, edge, 1 - edge)
    return jnp.log(found / (1 - found)) - jnp.log(share / (1 - share))

  def going(low, high, at_low, at_high, *_):
    one = smallest(_as_float(low))
    several = (high - low > 1) & (at_low - at_high >= 1.5 * one)
    over, short = at_low - wanted, wanted - at_high
    return several & (over > slack) & (over >= one) & (short > one)

  def unfinished(state):
    _, *bounds = state
    return going(*bounds).any()

  def narrow(state):
    turn, low, high, at_low, at_high, over, short, stayed = state
    width = (high - low).astype(jnp.float32)
    step = width * jnp.where(turn < _STRAIGHT, over / (over + short), 0.5)
    middle = low + jnp.clip(step.astype(jnp.int32), 1, jnp.maximum(high - low - 1, 1))
    measured = measure(_as_float(middle))
    found, active = above(measured), going(low, high, at_low, at_high)
    enough = measured >= wanted
    short = jnp.where(enough & (stayed > 0), short * _less(found / over), short)
    over = jnp.where(~enough & (stayed < 0), over * _less(-found / short), over)
    rises = (middle, measured, found, jnp.ones_like(stayed))
    falls = (middle, measured, -found, -jnp.ones_like(stayed))
    low, at_low, over, stayed = _where(active & enough, rises, (low, at_low, over, stayed))
    high, at_high, short, stayed = _where(active & ~enough, falls, (high, at_high, short, stayed))
    return turn + 1, low, high, at_low, at_high, over, short, stayed

  start = jax.lax.bitcast_convert_type(low, jnp.int32)
  end = jnp.full_like(start, _ONE_AS_BITS + 1)
  none = jnp.zeros_like(most)
  state = (jnp.int32(0), start, end, most, none, above(most), -above(none), jnp.zeros_like(start))
  _, low, high, _, at_high, *_ = jax.lax.while_loop(unfinished, narrow, state)
  found = _as_float(low)
  return jnp.where(wanted - at_high <= smallest(found), next_below(_as_float(high)), found)


def _less(ratio: Float[Array, " R"]) -> Float[Array, " R"]:
  """How much less the end that stayed counts; the other end's new value is `ratio` of its old."""
  return jnp.where(ratio < 1, 1 - ratio, 0.5)


def _as_float(bits: Int[Array, " R"]) -> Float[Array, " R"]:
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _where(condition, ours, theirs):
  return tuple(jnp.where(condition, one, other) for one, other in zip(ours, theirs, strict=True))


def inverse_cdf(
  weights: Float[Array, "N R B"],
  sums: Float[Array, "N R"],
  least: Float[Array, " R"],
  uniform: Float[Array, " R"],
) -> Int[Array, " R"]:
  """The id at which the running sum of weights first exceeds `uniform` of the total.

  Two levels (blocks, then ids of one block) keep the float32 sums short.

  Args:
    weights: in blocks.
    sums: of each block, weights below `least` aside.
    least: ids that weigh less are never drawn, nor are those that weigh 0.
    uniform: in [0, 1).
  """
  ends = jnp.cumsum(sums, axis=0)
  target = uniform * ends[-1]
  block = _first_exceeding(ends.T, target)
  before = jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[None], axis=0)[0]
  before = jnp.where(block > 0, before, 0.0)
  inside = _of_block(weights, block)
  inside *= _kept(inside, least)
  return block * weights.shape[2] + _first_exceeding(jnp.cumsum(inside, axis=1), target - before)


def _first_exceeding(ends: Float[Array, "R N"], target: Float[Array, " R"]) -> Int[Array, " R"]:
  """The first place whose running sum exceeds `target`, or the last place that adds anything."""
  exceeds = ends > target[:, None]
  last_adding = jnp.argmax(ends, axis=1)  # the first place that already reaches the total
  return jnp.where(exceeds.any(1), jnp.argmax(exceeds, axis=1), last_adding)
