"""Any checkpoint of a run as a folder for transformers: weights, tokenizer and a model card.

    python export.py --config=configs/tiny.py --workdir=runs/tiny --out=exported/tiny
    python export.py --config=configs/pasmr_gemma.py:1b --workdir=DIR --out=exported/gemma \\
      --dtype=bfloat16 --stage=srl --step=best

--stage=pretrained exports model.pretrained as it is, with the delimiters in its tokenizer: a GGUF
file becomes a folder. Of a run with lora.rank > 0 the adapters are written as PEFT has them; with
--merge_lora they are added to the weights. docs/models.md says what is written and how it is
verified.
"""

import pathlib

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from pasmr_jax import Config
from pasmr_jax.experiment import validation
from pasmr_jax.experiment.exporting import PRETRAINED, check_target, export, export_adapters
from pasmr_jax.experiment.reliability import exits
from pasmr_jax.experiment.reliability.recovery import named_stage
from pasmr_jax.experiment.setup import make_run
from pasmr_jax.parallel.processes import say
from pasmr_jax.stages import STAGES

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of the run.")
OUT = flags.DEFINE_string("out", None, "Folder to write; must not exist, or be empty.")
DTYPE = flags.DEFINE_enum(
  "dtype", "", ["", "float32", "bfloat16"], "Of a whole model; '' is model.param_dtype."
)
STAGE = flags.DEFINE_enum(
  "stage",
  "last",
  ["last", PRETRAINED, *STAGES],
  "Stage of the checkpoint; 'pretrained' exports model.pretrained as it is.",
)
MERGE_LORA = flags.DEFINE_bool(
  "merge_lora", False, "Of a run with adapters: write the whole model, not the adapters alone."
)
STEP = flags.DEFINE_string("step", "last", "Step of the checkpoint: a number, 'last' or 'best'.")


def main(_):
  logging.set_verbosity(logging.ERROR)
  config: Config = CONFIG.value
  workdir, out = pathlib.Path(str(WORKDIR.value)), pathlib.Path(str(OUT.value))
  check_target(out)
  if STAGE.value == PRETRAINED and not config.model.pretrained:
    raise ValueError("--stage=pretrained: model.pretrained is ''; expected weights to export")
  stage = STAGE.value
  if stage != PRETRAINED:
    stage = named_stage(workdir, stage)
  validation.check(config, pools=())
  run = make_run(config, workdir, pools=())
  with exits.told(out), jax.set_mesh(run.mesh):
    if stage == PRETRAINED:
      checkpoint = stage
      export(run, run.origins.pretrained_params(), checkpoint, out, DTYPE.value)
    elif MERGE_LORA.value or not run.origins.has_adapters(stage):
      params, step = run.origins.checkpoint_params(stage, STEP.value)
      checkpoint = f"{stage}_{step}"
      export(run, params, checkpoint, out, DTYPE.value)
    else:
      if DTYPE.value:
        raise ValueError(
          f"--dtype={DTYPE.value}: adapters are float32; expected no --dtype, or --merge_lora"
        )
      adapters, settings, origin, step = run.origins.checkpoint_adapters(stage, STEP.value)
      checkpoint = f"{stage}_{step}"
      export_adapters(run, adapters, settings, origin, checkpoint, out)
  say(f"exported {checkpoint} to {out}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir", "out"])
  app.run(main)
