"""Several responses to a row, so that little of an update is spent on padding.

A batch always has room for the most rows its responses could need (`most_rows`): one shape, compiled
once. They are packed into the fewest rows we find, and these fill one microbatch after the other;
microbatches that stay empty are not computed (`learning/update.py`). What is padding is what is left
at the ends of rows, and the empty rows of the last microbatch.
"""

import jax
import numpy as np

from pasmr_jax import Config
from pasmr_jax.data.batches import best_fit
from pasmr_jax.learning.losses import PolicyBatch


def row_length(srl: Config) -> int:
  """Tokens of a packed row."""
  return srl.row_length or srl.max_prompt_length + srl.max_new_tokens


def most_rows(srl: Config, responses: int) -> int:
  """Rows of a batch with room for so many responses, however long they are.

  A row is opened when no other has room: all but the last hold as many as would be there at the
  limit of length, or more.
  """
  a_row = row_length(srl) // (srl.max_prompt_length + srl.max_new_tokens)
  return -(-responses // (a_row * srl.row_bucket)) * srl.row_bucket


def pack_rows(rows: PolicyBatch, room: int, pieces: int) -> PolicyBatch:
  """The same responses, several to a row of the same length, each a segment of its own.

  Responses that teach nothing, those without a weight, are left out.

  Args:
    rows: numpy, one response a row, at its left.
    room: rows of the result; those that are not needed are empty.
    pieces: microbatches that the result will be split into (`Learner.pieces`).

  Raises:
    ValueError: the responses need more rows.
  """
  weighted = rows.sequences.weights.any(axis=1)
  rows = jax.tree.map(lambda array: array[weighted], rows)
  lengths = np.count_nonzero(rows.sequences.segment_ids, axis=1)
  length = rows.advantages.shape[1]
  placed = best_fit(lengths.tolist(), length)
  if len(placed) > room:
    raise ValueError(f"responses need {len(placed)} rows of {length}, expected at most {room}")
  packed = jax.tree.map(lambda array: np.zeros((room, length), array.dtype), rows)
  for number, members in enumerate(placed):
    # A microbatch has one of every `pieces` rows, so that each device's share has part in it.
    piece, place = divmod(number, room // pieces)
    row, start = place * pieces + piece, 0
    for segment, member in enumerate(members, start=1):
      own, there = slice(lengths[member]), slice(start, start + lengths[member])
      for to, array in zip(jax.tree.leaves(packed), jax.tree.leaves(rows), strict=True):
        to[row, there] = array[member, own]
      packed.sequences.segment_ids[row, there] = segment
      start = there.stop
  return packed


def computed_places(packed: PolicyBatch, pieces: int) -> int:
  """Places for tokens in the microbatches that hold a response, or in one if none does."""
  room, length = packed.advantages.shape
  used, each = int(packed.sequences.segment_ids.any(axis=1).sum()), room // pieces
  return max(1, -(-used // each)) * each * length
