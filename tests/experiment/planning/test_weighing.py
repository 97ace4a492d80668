"""What is known of a program's memory without compiling it."""

import dataclasses

import jaxtyping
import pytest

from configs import tiny
from pasmr_jax.experiment.planning.compiling import device_bytes, held_bytes
from pasmr_jax.experiment.planning.programs import Planner
from pasmr_jax.experiment.planning.workload import workload
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.parallel.mesh import make_mesh

MODEL = TransformerConfig(
  vocab_size=64,
  embed_dim=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=64,
  query_scale=8**-0.5,
  tie_embeddings=False,
  remat="full",
)


@pytest.fixture(autouse=True)
def abstract_arrays(monkeypatch):
  """A plan has shapes where training has arrays."""
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def planner():
  """16 rows of 10 tokens in 4 microbatches, over 4 x 2 devices."""
  config = tiny.get_config()
  config.srl.update({"row_bucket": 8, "microbatches": 2})
  load = workload(config, 4, 1.0)
  load = dataclasses.replace(load, update_rows=16, update_length=10)
  return Planner(config, MODEL, make_mesh(4, 2), load)


def test_an_update_is_weighed_at_its_heaviest_moment(planner):
  table = 64 // 2 * 32  # of the vocabulary's half that is on a device
  sums = device_bytes(planner.params)
  kept = 2 * 1 * 10 * 32  # two layers, a row on each device
  update = planner.policy()
  assert update.working == sums + 4 * (table + table + kept)
  parts = {name: device_bytes(tree) for name, tree in update.parts.items()}
  assert parts["gradients"] == parts["parameters"] == sums
  beside = sum(map(device_bytes, update.resident.values()))
  assert held_bytes(update) == parts["parameters"] + parts["moments"] + beside + update.working
  # A batch in one microbatch has no sums.
  one = dataclasses.replace(planner, config=planner.config.copy_and_resolve_references())
  one.config.srl.update({"row_bucket": 16, "microbatches": 1})
  assert one.policy().working == 4 * (table + table + 4 * kept)


def test_rows_of_the_greatest_length_must_fit_too(planner):
  names = [program.name for program in planner.programs()]
  assert names[-2:] == ["srl update", "longest srl update"]
  usual, longest = planner.policy(), planner.longest_policy()
  assert (usual.calls, longest.calls) == (1, 0)  # no part of a step at its limits
  assert longest.tokens == 16 * 168
  assert held_bytes(longest) - held_bytes(usual) == 4 * 2 * 1 * (168 - 10) * 32  # what layers keep
  planner.config.srl.longer_rows = ()
  assert "longest srl update" not in [program.name for program in planner.programs()]


def test_prefill_has_an_output_table_beside_it_that_it_does_not_read(planner):
  prefill = planner.prefill()
  read, unread = prefill.parts["parameters"], prefill.resident["output table"]
  assert device_bytes(unread) == 64 // 2 * 32 * 4
  assert device_bytes((read, unread)) == device_bytes(planner.decoded_params)
  tied = dataclasses.replace(planner, model=dataclasses.replace(MODEL, tie_embeddings=True))
  assert "output table" not in tied.prefill().resident
