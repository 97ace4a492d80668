"""The whole method on the built-in corpus, on a laptop: base, PAM, SRL and evaluation.

    python train.py --config=configs/tiny.py --workdir=runs/tiny

Hardware: 2 CPU cores. Time, scores and what they show: docs/results.md.

The base model learns English arithmetic and translation, and sees few solutions in other languages;
PAM has few target-language solutions too (20 a language), so that it saturates well below English.
What is left is for self-feedback to find.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.stages = ("base", "pam", "srl")
  config.languages = ("de", "es", "sw", "ru", "bn")
  config.tokenizer.path = "synthetic"
  config.model.scan_unroll = 3  # all layers: faster on a CPU

  config.data.pivot = ("synthetic:30000",)
  config.data.translation = ("synthetic:6000",)
  config.data.target = ("synthetic:30",)
  config.data.triplets = ("synthetic:20",)
  config.data.srl = ("synthetic:2000",)
  config.data.development = ("synthetic:100",)
  config.data.test = ("synthetic:200",)

  config.base.steps = 1200
  config.base.batch_size = 16  # of 128 tokens: about two thousand a step
  config.base.max_length = 128
  config.base.optimizer.learning_rate = 4e-3
  config.base.optimizer.warmup_steps = 50
  config.pam.steps = 200
  config.pam.batch_size = 16
  config.pam.max_length = 128
  config.pam.mixture.pivot = 0.7  # also the rehearsal that keeps English while SRL runs
  config.pam.mixture.triplets = 0.3

  config.srl.steps = 200
  config.srl.max_prompt_length = 64
  config.srl.max_new_tokens = 72
  config.srl.max_pivot_tokens = 40
  config.srl.update_rows = 48
  # Two responses to a row, which together have 120 to 165 tokens from step to step.
  config.srl.longer_rows = (144, 152, 168)
  config.srl.row_bucket = 8
  config.srl.microbatches = 2  # of 4 rows: quicker on a CPU than all at once
  config.srl.understanding_weight = 0.0  # translations are right already: teach the reasoning
  config.srl.rehearsal_weight = 1.0
  config.srl.rehearsal_rows = 8

  config.rollout.slots = 128
  config.rollout.prompt_bucket = 64  # one shape, so that little is compiled

  config.feedback.pivot_samples = 8
  config.feedback.pivot_temperature = 0.7

  config.checkpoint.every = 100
  config.evaluation.every = 200
  config.evaluation.max_prompt_length = 64
  config.evaluation.max_new_tokens = 72
  return config
