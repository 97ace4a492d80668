"""Endless, resumable batches of questions and of packed training examples.

    self-feedback   questions -> shuffled anew each epoch -> lists of questions
    supervised      pools of examples -> shuffled each by itself -> mixed by weight -> packed rows

Everything is a function of (data, seed, position): grain datasets give random access to a stream
without end, and the state of an iterator is a small dict of ints and lists of ints, fit for JSON,
that continues the exact sequence in another process.

Sharding. The batch of a step is defined for all processes together; each process takes the rows
[process_index * n, (process_index + 1) * n) of it, n = batch_size // process_count. So one process
and eight see the same batches, and a run may be resumed on another number of hosts.

Axes: N rows of this process, L tokens a row.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import grain
import numpy as np
from jaxtyping import Float, Int

from pasmr_jax.data.questions import Question

_ENDLESS = 2**53  # questions or examples that a stream has
# No threads: the records are in memory, and reading one costs less than handing it over.
_READ_IN_PLACE = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """A prompt and the response to learn, as token ids; the response ends in end-of-sequence.

  Raises ValueError for a response without tokens.
  """

  prompt_ids: tuple[int, ...]
  response_ids: tuple[int, ...]

  def __post_init__(self):
    if not self.response_ids:
      raise ValueError("example: its response is empty, expected at least end-of-sequence")

  def __len__(self) -> int:
    return len(self.prompt_ids) + len(self.response_ids)


@dataclasses.dataclass(frozen=True, slots=True)
class SupervisedBatch:
  """Rows of packed examples. Two examples of a row are told apart by their segment id."""

  tokens: Int[np.ndarray, "N L"]  # int32, 0 where there is no example
  positions: Int[np.ndarray, "N L"]  # int32, from 0 in each example, 0 where there is none
  segment_ids: Int[np.ndarray, "N L"]  # int32, from 1 in each row, 0 where there is no example
  loss_mask: Float[np.ndarray, "N L"]  # float32, 1 where tokens[j] is learned, from position j - 1

  def __eq__(self, other: object) -> bool:
    return isinstance(other, SupervisedBatch) and all(
      np.array_equal(getattr(self, field.name), getattr(other, field.name))
      for field in dataclasses.fields(self)
    )


def question_iterator(
  questions: Sequence[Question],
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  key: str = "batch_size",
) -> grain.DatasetIterator[list[Question]]:
  """Batches of questions without end, each question once an epoch, in a new order each epoch.

  Batches run over the end of an epoch, so none is short and no question is left out. One that is
  in a batch again has "/2" behind its id there, then "/3": by its id it is sampled.

  Args:
    questions: the pool, in any order; the same on every process.
    batch_size: questions a step, of all processes together.
    seed: any int from 0; streams of different seeds are independent.
    process_index, process_count: which of how many processes, that share each batch.
    key: of the configuration, that says `batch_size`; for messages.

  Returns:
    An iterator over lists of batch_size // process_count questions. `get_state()` is a dict fit
    for JSON and `set_state(state)` continues from it.

  Raises ValueError for an empty pool or a batch that the processes cannot share.
  """
  rows = _rows_of_process(key, batch_size, process_index, process_count)
  if not questions:
    raise ValueError("question_iterator: found no question, expected at least one")
  stream = _shuffled(questions, seed, pool=0).batch(batch_size, batch_fn=_numbered)
  return iter(stream.map(lambda batch: batch[rows]).to_iter_dataset(_READ_IN_PLACE))


def supervised_iterator(
  pools: Sequence[tuple[Sequence[Example], float]],
  batch_size: int,
  max_length: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  key: str = "batch_size",
) -> "PackedIterator":
  """Packed batches without end from pools mixed by weight.

  Args:
    pools: (examples, weight) each; weights are shares of examples in the mix, above 0 and not
      necessarily of sum 1. A pool has a random stream of its own: changing the size of one leaves
      the order of the others as it was.
    batch_size: rows a step, of all processes together.
    max_length: tokens a row. Each example must fit (see `fit_examples`).
    seed: any int from 0.
    process_index, process_count: which of how many processes, that share each batch.
    key: of the configuration, that says `batch_size`; for messages.

  Returns:
    An iterator over `SupervisedBatch`es of batch_size // process_count rows. `get_state()` is a
    dict fit for JSON and `set_state(state)` continues from it.

  Raises ValueError for an empty pool, a weight that is not positive, an example that does not fit,
  or a batch that the processes cannot share.
  """
  rows = _rows_of_process(key, batch_size, process_index, process_count)
  if not pools:
    raise ValueError("supervised_iterator: found no pool, expected at least one")
  for number, (examples, weight) in enumerate(pools):
    if not examples:
      raise ValueError(f"supervised_iterator: pool {number} is empty, expected examples")
    if not (math.isfinite(weight) and weight > 0):
      raise ValueError(f"supervised_iterator: pool {number} has weight {weight}, expected above 0")
    longest = max(map(len, examples))
    if longest > max_length:
      raise ValueError(
        f"supervised_iterator: pool {number} has an example of {longest} tokens, expected at most"
        f" max_length {max_length}; leave such examples out with fit_examples"
      )
  streams = [_shuffled(examples, seed, pool) for pool, (examples, _) in enumerate(pools)]
  mixed = grain.MapDataset.mix(streams, weights=[float(weight) for _, weight in pools])
  return PackedIterator(mixed, batch_size, max_length, rows)


def fit_examples(examples: Sequence[Example], max_length: int) -> tuple[list[Example], int]:
  """The examples of at most `max_length` tokens, and how many others were left out.

  An example is never cut: without its end it would teach not to stop.
  """
  kept = [example for example in examples if len(example) <= max_length]
  return kept, len(examples) - len(kept)


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
  """Which items share a row of `room` tokens: the longest first, each in the fullest row with room.

  Rows, and the items of a row, are in the order of the items.

  >>> best_fit([5, 4, 3, 2], 8)
  [[0, 2], [1, 3]]

  Raises ValueError for an item that fits no row.
  """
  rows: list[list[int]] = []
  left: list[int] = []
  for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
    length = lengths[item]
    if length > room:
      raise ValueError(f"item {item} has {length} tokens, expected at most {room}")
    fitting = [row for row, tokens in enumerate(left) if tokens >= length]
    row = min(fitting, key=left.__getitem__, default=len(rows))
    if row == len(rows):
      rows.append([])
      left.append(room)
    rows[row].append(item)
    left[row] -= length
  return sorted(sorted(row) for row in rows)


def padding_share(batch: SupervisedBatch) -> float:
  """Share of a batch's token places that hold no example, from 0 to 1."""
  return float(np.mean(batch.segment_ids == 0))


class PackedIterator(grain.DatasetIterator[SupervisedBatch]):
  """Packs a stream of examples into rows, first fit, in the order of the stream.

  Each example goes to the first row with room. One that fits nowhere waits for the next batch,
  where it is placed first; the batch is full when `batch_size` examples wait. As a waiting example
  fits an empty row and there are as many rows, none waits twice.

  Its state is the position in the stream and the positions of the waiting examples.
  """

  def __init__(
    self,
    stream: grain.MapDataset[Example],
    batch_size: int,
    max_length: int,
    rows: slice,
  ):
    super().__init__()
    self._stream = stream
    self._batch_size = batch_size
    self._max_length = max_length
    self._rows = rows
    self._position = 0
    self._waiting: list[int] = []

  def __next__(self) -> SupervisedBatch:
    packed: list[list[Example]] = [[] for _ in range(self._batch_size)]
    room = np.full(self._batch_size, self._max_length)
    waiting: list[int] = []
    for index in itertools.chain(self._waiting, itertools.count(self._position)):
      if len(waiting) == self._batch_size or not room.any():
        # All that waited have been placed by now, so `index` is the next of the stream.
        self._position, self._waiting = index, waiting
        break
      example = cast(Example, self._stream[index])
      fitting = room >= len(example)
      if fitting.any():
        row = int(fitting.argmax())
        packed[row].append(example)
        room[row] -= len(example)
      else:
        waiting.append(index)
    return _fill(packed[self._rows], self._max_length)

  def get_state(self) -> dict[str, Any]:
    """{"position": int, "waiting": list of int}: fit for JSON."""
    return {"position": self._position, "waiting": list(self._waiting)}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues after the batch that was last read when `state` was taken."""
    self._position = int(state["position"])
    self._waiting = [int(index) for index in state["waiting"]]


def _fill(packed: Sequence[Sequence[Example]], max_length: int) -> SupervisedBatch:
  shape = (len(packed), max_length)
  tokens, positions, segment_ids = (np.zeros(shape, np.int32) for _ in range(3))
  loss_mask = np.zeros(shape, np.float32)
  for row, examples in enumerate(packed):
    start = 0
    for segment, example in enumerate(examples, start=1):
      # prompt p q, response r e at start 0:  tokens p q r e   positions 0 1 2 3
      #                                       mask   0 0 1 1   segments  1 1 1 1
      stop = start + len(example)
      learned = start + max(len(example.prompt_ids), 1)  # nothing comes before the first token
      tokens[row, start:stop] = (*example.prompt_ids, *example.response_ids)
      positions[row, start:stop] = np.arange(stop - start)
      segment_ids[row, start:stop] = segment
      loss_mask[row, learned:stop] = 1
      start = stop
  return SupervisedBatch(tokens, positions, segment_ids, loss_mask)


def _shuffled(records: Sequence[Any], seed: int, pool: int) -> grain.MapDataset[Any]:
  """The records without end, in another order each epoch."""
  # Not grain's own shuffle: it takes milliseconds a record for a pool of a few, and adds the epoch
  # to the seed, so that seeds 0 and 1 share all epochs but one.

  @functools.lru_cache(maxsize=8)
  def order(epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, pool, epoch)).permutation(len(records))

  def pick(index: int, _: int) -> Any:
    epoch, place = divmod(index, len(records))
    return records[order(epoch)[place]]

  # Not grain's repetition without end, whose length no batch size of 1 can be taken of.
  epochs = _ENDLESS // len(records)
  return grain.MapDataset.range(len(records)).repeat(epochs).map_with_index(pick)


def _numbered(batch: Sequence[Question]) -> list[Question]:
  """A batch with another id for a question that is in it again."""
  seen: collections.Counter[tuple[str, str]] = collections.Counter()
  numbered = []
  for question in batch:
    seen[question.language, question.id] += 1
    times = seen[question.language, question.id]
    if times > 1:
      question = dataclasses.replace(question, id=f"{question.id}/{times}")
    numbered.append(question)
  return numbered


def _rows_of_process(key: str, batch_size: int, process_index: int, process_count: int) -> slice:
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"{key} is {batch_size}, expected a positive multiple of the {process_count} processes"
    )
  if not 0 <= process_index < process_count:
    raise ValueError(f"process_index is {process_index}, expected 0 to {process_count - 1}")
  each = batch_size // process_count
  return slice(process_index * each, (process_index + 1) * each)
