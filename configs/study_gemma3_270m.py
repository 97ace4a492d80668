"""The effect on a real model, with every control: Gemma 3 270M, questions of GSM8K, test MGSM.

    python benchmarks/study.py --config=configs/study_gemma3_270m.py --scale=gpu \\
      --data=DATA --workdir=DIR

The argument (`:gpu`) is the scale, which study.py adds; benchmarks/effects/plan.py says which arms
and seeds each has. docs/results.md has what was run and what it shows.

smoke   the built-in corpus and a tiny model; minutes on two CPU cores. It shows that all runs.
cpu     two CPU cores, 16 GB, under two and a half hours: two trained languages and one that is not,
        LoRA, 150 steps of PAM on short questions and twelve of SRL; tests are the first 50
        questions a language of MSVAMP, which is easier, and 24 of MGSM. Real, but far too short to
        learn to reason. docs/results.md says how much of it was run.
gpu     one GPU of 80 GB or more, hours: seven trained languages, three that are not, all weights,
        PAM to saturation, 300 steps of SRL. Planned, not run (docs/gpu.md).
tpu     the same on TPU chips: one as it stands; 2, 4, 8 or 16 with --set=srl.microbatches=8, 4, 2
        or 1. Planned, not run.

DATA holds what configs/pasmr_gemma.py names, and `msvamp/test_{Language}.json`. Rows 0 to 4,000 of
the parallel questions teach the mapping (PAM), rows 4,050 to 6,900 are asked without answers (SRL),
rows 7,050 to 7,250 are for development. Between them rows are left out because each language lacks
some of the questions: a row is not the same question everywhere.
Solutions in the target language are GSM8K's chain of equations, which is of no language. Where
there are solutions in the languages themselves, name them:

    --set="data.triplets=('json:{root}/solutions.jsonl',)" --set=data.columns.solution=...
"""

from configs import pasmr_gemma, tiny

SCALES = ("smoke", "cpu", "gpu", "tpu")
TRAINED = ("de", "es", "fr", "ja", "ru", "sw", "zh")
UNSEEN = ("bn", "te", "th")  # tested only: does it transfer?


def get_config(scale: str = "gpu"):
  if scale not in SCALES:
    raise ValueError(f"configs/study_gemma3_270m.py:{scale}: expected one of {', '.join(SCALES)}")
  if scale == "smoke":
    return _smoke()
  return reduced(("de", "sw"), ("th",)) if scale == "cpu" else whole()


def whole(trained=TRAINED, unseen=UNSEEN):
  """The whole study: seven languages and three to transfer to."""
  config = pasmr_gemma.get_config("270m")
  config.stages = ("pam",)  # and srl in the arms, each in a run of its own
  config.languages = (*trained, *unseen)
  config.model.pretrained = ""  # study.py names the packaged file

  # A file a language by name: there is none for the languages that are only tested.
  parallel = "{root}/gsm8k_parallel/%s.jsonl"
  config.data.pivot = ("gsm8k:{root}/gsm8k/train.jsonl[:4000]",)
  config.data.triplets = tuple(f"parallel_equations:{parallel % code}[:4000]" for code in trained)
  config.data.srl = tuple(f"parallel:{parallel % code}[4050:6900]" for code in trained)
  config.data.development = ("gsm8k:{root}/gsm8k/train.jsonl[7050:7250]",)
  config.data.development += tuple(f"parallel:{parallel % code}[7050:7250]" for code in trained)
  config.data.test = ("mgsm",)

  # A GPU spends an update's time on attention's scores, of every two tokens of a row: short rows,
  # and recomputing them, make it least (docs/gpu.md).
  config.model.remat = "full"
  config.pam.steps = 1500  # about five passes over the triplets
  config.pam.batch_size = 64
  config.pam.max_length = 512
  config.pam.microbatches = 4
  config.pam.optimizer.learning_rate = 3e-5
  config.pam.optimizer.warmup_steps = 50

  config.srl.steps = 300
  config.srl.questions = 16
  config.srl.group_size = 16
  config.srl.max_prompt_length = 384
  config.srl.max_new_tokens = 320
  config.srl.max_pivot_tokens = 256
  config.srl.microbatches = 16  # of 4 rows
  config.srl.row_length = 0  # as long as a prompt and a response may be, 704
  config.srl.longer_rows = ()
  config.srl.row_bucket = 64
  config.srl.optimizer.learning_rate = 3e-6
  config.srl.optimizer.warmup_steps = 20
  config.srl.rehearsal_weight = 0.5
  config.srl.rehearsal_rows = 16
  config.feedback.pivot_samples = 4
  config.feedback.pivot_temperature = 0.7
  config.rollout.slots = 512
  config.rollout.prefill_prompts = 64

  config.evaluation.every = 150
  config.evaluation.development_questions = 100
  config.evaluation.label_questions = 64
  config.evaluation.samples = 4
  config.evaluation.batch_size = 512
  config.evaluation.max_prompt_length = 512
  config.evaluation.max_new_tokens = 384
  config.checkpoint.every = 50
  config.checkpoint.keep = 1
  config.log.rollouts_every = 25
  config.log.tensorboard = False
  return config


def reduced(trained, unseen):
  """What two CPU cores can do in two hours: small batches, whole chunks of logits, easy tests."""
  config = whole(trained, unseen)
  config.data.test = ("msvamp[:50]",)  # one or two steps of arithmetic; MGSM is too hard to tell
  config.lora.rank = 16  # a checkpoint of megabytes, and no gradient of the weights
  config.lora.alpha = 32.0
  config.model.dtype = "float32"
  config.model.remat = "none"

  # Short examples, one a row: seven have about 430 tokens to learn, which is one chunk of logits
  # (512), and that is most of a step's time. They are about as long as MSVAMP's questions.
  config.pam.steps = 150
  config.pam.batch_size = 7
  config.pam.max_length = 128
  config.pam.microbatches = 1
  config.pam.mixture.pivot = 0.3
  config.pam.mixture.triplets = 0.7
  config.pam.optimizer.learning_rate = 1e-3
  config.pam.optimizer.warmup_steps = 5

  config.srl.steps = 12
  config.srl.questions = 4
  config.srl.group_size = 4
  config.srl.max_prompt_length = 64  # leaves out the longer half
  config.srl.max_new_tokens = 112
  config.srl.max_pivot_tokens = 80
  config.srl.update_rows = 6  # most responses have no advantage at all
  config.srl.microbatches = 1
  config.srl.row_length = 0
  config.srl.row_bucket = 2
  config.srl.optimizer.learning_rate = 3e-4
  config.srl.optimizer.warmup_steps = 2
  config.srl.rehearsal_rows = 2
  config.feedback.pivot_samples = 2
  config.rollout.slots = 32
  config.rollout.prefill_prompts = 8
  config.rollout.prompt_bucket = 32

  config.evaluation.every = 50
  config.evaluation.development_questions = 6
  config.evaluation.label_questions = 8
  config.evaluation.test_questions = 0  # the sets are cut instead
  config.evaluation.samples = 1
  config.evaluation.batch_size = 64
  config.evaluation.max_prompt_length = 320
  config.evaluation.max_new_tokens = 160
  config.checkpoint.every = 4
  config.log.rollouts_every = 1
  return config


def _smoke():
  """Everything in minutes, and nothing learned: tests/runs.py has the model's size too."""
  config = tiny.get_config()
  config.stages = ("base", "pam")
  config.languages = ("de", "bn")
  config.model.embed_dim = 32
  config.model.num_layers = 1
  config.model.num_heads = 2
  config.model.num_kv_heads = 1
  config.model.head_dim = 16
  config.model.mlp_dim = 32
  config.model.scan_unroll = 1
  config.data.pivot = ("synthetic:200",)
  config.data.translation = ("synthetic:60",)
  config.data.target = ("synthetic:20",)
  config.data.triplets = ("synthetic:40",)
  config.data.srl = ("synthetic:40",)
  config.data.development = ("synthetic:4",)
  config.data.test = ("synthetic:8",)
  config.base.steps = 20
  config.base.batch_size = 8
  config.base.optimizer.warmup_steps = 2
  config.pam.steps = 160
  config.pam.batch_size = 8
  config.pam.mixture.pivot = 0.3
  config.pam.mixture.triplets = 0.7
  config.pam.optimizer.learning_rate = 1e-2
  config.srl.steps = 8
  config.srl.questions = 4
  config.srl.group_size = 4
  config.srl.update_rows = 8
  config.srl.rehearsal_rows = 8
  config.feedback.pivot_samples = 2
  config.evaluation.every = 80
  config.evaluation.development_questions = 4
  config.evaluation.label_questions = 4
  config.evaluation.sampled = True
  config.checkpoint.every = 8
  config.log.rollouts_every = 4
  config.log.tensorboard = False
  return config
