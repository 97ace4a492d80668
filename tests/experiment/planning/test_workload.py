"""Shapes of a step at the limits of its configuration."""

import dataclasses
import math

from configs import pasmr_gemma
from pasmr_jax.experiment.planning.dividing import adjust
from pasmr_jax.experiment.planning.workload import workload
from pasmr_jax.parallel.mesh import make_mesh
from pasmr_jax.rollout.engine import slot_count
from pasmr_jax.rollout.scheduler import NOTHING, Layout, Scheduler
from tests.experiment.planning.test_weighing import MODEL


def test_a_step_is_planned_at_its_limits():
  config = pasmr_gemma.get_config("1b")
  load = workload(config, parts=8, fill=1.0)
  assert (load.update_rows, load.update_length, load.prompt_length) == (256, 1024, 512)
  assert (load.slots, load.row_length, load.prefill_prompts) == (256, 1024, 16)
  assert load.prefills == 32 // 16 + 256 // 16
  # 256 responses of 512 tokens and 256 x 4 solutions of 384, 8 steps of 256 slots a call.
  assert load.decodes == (256 * 512 + 256 * 4 * 384) // (256 * 8)
  assert workload(config, parts=8, fill=0.25).decodes == load.decodes // 4
  assert workload(config, parts=512, fill=1.0).slots == 512
  assert workload(config, parts=8, fill=0.25).update_rows == 64
  config.srl.update_rows, config.srl.row_length = 100, 2048
  assert workload(config, parts=8, fill=1.0).update_rows == 56  # 50, in microbatches of 8


def test_slots_hold_solutions_too():
  config = pasmr_gemma.get_config("1b")  # 256 responses of which each may have 4 solutions
  config.srl.credit = "all"
  for source, teacher, slots, found in (
    ("pivot", "policy", 512, 512),  # solutions beside responses
    ("pivot", "policy", 2048, 1024),  # half of them: 1,280 rows do not fill all
    ("pivot", "policy", 8192, 1024),  # an eighth of them, of which there are never fewer
    ("pivot", "policy", 1000, 1000),
    ("pivot", "policy", 0, 256),  # as many as there are responses
    ("pivot", "reference", 0, 1024),  # solutions after all responses
    ("pivot", "reference", 384, 384),
    ("gold", "policy", 512, 256),  # no solutions
  ):
    config.feedback.source, config.feedback.teacher, config.rollout.slots = source, teacher, slots
    load = workload(config, parts=8, fill=1.0)
    assert load.slots == found
    solved = 256 * 4 * 384 if source == "pivot" else 0
    assert load.decodes == math.ceil((256 * 512 + solved) / (8 * found))
    if teacher == "policy":
      assert found == reached(slots, 256, 1024 if source == "pivot" else 0)


def reached(slots, responses, solutions):
  """The most slots that a scheduler comes to have."""
  most = slot_count(slots, max(responses, slots), 8)
  layout = Layout(most, 16, 8, 128, 64, "float32")
  scheduler = Scheduler(None, MODEL, make_mesh(8, 1), 10, layout, None)
  counts = []
  for rows in (responses, solutions):
    for _ in range(rows // 4):
      scheduler.add(dataclasses.replace(NOTHING, samples=4))
    scheduler._resize()
    counts.append(8 * len(scheduler.places[0]))
  return max(counts)


def test_batches_are_changed_until_they_divide():
  config = pasmr_gemma.get_config("9b")
  assert adjust(config, parts=8) == []
  assert adjust(config, parts=32) == [
    "--config.pam.microbatches=1",
    "--config.srl.microbatches=2",
  ]
  assert adjust(config, parts=128) == [
    "--config.base.batch_size=128",  # not run
    "--config.srl.row_bucket=128",
    "--config.srl.rehearsal_rows=128",
    "--config.srl.microbatches=1",
  ]
  assert config.pam.batch_size == 32  # run, and not for a plan to change
