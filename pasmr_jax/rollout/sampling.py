"""Drawing one token a row, without sorting the vocabulary.

`sample` narrates the path: scale the logits by the temperature, find the smallest probability
that top-k, top-p and min-p keep (`truncation_threshold`, a bisection over float bit patterns
instead of a sort), and invert the cumulative distribution at one uniform number a row
(`inverse_cdf`).

R rows, V vocabulary, S stop ids.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

AnyArray = jax.Array | np.ndarray
_ONE_AS_BITS = 0x3F800000  # the bit pattern of float32 1.0; probabilities never exceed it
_BLOCK = 512  # ids a block in `inverse_cdf`


class Sampling(flax.struct.PyTreeNode):
  """How to draw. Every field is an array, so that changing one never recompiles."""

  temperature: Float[AnyArray, ""]  # 0 is greedy
  top_k: Int[AnyArray, ""]  # keep the k likeliest; 0 keeps all
  top_p: Float[AnyArray, ""]  # keep the smallest likeliest set with this mass; 1 keeps all
  min_p: Float[AnyArray, ""]  # keep ids at least this share as likely as the likeliest; 0 keeps all
  stop_ids: Int[AnyArray, " S"]  # any of these ends a row; -1 fills unused places


def make_sampling(
  temperature: float,
  stop_ids: tuple[int, ...],
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  max_stop_ids: int = 8,
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
  if not 0 < len(stop_ids) <= max_stop_ids:
    raise ValueError(f"there are {len(stop_ids)} stop ids; expected 1 to {max_stop_ids}")
  padded = tuple(stop_ids) + (-1,) * (max_stop_ids - len(stop_ids))
  return Sampling(
    temperature=np.asarray(temperature, np.float32),
    top_k=np.asarray(top_k, np.int32),
    top_p=np.asarray(top_p, np.float32),
    min_p=np.asarray(min_p, np.float32),
    stop_ids=np.asarray(padded, np.int32),
  )


def is_stop(tokens: Int[Array, " R"], sampling: Sampling) -> Bool[Array, " R"]:
  """Whether each token ends its row."""
  return (tokens[:, None] == sampling.stop_ids[None, :]).any(axis=-1)


def sample(
  logits: Float[Array, "R V"], keys: Key[Array, " R"], sampling: Sampling
) -> tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
  """Draws one token a row.

  Args:
    logits: float32, before the temperature; forbidden ids are very negative.
    keys: one random key a row, so that a row's draw does not depend on its neighbours.
    sampling: the settings.

  Returns:
    The tokens; their log-probability under `softmax(logits / temperature)` (temperature 1 when
    greedy), which is the policy that learning scores; and their log-probability under the truncated
    distribution they were drawn from (0 when greedy).
  """
  greedy = sampling.temperature == 0
  scaled = logits / jnp.where(greedy, 1.0, sampling.temperature)
  log_normalizer = jax.nn.logsumexp(scaled, axis=-1, keepdims=True)
  probabilities = jnp.exp(scaled - log_normalizer)

  truncates = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
  threshold = jax.lax.cond(
    truncates & ~greedy,
    lambda p: truncation_threshold(p, sampling),
    lambda p: jnp.zeros(p.shape[:1], p.dtype),
    probabilities,
  )
  kept = jnp.where(probabilities >= threshold[:, None], probabilities, 0.0)
  uniform = jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(keys)
  drawn = inverse_cdf(kept, uniform)
  tokens = jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)

  logprobs = jnp.take_along_axis(scaled - log_normalizer, tokens[:, None], axis=-1)[:, 0]
  drawn_logprobs = jnp.where(greedy, 0.0, logprobs - jnp.log(kept.sum(axis=-1)))
  return tokens, logprobs, drawn_logprobs


def truncation_threshold(
  probabilities: Float[Array, "R V"], sampling: Sampling
) -> Float[Array, " R"]:
  """The smallest probability kept: top-k first, then top-p of what is left, then min-p.

  Ids as likely as the last one kept are kept too. For positive floats the order of the bit patterns
  is the order of the numbers, so 30 halvings of the integer range find the exact threshold.
  """
  by_count = _largest_threshold(
    lambda t: (probabilities >= t).sum(-1) >= sampling.top_k, probabilities
  )
  top_k = jnp.where(sampling.top_k > 0, by_count, 0.0)
  left = jnp.where(probabilities >= top_k[:, None], probabilities, 0.0)
  mass = sampling.top_p * left.sum(-1)
  by_mass = _largest_threshold(lambda t: jnp.where(left >= t, left, 0.0).sum(-1) >= mass, left)
  top_p = jnp.where(sampling.top_p < 1, by_mass, 0.0)
  min_p = sampling.min_p * probabilities.max(-1)
  return jnp.maximum(jnp.maximum(top_k, top_p), min_p)


def _largest_threshold(holds, probabilities: Float[Array, "R V"]) -> Float[Array, " R"]:
  """The largest float32 t for which `holds(t)`, which is true at 0 and only ever turns false."""

  def halve(_, bounds):
    low, high = bounds
    middle = low + (high - low + 1) // 2
    true = holds(jax.lax.bitcast_convert_type(middle, jnp.float32)[:, None])
    return jnp.where(true, middle, low), jnp.where(true, high, middle - 1)

  rows = probabilities.shape[0]
  low, _ = jax.lax.fori_loop(
    0, 31, halve, (jnp.zeros(rows, jnp.int32), jnp.full(rows, _ONE_AS_BITS, jnp.int32))
  )
  return jax.lax.bitcast_convert_type(low, jnp.float32)


def inverse_cdf(weights: Float[Array, "R V"], uniform: Float[Array, " R"]) -> Int[Array, " R"]:
  """The id at which the running sum of `weights` first exceeds `uniform` of the total.

  Two levels (blocks, then ids of one block) read the vocabulary once and keep the float32 sums
  short. An id of weight 0 is never drawn.
  """
  rows, vocabulary = weights.shape
  blocks = -(-vocabulary // _BLOCK)
  blocked = jnp.pad(weights, ((0, 0), (0, blocks * _BLOCK - vocabulary))).reshape(
    rows, blocks, _BLOCK
  )
  block_ends = jnp.cumsum(blocked.sum(-1), axis=-1)
  target = uniform * block_ends[:, -1]
  block = _first_exceeding(block_ends, target)
  before = jnp.where(
    block > 0, jnp.take_along_axis(block_ends, block[:, None] - 1, axis=1)[:, 0], 0.0
  )
  inside = jnp.take_along_axis(blocked, block[:, None, None], axis=1)[:, 0]
  offset = _first_exceeding(jnp.cumsum(inside, axis=-1), target - before)
  return block * _BLOCK + offset


def _first_exceeding(ends: Float[Array, "R N"], target: Float[Array, " R"]) -> Int[Array, " R"]:
  """The first place whose running sum exceeds `target`, or the last place that adds anything."""
  exceeds = ends > target[:, None]
  last_adding = jnp.argmax(ends, axis=-1)  # the first place that already reaches the total
  return jnp.where(exceeds.any(-1), jnp.argmax(exceeds, axis=-1), last_adding)
