"""Accuracy per language of any checkpoint of a run, on its test questions.

    python eval.py --config=configs/tiny.py --workdir=runs/tiny
    python eval.py --config=configs/tiny.py --workdir=runs/tiny --stage=srl --step=best

Other questions: `--config.data.test="('mgsm:DIR/mgsm_{language}.tsv',)"`.
"""

import pathlib

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from pasmr_jax import Config
from pasmr_jax.experiment import summary, validation
from pasmr_jax.experiment.evaluation import Evaluator
from pasmr_jax.experiment.setup import last_stage, make_run
from pasmr_jax.parallel.mesh import initialize_distributed

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of the run.")
STAGE = flags.DEFINE_enum("stage", "last", ["last", *validation.STAGES], "Stage of the checkpoint.")
STEP = flags.DEFINE_string("step", "last", "Step of the checkpoint: a number, 'last' or 'best'.")


def main(_):
  logging.set_verbosity(logging.ERROR)
  config: Config = CONFIG.value
  workdir = pathlib.Path(str(WORKDIR.value))
  initialize_distributed()
  stage = last_stage(workdir) if STAGE.value == "last" else STAGE.value
  config.stages = (stage,)
  validation.check(config)
  run = make_run(config, workdir, pools=("test",))
  with jax.set_mesh(run.mesh):
    params, step = run.checkpoint_params(stage, STEP.value)
    name = f"{stage}_{step}"
    Evaluator(run).write(params, f"eval_{name}")
  summary.print_accuracy(workdir, config, [f"eval_{name}"])


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
