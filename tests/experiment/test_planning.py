"""Plans: what is counted equals counting by hand, and a tiny model's programs compile for a TPU."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import pasmr_gemma, tiny
from pasmr_jax.experiment import planning, planning_cost, planning_hlo, planning_table
from pasmr_jax.experiment.planning import PlanError, Planning, UnsuitableError
from pasmr_jax.experiment.planning_cost import CHIPS, Cost
from pasmr_jax.experiment.planning_sizes import PUBLISHED, published
from pasmr_jax.experiment.planning_worker import largest
from pasmr_jax.experiment.planning_workload import adjust, workload
from pasmr_jax.learning.logprobs import LOGITS
from pasmr_jax.models.transformer import init_params
from pasmr_jax.parallel.mesh import make_mesh

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 2**30


# Operations.


def flops(function, *arguments, trips=0):
  return planning_cost.flops(jax.jit(function).trace(*arguments).jaxpr, trips)


def test_a_product_counts_two_operations_for_each_multiplication():
  assert flops(jnp.matmul, jnp.ones((3, 4)), jnp.ones((4, 5))) == 2 * 3 * 4 * 5
  batched = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)  # noqa: E731
  assert flops(batched, jnp.ones((7, 3, 4)), jnp.ones((7, 4, 5))) == 7 * 2 * 3 * 4 * 5


def test_loops_count_their_trips_and_branches_the_cheapest():
  square = jnp.ones((4, 4))

  def scanned(x):
    return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, x), None), x, None, length=6)[0]

  def stopping(x):
    return jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ x, x) @ x

  def chosen(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert flops(scanned, square) == 6 * 128
  assert flops(stopping, square) == 128
  assert flops(stopping, square, trips=5) == 6 * 128
  assert flops(chosen, square) == 128


def test_what_is_recomputed_counts_again():
  loss = lambda x, w: jnp.sum(jnp.tanh(x @ w) ** 2)  # noqa: E731
  shapes = jnp.ones((3, 4)), jnp.ones((4, 5))
  assert flops(jax.grad(loss, argnums=(0, 1)), *shapes) == 3 * 120
  assert flops(jax.grad(jax.checkpoint(loss), argnums=(0, 1)), *shapes) == 4 * 120


def test_mapped_shards_count_on_every_device():
  mesh = make_mesh(-1, 2)
  parts = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"))
  # Four shards of the rows, each worked on by two devices.
  assert flops(parts, jnp.ones((8, 4)), jnp.ones((4, 5))) == 2 * 2 * 8 * 4 * 5


# Bytes.

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%take_layer (p0: bf16[4,8,128], p1: s32[]) -> bf16[8,128] {
  %p0 = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)S(6)} parameter(1)
  %slice.1 = bf16[1,8,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8,128}
  ROOT %flat = bf16[8,128]{1,0:T(8,128)(2,1)} bitcast(%slice.1)
}

%put_layer (q0: bf16[4,8,128], q1: bf16[1,8,128], q2: s32[]) -> bf16[4,8,128] {
  %q0 = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q1 = bf16[1,8,128]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %q2 = s32[]{:T(128)S(6)} parameter(2)
  ROOT %put = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%q0, %q1, %q2)
}

%body (c: (s32[], bf16[4,8,128])) -> (s32[], bf16[4,8,128]) {
  %c = (s32[]{:T(128)S(6)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%c), index=0
  %stack = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%c), index=1
  %layer = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%stack, %i), kind=kLoop, calls=%take_layer
  %gathered = bf16[1,8,512]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%layer), channel_id=1, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={2}
  %new = bf16[1,8,128]{2,1,0:T(8,128)(2,1)S(1)} bitcast(%layer)
  %next = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} fusion(%stack, %new, %i), kind=kLoop, calls=%put_layer
  ROOT %out = (s32[]{:T(128)S(6)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)}) tuple(%i, %next)
}

%four (c2: (s32[], bf16[4,8,128])) -> pred[] {
  %c2 = (s32[]{:T(128)S(6)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %four.1 = s32[]{:T(128)S(6)} constant(4)
  %i.2 = s32[]{:T(128)S(6)} get-tuple-element(%c2), index=0
  ROOT %lt = pred[]{:T(512)S(6)} compare(%i.2, %four.1), direction=LT
}

%stepping (d: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %d = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)S(6)} get-tuple-element(%d), index=0
  %row = f32[16,128]{1,0:T(8,128)} get-tuple-element(%d), index=1
  %reduced = f32[16,128]{1,0:T(8,128)} all-reduce(%row), channel_id=7, \
replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %out.2 = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) tuple(%j, %reduced)
}

%until_done (e: (s32[], f32[16,128])) -> pred[] {
  %e = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) parameter(0)
  %hundred = s32[]{:T(128)S(6)} constant(100)
  %k = s32[]{:T(128)S(6)} get-tuple-element(%e), index=0
  %lt.2 = pred[]{:T(512)S(6)} compare(%k, %hundred), direction=LT
  %alive = pred[]{:T(512)S(6)} constant(true)
  ROOT %and = pred[]{:T(512)S(6)} and(%lt.2, %alive)
}

ENTRY %main (w: bf16[4,8,128], x: f32[16,128]) -> f32[4,128] {
  %w = bf16[4,8,128]{2,1,0:T(8,128)(2,1)} parameter(0), sharding={devices=[1,1,4]<=[4]}
  %x = f32[16,128]{1,0:T(8,128)} parameter(1)
  %zero = s32[]{:T(128)S(6)} constant(0)
  %start = (s32[]{:T(128)S(6)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)}) tuple(%zero, %w)
  %loop = (s32[]{:T(128)S(6)}, bf16[4,8,128]{2,1,0:T(8,128)(2,1)}) while(%start), condition=%four, body=%body
  %copied = (f32[16,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %there = f32[16,128]{1,0:T(8,128)S(1)} copy-done(%copied)
  %begin = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) tuple(%zero, %x)
  %decoded = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) while(%begin), condition=%until_done, body=%stepping
  ROOT %scattered = f32[4,128]{1,0:T(8,128)} reduce-scatter(%there), channel_id=9, \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%sum
}
"""  # noqa: E501
LAYER = 8 * 128 * 2
ROWS = 16 * 128 * 4


@pytest.fixture(scope="module")
def module():
  return planning_hlo.parse(PROGRAM)


def test_loops_are_known_or_decided_while_they_run(module):
  assert planning_hlo.trips(module, "four") == 4
  assert planning_hlo.trips(module, "until_done") is None
  times = planning_hlo.executions(module, dynamic_trips=10, fusions=False)
  assert (times["body"], times["stepping"], times["main"]) == (4, 10, 1)
  assert "take_layer" not in times
  assert planning_hlo.executions(module, 10, fusions=True)["take_layer"] == 4


def test_bytes_through_hbm(module):
  # Each trip slices one layer out of the stack into VMEM and writes one back. The gather stays in
  # VMEM. Outside: a copy of x to VMEM reads it, and the scatter writes a quarter of it.
  outside = 4 * (LAYER + LAYER) + ROWS + ROWS // 4
  assert planning_cost.hbm_bytes(module) == outside
  # A trip of the loop that may stop early reads and writes x.
  assert planning_cost.hbm_bytes(module, dynamic_trips=10) == outside + 10 * 2 * ROWS


def test_bytes_between_devices(module):
  gathered, scattered = 4 * 8 * 512 * 2 * 3 / 4, ROWS * 3 / 4
  assert planning_cost.collective_bytes(module) == {
    "all-gather": gathered,
    "reduce-scatter": scattered,
  }
  moved = planning_cost.collective_bytes(module, dynamic_trips=2)
  assert moved["all-reduce"] == 2 * ROWS * 2 * 3 / 4  # out and back, over groups of four


def test_what_a_condition_decides_counts_where_it_is_part_of_a_step():
  module = planning_hlo.parse("""\
HloModule m

%moved (old: f32[8,128]) -> f32[8,128] {
  %old = f32[8,128]{1,0} parameter(0)
  ROOT %new = f32[8,128]{1,0} negate(%old)
}

%kept (same: f32[8,128]) -> f32[8,128] {
  ROOT %same = f32[8,128]{1,0} parameter(0)
}

ENTRY %main (sound: pred[], x: f32[8,128]) -> f32[8,128] {
  %sound = pred[] parameter(0)
  %x = f32[8,128]{1,0} parameter(1)
  ROOT %out = f32[8,128]{1,0} conditional(%sound, %x, %x), true_computation=%moved, \
false_computation=%kept
}
""")
  assert planning_cost.hbm_bytes(module) == 0
  assert planning_cost.hbm_bytes(module, branches=True) == 2 * 8 * 128 * 4
  square = jnp.ones((4, 4))
  traced = jax.jit(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x)).trace(square)
  assert planning_cost.flops(traced.jaxpr) == 0
  assert planning_cost.flops(traced.jaxpr, branches=True) == 2 * 4**3


def test_parts_of_an_asynchronous_collective_count_once():
  text = """\
HloModule m

ENTRY %main (x: bf16[2,128]) -> bf16[8,128] {
  %x = bf16[2,128]{1,0} parameter(0)
  %start = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) all-gather-start(%x), channel_id=3, \
replica_groups={{0,1,2,3}}, dimensions={0}
  %sent = bf16[2,128]{1,0} collective-permute(%x), channel_id=4, source_target_pairs={{0,1},{1,0}}
  ROOT %done = bf16[8,128]{1,0} all-gather-done(%start)
}
"""
  moved = planning_cost.collective_bytes(planning_hlo.parse(text))
  assert moved == {"all-gather": 8 * 128 * 2 * 3 / 4, "collective-permute": 2 * 128 * 2}


def test_a_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match="found no ENTRY"):
    planning_hlo.parse("HloModule m\n")


def test_the_floor_is_what_takes_longest():
  cost = Cost(flops=197e12, hbm_bytes=2 * 819e9, collective_bytes={"all-gather": 100e9})
  seconds, bound = planning_cost.floor(cost, CHIPS["v5e"])
  assert seconds == {"compute": 1.0, "memory": 2.0, "interconnect": 0.5}
  assert bound == "memory"
  rest = cost.minus(Cost(97e12, 819e9, {"all-gather": 100e9}))
  assert rest == Cost(100e12, 819e9, {})


# Shapes.


def test_a_step_is_planned_at_its_limits():
  config = pasmr_gemma.get_config("1b")
  load = workload(config, fsdp=8, fill=1.0)
  assert (load.update_rows, load.update_length, load.prompt_length) == (256, 1024, 512)
  assert (load.slots, load.row_length, load.prefill_prompts) == (256, 1024, 16)
  assert load.prefills == 32 // 16 + 256 // 16
  # 256 responses of 512 tokens and 256 x 4 solutions of 384, 8 steps of 256 slots a call.
  assert load.decodes == (256 * 512 + 256 * 4 * 384) // (256 * 8)
  assert workload(config, fsdp=8, fill=0.25).decodes == load.decodes // 4
  assert workload(config, fsdp=512, fill=1.0).slots == 512
  assert workload(config, fsdp=8, fill=0.25).update_rows == 64
  config.srl.update_rows, config.srl.row_length = 100, 2048
  assert workload(config, fsdp=8, fill=1.0).update_rows == 64  # 50 of them, padded to the bucket


def test_batches_are_changed_until_they_divide():
  config = pasmr_gemma.get_config("9b")
  assert adjust(config, fsdp=8) == []
  assert adjust(config, fsdp=32) == [
    "--config.pam.microbatches=1",
    "--config.srl.microbatches=2",
  ]
  assert adjust(config, fsdp=128) == [
    "--config.base.batch_size=128",  # not run
    "--config.srl.row_bucket=128",
    "--config.srl.rehearsal_rows=128",
    "--config.srl.microbatches=1",
  ]
  assert config.pam.batch_size == 32  # run, and not for a plan to change


def test_the_largest_that_fits_is_found_to_an_eighth():
  for most in (0, 1, 2, 7, 16, 100):
    asked = []

    def fits(number, most=most, asked=asked):
      asked.append(number)
      return number <= most

    found = largest(fits, 4)
    assert found <= most <= found + max(1, found // 8) - (found < 8)
    assert len(asked) <= 11


COUNTS = {
  "google/gemma-3-270m": 268_098_176,
  "google/gemma-3-1b-pt": 999_885_952,
  "google/gemma-3-4b-pt": 3_880_263_168,
  "google/gemma-3-12b-pt": 11_766_034_176,
  "google/gemma-3-27b-pt": 27_009_346_304,
  "google/gemma-2-2b": 2_614_341_888,
  "google/gemma-2-9b": 9_241_705_984,
  "google/gemma-2-27b": 27_227_128_320,
  "meta-llama/Llama-3.1-8B": 8_030_261_248,
  "Qwen/Qwen3-8B": 8_190_735_360,
}


def test_published_sizes_have_the_published_number_of_parameters():
  assert COUNTS.keys() == PUBLISHED.keys()
  for name, sizes in PUBLISHED.items():
    shapes = jax.eval_shape(lambda sizes=sizes: init_params(sizes, jax.random.key(0)))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == COUNTS[name], name
  assert published("google/gemma-3-1b-it") is PUBLISHED["google/gemma-3-1b-pt"]
  assert published("meta-llama/Llama-3.1-8B-Instruct") is PUBLISHED["meta-llama/Llama-3.1-8B"]
  assert published("google/gemma-5-1b") is None
  assert set(pasmr_gemma.SIZES.values()) <= PUBLISHED.keys()


# Asking, with the compiler replaced.


def part(name, calls, floor):
  return {
    "part": name, "calls": calls, "flops": 1e12, "hbm_bytes": 1e9, "collective_bytes": {},
    "seconds": {}, "floor_seconds": floor, "bound": "memory", "tokens": 100,
    "tokens_per_second": 100 / floor,
  }  # fmt: skip


def made_up(fits: bool, mesh=(4, 1)):
  """An answer as planning_worker gives it."""
  over = 0 if fits else GIB // 2
  update = {
    "program": "srl update", "calls": 1, "fits": fits, "peak_bytes": 15.75 * GIB + (over or -GIB),
    "over_bytes": over, "parts": [part("srl update", 1, 3.0)],
    "filled_by": {"moments": 9 * GIB, "parameters": 4 * GIB, "logits": 2 * GIB},
  }  # fmt: skip
  rollout = update | {
    "program": "decode", "fits": True, "over_bytes": 0,
    "parts": [part("prefill", 2, 0.25), part("decode", 2, 0.25)],
  }  # fmt: skip
  return {
    "parameters": 1000, "sizes_from": "published sizes of x", "limit_bytes": 15.75 * GIB,
    "mesh": dict(zip(("fsdp", "tensor"), mesh, strict=True)), "fill": 1.0, "fits": fits,
    "workload": {"slots": 4, "prefill_prompts": 2, "prefills": 3, "decodes": 1, "row_length": 64,
                 "update_rows": 8, "update_length": 64, "prompt_length": 32},
    "adjusted": ["--config.srl.microbatches=1"], "programs": [rollout, update],
  }  # fmt: skip


@pytest.fixture
def worker(monkeypatch):
  """Stands in for the compiling process; a test fills `answers` by topology."""
  answers, asked = {}, []

  def in_a_process(request):
    asked.append(request["topology"])
    return answers[request["topology"]]

  monkeypatch.setattr(planning, "_in_a_process", in_a_process)
  monkeypatch.setattr(planning, "compiler_versions", lambda: {"jax": "1"})
  return answers, asked


def test_an_answer_is_kept_until_something_changes(worker, tmp_path, monkeypatch):
  answers, asked = worker
  answers["v5e:2x2"] = made_up(True)
  config = tiny.get_config()
  first = Planning(config, tmp_path).plan("v5e:2x2")
  config.log.every = 7  # decides about no program
  assert Planning(config, tmp_path).plan("v5e:2x2") == first
  assert asked == ["v5e:2x2"]
  assert (first["topology"], first["versions"]) == ("v5e:2x2", {"jax": "1"})
  config.srl.microbatches = 2
  Planning(config, tmp_path).plan("v5e:2x2")
  Planning(config, tmp_path, quick=True).plan("v5e:2x2")
  monkeypatch.setattr(planning, "compiler_versions", lambda: {"jax": "2"})
  Planning(config, tmp_path).plan("v5e:2x2")
  assert len(asked) == 4


def test_the_smallest_slice_is_the_first_that_fits(worker, tmp_path):
  answers, asked = worker
  answers["v5e:1x1"] = made_up(False)
  answers["v5e:2x2"] = {"unsuitable": "the configuration cannot be run:\n  pam.batch_size is 3"}
  answers["v5e:2x4"] = made_up(True)
  report, refused = Planning(tiny.get_config(), tmp_path).smallest("v5e")
  assert report is not None
  assert report["topology"] == "v5e:2x4"
  assert asked == ["v5e:1x1", "v5e:2x2", "v5e:2x4"]
  assert refused == [
    ("v5e:1x1", "srl update is 0.50 GiB over"),
    ("v5e:2x2", "pam.batch_size is 3"),
  ]
  answers |= {f"v5p:{shape}": made_up(False) for shape in CHIPS["v5p"].slices}
  assert Planning(tiny.get_config(), tmp_path).smallest("v5p")[0] is None


def test_what_keeps_a_plan_from_being_made_is_said(worker, tmp_path, monkeypatch):
  answers, _ = worker
  asking = Planning(tiny.get_config(), tmp_path)
  for wrong in ("v9:2x2", "v5e", "v5e:2xa", "v5e:0x2"):
    with pytest.raises(PlanError, match=f"--topology={wrong}: expected 'auto' or a slice such as"):
      asking.plan(wrong)
  answers["v5e:2x2"] = {"error": "no such topology"}
  with pytest.raises(PlanError, match="no such topology"):
    asking.plan("v5e:2x2")
  answers["v5e:2x2"] = {"unsuitable": "srl.questions is 0"}
  with pytest.raises(UnsuitableError, match=r"srl\.questions is 0"):
    asking.plan("v5e:2x2")
  monkeypatch.undo()
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(PlanError, match=r"libtpu, which is not installed.*pip install -r"):
    asking.plan("v5e:2x2")


# Printing.


def test_a_report_says_what_fills_memory_and_what_a_step_takes():
  report = {"topology": "v5e:2x2", "quick": False} | made_up(True)
  shares = planning_table.step_parts(report)
  assert shares == [
    ("prefill", 0.5, 0.125),
    ("decode", 0.5, 0.125),
    ("srl update", 3.0, 0.75),
  ]
  text = planning_table.render(report)
  assert "4 chips, fsdp=4 x tensor=1, 15.75 GiB" in text
  assert "1,000 parameters (published sizes of x)" in text
  assert "moments 9.00, parameters 4.00, logits 2.00" in text
  assert "One SRL step takes at least 4 s: prefill 12.5%" in text
  assert "--config.srl.microbatches=1" in text
  assert "It leaves out everything else" in text
  assert (
    "3 batches of 2 prompts, 1 calls of the decoder on 4 slots, and updates on 8 packed rows of 64"
    in text
  )
  assert planning_table.advice(report, tiny.get_config()) == []
  supervised = report | {"programs": [report["programs"][1] | {"program": "pam update"}]}
  assert "SRL step" not in planning_table.render(supervised)


def test_what_does_not_fit_comes_with_keys_that_help():
  report = {"topology": "v5e:2x2", "quick": False} | made_up(False)
  assert "0.50 over" in planning_table.render(report)
  assert "One SRL step" not in planning_table.render(report)
  (line,) = planning_table.advice(report, tiny.get_config())
  assert line.startswith("srl update does not fit: 0.50 GiB over the 15.75 GiB")
  keys = line.partition("most: ")[2].split("; ")
  assert keys[:3] == [
    "a slice with more chips",
    "model.param_dtype=bfloat16",
    "srl.optimizer.name=adafactor, lion or muon",
  ]
  assert "srl.microbatches=2" in keys
  assert "model.remat=full" in keys


# Compiling.

# One program of each kind, so that the test is quick: no reference, no pivot, one microbatch.
SMALL = {
  "stages": "('srl',)",
  "model.dtype": "bfloat16",
  "model.remat": "full",
  "model.num_layers": 2,
  "model.scan_unroll": 1,
  "srl.kl_coef": 0.0,
  "srl.update_rows": 32,
  "srl.rehearsal_weight": 0.0,
  "srl.credit": "all",
  "feedback.source": "target_majority",
}


def plan(tmp_path, *flags, **settings):
  given = [f"--config.{key}={value}" for key, value in (SMALL | settings).items()]
  config = f"--config={ROOT / 'configs' / 'tiny.py'}"
  return subprocess.run(
    [sys.executable, ROOT / "plan.py", config, "--quick", f"--cache={tmp_path}", *flags, *given],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


@pytest.fixture(scope="module")
def compiled_plan(tmp_path_factory):
  pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed")
  folder = tmp_path_factory.mktemp("plans")
  finished = plan(folder, "--topology=v5e:2x2", f"--out={folder / 'plan.json'}")
  assert finished.returncode == 0, finished.stderr[-3000:]
  return json.loads((folder / "plan.json").read_text("utf-8")), finished.stdout


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_the_programs_of_training_compile_for_a_tpu(compiled_plan):
  report, printed = compiled_plan
  programs = {program["program"]: program for program in report["programs"]}
  assert list(programs) == ["reshard", "prefill", "decode", "srl update"]
  for program in programs.values():
    assert program["fits"]
    assert 0 < program["peak_bytes"] < 15.75 * GIB
    assert sum(program["filled_by"].values()) == program["peak_bytes"]
  assert programs["srl update"]["parts"][0]["flops"] > 0
  assert "v5e:2x2: 4 chips, fsdp=4" in printed


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_decoding_gathers_no_weights(compiled_plan):
  report, _ = compiled_plan
  _, _, decode, _ = report["programs"]
  steps, slots = 8, report["workload"]["slots"]
  (part,) = decode["parts"]
  assert part["tokens"] == steps * slots
  assert sum(part["collective_bytes"].values()) / steps < 100  # whether all rows are done
  # A step reads the weights and the cache, and what it keeps of logits and rows is little.
  filled = decode["filled_by"]
  read = filled["parameters laid out" if "parameters laid out" in filled else "parameters"]
  assert part["hbm_bytes"] / steps < 1.1 * (read + filled["cache"]) + 64 * filled["logits"]
  reshard = report["programs"][0]["parts"][0]
  assert reshard["collective_bytes"]["all-gather"] > 1.4 * report["parameters"]  # 3/4 of 2 bytes


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_the_embedding_is_gathered_and_its_gradient_reduced_once_a_pass(tmp_path):
  """Gemma 3 270M's own vocabulary over four chips, its rows in one microbatch of many chunks."""
  pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed")
  vocabulary, width, rows = 262_144, 640, 64
  settings = {
    "stages": "('pam',)",
    "pam.batch_size": rows,
    "pam.microbatches": 1,
    "pam.max_length": 512,
    "model.attention": "xla",
  }
  given = [f"--config.{key}={value}" for key, value in settings.items()]
  out = tmp_path / "plan.json"
  config = f"--config={ROOT / 'configs' / 'pasmr_gemma.py'}:270m"
  flags = ["--quick", "--topology=v5e:2x2", f"--cache={tmp_path}", f"--out={out}"]
  finished = subprocess.run(
    [sys.executable, ROOT / "plan.py", config, *flags, *given],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": "", "HF_HUB_OFFLINE": "1"},
    capture_output=True,
    text=True,
    timeout=590,
    check=False,
  )
  assert finished.returncode == 0, finished.stderr[-3000:]
  (program,) = json.loads(out.read_text("utf-8"))["programs"]
  # No array has more than a chunk's logits: 512 of each device's 8,192 tokens.
  assert program["largest_with_vocabulary"] == vocabulary * width
  assert LOGITS // vocabulary < width
  (part,) = program["parts"]
  moved = part["collective_bytes"]
  table, layers = vocabulary * width, 268_098_176 - vocabulary * width
  share = 3 / 4  # of an array that reaches a device from the three others
  # The table is gathered once, in bfloat16; the layers forward, for the recomputation and backward,
  # of which the compiler may merge the last two. A table of each chunk would be 15 tables more.
  once, most = share * 2 * (2 * layers + table), share * 2 * (3 * layers + table)
  assert once <= moved["all-gather"] < 1.1 * most
  reduced = moved.get("reduce-scatter", 0) + moved.get("all-reduce", 0)
  assert reduced < 1.1 * share * 4 * (layers + 2 * table)


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_what_is_too_big_exits_with_2(compiled_plan, tmp_path):
  del compiled_plan  # its skip is ours
  huge = {"model.num_layers": 400, "model.mlp_dim": 65536, "stages": "('pam',)"}
  finished = plan(tmp_path, "--topology=v5e:1x1", **huge)
  assert finished.returncode == 2, finished.stderr[-3000:]
  assert "pam update does not fit" in finished.stdout
  assert "a slice with more chips" in finished.stdout
