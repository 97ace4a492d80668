"""What the answers to one question agree on.

Answers are compared by value. A missing answer (None) is a vote that nobody joins: it counts among
the votes cast, never as a label.
"""

import collections
import dataclasses
import math
from collections.abc import Hashable, Sequence

Value = Hashable  # an answer's exact value; None where there was no answer


@dataclasses.dataclass(frozen=True)
class Vote:
  """The outcome of one vote (docs/method.md, 2.3)."""

  label: Value | None  # the most frequent answer; None after a tie or when all are missing
  confidence: float  # votes for the most frequent answer / votes cast, in 0..1
  shares: dict[Value, float]  # answer -> its votes / votes cast; missing answers have no entry

  def share(self, answer: Value | None) -> float:
    """The share of votes equal to `answer`; 0 for a missing answer."""
    return 0.0 if answer is None else self.shares.get(answer, 0.0)


def count_votes(answers: Sequence[Value | None]) -> Vote:
  """Counts the votes.

  >>> count_votes([12, 12, 7, None])
  Vote(label=12, confidence=0.5, shares={12: 0.5, 7: 0.25})
  """
  counts = collections.Counter(answer for answer in answers if answer is not None)
  if not counts:
    return Vote(None, 0.0, {})
  best = max(counts.values())
  leaders = [answer for answer, count in counts.items() if count == best]
  shares = {answer: count / len(answers) for answer, count in counts.items()}
  return Vote(leaders[0] if len(leaders) == 1 else None, best / len(answers), shares)


def settled(answer: Value) -> Vote:
  """A vote that everybody cast for `answer`: how a gold answer is used as a label."""
  return Vote(answer, 1.0, {answer: 1.0})


def entropy(answers: Sequence[Value | None]) -> float:
  """Entropy in nats of the answers given, missing ones as one more kind: a collapse shows here."""
  counts = collections.Counter(answers)
  return -sum(n / len(answers) * math.log(n / len(answers)) for n in counts.values())
