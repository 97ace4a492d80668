"""Prompts to sampled responses with the log-probabilities they were drawn with.

`Engine.serve` takes requests, and a watch that may ask for more while the first are being answered;
`Engine.generate` asks the same of every prompt of a list. Both run a `Scheduler` (which row decodes
where and when) over the programs of `slots.py` (what the devices do).

N prompts, M samples a prompt, R = N * M rows, T new tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from pasmr_jax.models import transformer
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.parallel import mesh as meshes
from pasmr_jax.parallel import processes, rules
from pasmr_jax.parallel.mesh import param_shardings
from pasmr_jax.rollout.requests import Request, Rollouts, Usage, Watch
from pasmr_jax.rollout.sampling import Sampling
from pasmr_jax.rollout.scheduler import Layout, Scheduler

_as_computed = jax.jit(transformer.as_computed, static_argnames="config")
_unstack = jax.jit(transformer.unstacked)


def slot_count(most: int, rows: int, devices: int) -> int:
  """Slots on all devices for so many rows; at most so many (0: any number) but for rounding up.

  Few rows get few slots: a power of two on each device, so that few shapes are compiled.
  """
  each, wanted = -(-most // devices), 1 << (max(1, -(-rows // devices)) - 1).bit_length()
  return devices * (min(each, wanted) if each else wanted)


@dataclasses.dataclass(frozen=True)
class Served:
  """What became of requests: those that were given, then those that the watch gave, in order."""

  rollouts: list[Rollouts]
  usage: Usage


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
  """A model that decodes in slots of fixed shapes, so that little is compiled."""

  config: TransformerConfig
  mesh: jax.sharding.Mesh
  valid_vocab: int
  prompt_bucket: int  # prompts are padded to a multiple of this many tokens
  slots: int = 0  # rows decoded together; 0: a place for each sample of the first requests
  prefill_prompts: int = 8  # prompts computed together
  refill_steps: int = 8  # tokens between looks at which slots are free
  cache_dtype: str = ""  # of keys and values; empty is the compute dtype

  @functools.cached_property
  def decoding(self) -> TransformerConfig:
    """The model as it decodes."""
    return dataclasses.replace(self.config, stacked=False, remat="none")

  @functools.cached_property
  def shardings(self) -> Any:
    """Of parameters while decoding."""
    return param_shardings(self.decoding, self.mesh, rules.DECODING)

  def lay_out(self, params: Any) -> Any:
    """Parameters as decoding reads them: its sharding, in the dtypes of use. Once a step."""
    dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]  # noqa: E731
    computed = functools.partial(_as_computed, config=self.config)
    if dtypes(params) != dtypes(jax.eval_shape(computed, params)):
      params = computed(params)
    return jax.device_put(_unstack(params), self.shardings)

  def layout(self, rows: int, length: int) -> Layout:
    """Shapes for so many rows of so many tokens, prompts included, over all devices."""
    devices = meshes.row_parts(self.mesh)
    return Layout(
      slots=slot_count(self.slots, rows, devices),
      prefill_prompts=devices * -(-self.prefill_prompts // devices),
      steps=self.refill_steps,
      prompt_bucket=self.prompt_bucket,
      length=length,
      cache_dtype=self.cache_dtype or self.config.dtype,
    )

  def padded(self, prompt_length: int) -> int:
    """Length that prompts of at most so many tokens are computed at."""
    return -(-prompt_length // self.prompt_bucket) * self.prompt_bucket

  def serve(
    self,
    params: Any,
    requests: Sequence[Request],
    *,
    max_prompt_length: int,
    max_new_tokens: int,
    watch: Watch | None = None,
  ) -> Served:
    """Serves the requests of this process; all processes take part, with as many as they have.

    Args:
      params: parameters from `lay_out`.
      requests: in the order in which they begin.
      max_prompt_length: of any prompt, also those that the watch will give.
      max_new_tokens: of any request, likewise.
      watch: told of rows of watched requests as they are written; a request that it gives is
        served with the others.

    Returns:
      Rollouts of numpy arrays [request's samples, request's max_new_tokens].

    Raises:
      ValueError: a prompt is empty or longer than `max_prompt_length`, or a limit is over
        `max_new_tokens` or below 1.
    """

    def checked(request: Request) -> Request:
      if not 0 < len(request.prompt) <= max_prompt_length:
        raise ValueError(
          f"the prompt of {request.name!r} has {len(request.prompt)} tokens; expected 1 to"
          f" {max_prompt_length}"
        )
      if not 0 < request.max_new_tokens <= max_new_tokens:
        raise ValueError(
          f"the limit of {request.name!r} is {request.max_new_tokens} tokens; expected 1 to"
          f" {max_new_tokens}"
        )
      return request

    def checked_watch(*told: Any) -> list[Request]:
      return [] if watch is None else [checked(request) for request in watch(*told)]

    # Rows that a watch adds are not known yet; as many as there are slots may well come.
    rows = processes.global_sum(sum(request.samples for request in requests))
    if watch is not None and self.slots:
      rows = max(rows, self.slots)
    layout = self.layout(rows, self.padded(max_prompt_length) + max_new_tokens)
    scheduler = Scheduler(
      params,
      self.decoding,
      self.mesh,
      self.valid_vocab,
      layout,
      None if watch is None else checked_watch,
    )
    for request in requests:
      scheduler.add(checked(request))
    scheduler.run()
    rollouts = [scheduler.rollouts(number) for number in range(len(scheduler.requests))]
    return Served(rollouts, scheduler.usage)

  def generate(
    self,
    params: Any,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
    key: Key[Array, ""],
    sampling: Sampling,
    *,
    samples: int,
    max_new_tokens: int,
    max_prompt_length: int,
  ) -> Rollouts:
    """Samples `samples` responses for each prompt of this process.

    Args:
      params: parameters from `lay_out`.
      prompts: token ids, none longer than `max_prompt_length`.
      names: one a prompt, what makes its noise its own (a question's id).
      key: one a step and use.
      sampling: the settings.
      samples: responses a prompt.
      max_new_tokens: limit; a row that meets it is marked truncated.
      max_prompt_length: of any prompt.

    Returns:
      Rollouts of numpy arrays; row n * M + m is sample m of prompt n.

    Raises:
      ValueError: a prompt is empty or longer than `max_prompt_length`.
    """
    key_data = np.asarray(jax.random.key_data(key))
    requests = [
      Request(
        prompt=prompt,
        name=name,
        key_data=key_data,
        samples=samples,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
      )
      for prompt, name in zip(prompts, names, strict=True)
    ]
    longest = processes.global_max(max((len(prompt) for prompt in prompts), default=1))
    # Room for the longest prompt there is, doubled until it suffices, so that little is compiled.
    room = self.prompt_bucket
    while room < min(longest, max_prompt_length):
      room *= 2
    served = self.serve(
      params,
      requests,
      max_prompt_length=min(room, max_prompt_length),
      max_new_tokens=max_new_tokens,
    )
    if not served.rollouts:
      return no_rollouts(max_new_tokens)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *served.rollouts)


def no_rollouts(max_new_tokens: int) -> Rollouts:
  """Of no prompts."""
  return Rollouts(
    tokens=np.zeros((0, max_new_tokens), np.int32),
    logprobs=np.zeros((0, max_new_tokens), np.float32),
    lengths=np.zeros(0, np.int32),
    truncated=np.zeros(0, bool),
  )
