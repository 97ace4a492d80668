"""Trains a model to reason in every language as well as it does in its best one (PASMR).

    python train.py --config=configs/tiny.py --workdir=runs/tiny
    python train.py --config=configs/pasmr_gemma.py:1b --workdir=DIR --config.srl.group_size=16

Running the same command again goes on where the last run stopped, exactly.
"""

import pathlib

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from pasmr_jax import Config
from pasmr_jax.experiment import summary, validation
from pasmr_jax.experiment.checkpoint import Checkpoints
from pasmr_jax.experiment.evaluation import Evaluator
from pasmr_jax.experiment.metrics import Metrics, Timer
from pasmr_jax.experiment.report import write_report
from pasmr_jax.experiment.setup import Run, make_run
from pasmr_jax.parallel.mesh import initialize_distributed

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written.")


def train_stage(run: Run, name: str, metrics: Metrics, evaluator: Evaluator) -> None:
  """Trains one stage from its newest checkpoint, or from the parameters it begins with."""
  config = run.config
  checkpoints = Checkpoints(run.workdir, name, config.checkpoint)
  if checkpoints.progress().finished:
    checkpoints.close()
    return
  stage = run.make_stage(name)
  state, progress = run.start(stage, checkpoints)
  first = int(state.step)
  metrics.rewind(name, first)
  metrics.start_stage(name, first, stage.steps)

  for step in range(first, stage.steps):
    done = step + 1
    timer = Timer()
    batch, seen = stage.batch(state, step)
    timer.lap("batch")
    state, learned = stage.update(state, batch)
    learned = jax.device_get(learned)
    timer.lap("update")
    values = seen | learned | timer.measured(seen)
    metrics.show(done, values)
    if done % config.log.every == 0:
      metrics.write(name, done, values)
    if config.log.rollouts_every and step % config.log.rollouts_every == 0:
      metrics.write_rollouts(name, done, stage.rollouts[: config.log.rollouts])

    measured = None
    if done == stage.steps or (config.evaluation.every and done % config.evaluation.every == 0):
      found = evaluator.development(state, stage)
      metrics.write(name, done, found)
      measured = found[config.checkpoint.metric]
      progress.record(measured)
    patience = config[name].patience
    progress.finished = done == stage.steps or 0 < patience <= progress.evaluations_since
    if progress.finished or done % config.checkpoint.every == 0:
      checkpoints.save(state, stage.data_state(), progress, run.model, measured)
    if progress.finished:
      break
  checkpoints.wait()
  checkpoints.close()


def main(_):
  logging.set_verbosity(logging.ERROR)  # of Orbax, which warns of its own defaults
  config: Config = CONFIG.value
  workdir = pathlib.Path(str(WORKDIR.value))
  initialize_distributed()
  validation.check(config, jax.device_count() // max(config.mesh.tensor, 1))
  run = make_run(config, workdir)
  summary.print_start(run)
  evaluator = Evaluator(run)
  metrics = Metrics(workdir, config.stages, config.log)
  with jax.set_mesh(run.mesh), metrics:
    for name in config.stages:
      train_stage(run, name, metrics, evaluator)
      evaluator.test(name)
      write_report([workdir], workdir / "report.html")
  summary.print_accuracy(workdir, config, config.stages)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
