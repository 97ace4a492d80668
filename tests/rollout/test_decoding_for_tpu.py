"""What decoding real sizes reads and moves on a TPU slice, from the compiled program."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from pasmr_jax.experiment.planning.sizes import published

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS, LENGTH, STEPS = 64, 2048, 8

pytestmark = [pytest.mark.tpu_compile, pytest.mark.slow, pytest.mark.long]


def _decode(
  size: str, tensor: int, folder: pathlib.Path, topology: str = "v5e:4x4", **changes
) -> dict:
  """The report of the decode program on a slice: 64 rows of 2,048 tokens."""
  pytest.importorskip("libtpu", reason="libtpu, which compiles for TPUs, is not installed")
  settings = {
    "stages": "('srl',)",
    "mesh.tensor": tensor,
    "rollout.slots": ROWS,
    "rollout.refill_steps": STEPS,
    "srl.max_prompt_length": LENGTH // 2,
    "srl.max_new_tokens": LENGTH // 2,
    "srl.max_pivot_tokens": LENGTH // 2,
    **changes,
  }
  config = f"--config={ROOT / 'configs' / 'pasmr_gemma.py'}:{size}"
  given = [f"--config.{key}={value}" for key, value in settings.items()]
  flags = [f"--topology={topology}", "--programs=decode", "--quick", f"--cache={folder}"]
  out = folder / f"{size}.json"
  finished = subprocess.run(
    [sys.executable, ROOT / "plan.py", config, f"--out={out}", *flags, *given],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": "", "HF_HUB_OFFLINE": "1"},
    capture_output=True,
    text=True,
    timeout=590,
    check=False,
  )
  assert finished.returncode == 0, finished.stderr[-3000:]
  report = json.loads(out.read_text("utf-8"))
  assert report["workload"]["slots"] == ROWS
  assert report["workload"]["row_length"] == LENGTH
  (program,) = report["programs"]
  return program


@pytest.mark.parametrize(("size", "topology"), [("2b", "v5e:4x4"), ("9b", "v5e:4x8")])
def test_a_token_reads_weights_and_cache_once_and_gathers_no_weights(size, topology, tmp_path):
  program = _decode(size, 4, tmp_path, topology)
  filled, (part,) = program["filled_by"], program["parts"]
  read = filled["parameters"] + filled["cache"]
  print(f"{size}: {part['hbm_bytes'] / STEPS / read:.3f}", part["collective_bytes"])
  assert read < part["hbm_bytes"] / STEPS < 1.1 * read
  assert part["collective_bytes"].get("all-gather", 0) / STEPS < 1e6


def test_a_ring_holds_no_more_than_its_window(tmp_path):
  """Of Gemma 3 1B's 26 layers four see everything; the others see 512 tokens."""
  sizes = published("google/gemma-3-1b-pt")
  assert sizes is not None
  program = _decode("1b", 1, tmp_path)
  columns = [{"local": sizes.sliding_window, "global": LENGTH}[kind] for kind in sizes.layer_kinds]
  assert sorted(set(columns)) == [512, LENGTH]
  column = 2 * 2 * (ROWS // 16) * sizes.num_kv_heads * sizes.head_dim
  expected = sum(column * (count + STEPS) for count in columns)
  assert program["filled_by"]["cache"] == pytest.approx(expected, rel=0.02)
  assert expected < 0.45 * column * LENGTH * len(columns)
  assert sum(program["filled_by"].values()) == program["peak_bytes"]
