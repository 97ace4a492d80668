"""How fast does the engine sample? Tokens a second beside the floor that reading the weights sets.

    python -m benchmarks.rollout --out=runs/rollout.json

A randomly initialised decoder of Gemma 3 270M's shape in float32 continues prompts of 64 tokens by
64 tokens. Every workload runs `--repeats` times after a warm-up, all in one process, and the best
is reported with its CPU-seconds. `floor` is the time to read every weight once a token, measured in
the same process by summing them: no decoder of these weights can be faster for few rows.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from pasmr_jax.experiment.planning_sizes import PUBLISHED
from pasmr_jax.models.transformer import init_params
from pasmr_jax.parallel import rules
from pasmr_jax.parallel.mesh import make_mesh, param_shardings
from pasmr_jax.rollout.engine import Engine
from pasmr_jax.rollout.sampling import make_sampling

GEMMA_3_270M = PUBLISHED["google/gemma-3-270m"]
PROMPT = NEW = 64
NEVER = GEMMA_3_270M.vocab_size - 1  # a stop id that is hardly ever drawn
# name -> prompts, temperature, top-p
WORKLOADS = {
  "8 prompts, greedy": (8, 0.0, 1.0),
  "8 prompts, temperature 1": (8, 1.0, 1.0),
  "8 prompts, temperature 1, top-p 0.95": (8, 1.0, 0.95),
  "64 prompts, temperature 1": (64, 1.0, 1.0),
}


def best_of(repeats: int, run: Callable[[], object]) -> tuple[float, float]:
  """Seconds and CPU-seconds of the quickest of `repeats` runs after one that is not counted."""
  run()
  taken = []
  for _ in range(repeats):
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    taken.append((time.perf_counter() - wall, time.process_time() - cpu))
  return min(taken)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--repeats", type=int, default=3)
  arguments = parser.parse_args()

  config, mesh = GEMMA_3_270M, make_mesh(-1, 1)
  shardings = param_shardings(config, mesh, rules.DECODING)
  with jax.set_mesh(mesh):
    initialize = jax.jit(lambda key: init_params(config, key), out_shardings=shardings)
    params = initialize(jax.random.key(0))
    read = jax.jit(lambda params: sum(leaf.sum() for leaf in jax.tree.leaves(params)))
    floor, _ = best_of(arguments.repeats, lambda: read(params).block_until_ready())
    engine = Engine(
      config=config,
      mesh=mesh,
      shardings=shardings,
      valid_vocab=config.vocab_size,
      prompt_bucket=PROMPT,
      max_rows=0,
    )
    laid_out = engine.lay_out(params)
    workloads = {}
    for name, (rows, temperature, top_p) in WORKLOADS.items():
      prompts = np.random.default_rng(0).integers(2, 200_000, (rows, PROMPT)).tolist()

      def generate(prompts=prompts, temperature=temperature, top_p=top_p):
        return engine.generate(
          laid_out,
          prompts,
          [str(number) for number in range(len(prompts))],
          jax.random.key(1),
          make_sampling(temperature, (NEVER,), top_p=top_p),
          samples=1,
          max_new_tokens=NEW,
          max_prompt_length=PROMPT,
        )

      tokens = int(generate().lengths.sum())
      wall, cpu = best_of(arguments.repeats, generate)
      workloads[name] = {
        "tokens_per_second": tokens / wall,
        "seconds": wall,
        "cpu_seconds": cpu,
        "of_floor": floor * NEW / wall,
      }
      print(f"{name}: {tokens / wall:.1f} tokens/s, {cpu:.1f} CPU-seconds", flush=True)
  summary = {
    "command": "python -m benchmarks.rollout " + " ".join(sys.argv[1:]),
    "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
    "versions": {"python": platform.python_version(), "jax": jax.__version__},
    "floor_seconds_a_token": floor,
    "workloads": workloads,
  }
  print(f"reading the weights once: {1000 * floor:.0f} ms, {8 / floor:.0f} tokens/s of 8 rows")
  if arguments.out:
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
  main()
