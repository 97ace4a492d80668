"""Prompts to sampled responses with the log-probabilities they were drawn with.

`Engine.generate` narrates the path: left-pad the prompts to a bucket, prefill each prompt once,
repeat its cache for its samples, and decode all rows together in one jitted `while_loop` until
every row has drawn a stop id or the token limit is reached.

N prompts, M samples a prompt, R = N * M rows, P prompt slots, T new tokens, V vocabulary.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from pasmr_jax.models import transformer
from pasmr_jax.models.attention import Cache, init_cache
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.parallel import mesh as meshes
from pasmr_jax.parallel import processes
from pasmr_jax.rollout import sampling as drawing


class Rollouts(flax.struct.PyTreeNode):
  """Sampled responses. Row n * M + m is sample m of prompt n."""

  tokens: Int[drawing.AnyArray, "R T"]  # 0 after a row's end
  logprobs: Float[drawing.AnyArray, "R T"]  # of softmax(logits / temperature): the policy
  drawn_logprobs: Float[drawing.AnyArray, "R T"]  # of the truncated distribution drawn from
  lengths: Int[drawing.AnyArray, " R"]  # tokens drawn, the stop id included
  truncated: Bool[drawing.AnyArray, " R"]  # no stop id within the limit


def stable_id(name: str) -> int:
  """A 31-bit number for a name, the same in every process and run."""
  return zlib.crc32(name.encode("utf-8", "surrogatepass")) & 0x7FFFFFFF


@functools.partial(jax.jit, static_argnames="samples")
def _row_keys(key: Key[Array, ""], ids: Int[Array, " N"], samples: int) -> Key[Array, " R"]:
  prompt_keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
  rows = jax.vmap(lambda k: jax.vmap(lambda m: jax.random.fold_in(k, m))(jnp.arange(samples)))
  return rows(prompt_keys).reshape(-1)


def left_padded(
  prompts: Sequence[Sequence[int]], length: int
) -> tuple[Int[np.ndarray, "N P"], Int[np.ndarray, " N"]]:
  """Prompts as one array whose last column is every prompt's last token, and where each starts."""
  tokens = np.zeros((len(prompts), length), np.int32)
  starts = np.zeros(len(prompts), np.int32)
  for row, prompt in enumerate(prompts):
    starts[row] = length - len(prompt)
    tokens[row, starts[row] :] = prompt
  return tokens, starts


@functools.partial(jax.jit, static_argnames=("config", "samples", "max_new_tokens", "valid_vocab"))
def generate(
  params,
  prompts: Int[Array, "N P"],
  starts: Int[Array, " N"],
  keys: Key[Array, " R"],
  sampling: drawing.Sampling,
  *,
  config: TransformerConfig,
  samples: int,
  max_new_tokens: int,
  valid_vocab: int,
) -> Rollouts:
  """Samples `samples` responses a prompt. Pure; shapes and `max_new_tokens` compile, nothing else.

  Args:
    params: model parameters.
    prompts: left-padded token ids.
    starts: column of each prompt's first token; a row that starts at P is padding of the batch and
      is finished before it begins.
    keys: one a row; the t-th token is drawn with `fold_in(key, t)`.
    sampling: temperature, truncation and stop ids, all dynamic.
    config: the model.
    samples: M.
    max_new_tokens: T.
    valid_vocab: ids from here on are never drawn.
  """
  model = transformer.Transformer(config)
  table = transformer.output_table(params, config)
  count, prompt_length = prompts.shape
  columns = jnp.arange(prompt_length)[None, :]
  segment_ids = (columns >= starts[:, None]).astype(jnp.int32)
  positions = jnp.maximum(columns - starts[:, None], 0)

  cache = init_cache(config, count, prompt_length + max_new_tokens, config.dtype)
  cache = cache.replace(start=starts)
  prefilled = model.apply({"params": params}, prompts, positions, segment_ids, cache)
  hidden, cache = cast(tuple[Array, Cache], prefilled)
  repeat = functools.partial(jnp.repeat, repeats=samples)
  cache = cache.replace(
    keys=repeat(cache.keys, axis=1),
    values=repeat(cache.values, axis=1),
    start=repeat(starts, axis=0),
  )
  rows = count * samples

  def next_logits(hidden):
    return transformer.logits(hidden, table, config, valid_vocab)

  def unfinished(state):
    step, _, finished, *_ = state
    return (step < max_new_tokens) & ~finished.all()

  def decode(state):
    step, next_hidden, finished, cache, rollouts = state
    step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
    tokens, logprobs, drawn_logprobs = drawing.sample(next_logits(next_hidden), step_keys, sampling)
    alive = ~finished
    write = functools.partial(_write_column, step=step, alive=alive)
    rollouts = Rollouts(
      tokens=write(rollouts.tokens, tokens),
      logprobs=write(rollouts.logprobs, logprobs),
      drawn_logprobs=write(rollouts.drawn_logprobs, drawn_logprobs),
      lengths=rollouts.lengths + alive,
      truncated=rollouts.truncated,
    )
    finished = finished | drawing.is_stop(tokens, sampling)
    position = cache.index - cache.start
    hidden, cache = model.apply(
      {"params": params},
      tokens[:, None],
      position[:, None],
      jnp.ones((rows, 1), jnp.int32),
      cache,
    )
    return step + 1, hidden[:, 0], finished, cache, rollouts

  empty = Rollouts(
    tokens=jnp.zeros((rows, max_new_tokens), jnp.int32),
    logprobs=jnp.zeros((rows, max_new_tokens), jnp.float32),
    drawn_logprobs=jnp.zeros((rows, max_new_tokens), jnp.float32),
    lengths=jnp.zeros(rows, jnp.int32),
    truncated=jnp.zeros(rows, bool),
  )
  padding = repeat(starts, axis=0) == prompt_length
  state = (jnp.int32(0), repeat(hidden[:, -1], axis=0), padding, cache, empty)
  _, _, finished, _, rollouts = jax.lax.while_loop(unfinished, decode, state)
  return rollouts.replace(truncated=~finished)


def _no_rollouts(max_new_tokens: int) -> Rollouts:
  floats = np.zeros((0, max_new_tokens), np.float32)
  return Rollouts(
    tokens=np.zeros((0, max_new_tokens), np.int32),
    logprobs=floats,
    drawn_logprobs=floats,
    lengths=np.zeros(0, np.int32),
    truncated=np.zeros(0, bool),
  )


@functools.partial(jax.jit, static_argnames="dtype")
def _cast(params: Any, dtype: jnp.dtype) -> Any:
  return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _write_column(array, column, *, step, alive):
  column = jnp.where(alive, column, 0).astype(array.dtype)
  return jax.lax.dynamic_update_slice_in_dim(array, column[:, None], step, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
  """Generates for lists of prompts in chunks of one fixed shape, so that little is compiled."""

  config: TransformerConfig
  mesh: jax.sharding.Mesh
  shardings: Any  # of parameters while decoding
  valid_vocab: int
  prompt_bucket: int  # prompts are padded to a multiple of this many tokens
  max_rows: int  # rows decoded together; 0 decodes all at once

  def lay_out(self, params: Any) -> Any:
    """Parameters as decoding reads them: its sharding, in the compute dtype. Once a step."""
    dtype = jnp.dtype(self.config.dtype)
    if any(leaf.dtype != dtype for leaf in jax.tree.leaves(params)):
      params = _cast(params, dtype)
    return jax.device_put(params, self.shardings)

  def generate(
    self,
    params,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
    key: Key[Array, ""],
    sampling: drawing.Sampling,
    *,
    samples: int,
    max_new_tokens: int,
    max_prompt_length: int,
  ) -> Rollouts:
    """Samples `samples` responses for each prompt of this process.

    A row depends on `params`, its prompt, and `key` folded with its name and its sample's number;
    not on its neighbours, its place or the chunk it falls in.

    Args:
      params: parameters from `lay_out`.
      prompts: token ids, none longer than `max_prompt_length`.
      names: one a prompt, what makes its noise its own (a question's id).
      key: one a step and use.
      sampling: the settings.
      samples: responses a prompt.
      max_new_tokens: limit; a row that meets it is marked truncated.
      max_prompt_length: decides the padded length together with `prompt_bucket`.

    Returns:
      Rollouts of numpy arrays, R = len(prompts) * samples rows in order.

    Raises:
      ValueError: a prompt is empty or longer than `max_prompt_length`.
    """
    for prompt, name in zip(prompts, names, strict=True):
      if not 0 < len(prompt) <= max_prompt_length:
        raise ValueError(
          f"the prompt of {name!r} has {len(prompt)} tokens; expected 1 to {max_prompt_length}"
        )
    devices = self.mesh.local_mesh.shape["fsdp"]
    local_rows = self.max_rows // processes.process_count()
    chunk = prompts_a_chunk(processes.global_max(len(prompts)), samples, local_rows, devices)
    # All processes take part in every chunk, those that have run out of prompts with empty rows.
    chunks = processes.global_max(-(-len(prompts) // chunk))
    pieces = [_no_rollouts(max_new_tokens)]
    for begin in range(0, chunks * chunk, chunk):
      piece, piece_names = prompts[begin : begin + chunk], names[begin : begin + chunk]
      longest = processes.global_max(max((len(prompt) for prompt in piece), default=1))
      length = -(-longest // self.prompt_bucket) * self.prompt_bucket
      missing = padded_size(processes.global_max(len(piece)), chunk, devices) - len(piece)
      tokens, starts = left_padded([*piece, *[()] * missing], length)
      ids = np.asarray([*map(stable_id, piece_names), *[0] * missing], np.int32)
      arrays = meshes.shard_batch((tokens, starts, ids), self.mesh)
      rollouts = generate(
        params,
        arrays[0],
        arrays[1],
        _row_keys(key, arrays[2], samples),
        sampling,
        config=self.config,
        samples=samples,
        max_new_tokens=max_new_tokens,
        valid_vocab=self.valid_vocab,
      )
      rows = len(piece) * samples
      pieces.append(
        jax.tree.map(lambda array, rows=rows: meshes.local_rows(array)[:rows], rollouts)
      )
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *pieces)


def prompts_a_chunk(prompts: int, samples: int, max_rows: int, devices: int) -> int:
  """As many prompts as `max_rows` rows allow (0: all there are), a multiple of the devices."""
  chunk = max(1, prompts if max_rows == 0 else max_rows // samples)
  return -(-chunk // devices) * devices


def padded_size(prompts: int, chunk: int, devices: int) -> int:
  """What a chunk of so few prompts is decoded as: a power of two for each device, so that few
  shapes are compiled and few rows decoded in vain."""
  each = max(1, -(-prompts // devices))
  return min(chunk, devices * 2 ** (each - 1).bit_length())
