"""PASMR on Gemma: English pivot, seven target languages, on a TPU VM.

    python train.py --config=configs/pasmr_gemma.py:1b --workdir=DIR --config.data.root=DATA

The argument is a size: 270m, 1b, 4b, 12b or 27b of Gemma 3, 2b, 9b or gemma2-27b of Gemma 2.
The weights are gated: accept the licence on the hub and set HF_TOKEN, or name a local folder with
--config.model.pretrained=FOLDER.

Delimiters are two of Gemma's reserved tokens, `<unused0>` and `<unused1>`. For an instruction-tuned
model, in its own chat template:

    --config.model.pretrained=google/gemma-3-1b-it --config.prompt.style=chat

Hardware: 1b is meant for a v5e-8 (8 x 16 GiB), bfloat16 compute, float32 parameters, because a
learning rate of 1e-6 would be lost in the rounding of bfloat16. Parameters, gradients and two
moments take 16 bytes a parameter over all chips, the frozen reference, in bfloat16, 2 more: 18 GB
for 1b, 70 GB for 4b, 166 GB for gemma2 9b, 212 GB for 12b, 486 GB for 27b. `plan.py` says what
fits. Nothing was run on a TPU; 270m was run on a CPU with its real weights (docs/results.md,
docs/models.md).

DATA holds `gsm8k/train.jsonl` and `mgsm/mgsm_{language}.tsv`, the public GSM8K and MGSM files, and
`gsm8k_parallel/{language}.jsonl`, GSM8K's questions in your languages with their English originals
(keys id, language, question, pivot_question, pivot_solution, answer). The first 4,000
parallel questions teach the mapping (PAM), the next 2,950 are asked without answers (SRL), 200 of
the rest are for development; MGSM is the test.
"""

from configs import base

SIZES = {
  "270m": "google/gemma-3-270m",
  "1b": "google/gemma-3-1b-pt",
  "4b": "google/gemma-3-4b-pt",
  "12b": "google/gemma-3-12b-pt",
  "27b": "google/gemma-3-27b-pt",
  "2b": "google/gemma-2-2b",
  "9b": "google/gemma-2-9b",
  "gemma2-27b": "google/gemma-2-27b",
}


def get_config(size: str = "1b"):
  if size not in SIZES:
    raise ValueError(f"configs/pasmr_gemma.py:{size}: expected one of {', '.join(SIZES)}")
  config = base.get_config()
  config.languages = ("de", "es", "fr", "ja", "ru", "sw", "zh")

  config.model.pretrained = SIZES[size]
  config.model.dtype = "bfloat16"
  config.model.remat = "full"
  config.tokenizer.stop = ("<end_of_turn>",)

  # Languages lack different rows, so the same place is another question: hence the gaps.
  config.data.pivot = ("gsm8k:{root}/gsm8k/train.jsonl[:4000]",)
  config.data.triplets = ("parallel_equations:{root}/gsm8k_parallel/{language}.jsonl[:4000]",)
  config.data.srl = ("parallel:{root}/gsm8k_parallel/{language}.jsonl[4050:7000]",)
  config.data.development = ("gsm8k:{root}/gsm8k/train.jsonl[7100:7300]",)
  config.data.development += ("parallel:{root}/gsm8k_parallel/{target}.jsonl[7100:7300]",)
  config.data.test = ("mgsm:{root}/mgsm/mgsm_{language}.tsv",)

  config.pam.steps = 600
  config.pam.batch_size = 32
  config.pam.max_length = 1024
  config.pam.microbatches = 4
  config.pam.optimizer.learning_rate = 1e-5
  config.pam.optimizer.warmup_steps = 30

  config.srl.steps = 300
  config.srl.questions = 32
  config.srl.group_size = 8
  config.srl.max_prompt_length = 512
  config.srl.max_new_tokens = 512
  config.srl.max_pivot_tokens = 384
  config.srl.microbatches = 8
  config.srl.row_bucket = 64  # 8 microbatches of a row on each of 8 chips
  config.srl.longer_rows = (1152,)  # GSM8K's responses fill few microbatches: less of the last is
  #                                   padding when it may be of either length
  config.srl.optimizer.learning_rate = 1e-6
  config.srl.optimizer.warmup_steps = 20
  config.srl.rehearsal_weight = 0.1
  config.srl.rehearsal_rows = 64
  config.rollout.prompt_bucket = 128
  config.evaluation.max_prompt_length = 512
  config.evaluation.max_new_tokens = 512
  config.evaluation.development_questions = 20
  return config
