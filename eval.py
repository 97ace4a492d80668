"""Accuracy per language of any checkpoint of a run, on its test questions.

    python eval.py --config=configs/tiny.py --workdir=runs/tiny
    python eval.py --config=configs/tiny.py --workdir=runs/tiny --stage=srl --step=best

A published set, eight worked examples, and the harness' scoring rule:

    python eval.py --config=configs/pasmr_gemma.py:1b --workdir=DIR --stage=pretrained \\
      --config.data.root=DATA --config.data.test="('mgsm',)" --config.evaluation.ask=native_cot \\
      --config.evaluation.exemplars=8 --config.evaluation.exemplar_file=DATA/mgsm/exemplars.json \\
      --scoring=lm_eval

Started again, an interrupted evaluation goes on where it stopped. Two evaluations are compared by
`python -m pasmr_jax.experiment.comparison`; docs/evaluation.md has every rule with an example.
"""

import pathlib

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from pasmr_jax import Config
from pasmr_jax.data.pools import set_name
from pasmr_jax.experiment import summary, validation
from pasmr_jax.experiment.evaluation import Evaluator
from pasmr_jax.experiment.reliability import exits
from pasmr_jax.experiment.reliability.recovery import named_stage
from pasmr_jax.experiment.report import write_report
from pasmr_jax.experiment.scoring import SCORINGS
from pasmr_jax.experiment.setup import make_run
from pasmr_jax.parallel.mesh import initialize_distributed
from pasmr_jax.stages import STAGES

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of the run.")
STAGE = flags.DEFINE_enum(
  "stage",
  "last",
  ["last", "pretrained", *STAGES],
  "Stage of the checkpoint; 'pretrained' evaluates model.pretrained as it is.",
)
STEP = flags.DEFINE_string("step", "last", "Step of the checkpoint: a number, 'last' or 'best'.")
SCORING = flags.DEFINE_enum("scoring", None, SCORINGS, "Sets evaluation.scoring.")
NAME = flags.DEFINE_string(
  "name",
  None,
  "Name of the results, overwriting what has it; else it is made from what is evaluated.",
)


def results_name(checkpoint: str, config: Config) -> str:
  """`eval_srl_300`, and what differs from asking the run's own test questions in its own way."""
  evaluation = config.evaluation
  sets = [set_name(source) for source in config.data.test]
  parts = ["eval", checkpoint, *(name for name in sets if name is not None)]
  if evaluation.ask != "pasmr":
    parts.append(evaluation.ask)
  if evaluation.exemplars:
    parts.append(f"{evaluation.exemplars}shot")
  if evaluation.scoring != "pasmr":
    parts.append(evaluation.scoring)
  return "_".join(parts)


def main(_):
  logging.set_verbosity(logging.ERROR)
  config: Config = CONFIG.value
  workdir = pathlib.Path(str(WORKDIR.value))
  initialize_distributed()
  stage = STAGE.value
  if stage == "pretrained":
    stage = "pam"  # whose data and settings are checked
    if not config.model.pretrained:
      raise ValueError("--stage=pretrained: model.pretrained is ''; expected weights to evaluate")
  else:
    stage = named_stage(workdir, stage)
  config.stages = (stage,)
  if SCORING.value:
    config.evaluation.scoring = SCORING.value
  pools = ("test",)
  validation.check(config, pools=pools)
  run = make_run(config, workdir, pools)
  with exits.told(workdir), jax.set_mesh(run.mesh):
    if STAGE.value == "pretrained":
      params, checkpoint = run.origins.pretrained_params(), "pretrained"
    else:
      params, step = run.origins.checkpoint_params(stage, STEP.value)
      checkpoint = f"{stage}_{step}"
    name = NAME.value or results_name(checkpoint, config)
    Evaluator(run, progress=config.log.progress).write(
      params, name, overwrite=NAME.value is not None
    )
    write_report([workdir], workdir / "report.html")
  summary.print_measures(workdir, config, name)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
