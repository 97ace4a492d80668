"""What is asked of the engine and what comes back."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import flax.struct
import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from pasmr_jax.rollout.sampling import AnyArray, Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """Samples wanted of one prompt.

  A sample depends on the parameters, the prompt, the name, the key and its number, on nothing else:
  its noise is that of `fold_in(fold_in(key, stable_id(name)), number)`.
  """

  prompt: Sequence[int]  # token ids
  name: str  # makes its noise its own: a question's id
  key_data: UInt32[np.ndarray, "W"]  # `jax.random.key_data` of one key a step and use
  samples: int
  max_new_tokens: int  # a sample that meets this limit is marked truncated
  sampling: Sampling  # of scalars
  watched: bool = False  # whether `Watch` is told of its samples


# Told of a watched request's number, the sample's number, the tokens drawn so far and whether the
# sample has ended, after each call of the decoder that drew any; gives what is wanted because of
# them.
Watch = Callable[[int, int, np.ndarray, bool], Sequence[Request]]


class Rollouts(flax.struct.PyTreeNode):
  """Samples, in order."""

  tokens: Int[AnyArray, "R T"]  # 0 after a row's end
  logprobs: Float[AnyArray, "R T"]  # of softmax(logits / temperature): the policy
  lengths: Int[AnyArray, " R"]  # tokens drawn, the stop id included
  truncated: Bool[AnyArray, " R"]  # no stop id within the limit


@dataclasses.dataclass(frozen=True)
class Usage:
  """How well slots were used, over all processes."""

  tokens: int  # drawn
  slot_steps: int  # steps taken times slots decoding

  def __add__(self, other: "Usage") -> "Usage":
    return Usage(self.tokens + other.tokens, self.slot_steps + other.slot_steps)


def stable_id(name: str) -> int:
  """A 31-bit number for a name, the same in every process and run."""
  return zlib.crc32(name.encode("utf-8", "surrogatepass")) & 0x7FFFFFFF


def left_padded(prompts: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, "N P"]:
  """Prompts as one array whose last column is every prompt's last token."""
  tokens = np.zeros((len(prompts), length), np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, length - len(prompt) :] = prompt
  return tokens
