"""train.py and eval.py as a user starts them, on a small configuration, and what they leave."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).resolve().parent.parent

SMALL = {
  "languages": "('de','bn')",
  "model.embed_dim": 32,
  "model.num_layers": 1,
  "model.num_heads": 2,
  "model.num_kv_heads": 1,
  "model.head_dim": 16,
  "model.mlp_dim": 32,
  "model.scan_unroll": 1,
  "data.pivot": "('synthetic:200',)",
  "data.translation": "('synthetic:60',)",
  "data.target": "('synthetic:20',)",
  "data.triplets": "('synthetic:40',)",
  "data.srl": "('synthetic:40',)",
  "data.development": "('synthetic:4',)",
  "data.test": "('synthetic:4',)",
  # Enough for the format, so that there are translations to solve and votes to learn from.
  "base.steps": 20,
  "pam.steps": 160,
  "srl.steps": 8,
  "base.batch_size": 8,
  "pam.batch_size": 8,
  "base.max_length": 128,
  "base.optimizer.warmup_steps": 2,
  "pam.max_length": 128,
  "srl.questions": 8,
  "srl.group_size": 4,
  "srl.update_rows": 16,
  "srl.microbatches": 1,  # of 8 rows, which 8 devices can share
  "srl.rehearsal_rows": 8,
  "srl.max_new_tokens": 72,
  "srl.max_pivot_tokens": 40,
  "srl.credit": "all",
  "reward.gate": False,
  "reward.format_weight": 1.0,
  "reward.language_weight": 0.5,
  "reward.length_weight": 0.2,
  "feedback.pivot_samples": 2,
  "pam.optimizer.learning_rate": 1e-2,
  "pam.mixture.pivot": 0.3,
  "evaluation.every": 40,
  "evaluation.development_questions": 4,
  "evaluation.sampled": False,
  "checkpoint.every": 3,
  "log.rollouts_every": 2,
  "log.progress": False,
  "log.tensorboard": False,
}


def environment(cache: pathlib.Path, devices: int) -> dict[str, str]:
  """So many CPU devices, and a compilation cache that runs share."""
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def command(workdir: pathlib.Path, program="train.py", extra=(), **changes) -> list[str]:
  settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
  flags = [f"--config.{key}={value}" for key, value in settings.items()]
  config = f"--config={ROOT / 'configs' / 'tiny.py'}"
  return [sys.executable, str(ROOT / program), config, f"--workdir={workdir}", *flags, *extra]


def run(command: list[str], environment: dict) -> subprocess.CompletedProcess:
  return subprocess.run(
    command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
  )


def two_processes() -> dict[str, str]:
  """By what two processes know of each other, besides their numbers; another one at each call."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  return {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}


def run_two_processes(command: list[str], environment: dict, timeout: float = 900) -> list[str]:
  """What each of two processes that know of each other printed; both must end well."""
  environment = environment | two_processes()
  processes = [
    subprocess.Popen(
      command,
      env=environment | {"JAX_PROCESS_ID": str(number)},
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for number in range(2)
  ]
  try:
    said = [process.communicate(timeout=timeout)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], said[0][-3000:] + said[1][-3000:]
  return said


def read_lines(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def params(workdir: pathlib.Path, stage: str) -> dict[str, np.ndarray]:
  """Everything in a stage's newest checkpoint, by path."""
  folder = workdir / "checkpoints" / stage
  step = max(int(child.name) for child in folder.iterdir() if child.name.isdecimal())
  arrays = {}
  for item in ("params", "rest"):
    path = folder / str(step) / item
    with ocp.PyTreeCheckpointer() as checkpointer:
      stored = checkpointer.metadata(path).item_metadata.tree
      arrays_only = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
      tree = checkpointer.restore(path, restore_args=arrays_only)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
  return arrays


def assert_same_checkpoint(one: pathlib.Path, other: pathlib.Path, stage: str) -> None:
  left, right = params(one, stage), params(other, stage)
  assert left.keys() == right.keys()
  assert len(left) > 10
  for name, array in left.items():
    np.testing.assert_array_equal(array, right[name], err_msg=name)
