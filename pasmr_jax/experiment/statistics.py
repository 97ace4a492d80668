"""How sure a measured number is: bootstrap intervals, paired differences, votes of samples.

The unit that is drawn again is the question, with all its samples and all its languages: the same
question in another language is not another piece of evidence. Everything is seeded, so that the
same answers always give the same interval.

Q questions, L languages, R resamples.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
LEVEL = 0.95
_Z = 1.959963984540054  # of the normal distribution at LEVEL
_BLOCK = 100  # resamples drawn at a time
_ROUNDING = 1e-9  # what a mean that is 0 may be off by


@dataclasses.dataclass(frozen=True)
class Interval:
  """An interval that covers the true value in 95 of 100 evaluations, as far as can be told."""

  low: float
  high: float

  def excludes_zero(self) -> bool:
    return self.low > _ROUNDING or self.high < -_ROUNDING


class Bootstrap:
  """Resamples of questions, drawn once, for the means of any set of languages.

  The mean over a set of languages weighs them alike; a language that a resample leaves without a
  question is left out of that resample's mean.
  """

  def __init__(self, values: Float[np.ndarray, "Q L"], seed: int = 0):
    """Draws the resamples.

    Args:
      values: one value a question and language, such as 1 for right; NaN where a question is not
        asked in a language.
      seed: of the draws.

    Raises:
      ValueError: there is no question, or a language without any.
    """
    asked = ~np.isnan(values)
    if not asked.any(axis=0).all() or not values.size:
      raise ValueError(f"values of shape {values.shape}: expected a value in every column")
    filled = np.where(asked, values, 0.0)
    rng = np.random.default_rng(seed)
    count = len(values)
    weights = np.full(count, 1 / count)
    means = []
    for begin in range(0, RESAMPLES, _BLOCK):
      drawn = rng.multinomial(count, weights, size=min(_BLOCK, RESAMPLES - begin)).astype(float)
      sums, totals = drawn @ filled, drawn @ asked.astype(float)
      means.append(np.where(totals > 0, sums / np.maximum(totals, 1), np.nan))
    self._means: Float[np.ndarray, "R L"] = np.concatenate(means)
    self._values = values

  def interval(self, columns: Sequence[int]) -> Interval:
    """95 % interval of the mean over these columns: the middle of the resampled means."""
    chosen = self._means[:, list(columns)]
    present = ~np.isnan(chosen)
    rows = present.any(axis=1)
    means = np.where(present, chosen, 0.0)[rows].sum(axis=1) / present[rows].sum(axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))

  def share_interval(self, columns: Sequence[int]) -> Interval:
    """The same for shares between 0 and 1.

    If all questions have the same share, such as all of their answers right, every resample is
    alike and says nothing of the questions not asked: then it is Wilson's interval for one answer a
    question.
    """
    found = self.interval(columns)
    if found.high - found.low > _ROUNDING:
      return found
    asked = ~np.isnan(self._values[:, list(columns)]).all(axis=1)
    return wilson(min(max(found.low, 0.0), 1.0), int(asked.sum()))


def wilson(share: float, count: int) -> Interval:
  """Wilson's score interval (1927) of a share observed in `count` independent trials, 95 %.

  Raises ValueError for a count below 1.
  """
  if count < 1:
    raise ValueError(f"a share of {count} trials has no interval; expected at least 1")
  spread = _Z * np.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2)
  middle = share + _Z**2 / (2 * count)
  scale = 1 + _Z**2 / count
  low, high = (middle - spread) / scale, (middle + spread) / scale
  # At the ends the formula gives them exactly, but for rounding.
  return Interval(0.0 if share == 0 else float(low), 1.0 if share == 1 else float(high))


def majority_share(answers: Sequence[tuple[str | None, bool]]) -> float:
  """maj@n of one question: is the most frequent of its n answers right?

  Args:
    answers: each sample's answer and whether it is right. A missing answer joins no vote.

  Returns:
    1 or 0; of several answers that are as frequent, the share that is right, which is what drawing
    one of them by lot gives on average; 0 without any answer.
  """
  counts = collections.Counter(answer for answer, _ in answers if answer is not None)
  if not counts:
    return 0.0
  most = max(counts.values())
  right = dict(answers)
  leaders = [answer for answer, count in counts.items() if count == most]
  return sum(right[answer] for answer in leaders) / len(leaders)
