"""A tiny model's programs, and a real one's update, compile for a TPU without one."""

import json
import os
import subprocess
import sys

import pytest

from pasmr_jax.experiment.planning.cost import GIB
from pasmr_jax.learning.logprobs import LOGITS
from tests.experiment.planning.planned import ROOT, plan, plan_without


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
    # What is weighed without compiling, to leave slices out, is never more than the compiler takes.
    assert 0 < program["held_bytes"] <= program["peak_bytes"]
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


@pytest.mark.long
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
  # In bfloat16: the layers forward and once more backward, the table for looking tokens up and for
  # logits. A layer's third gather would be 100 M numbers more, a table of each chunk 15 tables.
  once = share * 2 * (2 * layers + 2 * table)
  assert 0.9 * once <= moved["all-gather"] < 1.1 * once
  # The layers' gradients are passed around while they are made, those of the tables summed once.
  reduced = sum(size for kind, size in moved.items() if kind not in ("all-gather", "all-to-all"))
  assert reduced < 1.1 * share * 4 * (layers + 2 * table)


@pytest.mark.long
@pytest.mark.tpu_compile
@pytest.mark.slow
def test_slices_exchange_gradients_alone_and_once_a_step(tmp_path):
  pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed")
  out = tmp_path / "plan.json"
  flags = ["--topology=v5e:2x2", "--num_slices=2", "--programs=srl update", f"--out={out}"]
  finished = plan(tmp_path, *flags, **{"srl.microbatches": 4, "srl.row_bucket": 32})
  assert finished.returncode == 0, finished.stderr[-3000:]
  assert "2 slices of v5e:2x2: 8 chips, replica=2 x fsdp=4 x tensor=1" in finished.stdout
  report = json.loads(out.read_text("utf-8"))
  (program,) = report["programs"]
  moved = program["parts"][0]["collective_bytes"]["from other slices"]
  assert "srl" not in " ".join(report["adjusted"])  # four microbatches they are
  # Of each gradient the quarter that a device holds of its slice's sum, in float32 or bfloat16.
  assert report["parameters"] / 4 * 2 < moved < 1.2 * report["parameters"] * 4


@pytest.mark.long
@pytest.mark.tpu_compile
@pytest.mark.slow
def test_the_smallest_slice_of_each_generation_is_named(tmp_path):
  """A model of 24 GB of parameters and moments, too many for one v5e and not for one v6e."""
  pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed")
  out = tmp_path / "plan.json"
  large = {"model.embed_dim": 4096, "model.num_layers": 2, "model.mlp_dim": 65536}
  flags = ["--topology=auto", "--programs=pam update", f"--out={out}"]
  finished = plan(tmp_path, *flags, **large, stages="('pam',)")
  assert finished.returncode == 0, finished.stderr[-3000:]
  found = json.loads(out.read_text("utf-8"))
  chosen = {generation: one["report"]["topology"] for generation, one in found.items()}
  assert chosen == {"v5e": "v5e:2x2", "v6e": "v6e:1x1", "v5p": "v5p:2x2x1"}
  for generation, topology in chosen.items():
    assert f"{generation}: the smallest slice that fits is {topology}\n" in finished.stdout
  assert [topology for topology, _ in found["v5e"]["refused"]] == ["v5e:1x1"]
  assert "not v5e:1x1: pam update holds " in finished.stdout


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_a_plan_has_the_hosts_of_its_slice(tmp_path):
  """A slice of 2x4 chips is one host, larger ones have hosts of 2x2."""
  pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed")
  settings = {"mesh.tensor": 8, "rollout.slots": 32}
  refused = plan(tmp_path, "--topology=v5e:4x4", "--programs=none", **settings)
  said = "mesh.tensor: found 8, expected a divisor of the 4 devices of each of 4 processes"
  assert (refused.returncode, said in refused.stderr) == (1, True), refused.stderr[-3000:]
  planned = plan(tmp_path, "--topology=v5e:2x4", "--programs=none", **settings)
  assert planned.stderr.splitlines()[-1].startswith("plan.py: --programs: no none; expected some")


@pytest.mark.parametrize("topology", ["v5e:2x2", "auto"])
def test_a_missing_libtpu_is_said(tmp_path, topology):
  finished = plan_without(("libtpu",), topology, tmp_path)
  assert finished.returncode == 1, finished.stderr[-3000:]
  (line,) = finished.stderr.splitlines()
  assert line.startswith("plan.py: plans are compiled with libtpu, which is not installed here")
  assert "pip install -r requirements.txt" in line
  assert finished.stdout == ""


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_what_is_too_big_exits_with_2(compiled_plan, tmp_path):
  del compiled_plan  # its skip is ours
  huge = {"model.num_layers": 400, "model.mlp_dim": 65536, "stages": "('pam',)"}
  finished = plan(tmp_path, "--topology=v5e:1x1", **huge)
  assert finished.returncode == 2, finished.stderr[-3000:]
  assert "pam update does not fit" in finished.stdout
  assert "a slice with more chips" in finished.stdout
