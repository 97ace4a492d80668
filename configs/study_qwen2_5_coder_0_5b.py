"""The study on a model whose English is ahead of its other languages: Qwen2.5-Coder 0.5B Instruct.

    python benchmarks/study.py --config=configs/study_qwen2_5_coder_0_5b.py --scale=cpu \\
      --model=qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --data=DATA --workdir=DIR

That is what self-feedback is for, and what the Gemma 3 270M of configs/study_gemma3_270m.py is not:
it solves hardly any question in any language. The arms, the data and what is measured are the same.

cpu     two CPU cores, 16 GB: three trained languages and one that is not, LoRA, 120 steps of PAM
        on short questions and 24 of SRL; the test is MSVAMP. docs/results.md says what was run.
gpu     as for Gemma, of which it takes all other settings. Planned, not run.
tpu     as for Gemma. Planned, not run.
"""

from configs import study_gemma3_270m

SCALES = ("cpu", "gpu", "tpu")


def get_config(scale: str = "cpu"):
  if scale not in SCALES:
    expected = ", ".join(SCALES)
    raise ValueError(f"configs/study_qwen2_5_coder_0_5b.py:{scale}: expected one of {expected}")
  config = _reduced() if scale == "cpu" else study_gemma3_270m.whole()
  config.tokenizer.stop = ()
  return config


def _reduced():
  """Questions take more of this tokenizer's tokens, and there is something to reinforce."""
  config = study_gemma3_270m.reduced(("de", "es", "sw"), ("th",))
  config.tokenizer.delimiters = "tags"  # adapters cannot learn rows of the embedding
  config.data.test = ("msvamp",)

  config.pam.steps = 120
  config.pam.batch_size = 6
  config.pam.max_length = 192
  config.pam.optimizer.learning_rate = 5e-4

  config.srl.steps = 24
  config.srl.questions = 4
  config.srl.group_size = 6
  config.srl.max_prompt_length = 96
  config.srl.max_new_tokens = 160
  config.srl.max_pivot_tokens = 96
  config.srl.update_rows = 8
  config.srl.optimizer.learning_rate = 2e-4
  config.rollout.slots = 48

  config.evaluation.every = 60
  config.evaluation.batch_size = 100
  config.evaluation.max_prompt_length = 192
  return config
