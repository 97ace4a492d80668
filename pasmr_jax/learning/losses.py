"""One function scores tokens; every loss is a weighted sum of what it returns.

`token_logprobs` never builds a `[B, T, V]` array: it runs the decoder once, then walks the sequence
in chunks, and recomputes each chunk's logits in the backward pass. Policy, reference, teacher and
supervised loss all use it.

B rows (in microbatches when accumulating), T tokens, D width, V vocabulary, C tokens a chunk.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pasmr_jax import Config
from pasmr_jax.models import transformer
from pasmr_jax.models.config import TransformerConfig

AnyArray = jax.Array | np.ndarray
Number = float | Float[AnyArray, ""]
KL_ESTIMATORS = ("k1", "k2", "k3")
AGGREGATIONS = ("token", "sequence")


class Sequences(flax.struct.PyTreeNode):
  """Rows of tokens to be scored. `weights[b, t]` weighs the prediction of `tokens[b, t]`."""

  tokens: Int[AnyArray, "*B T"]
  positions: Int[AnyArray, "*B T"]
  segment_ids: Int[AnyArray, "*B T"]  # 0 is padding
  weights: Float[AnyArray, "*B T"]  # 0 for prompts and padding; relative, see `normalized`


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


def token_logprobs(
  params,
  sequences: Sequences,
  config: TransformerConfig,
  *,
  valid_vocab: int,
  temperature: Number = 1.0,
  chunk: int = 128,
) -> Float[Array, "B T"]:
  """log p(tokens[b, t] | tokens before it in its segment), 0 where there is nothing before it.

  Args:
    params: model parameters.
    sequences: the rows; `weights` is not read.
    config: the model.
    valid_vocab: ids from here on have probability 0.
    temperature: logits are divided by it, as they were when the tokens were drawn.
    chunk: C, tokens of a row whose logits exist at a time.
  """
  hidden, _ = transformer.Transformer(config).apply(
    {"params": params}, sequences.tokens, sequences.positions, sequences.segment_ids
  )
  table = transformer.output_table(params, config)

  # The hidden state at t - 1 predicts token t.
  hidden, targets = hidden[:, :-1], sequences.tokens[:, 1:]
  count = targets.shape[1]
  chunk = min(chunk, count)
  chunks = -(-count // chunk)
  pad = chunks * chunk - count
  hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
  targets = jnp.pad(targets, ((0, 0), (0, pad)))

  @jax.checkpoint
  def score(hidden, targets):
    logits = transformer.logits(hidden, table, config, valid_vocab) / temperature
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)

  def step(_, start):
    piece = jax.lax.dynamic_slice_in_dim(hidden, start, chunk, axis=1)
    return None, score(piece, jax.lax.dynamic_slice_in_dim(targets, start, chunk, axis=1))

  _, scored = jax.lax.scan(step, None, jnp.arange(chunks) * chunk)
  logprobs = jnp.moveaxis(scored, 0, 1).reshape(targets.shape)[:, :count]
  logprobs = jnp.pad(logprobs, ((0, 0), (1, 0)))
  same_segment = jnp.pad(
    sequences.segment_ids[:, 1:] == sequences.segment_ids[:, :-1], ((0, 0), (1, 0))
  )
  return jnp.where(same_segment & (sequences.segment_ids > 0), logprobs, 0.0)


def supervised_loss(
  logprobs: Float[Array, "B T"], weights: Float[Array, "B T"]
) -> Float[Array, ""]:
  """L = - sum w log p: METHOD's PAM loss when w is 1 / (response tokens of the global batch)."""
  return -(weights * logprobs).sum()


def kl_divergence(
  logprobs: Float[Array, "B T"], reference: Float[AnyArray, "B T"], estimator: str
) -> Float[Array, "B T"]:
  """A token's estimate of KL(policy || reference) from a sample of the policy.

  With r = reference / policy: `k1` -log r; `k2` (log r)^2 / 2; `k3` r - 1 - log r
  (J. Schulman, "Approximating KL divergence", 2020).

  Raises:
    ValueError: on an unknown estimator.
  """
  log_ratio = jnp.subtract(reference, logprobs)
  if estimator == "k1":
    return -log_ratio
  if estimator == "k2":
    return 0.5 * log_ratio**2
  if estimator == "k3":
    return jnp.expm1(log_ratio) - log_ratio
  raise ValueError(f"KL estimator is {estimator!r}; expected one of {KL_ESTIMATORS}")


def policy_loss(
  logprobs: Float[Array, "B T"], batch: PolicyBatch, settings: PolicySettings
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The clipped objective of METHOD step 6, its sign turned so that it is minimised.

  - sum w [ m min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) - kl_coef KL ]

  with rho = exp(log p - old log p) and m = min(exp(old - sampler), importance_cap), the truncated
  importance weight between learner and sampler, held constant.

  Returns:
    The loss and its parts: sums weighted by `weights` (so that microbatches add up), except the two
    maxima.
  """
  weights = batch.sequences.weights
  active = weights > 0
  old = jax.lax.stop_gradient(logprobs) if batch.old_logprobs is None else batch.old_logprobs
  difference = jnp.where(active, logprobs - old, 0.0)
  ratio = jnp.exp(difference)
  clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
  surrogate = jnp.minimum(ratio * batch.advantages, clipped * batch.advantages)
  mismatch = jnp.exp(jnp.where(active, old - batch.sampler_logprobs, 0.0))
  importance = jnp.minimum(jax.lax.stop_gradient(mismatch), settings.importance_cap)
  if batch.reference_logprobs is None:
    divergence = jnp.zeros_like(logprobs)
  else:
    divergence = kl_divergence(logprobs, batch.reference_logprobs, settings.kl_estimator)
    divergence = jnp.where(active, divergence, 0.0)
  loss = -(weights * (importance * surrogate - settings.kl_coef * divergence)).sum()
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
