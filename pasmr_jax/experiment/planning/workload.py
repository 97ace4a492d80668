"""How large the programs of a configuration are: rows, lengths and calls of one SRL step.

Nobody knows before a run how long responses will be, so a plan takes what the configuration allows
at most: it must fit, and the floor of its time is that of this much work.
"""

import dataclasses
import math

from pasmr_jax import Config
from pasmr_jax.feedback.rewards import needs_pivot_answers
from pasmr_jax.rollout.engine import slot_count
from pasmr_jax.rollout.scheduler import slot_sizes
from pasmr_jax.stages.packing import row_length


@dataclasses.dataclass(frozen=True)
class Workload:
  """Shapes of the programs of one SRL step, over all devices."""

  update_rows: int  # packed rows of one optimizer step
  update_length: int  # tokens a row
  prompt_length: int  # that prompts are computed at
  row_length: int  # tokens of a row while sampling, prompt included
  slots: int  # rows decoded together
  prefill_prompts: int  # computed together
  prefills: int  # calls of a step
  decodes: int


def workload(config: Config, parts: int, fill: float) -> Workload:
  """What an SRL step is at most: every prompt and response at its limit, all translations distinct.

  Args:
    config: the whole configuration.
    parts: of a batch, each on devices of its own: replicas times their `fsdp`.
    fill: mean length of prompt and response over the limits, above 0 and at most 1. It decides how
      many share a packed row and how many tokens are drawn, and nothing else.
  """
  srl, feedback = config.srl, config.feedback
  longest = srl.max_prompt_length + srl.max_new_tokens
  length = row_length(srl)
  responses = (srl.update_rows or srl.questions * srl.group_size) // srl.inner_batches
  a_row = max(1, int(length / (fill * longest)))
  rows = -(-responses // a_row)
  microbatch = srl.row_bucket // srl.microbatches
  rollout, questions = config.rollout, srl.questions
  drawn_rows = questions * srl.group_size
  solved = needs_pivot_answers(feedback.source, srl.credit, srl.understanding_weight)
  translations = drawn_rows if solved else 0
  solutions = translations * feedback.pivot_samples
  prompt_length = -(-srl.max_prompt_length // rollout.prompt_bucket) * rollout.prompt_bucket
  slots = _slots(config, drawn_rows, solutions, parts)
  prefill = -(-rollout.prefill_prompts // parts) * parts
  drawn = fill * (drawn_rows * srl.max_new_tokens + solutions * srl.max_pivot_tokens)
  return Workload(
    update_rows=-(-rows // microbatch) * microbatch,
    update_length=length,
    prompt_length=prompt_length,
    row_length=prompt_length + max(srl.max_new_tokens, srl.max_pivot_tokens),
    slots=slots,
    prefill_prompts=prefill,
    prefills=-(-questions // prefill) + -(-translations // prefill),
    decodes=math.ceil(drawn / (slots * rollout.refill_steps)),
  )


def _slots(config: Config, responses: int, solutions: int, parts: int) -> int:
  """The most slots that there come to be, on all devices.

  The policy solves translations beside the responses that are still written, in as many slots as
  these rows can fill of the scheduler's sizes. Another teacher solves afterwards.
  """
  most = config.rollout.slots
  if config.feedback.teacher != "policy":
    return slot_count(most, max(responses, solutions), parts)
  sizes = slot_sizes(slot_count(most, max(responses, most), parts) // parts)
  first, rows = -(-responses // parts), -(-(responses + solutions) // parts)
  reached = [size for size in sizes if size >= first] or sizes[:1]
  return parts * next((size for size in reached if size <= rows), reached[-1])
