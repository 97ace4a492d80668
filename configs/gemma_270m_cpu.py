"""A few real steps of both stages with Gemma 3 270M on two CPU cores: does everything fit together?

    make gemma        (python train.py --config=configs/gemma_270m_cpu.py --workdir=runs/gemma
                       --config.model.pretrained=FILE.gguf --config.data.root=DATA)

Hardware: 2 CPU cores, 16 GB. This shows that real weights, the real tokenizer and real questions go
through PAM, SRL, checkpoints and evaluation; it is far too short to teach anything. What it printed
is in docs/results.md.
"""

from configs import pasmr_gemma


def get_config():
  config = pasmr_gemma.get_config("270m")
  config.model.pretrained = ""  # given on the command line
  config.model.dtype = "float32"
  config.model.remat = "none"
  config.languages = ("de", "sw", "zh")

  config.pam.steps = 10
  config.pam.batch_size = 4
  config.pam.max_length = 256
  config.pam.microbatches = 2
  config.pam.optimizer.learning_rate = 1e-4
  config.pam.optimizer.warmup_steps = 2

  config.srl.steps = 3
  config.srl.questions = 2
  config.srl.group_size = 4
  config.srl.max_prompt_length = 160
  config.srl.max_new_tokens = 128
  config.srl.max_pivot_tokens = 96
  config.srl.microbatches = 4
  config.srl.row_bucket = 4
  config.srl.longer_rows = ()
  config.srl.rehearsal_weight = 0.0
  config.feedback.pivot_samples = 2
  config.rollout.prompt_bucket = 64
  config.rollout.slots = 8
  config.rollout.prefill_prompts = 4

  config.checkpoint.every = 8
  config.checkpoint.keep = 1
  config.log.rollouts_every = 1
  config.evaluation.every = 0
  config.evaluation.sampled = False
  config.evaluation.development_questions = 1
  config.evaluation.test_questions = 2
  config.evaluation.batch_size = 8
  config.evaluation.max_prompt_length = 256
  config.evaluation.max_new_tokens = 128
  return config
