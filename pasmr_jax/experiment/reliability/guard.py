"""What is asked after every step of a stage: is learning still learning?

`StageGuard.after_update` counts updates that were skipped and stops after too many in a row, with
what they were given on disk; and it tells of self-feedback that teaches nothing.
`StageGuard.alarms` tells of a collapse, in the log and in the metrics, and says what the
configuration wants done. `StageGuard.before_saving` keeps parameters that are not finite out of the
checkpoints.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pasmr_jax.experiment.checkpoint import Progress
from pasmr_jax.experiment.metrics import Metrics
from pasmr_jax.experiment.reliability import untaught
from pasmr_jax.experiment.reliability.collapse import CollapseWatch
from pasmr_jax.experiment.reliability.inspection import save_for_inspection
from pasmr_jax.experiment.setup import Run, Stage
from pasmr_jax.learning.update import TrainState
from pasmr_jax.parallel.processes import say


class GuardError(RuntimeError):
  """Training stops because going on would learn nothing good; a person should look."""


class StageGuard:
  """The guard of one stage; its memory is in `progress`, which checkpoints hold."""

  def __init__(self, run: Run, stage: Stage, progress: Progress, metrics: Metrics):
    self._run, self._stage, self._progress, self._metrics = run, stage, progress, metrics
    self._config = run.config.guard
    self._watch = CollapseWatch(self._config, progress.watch)

  def after_update(
    self, step: int, state: TrainState, batch: Any, values: Mapping[str, Any]
  ) -> None:
    """Counts a step whose update was skipped, and one that taught nothing.

    Args:
      step: from 1.
      state: after the update, which a skipped one leaves as it was.
      batch: what it was given.
      values: the step's metrics.

    Raises:
      GuardError: it is one too many.
    """
    self._tell_untaught(step, values)
    if values["skipped_updates"] == 0:
      self._progress.skipped_in_a_row = 0
      return
    self._progress.skipped_in_a_row += 1
    count, limit = self._progress.skipped_in_a_row, self._config.skipped_in_a_row
    told = f"loss {float(values['loss'])}, gradient norm {float(values['gradient_norm'])}"
    say(f"{self._stage.name} step {step}: update skipped, {count} in a row ({told})")
    if 0 < limit <= count:
      self._give_up(step, state, batch, values, f"{count} updates in a row were skipped: {told}")

  def _tell_untaught(self, step: int, values: Mapping[str, Any]) -> None:
    """At the terminal and in the metrics: self-feedback teaches nothing, and why."""
    if values.get(untaught.METRIC, 1) > 0:  # supervised stages have no such metric
      self._progress.untaught_in_a_row = 0
      return
    self._progress.untaught_in_a_row += 1
    steps = self._progress.untaught_in_a_row
    if untaught.is_told(steps, self._config.untaught_steps):
      name = untaught.cause(values)
      self._metrics.write(self._stage.name, step, {f"untaught/{name}": steps})
      say(f"NOTHING LEARNED {self._stage.name} step {step}: {untaught.sentence(name, steps)}")

  def before_saving(
    self, step: int, state: TrainState, batch: Any, values: Mapping[str, Any]
  ) -> None:
    """Raises GuardError if a parameter is not finite; takes what `after_update` takes."""
    if not _finite(state.params):
      self._give_up(step, state, batch, values, "a parameter is not finite, though the loss was")

  def alarms(self, step: int, values: Mapping[str, Any]) -> str:
    """Tells of what collapses now, and returns what to do: nothing '', 'stop' or 'return'."""
    alarms = self._watch.see(values)
    self._progress.watch = self._watch.state()
    if not alarms:
      return ""
    self._metrics.write(
      self._stage.name, step, {name: share for one in alarms for name, share in one.metrics.items()}
    )
    action = self._config.collapse_action
    for alarm in alarms:
      say(f"ALARM {self._stage.name} step {step}: {alarm} (guard.collapse_action={action})")
    return "" if action == "continue" else action

  def _give_up(
    self, step: int, state: TrainState, batch: Any, values: Mapping[str, Any], why: str
  ) -> None:
    stage = self._stage
    folder = save_for_inspection(
      self._run.workdir,
      stage.name,
      step,
      batch=batch,
      state=state.replace(frozen=None),
      values=values,
      rollouts=stage.rollouts,
    )
    raise GuardError(f"{stage.name} step {step}: {why}; batch and state are in {folder}")


@jax.jit
def _finite(params: Any) -> jax.Array:
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
