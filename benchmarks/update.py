"""What does an optimizer step cost? CPU-seconds and peak memory of both kinds of update.

    python -m benchmarks.update --out=runs/update.json

A randomly initialised decoder of Gemma 3 270M's shape in float32 learns, with AdamW, from 8 rows of
256 tokens of which the first 64 are a prompt. Each update runs in a process of its own, so that its
peak resident memory is its own (with Python, JAX and the compiler in it): `--repeats` steps after
one that is not counted, of which the quickest is reported: by CPU time on a CPU, which others may
use too, and by the clock elsewhere. Learned tokens a second are by the clock.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks import record
from configs import base
from pasmr_jax.experiment.planning.sizes import PUBLISHED
from pasmr_jax.learning import losses
from pasmr_jax.learning.optim import make_optimizer
from pasmr_jax.learning.update import Learner
from pasmr_jax.models.transformer import init_params
from pasmr_jax.parallel import rules
from pasmr_jax.parallel.mesh import check_platform, make_mesh, param_shardings, shard_batch

GEMMA_3_270M = PUBLISHED["google/gemma-3-270m"]
ROWS, LENGTH, PROMPT = 8, 256, 64
UPDATES = ("supervised", "policy")


def policy_batch() -> losses.PolicyBatch:
  """Random tokens; every token behind the prompt teaches."""
  rng = np.random.default_rng(0)
  numbers = lambda: rng.normal(0, 1, (ROWS, LENGTH)).astype(np.float32)  # noqa: E731
  place = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
  return losses.PolicyBatch(
    sequences=losses.Sequences(
      tokens=rng.integers(2, 200_000, (ROWS, LENGTH)).astype(np.int32),
      positions=place,
      segment_ids=np.ones((ROWS, LENGTH), np.int32),
      weights=(place >= PROMPT).astype(np.float32),
    ),
    advantages=numbers(),
    sampler_logprobs=numbers() - 12,
    old_logprobs=None,
    reference_logprobs=numbers() - 12,
  )


def measure(update: str, remat: str, repeats: int) -> dict[str, Any]:
  """Seconds and CPU-seconds of a step, and the peak resident memory of this process in bytes."""
  config = dataclasses.replace(GEMMA_3_270M, remat=remat)
  settings = base.get_config()
  check_platform()
  mesh = make_mesh(-1, 1)
  shardings = param_shardings(config, mesh, rules.TRAINING)
  learner = Learner(
    config=config,
    optimizer=make_optimizer(settings.pam.optimizer, 100),
    valid_vocab=config.vocab_size,
  )
  with jax.set_mesh(mesh):
    initialize = jax.jit(lambda key: init_params(config, key), out_shardings=shardings)
    state = learner.init(initialize(jax.random.key(0)))
    batch = shard_batch(policy_batch(), mesh)
    taken = []
    for _ in range(repeats + 1):
      cpu, wall = time.process_time(), time.perf_counter()
      if update == "supervised":
        state, metrics = learner.update_supervised(state, batch.sequences)
      else:
        policy = losses.policy_settings(settings.srl)
        state, metrics = learner.update_policy(state, batch, None, policy, np.float32(0.0))
      jax.block_until_ready((state, metrics))
      taken.append((time.process_time() - cpu, time.perf_counter() - wall))
  if jax.default_backend() == "cpu":
    cpu, wall = min(taken[1:])
  else:  # where the host's time says little
    cpu, wall = min(taken[1:], key=lambda one: one[1])
  memory = jax.local_devices()[0].memory_stats() or {}
  return {
    "cpu_seconds": cpu,
    "seconds": wall,
    "tokens_per_second": ROWS * (LENGTH - PROMPT) / wall,
    "peak_device_bytes": memory.get("peak_bytes_in_use", 0),
    "peak_resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    "loss": float(metrics["loss"]),
    "device": jax.devices()[0].device_kind,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--remat", default="full", help="model.remat")
  parser.add_argument("--only", choices=UPDATES, help="measures this one here, and prints JSON")
  arguments = parser.parse_args()
  if arguments.only:
    print(json.dumps(measure(arguments.only, arguments.remat, arguments.repeats)))
    return
  updates = {}
  for name in UPDATES:
    command = [sys.executable, "-m", "benchmarks.update", f"--only={name}"]
    command += [f"--repeats={arguments.repeats}", f"--remat={arguments.remat}"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    updates[name] = json.loads(finished.stdout)
    taken = updates[name]
    gigabytes = (taken["peak_device_bytes"] or taken["peak_resident_bytes"]) / 1e9
    print(
      f"{name}: {taken['tokens_per_second']:.0f} tokens/s, {taken['cpu_seconds']:.1f} CPU-seconds,"
      f" {gigabytes:.2f} GB",
      flush=True,
    )
  figures = {
    "rows": ROWS,
    "length": LENGTH,
    "prompt": PROMPT,
    "remat": arguments.remat,
    "updates": updates,
  }
  record.write(arguments.out, "benchmarks.update", updates[name]["device"], figures)


if __name__ == "__main__":
  main()
