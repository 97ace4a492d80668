"""The alarm of self-feedback: the model agrees with itself more and more while it gets worse.

Without gold answers a policy can raise its reward by becoming the same everywhere: translations
that say nothing, one answer to everything. `CollapseWatch` compares what is seen while training
with the best there was, quantity by quantity. It alarms when, since a quantity was at its best,
agreement has risen by at least `guard.collapse_rise` while the quantity has lost at least its share
(`guard.collapse_*`). It alarms once; a quantity that comes back alarms anew when it falls again.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pasmr_jax import Config

ACTIONS = ("continue", "stop", "return")
AGREEMENT = "reward/agreement"


@dataclasses.dataclass(frozen=True)
class Quantity:
  """Something that falls when a policy collapses."""

  key: str  # guard.collapse_KEY: the share of its best that it may lose
  metric: str
  name: str  # for people
  averaged: bool  # over the window; a quantity that is measured seldom is taken as it is


QUANTITIES = (
  Quantity("accuracy", "development/target_accuracy", "held-out accuracy", averaged=False),
  Quantity("entropy", "answer_entropy", "the entropy of answers", averaged=True),
  Quantity("numbers", "translation_number_recall", "number recall of translations", averaged=True),
  Quantity("language", "language/reasoning", "reasoning in the target language", averaged=True),
  Quantity("language", "language/translation", "translation in the pivot", averaged=True),
)


@dataclasses.dataclass(frozen=True)
class Alarm:
  """One quantity fell while agreement rose."""

  quantity: Quantity
  best: float
  now: float
  agreement_then: float
  agreement_now: float

  def __str__(self) -> str:
    return (
      f"agreement rose from {self.agreement_then:.2f} to {self.agreement_now:.2f} while"
      f" {self.quantity.name} fell from {self.best:.2f} to {self.now:.2f}"
    )

  @property
  def metrics(self) -> dict[str, float]:
    """For metrics.jsonl: the share of its best that the quantity has lost."""
    return {f"alarm/{self.quantity.metric}": 1 - self.now / self.best}


class CollapseWatch:
  """Watches one stage; its state goes into checkpoints."""

  def __init__(self, config: Config, state: Mapping[str, Any] | None = None):
    """`config` is config.guard; `state` is that of an earlier watch."""
    self._config = config
    state = state or {}
    self._recent: dict[str, list[float]] = {k: list(v) for k, v in state.get("recent", {}).items()}
    self._best: dict[str, list[float]] = {k: list(v) for k, v in state.get("best", {}).items()}
    self._alarmed: list[str] = list(state.get("alarmed", ()))

  def state(self) -> dict[str, Any]:
    """What it has seen, fit for JSON."""
    return {"recent": self._recent, "best": self._best, "alarmed": self._alarmed}

  def see(self, values: Mapping[str, Any]) -> list[Alarm]:
    """Takes a step's metrics, or an evaluation's, and says what is alarming now."""
    window = self._config.collapse_window
    if window == 0:
      return []
    averaged = [AGREEMENT, *(q.metric for q in QUANTITIES if q.averaged)]
    for metric in averaged:
      if metric in values:
        recent = [*self._recent.get(metric, ()), float(values[metric])]
        self._recent[metric] = recent[-window:]
    agreement = self._recent.get(AGREEMENT, [])
    if len(agreement) < window:
      return []
    alarms = []
    for quantity in QUANTITIES:
      if quantity.averaged:
        recent = self._recent.get(quantity.metric, [])
        if len(recent) < window or AGREEMENT not in values:
          continue
        now = _mean(recent)
      elif quantity.metric in values:
        now = float(values[quantity.metric])
      else:
        continue
      alarm = self._judge(quantity, now, _mean(agreement))
      if alarm is not None:
        alarms.append(alarm)
    return alarms

  def _judge(self, quantity: Quantity, now: float, agreement: float) -> Alarm | None:
    best, agreement_then = self._best.setdefault(quantity.metric, [now, agreement])
    if now >= best:
      self._best[quantity.metric] = [now, agreement]
      best, agreement_then = now, agreement
    share = self._config[f"collapse_{quantity.key}"]
    fallen = share > 0 and best > 0 and now <= (1 - share) * best
    if not (fallen and agreement - agreement_then >= self._config.collapse_rise):
      if quantity.metric in self._alarmed:
        self._alarmed.remove(quantity.metric)
      return None
    if quantity.metric in self._alarmed:
      return None
    self._alarmed.append(quantity.metric)
    return Alarm(quantity, best, now, agreement_then, agreement)


def _mean(values: list[float]) -> float:
  return sum(values) / len(values)
