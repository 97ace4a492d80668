"""Orbax checkpoints of a run: `WORKDIR/checkpoints/STAGE/STEP/`.

A checkpoint holds the parameters and, apart from them, all else that an exact resume needs: the
optimizer state, the step, the moving average, the data iterators' position and the progress towards
early stopping. Parameters are an item of their own so that the next stage, the frozen reference and
eval.py read them alone. Saving is asynchronous; the newest `keep`, the best by a development metric
and a stage's last are kept.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from pasmr_jax import Config
from pasmr_jax.learning.update import TrainState
from pasmr_jax.models.config import COMPUTED, TransformerConfig


@dataclasses.dataclass
class Progress:
  """How far a stage is: its best development metric, the evaluations since, whether it ended."""

  best: float | None = None
  evaluations_since: int = 0
  finished: bool = False

  def record(self, metric: float) -> None:
    if self.best is None or metric > self.best:
      self.best, self.evaluations_since = metric, 0
    else:
      self.evaluations_since += 1


class Checkpoints:
  """The checkpoints of one stage of one run."""

  def __init__(self, workdir: pathlib.Path, stage: str, config: Config, read_only: bool = False):
    """`config` is `config.checkpoint`. `read_only` neither creates nor deletes anything."""
    self.directory = workdir.absolute() / "checkpoints" / stage
    preservation = policies.AnyPreservationPolicy(
      [
        policies.LatestN(config.keep),
        policies.BestN(get_metric_fn=_metric, n=1, keep_checkpoints_without_metrics=False),
      ]
    )
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=preservation, best_fn=_metric, create=not read_only, read_only=read_only
      ),
      item_handlers={
        "params": ocp.StandardCheckpointHandler(),
        "rest": ocp.StandardCheckpointHandler(),
        "record": ocp.JsonCheckpointHandler(),
      },
    )

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def find(self, which: str) -> int:
    """The step of the checkpoint that `which` means: `last`, `best` or a number.

    Raises:
      ValueError: there is no such checkpoint.
    """
    steps = self.steps()
    if which == "last" and steps:
      return steps[-1]
    if which == "best":
      measured = {step: self._manager.metrics(step) for step in steps}
      scored = {step: found["metric"] for step, found in measured.items() if found}
      if scored:
        return max(scored, key=lambda step: scored[step])
    if which.isdecimal() and int(which) in steps:
      return int(which)
    raise ValueError(f"{self.directory}: expected a checkpoint {which!r}, found steps {steps}")

  def save(
    self,
    state: TrainState,
    data: dict[str, Any],
    progress: Progress,
    model: TransformerConfig,
    metric: float | None,
  ) -> None:
    """Starts saving; returns once the arrays are copied off the devices.

    Args:
      state: of the stage; its step names the checkpoint. A step that is there already is left.
      data: the stage's `data_state()`.
      progress: towards early stopping.
      model: what the parameters fit.
      metric: the development metric at this step, if it was measured.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    record = {
      "step": step,
      "data": data,
      "progress": dataclasses.asdict(progress),
      "model": dataclasses.asdict(model),
    }
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),  # pyright: ignore[reportCallIssue]
        rest=ocp.args.StandardSave(_rest(state)),  # pyright: ignore[reportCallIssue]
        record=ocp.args.JsonSave(record),  # pyright: ignore[reportCallIssue]
      ),
      metrics=None if metric is None else {"metric": metric},
    )

  def restore(
    self, state: TrainState, model: TransformerConfig
  ) -> tuple[TrainState, dict[str, Any], Progress]:
    """The newest state, laid out like `state`; where its data stood; its progress.

    Raises:
      ValueError: the checkpoint is of another model, naming each difference.
    """
    step = self.find("last")
    record = self._checked_record(step, model)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(_abstract(state.params)),  # pyright: ignore[reportCallIssue]
        rest=ocp.args.StandardRestore(_abstract(_rest(state))),  # pyright: ignore[reportCallIssue]
      ),
    )
    state = TrainState(params=restored["params"], **restored["rest"])
    return state, record["data"], Progress(**record["progress"])

  def progress(self) -> Progress:
    """Of the newest checkpoint; fresh if there is none."""
    step = self.latest_step()
    return Progress() if step is None else Progress(**self._record(step)["progress"])

  def restore_params(self, abstract: Any, model: TransformerConfig, step: int) -> Any:
    """Parameters only, laid out as `abstract` (a tree of jax.ShapeDtypeStruct with shardings).

    Raises:
      ValueError: the checkpoint is of another model, naming each difference.
    """
    self._checked_record(step, model)
    return self._manager.restore(
      step,
      args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract)),  # pyright: ignore[reportCallIssue]
    )["params"]

  def wait(self) -> None:
    """Until everything is on disk; raises what saving raised."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()

  def _record(self, step: int) -> dict[str, Any]:
    return self._manager.restore(
      step,
      args=ocp.args.Composite(record=ocp.args.JsonRestore()),  # pyright: ignore[reportCallIssue]
    )["record"]

  def _checked_record(self, step: int, model: TransformerConfig) -> dict[str, Any]:
    record = self._record(step)
    wanted = dataclasses.asdict(model)
    wanted["attention_pattern"] = list(model.attention_pattern)
    # A field that is newer than the checkpoint has, there, the default that changes nothing.
    found = {field.name: field.default for field in dataclasses.fields(model)} | record["model"]
    differences = [
      f"{name} is {found[name]!r}, expected {value!r}"
      for name, value in wanted.items()
      if name not in COMPUTED and found[name] != value
    ]
    if differences:
      raise ValueError(
        f"{self.directory / str(step)} is a checkpoint of another model: " + "; ".join(differences)
      )
    return record


def _metric(metrics: dict[str, float]) -> float:
  return metrics["metric"]


def _rest(state: TrainState) -> dict[str, Any]:
  return {"step": state.step, "opt_state": state.opt_state, "average": state.average}


def _abstract(tree: Any) -> Any:
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def abstract_params(shapes: Any, shardings: Any) -> Any:
  """Shapes and dtypes of parameters with where they shall live, for `restore_params`."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
  )
