"""What the processes of a run tell each other; with one process everything stays where it is."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def process_index() -> int:
  return jax.process_index()


def process_count() -> int:
  return jax.process_count()


def say(text: str) -> None:
  """One line for the person at the terminal, from one process."""
  if process_index() == 0:
    print(text, file=sys.stderr, flush=True)


def global_max(value: int) -> int:
  """The largest of the processes' values, for shapes that all must share."""
  return global_maxima([value])[0]


def global_maxima(values: Sequence[int]) -> list[int]:
  """The same of several values at once; all processes have as many."""
  if jax.process_count() == 1 or not values:
    return [int(value) for value in values]
  gathered = multihost_utils.process_allgather(np.asarray(values, np.int32))
  return np.max(np.asarray(gathered), axis=0).tolist()


def global_sum(value: int) -> int:
  """The sum of the processes' values."""
  if jax.process_count() == 1:
    return value
  return int(_summed(np.array([value], np.float64))[0])


def global_means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
  """The mean of each list over all processes, which all have the names; of an empty one none."""
  sums = _summed(np.array([(np.sum(one, dtype=np.float64), len(one)) for one in values.values()]))
  return {
    name: float(total / count) for name, (total, count) in zip(values, sums, strict=True) if count
  }


def gather_rows(tree: Any) -> Any:
  """The rows of all processes, in order of processes, in each of them.

  Args:
    tree: of numpy arrays, rows first; processes may have different numbers of rows.
  """
  if jax.process_count() == 1:
    return tree
  rows = len(jax.tree.leaves(tree)[0])
  counts = np.asarray(multihost_utils.process_allgather(np.int64(rows)))
  most = _rounded(int(counts.max()))

  def gather(array: np.ndarray) -> np.ndarray:
    padded = np.zeros((most, *array.shape[1:]), array.dtype)
    padded[:rows] = array
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return np.concatenate([part[:count] for part, count in zip(gathered, counts, strict=True)])

  return jax.tree.map(gather, tree)


def own_rows(tree: Any) -> Any:
  """This process's equal share of rows that every process has."""
  each = len(jax.tree.leaves(tree)[0]) // jax.process_count()
  first = each * jax.process_index()
  return jax.tree.map(lambda array: array[first : first + each], tree)


def gather_text(text: str) -> list[str]:
  """The text of every process, in order of processes, in each of them."""
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  padded = np.zeros(_rounded(global_max(data.size)), np.uint8)
  padded[: data.size] = data
  sizes = multihost_utils.process_allgather(np.int64(data.size))
  rows = multihost_utils.process_allgather(padded)
  return [
    bytes(row[: int(size)]).decode()
    for row, size in zip(np.asarray(rows), np.asarray(sizes), strict=True)
  ]


def global_moments(values: np.ndarray) -> tuple[float, float]:
  """Mean and standard deviation over the values of all processes; 0 and 0 of none."""
  exact = values.astype(np.float64)
  count, total, squares = _summed(np.array([exact.size, exact.sum(), (exact**2).sum()]))
  if count == 0:
    return 0.0, 0.0
  mean = total / count
  return float(mean), float(np.sqrt(max(squares / count - mean**2, 0.0)))


def _rounded(size: int) -> int:
  """The next power of two: each length that is gathered is a program of its own."""
  return 1 << max(0, size - 1).bit_length()


def _summed(array: np.ndarray) -> np.ndarray:
  """The sum of the processes' float64 arrays."""
  if jax.process_count() == 1:
    return array
  # As bits: float64 would be cut to float32 on the way.
  bits = np.asarray(multihost_utils.process_allgather(array.view(np.uint32)))
  return np.sum(np.ascontiguousarray(bits).view(np.float64), axis=0)
