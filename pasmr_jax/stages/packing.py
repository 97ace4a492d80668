"""Several responses to a row, so that little of an update is spent on padding.

A batch always has room for the most rows that its responses could need: one shape, compiled once
for each length of rows. Responses are packed into the fewest rows we find (`lay_out`), and these
fill one microbatch after the other (`pack`); microbatches that stay empty are not computed
(`learning/update.py`). What is padding is what is left at the ends of rows, and the empty rows of
the last microbatch.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from pasmr_jax import Config
from pasmr_jax.data.batches import best_fit
from pasmr_jax.learning.losses import PolicyBatch


@dataclasses.dataclass(frozen=True)
class Layout:
  """Which responses share a row."""

  rows: Sequence[Sequence[int]]  # of each row that is filled, its responses
  length: int  # tokens a row
  room: int  # rows of the batch, filled and empty
  each: int  # rows of a microbatch; it divides `room`

  @property
  def places(self) -> int:
    """Places for tokens in the microbatches that hold a response, or in one if none does."""
    return max(1, -(-len(self.rows) // self.each)) * self.each * self.length


def row_length(srl: Config) -> int:
  """Tokens of a packed row: the usual length."""
  return srl.row_length or srl.max_prompt_length + srl.max_new_tokens


def row_lengths(srl: Config) -> tuple[int, ...]:
  """The usual length, and those of `longer_rows` that are longer: it may be set without them."""
  usual = row_length(srl)
  return usual, *(length for length in srl.longer_rows if length > usual)


def most_rows(srl: Config, length: int, responses: int) -> int:
  """Rows of so many tokens that have room for so many responses, however long they are.

  A row is opened when no other has room: all but the last hold as many responses as would be there
  at the limit of length, or more.
  """
  a_row = length // (srl.max_prompt_length + srl.max_new_tokens)
  return -(-responses // (a_row * srl.row_bucket)) * srl.row_bucket


def lay_out(lengths: Sequence[int], srl: Config, responses: int) -> Layout:
  """Responses in rows of the length that leaves the least padding.

  Args:
    lengths: tokens of each response that is laid out, prompt included.
    srl: `config.srl`.
    responses: how many there could be: with the length of rows they decide the batch's shape.
  """

  def of(length: int) -> Layout:
    room, each = most_rows(srl, length, responses), srl.row_bucket // srl.microbatches
    return Layout(best_fit(lengths, length), length, room, each)

  return min(map(of, row_lengths(srl)), key=lambda layout: layout.places)


def pack(responses: PolicyBatch, srl: Config) -> tuple[PolicyBatch, Layout]:
  """The same responses, several to a row, each a segment of its own.

  Responses that teach nothing, those without a weight, are left out.

  Args:
    responses: numpy, one a row, at its left.
    srl: `config.srl`.
  """
  most = len(responses.advantages)
  weighted = responses.sequences.weights.any(axis=1)
  responses = jax.tree.map(lambda array: array[weighted], responses)
  lengths = np.count_nonzero(responses.sequences.segment_ids, axis=1).tolist()
  layout = lay_out(lengths, srl, most)
  shape, pieces = (layout.room, layout.length), layout.room // layout.each
  packed = jax.tree.map(lambda array: np.zeros(shape, array.dtype), responses)
  for number, members in enumerate(layout.rows):
    # A microbatch has one of every `pieces` rows, so that each device's share has part in it.
    piece, place = divmod(number, layout.each)
    row, start = place * pieces + piece, 0
    for segment, member in enumerate(members, start=1):
      own, there = slice(lengths[member]), slice(start, start + lengths[member])
      for to, array in zip(jax.tree.leaves(packed), jax.tree.leaves(responses), strict=True):
        to[row, there] = array[member, own]
      packed.sequences.segment_ids[row, there] = segment
      start = there.stop
  return packed, layout
