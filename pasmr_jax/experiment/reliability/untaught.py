"""Self-feedback that teaches nothing: no response whose tokens have an advantage, and why not.

Such a run goes on as if nothing were wrong: loss and gradient are finite, at most KL pulls. The
guard counts its steps and tells of them (`guard.untaught_steps`); the report tells the same by the
names that stand in metrics.jsonl.
"""

from collections.abc import Mapping
from typing import Any

METRIC = "taught_tokens"  # what a step taught
# Why nothing was taught, by the name that the metric untaught/NAME has.
CAUSES = {
  "truncated": "every response met its limit (a longer srl.max_new_tokens, or a stop token that"
  " tokenizer.stop lacks)",
  "malformed": "no response is well formed (more PAM)",
  "unlabelled": "no vote has a label (a longer srl.max_pivot_tokens, less feedback.confidence)",
  "alike": "in each question all responses have the same reward",
  "masked": "every response that has a label met its limit (srl.max_new_tokens)",
}


def cause(values: Mapping[str, Any]) -> str:
  """The likeliest of `CAUSES`, by the metrics of a step that taught nothing."""
  if values["truncation_rate"] >= 1:
    return "truncated"
  if values["well_formed_rate"] <= 0:
    return "malformed"
  if values["trained_tokens"] > 0:  # with feedback.source=random no response has a label
    return "alike"
  return "masked" if values["label_rate"] > 0 else "unlabelled"


def is_told(steps: int, limit: int) -> bool:
  """Whether so many steps in a row are told: `limit`, twice as many, four times, and so on."""
  times, rest = divmod(steps, limit) if limit > 0 else (0, 0)
  return times > 0 and rest == 0 and times & (times - 1) == 0


def sentence(name: str, steps: int) -> str:
  return f"self-feedback taught nothing for {steps} steps in a row: {CAUSES.get(name, name)}"
