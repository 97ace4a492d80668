"""Orbax checkpoints of a run: `WORKDIR/checkpoints/STAGE/STEP/`.

A checkpoint holds the parameters and, apart from them, all else that an exact resume needs: the
optimizer state, the step, the moving average, the data iterators' position and the progress towards
early stopping. Parameters are an item of their own so that the next stage, the frozen reference and
eval.py read them alone. Where adapters are trained these are the parameters; the frozen weights are
not saved, the record names them. Saving is asynchronous; the newest `keep`, the best by a
development metric and a stage's last are kept.

A checkpoint appears whole, with the checksums of its files (reliability/checksums.py), or not at
all. What a crash left half-written goes when the stage is opened again.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from pasmr_jax import Config
from pasmr_jax.experiment.reliability import recovery
from pasmr_jax.experiment.reliability.checksums import SEAL, Seal, SealHandler
from pasmr_jax.experiment.reliability.identity import Identity
from pasmr_jax.experiment.reliability.storage import StorageError, writing
from pasmr_jax.learning.update import TrainState
from pasmr_jax.models.config import COMPUTED, TransformerConfig
from pasmr_jax.models.lora import LoraSettings
from pasmr_jax.parallel.processes import say

_READ = ("params", "record")  # what others than the stage itself read of its checkpoints


@dataclasses.dataclass
class Progress:
  """How far a stage is: its best development metric, the evaluations since, whether it ended."""

  best: float | None = None
  evaluations_since: int = 0
  finished: bool = False
  ending: str = ""  # what finished it: steps, patience or collapse
  skipped_in_a_row: int = 0  # steps up to now with an update that was skipped
  untaught_in_a_row: int = 0  # steps up to now in which self-feedback taught nothing
  watch: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the collapse alarm

  def record(self, metric: float) -> None:
    if self.best is None or metric > self.best:
      self.best, self.evaluations_since = metric, 0
    else:
      self.evaluations_since += 1

  def finish(self, step: int, steps: int, patience: int) -> None:
    """Ends the stage if it is at its last step or has had patience enough."""
    if step == steps:
      self.finished, self.ending = True, "steps"
    elif 0 < patience <= self.evaluations_since:
      self.finished, self.ending = True, "patience"

  def finished_at(self, step: int, steps: int) -> bool:
    """Whether the stage ended at `step`; one that ended by its steps goes on if it has more now."""
    return self.finished and not (self.ending == "steps" and step < steps)


class Checkpoints:
  """The checkpoints of one stage of one run."""

  def __init__(
    self,
    workdir: pathlib.Path,
    stage: str,
    config: Config,
    read_only: bool = False,
    identity: Identity | None = None,
  ):
    """`config` is `config.checkpoint`; `identity` goes into every checkpoint that is saved.

    `read_only` neither creates nor deletes anything, and leaves damaged checkpoints out where it
    looks for the newest. Who writes has them put aside before (reliability/recovery.py).
    """
    self.directory = workdir.absolute() / "checkpoints" / stage
    self._read_only = read_only
    self._size = 0  # of what was saved last, in bytes
    self._identity = identity
    preservation = policies.AnyPreservationPolicy(
      [
        policies.LatestN(config.keep),
        policies.BestN(get_metric_fn=_metric, n=1, keep_checkpoints_without_metrics=False),
      ]
    )
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=preservation,
        best_fn=_metric,
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        lightweight_initialize=read_only,
      ),
      item_handlers={
        "params": ocp.StandardCheckpointHandler(),
        "rest": ocp.StandardCheckpointHandler(),
        "record": ocp.JsonCheckpointHandler(filename=recovery.RECORD_FILE),
        SEAL: SealHandler(recovery.ITEMS),  # the last: it sees the others complete
      },
    )

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def find(self, which: str) -> int:
    """The step of the checkpoint that `which` means: `last`, `best` or a number.

    Raises:
      ValueError: there is no such checkpoint, or it is damaged; of the `last` those before it were
        tried too.
    """
    steps = self.steps()
    if which == "last" and steps:
      return self._newest_sound(steps) if self._read_only else steps[-1]
    if which == "best":
      measured = {step: recovery.read_metric(self.directory / str(step)) for step in steps}
      scored = {step: found for step, found in measured.items() if found is not None}
      if scored:
        return self._expect_sound(max(scored, key=lambda step: scored[step]))
    if which.isdecimal() and int(which) in steps:
      return self._expect_sound(int(which))
    raise ValueError(f"{self.directory}: expected a checkpoint {which!r}, found steps {steps}")

  def _newest_sound(self, steps: list[int]) -> int:
    """The newest of which parameters and record are as they were saved."""
    told = []
    for step in reversed(steps):
      problems = recovery.damage(self.directory / str(step), _READ)
      if not problems:
        if told:
          say(f"{'; '.join(told)}; using step {step}")
        return step
      told.append(f"checkpoint {self.directory / str(step)} is damaged ({'; '.join(problems)})")
    raise recovery.DamagedCheckpointError(f"{'; '.join(told)}; expected one that can be used")

  def _expect_sound(self, step: int) -> int:
    if problems := recovery.damage(self.directory / str(step), _READ):
      raise recovery.DamagedCheckpointError(
        f"checkpoint {self.directory / str(step)} is damaged ({'; '.join(problems)}); found steps"
        f" {self.steps()}"
      )
    return step

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
      "adapters": _adapters(state),
      "metric": metric,  # also where Orbax reads it, which is not sealed
      "sealed": True,
    }
    if self._identity is not None:
      record["identity"] = dataclasses.asdict(self._identity)
    self._size = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, _rest(state))))
    with writing(self.directory / str(step), self._size):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(state.params),  # pyright: ignore[reportCallIssue]
          rest=ocp.args.StandardSave(_rest(state)),  # pyright: ignore[reportCallIssue]
          record=ocp.args.JsonSave(record),  # pyright: ignore[reportCallIssue]
          **{SEAL: Seal()},
        ),
        metrics=None if metric is None else {"metric": metric},
      )

  def restore(
    self, state: TrainState, model: TransformerConfig, step: int | None = None
  ) -> tuple[TrainState, dict[str, Any], Progress]:
    """A state, laid out like `state`; where its data stood; its progress.

    `state` may have shapes for arrays (`Learner.abstract`), and then takes no memory. `step` is
    that of the checkpoint; None is the newest.

    Raises:
      ValueError: the checkpoint is of another model or of other adapters, naming each difference.
    """
    step = self.find("last") if step is None else step
    record = self._checked_record(step, model)
    found, wanted = record.get("adapters"), _adapters(state)
    if _wherever(found) != _wherever(wanted):
      raise ValueError(
        f"{self.directory / str(step)} was trained with {_described(found)}, expected"
        f" {_described(wanted)}, as the configuration has it"
      )
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(_abstract(state.params)),  # pyright: ignore[reportCallIssue]
        rest=ocp.args.StandardRestore(_abstract(_rest(state))),  # pyright: ignore[reportCallIssue]
      ),
    )
    state = state.replace(params=restored["params"], **restored["rest"])
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

  def adapters(self, step: int) -> tuple[LoraSettings, str] | None:
    """Settings of a checkpoint's adapters and what they are on; None if it holds all weights."""
    found = self._record(step).get("adapters")
    if found is None:
      return None
    return LoraSettings(found["rank"], found["alpha"], tuple(found["targets"])), found["origin"]

  def wait(self) -> None:
    """Until everything is on disk; raises what saving raised, StorageError of a full disk."""
    with writing(self.directory, self._size):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, as `wait` does, and ends."""
    self.wait()
    self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    # What a full disk did not take is not asked for again.
    if kind is None or not issubclass(kind, StorageError):
      self.close()

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
    free = COMPUTED if "local" in model.attention_pattern else (*COMPUTED, "sliding_window")
    differences = [
      f"{name} is {found[name]!r}, expected {value!r}"
      for name, value in wanted.items()
      if name not in free and found[name] != value
    ]
    if differences:
      raise ValueError(
        f"{self.directory / str(step)} is a checkpoint of another model: " + "; ".join(differences)
      )
    return record


def _metric(metrics: dict[str, float]) -> float:
  return metrics["metric"]


def _adapters(state: TrainState) -> dict[str, Any] | None:
  """What a record says of adapters: their settings, and what they are adapters of."""
  if state.frozen is None:
    return None
  settings = dataclasses.asdict(state.frozen.settings)
  return settings | {"targets": list(settings["targets"]), "origin": state.frozen.origin}


def _wherever(adapters: dict[str, Any] | None) -> dict[str, Any] | None:
  """The same without where another run lies, which may be moved; identity.py compares content."""
  if adapters is None:
    return None
  kind, _, name = adapters["origin"].partition(":")
  path = pathlib.PurePath(name)
  if kind != "checkpoint" or not path.is_absolute():
    return adapters
  return adapters | {"origin": f"another run's {'/'.join(path.parts[-2:])}"}


def _described(adapters: dict[str, Any] | None) -> str:
  if adapters is None:
    return "all weights (lora.rank 0)"
  return ", ".join(f"{name} {value!r}" for name, value in adapters.items())


def _rest(state: TrainState) -> dict[str, Any]:
  return {"step": state.step, "opt_state": state.opt_state, "average": state.average}


def _abstract(tree: Any) -> Any:
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
