"""The same programs compile for a GPU without one, and what they move there is known."""

import importlib.util
import json

import pytest

from pasmr_jax.experiment.planning.gpus import GPUS, chip
from tests.experiment.planning.planned import plan, plan_without

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
STEPS = 8  # tokens of a call of decode

needs_plugin = pytest.mark.skipif(
  not any(map(importlib.util.find_spec, PLUGINS)),
  reason="JAX's CUDA plugin, which compiles for GPUs, is not installed (requirements-cuda.txt)",
)


def compiled(tmp_path, topology, *flags, **settings):
  out = tmp_path / "plan.json"
  finished = plan(tmp_path, f"--topology={topology}", f"--out={out}", *flags, **settings)
  assert finished.returncode == 0, finished.stderr[-3000:]
  return json.loads(out.read_text("utf-8")), finished.stdout


@needs_plugin
@pytest.mark.gpu_compile
@pytest.mark.slow
def test_the_programs_of_training_compile_for_a_gpu(tmp_path):
  report, printed = compiled(tmp_path, "h100:1", stages="('pam', 'srl')")
  programs = {program["program"]: program for program in report["programs"]}
  assert list(programs) == ["reshard", "prefill", "decode", "pam update", "srl update"]
  for program in programs.values():
    assert program["fits"]
    assert 0 < program["held_bytes"] <= program["peak_bytes"] < 0.75 * GPUS["h100"].memory
    assert sum(program["filled_by"].values()) == program["peak_bytes"]
    assert not program["parts"][0]["collective_bytes"]
  assert "h100:1: 1 chips, fsdp=1 x tensor=1, 59.33 GiB" in printed
  assert "no kernel was chosen by timing it" in printed
  assert "jax" in report["versions"]
  assert "libtpu" not in report["versions"]
  # Loops over layers and microbatches are counted: an update reads more than it holds.
  update = programs["srl update"]
  assert update["parts"][0]["hbm_bytes"] > update["peak_bytes"]


@needs_plugin
@pytest.mark.gpu_compile
@pytest.mark.slow
def test_a_token_reads_the_keys_where_they_lie(tmp_path):
  """XLA for GPUs would put all keys side by side first, and read and write them once more."""
  heads = {"model.num_heads": 2, "model.num_kv_heads": 1, "model.head_dim": 256}
  long = {"srl.max_prompt_length": 960, "srl.max_new_tokens": 56}
  report, _ = compiled(tmp_path, "a100:1", "--programs=decode", **heads, **long)
  (decode,) = report["programs"]
  (part,) = decode["parts"]
  filled = decode["filled_by"]
  held = filled["parameters"] + filled["cache"]
  assert filled["cache"] > 0.8 * held
  assert part["hbm_bytes"] / STEPS < 1.3 * held
  assert decode["peak_bytes"] < 1.5 * held + decode["held_bytes"]


@needs_plugin
@pytest.mark.gpu_compile
@pytest.mark.slow
def test_gpus_of_one_host_share_parameters_and_moments(tmp_path):
  """XLA for GPUs would gather all that the optimizer's step changes, and leave it on each."""
  report, _ = compiled(tmp_path, "h200:2", "--programs=srl update")
  assert report["mesh"] == {"replica": 1, "fsdp": 2, "tensor": 1}
  (program,) = report["programs"]
  moved, half = program["parts"][0]["collective_bytes"], report["parameters"] / 2
  # What reaches each from the other in bfloat16, forward and in the recomputation: the layers, and
  # the table for looking up and for logits. Parameters and moments in float32 would be 12 more.
  assert 2 * half <= moved["all-gather"] < 8 * half


def test_a_missing_plugin_is_said(tmp_path):
  finished = plan_without(PLUGINS, "h100:1", tmp_path)
  assert finished.returncode == 1, finished.stderr[-3000:]
  (line,) = finished.stderr.splitlines()
  assert line.startswith(
    "plan.py: plans for GPUs are compiled with JAX's CUDA plugin, which is not"
  )
  assert "pip install -r requirements-cuda.txt" in line


def test_a_gpu_is_described_to_the_compiler_as_it_is_to_the_planner():
  for name, gpu in GPUS.items():
    described = gpu.target()
    assert f"device_memory_size: {gpu.memory}\n" in described
    assert f"memory_bandwidth: {gpu.bandwidth:.0f}\n" in described
    assert chip(f"{name}:1") == gpu.chip
    assert gpu.chip.hbm_bandwidth == gpu.bandwidth
  assert chip("v5e:2x2").hbm_limit == 15.75 * 2**30
