"""The losses: weighted sums of what `logprobs.py` finds for each token.

They are given the log-probabilities of some tokens of a batch at a time, with those tokens' part of
the batch, and what they return is added up: a token of weight 0 leaves no trace.

B rows (in microbatches when accumulating), T tokens; or the groups and tokens of a chunk.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pasmr_jax import Config
from pasmr_jax.learning.logprobs import AnyArray, Number, Sequences

KL_ESTIMATORS = ("k1", "k2", "k3")
AGGREGATIONS = ("token", "sequence")


def normalized(sequences: Sequences) -> Sequences:
  """The same rows with weights that sum to 1 (or to 0, when none is positive)."""
  total = sequences.weights.sum()
  return sequences.replace(weights=sequences.weights / jnp.where(total > 0, total, 1.0))


class PolicyBatch(flax.struct.PyTreeNode):
  """Sampled responses and all that their policy-gradient loss needs."""

  sequences: Sequences
  advantages: Float[AnyArray, "*B T"]
  sampler_logprobs: Float[AnyArray, "*B T"]  # as drawn
  # Of the learner before the rollout's first update. None: this is that first update, and the
  # old policy is the one being differentiated.
  old_logprobs: Float[AnyArray, "*B T"] | None
  reference_logprobs: Float[AnyArray, "*B T"] | None  # of stage 1; None without a KL term


class PolicySettings(flax.struct.PyTreeNode):
  """`config.srl`'s numbers for the loss. The strings are static, the numbers are not."""

  clip_low: Number
  clip_high: Number
  kl_coef: Number
  importance_cap: Number
  temperature: Number
  kl_estimator: str = flax.struct.field(pytree_node=False)


def policy_settings(srl: Config) -> PolicySettings:
  """The numbers of `config.srl`."""
  return PolicySettings(
    clip_low=srl.clip_low,
    clip_high=srl.clip_high,
    kl_coef=srl.kl_coef,
    importance_cap=srl.importance_cap,
    temperature=srl.temperature,
    kl_estimator=srl.kl_estimator,
  )


def supervised_loss(
  logprobs: Float[Array, "B T"], weights: Float[AnyArray, "B T"]
) -> Float[Array, ""]:
  """L = - sum w log p: PAM's loss if w is 1 / (response tokens of the global batch)."""
  return -(weights * logprobs).sum()


def kl_divergence(
  logprobs: Float[Array, "B T"], reference: Float[AnyArray, "B T"], estimator: str
) -> Float[Array, "B T"]:
  """A token's estimate of KL(policy || reference) from a sample of the policy.

  With r = reference / policy: `k1` -log r; `k2` (log r)^2 / 2; `k3` r - 1 - log r
  (J. Schulman, "Approximating KL divergence", 2020). Tokens are drawn without a gradient, so what
  is descended is each estimate's own: that of -log r has mean 0 whatever the reference is, that of
  `k2` has KL's as its mean, that of `k3` the one of KL(reference || policy). So `k1` has `k2`'s.

  Raises:
    ValueError: on an unknown estimator.
  """
  log_ratio = jnp.subtract(reference, logprobs)
  square = 0.5 * log_ratio**2
  if estimator == "k1":
    return square + jax.lax.stop_gradient(-log_ratio - square)
  if estimator == "k2":
    return square
  if estimator == "k3":
    return jnp.expm1(log_ratio) - log_ratio
  raise ValueError(f"KL estimator is {estimator!r}; expected one of {KL_ESTIMATORS}")


def policy_loss(
  logprobs: Float[Array, "B T"], batch: PolicyBatch, settings: PolicySettings
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The clipped objective of docs/method.md, its sign turned so that it is minimised.

  - sum w [ m min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) - kl_coef KL ]

  with rho = exp(log p - old log p) and m = min(exp(old - sampler), importance_cap), the truncated
  importance weight between learner and sampler, held constant. A log-probability that is not finite
  makes the loss NaN: the cap would hide an infinite m, and its token would be learned from.

  Returns:
    The loss and its parts: sums weighted by `weights` (so that microbatches add up), except the two
    maxima.
  """
  weights = batch.sequences.weights
  active = weights > 0

  def weighed(one):
    # Before anything else: where only a result is masked, an infinite slope is not.
    return jnp.where(active, one, 0.0)

  logprobs, sampler = weighed(logprobs), weighed(batch.sampler_logprobs)
  old = batch.old_logprobs
  old = jax.lax.stop_gradient(logprobs) if old is None else weighed(old)
  given = [logprobs, sampler, old]
  ratio = jnp.exp(logprobs - old)
  clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
  # Not `minimum`, which would share out the gradient where the two are equal, as at a bound of 0.
  unclipped, clipped_too = ratio * batch.advantages, clipped * batch.advantages
  surrogate = jnp.where(unclipped <= clipped_too, unclipped, clipped_too)
  mismatch = jnp.exp(old - sampler)
  importance = jnp.minimum(jax.lax.stop_gradient(mismatch), settings.importance_cap)
  if batch.reference_logprobs is None:
    divergence = jnp.zeros_like(logprobs)
  else:
    reference = weighed(batch.reference_logprobs)
    given.append(reference)
    divergence = kl_divergence(logprobs, reference, settings.kl_estimator)
  loss = -(weights * (importance * surrogate - settings.kl_coef * divergence)).sum()
  finite = [jnp.isfinite(one).all() for one in given]
  loss = jnp.where(jnp.stack(finite).all(), loss, jnp.nan)
  parts = {
    "kl": (weights * divergence).sum(),
    "clip_share": (weights * (clipped != ratio)).sum(),
    "ratio_mean": (weights * ratio).sum(),
    "ratio_max": jnp.where(active, ratio, 0.0).max(),
    "mismatch_mean": (weights * mismatch).sum(),
    "mismatch_max": jnp.where(active, mismatch, 0.0).max(),
    "entropy": -(weights * logprobs).sum(),
  }
  return loss, parts
