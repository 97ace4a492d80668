"""Rewards of question groups -> advantages, and advantages -> weights of single tokens.

Pure numpy on the host: a step has a few hundred rewards. Q questions, G responses a question.
The estimators carry the field's names: GRPO (arXiv 2402.03300, eq. 3 with outcome supervision),
Dr. GRPO (arXiv 2503.20783), RLOO (arXiv 2402.14740), REINFORCE++ with group baseline
(arXiv 2501.03262).
"""

import numpy as np
from jaxtyping import Bool, Float

from pasmr_jax.parallel.processes import global_moments

ESTIMATORS = ("grpo", "dr_grpo", "rloo", "reinforce_pp")
CREDITS = ("all", "split")

_EPSILON = 1e-6  # keeps a division by a zero deviation finite


def estimate(
  rewards: Float[np.ndarray, "Q G"],
  valid: Bool[np.ndarray, "Q G"],
  estimator: str,
) -> Float[np.ndarray, "Q G"]:
  """Advantages; responses that are not valid get 0 and do not enter a baseline.

  Args:
    rewards: float.
    valid: which responses have something to learn from.
    estimator: `grpo` (R - mean) / (std + _EPSILON); `dr_grpo` R - mean; `rloo` R - mean of the
      others; `reinforce_pp` R - mean, then whitened over the global batch.

  Raises:
    ValueError: on an unknown estimator.
  """
  counts = valid.sum(axis=1, keepdims=True)
  kept = np.where(valid, rewards, 0.0).astype(np.float64)
  means = kept.sum(axis=1, keepdims=True) / np.maximum(counts, 1)
  centred = np.where(valid, rewards - means, 0.0)
  if estimator == "dr_grpo":
    advantages = centred
  elif estimator == "grpo":
    deviations = np.sqrt((centred**2).sum(axis=1, keepdims=True) / np.maximum(counts, 1))
    advantages = centred / (deviations + _EPSILON)
  elif estimator == "rloo":
    # R_i - (sum - R_i) / (n - 1) = (R_i - mean) * n / (n - 1); a group of one has no others.
    advantages = np.where(counts > 1, centred * counts / np.maximum(counts - 1, 1), 0.0)
  elif estimator == "reinforce_pp":
    mean, deviation = global_moments(centred[valid])
    advantages = np.where(valid, (centred - mean) / (deviation + _EPSILON), 0.0)
  else:
    raise ValueError(f"advantage estimator is {estimator!r}; expected one of {ESTIMATORS}")
  return advantages.astype(np.float32)


def zero_variance(
  rewards: Float[np.ndarray, "Q G"], valid: Bool[np.ndarray, "Q G"]
) -> Bool[np.ndarray, " Q"]:
  """The questions whose valid rewards are all alike: they teach nothing."""
  highest = np.where(valid, rewards, -np.inf).max(axis=1)
  lowest = np.where(valid, rewards, np.inf).min(axis=1)
  return highest <= lowest


def token_advantages(
  reasoning: float, understanding: float, length: int, reasoning_start: int, credit: str
) -> Float[np.ndarray, " T"]:
  """The advantage of each response token.

  Under `split` credit tokens before `reasoning_start` (the translation and its delimiters) carry
  the understanding advantage; a response that is not well formed has `reasoning_start` 0.

  >>> token_advantages(1.0, -2.0, 5, 3, 'split')
  array([-2., -2., -2.,  1.,  1.], dtype=float32)
  """
  advantages = np.full(length, reasoning, np.float32)
  if credit == "split":
    advantages[:reasoning_start] = understanding
  return advantages


def strongest(strengths: Float[np.ndarray, " R"], rows: int) -> np.ndarray:
  """The places of the `rows` largest values, in their original order; 0 takes all."""
  if rows == 0 or rows >= strengths.size:
    return np.arange(strengths.size)
  order = np.argsort(-strengths, kind="stable")
  return np.sort(order[:rows])
