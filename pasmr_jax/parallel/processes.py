"""What the processes of a run tell each other; with one process everything stays where it is."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def process_index() -> int:
  return jax.process_index()


def process_count() -> int:
  return jax.process_count()


def global_max(value: int) -> int:
  """The largest of the processes' values, for shapes that all must share."""
  if jax.process_count() == 1:
    return value
  return int(np.max(multihost_utils.process_allgather(np.int64(value))))


def global_moments(values: np.ndarray) -> tuple[float, float]:
  """Mean and standard deviation over the values of all processes; 0 and 0 of none."""
  sums = np.array([values.size, values.sum(), (values**2).sum()], np.float64)
  if jax.process_count() > 1:
    sums = np.sum(multihost_utils.process_allgather(sums), axis=0)
  count, total, squares = sums
  if count == 0:
    return 0.0, 0.0
  mean = total / count
  return float(mean), float(np.sqrt(max(squares / count - mean**2, 0.0)))
