"""The whole method on the built-in corpus, on a laptop: base, PAM, SRL and evaluation.

    python train.py --config=configs/tiny.py --workdir=runs/tiny

Hardware: 2 CPU cores. Time, scores and what they show: docs/results.md.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.stages = ("base", "pam", "srl")
  config.languages = ("de", "es", "sw", "ru", "bn")
  config.tokenizer.path = "synthetic"

  config.model.scan_unroll = 3
  config.data.pivot = ("synthetic:30000",)
  config.data.translation = ("synthetic:6000",)
  config.data.target = ("synthetic:100",)
  config.data.triplets = ("synthetic:300",)
  config.data.srl = ("synthetic:2000",)
  config.data.development = ("synthetic:100",)
  config.data.test = ("synthetic:200",)

  config.base.steps = 1200
  config.base.batch_size = 8
  config.base.optimizer.learning_rate = 4e-3
  config.base.optimizer.warmup_steps = 50
  config.pam.steps = 250
  config.pam.batch_size = 8

  config.srl.steps = 150
  config.srl.max_prompt_length = 64
  config.srl.max_new_tokens = 80
  config.srl.max_pivot_tokens = 48
  config.srl.update_rows = 64
  config.srl.understanding_weight = 0.0
  config.srl.rehearsal_weight = 1.0
  config.srl.rehearsal_rows = 4
  config.feedback.scope = "pooled"
  config.evaluation.every = 0
  config.evaluation.max_prompt_length = 64
  config.evaluation.max_new_tokens = 80
  return config
