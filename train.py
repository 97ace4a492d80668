"""Trains a model to reason in every language as well as it does in its best one (PASMR).

    python train.py --config=configs/tiny.py --workdir=runs/tiny
    python train.py --config=configs/pasmr_gemma.py:1b --workdir=DIR --config.data.root=DATA

Running the same command again goes on where the last run stopped, exactly. A signal stops it at the
next step; docs/operations.md has the exit codes and what to watch.
"""

import pathlib
import time

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from pasmr_jax import Config
from pasmr_jax.experiment import summary, validation
from pasmr_jax.experiment.checkpoint import Checkpoints
from pasmr_jax.experiment.evaluation import Evaluator
from pasmr_jax.experiment.metrics import Metrics, Timer
from pasmr_jax.experiment.reliability import exits, identity, record, recovery, weights
from pasmr_jax.experiment.reliability.guard import GuardError, StageGuard
from pasmr_jax.experiment.reliability.lock import only_one
from pasmr_jax.experiment.reliability.stopping import Stopped, Stopping
from pasmr_jax.experiment.reliability.watchdog import Watchdog
from pasmr_jax.experiment.report import write_report
from pasmr_jax.experiment.setup import Run, keep_compiled, make_run
from pasmr_jax.learning.update import TrainState
from pasmr_jax.parallel.mesh import initialize_distributed
from pasmr_jax.parallel.processes import say

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written.")
FORCE = flags.DEFINE_bool(
  "force", False, "Go on though configuration, data or model are not those of the checkpoints."
)


def train_stage(
  run: Run, checkpoints: Checkpoints, name: str, metrics: Metrics, evaluator: Evaluator,
  stopping: Stopping, watchdog: Watchdog,
) -> None:  # fmt: skip
  """Trains one stage from its newest checkpoint, or from the parameters it begins with."""
  config = run.config
  first = checkpoints.latest_step() or 0
  metrics.rewind(name, first)
  if checkpoints.progress().finished_at(first, config[name].steps):
    return
  evaluator.take_back(name)
  stage = run.make_stage(name)
  state, progress = run.start(stage, checkpoints)
  progress.finished = False
  guard = StageGuard(run, stage, progress, metrics)
  metrics.start_stage(name, first, stage.steps)
  saving: dict[str, float] = {}
  if stopping.check():  # before anything is compiled
    raise Stopped

  for step in range(first, stage.steps):
    done = step + 1
    timer = Timer()
    batch, seen = stage.batch(state, step)
    timer.lap("batch")
    state, learned = stage.update(state, batch)
    learned = jax.device_get(learned)
    timer.lap("update")
    values = seen | learned | timer.measured(seen) | saving
    metrics.show(done, values)
    if done % config.log.every == 0:
      metrics.write(name, done, values)
      saving = {}
    if config.log.rollouts_every and step % config.log.rollouts_every == 0:
      metrics.write_rollouts(name, done, stage.rollouts[: config.log.rollouts])
    watchdog.progress(f"{name} step {done}")
    guard.after_update(done, state, batch, values)

    measured = None
    if done == stage.steps or (config.evaluation.every and done % config.evaluation.every == 0):
      found = evaluator.development(state, stage)
      metrics.write(name, done, found)
      measured = found[config.checkpoint.metric]
      progress.record(measured)
      values |= found
    best = measured is not None and progress.evaluations_since == 0
    progress.finish(done, stage.steps, config[name].patience)
    action = guard.alarms(done, values)
    if action == "return":
      # The best that there is may be this one, which is not saved yet.
      returned = (state, measured) if best else return_to_best(run, checkpoints, state)
      if returned is None:
        action = "stop"
      else:
        state, measured = returned
        progress.finished, progress.ending = True, "collapse"
    asked = stopping.check()
    if progress.finished or asked or action or best or done % config.checkpoint.every == 0:
      start = time.perf_counter()
      guard.before_saving(done, state, batch, values)
      metrics.sync()
      checkpoints.save(state, stage.data_state(), progress, run.model, measured)
      saving = {"time/checkpoint": time.perf_counter() - start}
    if action == "stop":  # also when asked to stop: it is told once, and nobody should start again
      raise GuardError(f"{name} step {done}: self-feedback collapses; docs/operations.md: collapse")
    if asked:
      raise Stopped(f"{name} step {done}")
    if progress.finished:
      break


def return_to_best(
  run: Run, checkpoints: Checkpoints, state: TrainState
) -> tuple[TrainState, float | None] | None:
  """The best checkpoint's state as this step's, and its metric; None if none was measured."""
  checkpoints.wait()
  try:
    best = checkpoints.find("best")
  except ValueError as error:
    say(f"no checkpoint to return to: {error}")
    return None
  say(f"returning to the checkpoint of step {best}, with which the stage ends")
  state = checkpoints.restore(state, run.model, best)[0].replace(step=state.step)
  return state, recovery.read_metric(checkpoints.directory / str(best))


def main(_):
  logging.set_verbosity(logging.ERROR)  # of Orbax, which warns of its own defaults
  config: Config = CONFIG.value
  workdir = pathlib.Path(str(WORKDIR.value)).absolute()
  initialize_distributed()
  rows = validation.row_devices(config, jax.device_count())
  validation.check(config, rows, workdir=workdir)
  with (
    exits.told(workdir),
    only_one(workdir),
    Stopping(config.checkpoint.notice) as stopping,
    Watchdog(workdir, config.guard.hang_minutes) as watchdog,
  ):
    for name in config.stages:
      for warning in recovery.recover(workdir / "checkpoints" / name):
        say(warning)
    keep_compiled(config, workdir)
    run = make_run(config, workdir)
    now = identity.make_identity(config, run.pools, run.tokenizer, weights.weights_checksum(config))
    for change in identity.check_changes(workdir, now, FORCE.value):
      say(change)
    record.write_record(workdir, now, run.mesh)
    summary.print_start(run)

    def between(resumable: bool) -> None:
      watchdog.progress("an evaluation")
      if resumable and stopping.check():
        raise Stopped("the answers so far")

    evaluator = Evaluator(run, between=between)
    metrics = Metrics(workdir, config.stages, config.log)
    with jax.set_mesh(run.mesh), metrics:
      for name in config.stages:
        with Checkpoints(workdir, name, config.checkpoint, identity=now) as checkpoints:
          train_stage(run, checkpoints, name, metrics, evaluator, stopping, watchdog)
        evaluator.test(name)
        write_report([workdir], workdir / "report.html")
    summary.print_accuracy(workdir, config, config.stages)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
