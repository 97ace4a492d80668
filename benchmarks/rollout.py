"""How fast does the engine sample? Tokens a second beside the floor that reading the weights sets.

    python -m benchmarks.rollout --out=runs/rollout.json

A randomly initialised decoder of Gemma 3 270M's shape in float32 continues prompts of 64 tokens by
64 tokens. Every workload runs `--repeats` times after a warm-up, all in one process, and the best
is reported with its CPU-seconds. `floor` is the time to read every weight once a token, measured in
the same process by summing them: no decoder of these weights can be faster for few rows.

`srl` is a step's sampling on a smaller decoder (the shape of `--srl_layers` of those layers and a
vocabulary of 32,768, so that it takes minutes): 16 questions, 8 responses each of log-normal
lengths (mean 64, at most 256), of which every second asks for 4 solutions of like lengths once it
has 16 tokens. The engine serves it in 64 slots; `fixed` serves the same rows by 64 at a time, each
batch until its longest ends, and the solutions after all responses. Useful tokens are those of the
wanted lengths; the rows are stopped there by their limits, for random weights never stop by
themselves.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from pasmr_jax.experiment.planning_sizes import PUBLISHED
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import init_params
from pasmr_jax.parallel import rules
from pasmr_jax.parallel.mesh import make_mesh, param_shardings
from pasmr_jax.rollout.engine import Engine
from pasmr_jax.rollout.requests import Request, Usage
from pasmr_jax.rollout.sampling import make_sampling

GEMMA_3_270M = PUBLISHED["google/gemma-3-270m"]
PROMPT = NEW = 64
LONGEST = 256
SLOTS = 64
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


def prompts(count: int, vocabulary: int) -> list[list[int]]:
  return np.random.default_rng(0).integers(2, vocabulary // 2, (count, PROMPT)).tolist()


def make_engine(config: TransformerConfig, mesh: jax.sharding.Mesh) -> Engine:
  return Engine(
    config=config,
    mesh=mesh,
    valid_vocab=config.vocab_size,
    prompt_bucket=PROMPT,
    slots=SLOTS,
    prefill_prompts=8,
  )


def random_params(config: TransformerConfig, mesh: jax.sharding.Mesh):
  shardings = param_shardings(config, mesh, rules.TRAINING)
  initialize = jax.jit(lambda key: init_params(config, key), out_shardings=shardings)
  return initialize(jax.random.key(0))


def plain(mesh: jax.sharding.Mesh, repeats: int) -> tuple[float, dict[str, dict[str, float]]]:
  """The floor, seconds to read the weights once, and the figures of WORKLOADS."""
  params, engine = random_params(GEMMA_3_270M, mesh), make_engine(GEMMA_3_270M, mesh)
  read = jax.jit(lambda params: sum(leaf.sum() for leaf in jax.tree.leaves(params)))
  floor, _ = best_of(repeats, lambda: read(params).block_until_ready())
  print(f"reading the weights once: {1000 * floor:.0f} ms, {8 / floor:.0f} tokens/s of 8 rows")
  laid_out = engine.lay_out(params)
  figures = {}
  for name, (rows, temperature, top_p) in WORKLOADS.items():
    asked = prompts(rows, GEMMA_3_270M.vocab_size)

    def generate(asked=asked, temperature=temperature, top_p=top_p):
      return engine.generate(
        laid_out,
        asked,
        [str(number) for number in range(len(asked))],
        jax.random.key(1),
        make_sampling(temperature, (NEVER,), top_p=top_p),
        samples=1,
        max_new_tokens=NEW,
        max_prompt_length=PROMPT,
      )

    tokens = int(generate().lengths.sum())
    wall, cpu = best_of(repeats, generate)
    figures[name] = {
      "tokens_per_second": tokens / wall,
      "seconds": wall,
      "cpu_seconds": cpu,
      "of_floor": floor * NEW / wall,
    }
    print(f"{name}: {tokens / wall:.1f} tokens/s, {cpu:.1f} CPU-seconds", flush=True)
  return floor, figures


class Workload:
  """The sampling of one step: responses, and the solutions that half of them ask for."""

  def __init__(self, vocabulary: int):
    rng = np.random.default_rng(1)
    # Log-normal with mean 64.
    lengths = np.exp(rng.normal(np.log(64) - 0.5 * 0.6**2, 0.6, (128, 5)))
    self.lengths = np.clip(lengths, 17, LONGEST).astype(int)
    self.prompts = prompts(128, vocabulary)
    self.key_data = np.asarray(jax.random.key_data(jax.random.key(1)))

  def request(self, prompt: Sequence[int], name: str, limit: int, samples=1, **more) -> Request:
    sampling = make_sampling(1.0, (0,))
    return Request(
      prompt=prompt,
      name=name,
      key_data=self.key_data,
      samples=samples,
      max_new_tokens=limit,
      sampling=sampling,
      **more,
    )

  def responses(self, watched: bool) -> list[Request]:
    """Eight of each of 16 prompts, each with a limit of its own."""
    return [
      self.request(self.prompts[row // 8], str(row), self.lengths[row, 0], watched=watched)
      for row in range(128)
    ]

  def solutions(self, row: int) -> list[Request]:
    return [
      self.request(self.prompts[row], f"{row}/{k}", self.lengths[row, k]) for k in range(1, 5)
    ]

  def engine(self, engine: Engine, params) -> Usage:
    asked: set[int] = set()

    def watch(row: int, sample: int, tokens: np.ndarray, ended: bool) -> Sequence[Request]:
      if row % 2 or row in asked or len(tokens) < 16:
        return ()
      asked.add(row)
      return self.solutions(row)

    served = engine.serve(
      params,
      self.responses(watched=True),
      max_prompt_length=PROMPT,
      max_new_tokens=LONGEST,
      watch=watch,
    )
    assert len(asked) == 64
    return served.usage

  def fixed(self, engine: Engine, params) -> Usage:
    """Batches of as many rows as there are slots, one after the other."""
    usage = Usage(0, 0, 0, 0)
    first = self.responses(watched=False)
    second = [request for row in range(0, 128, 2) for request in self.solutions(row)]
    for requests in (first, second):
      for begin in range(0, len(requests), SLOTS):
        usage += engine.serve(
          params,
          requests[begin : begin + SLOTS],
          max_prompt_length=PROMPT,
          max_new_tokens=LONGEST,
        ).usage
    return usage


def srl(mesh: jax.sharding.Mesh, repeats: int, layers: int) -> dict[str, dict[str, float]]:
  """Both ways of serving a step's rows."""
  config = dataclasses.replace(GEMMA_3_270M, num_layers=layers, vocab_size=32_768)
  engine, workload = make_engine(config, mesh), Workload(config.vocab_size)
  params = engine.lay_out(random_params(config, mesh))
  figures = {}
  for name, serve in (("fixed", workload.fixed), ("engine", workload.engine)):
    usage = serve(engine, params)
    wall, cpu = best_of(repeats, lambda serve=serve: serve(engine, params))
    figures[name] = {
      "tokens_per_second": usage.tokens / wall,
      "seconds": wall,
      "cpu_seconds": cpu,
      "slot_use": usage.tokens / usage.slot_steps,
    }
    print(
      f"srl, {name}: {usage.tokens / wall:.1f} useful tokens/s, {cpu:.1f} CPU-seconds, slots in use"
      f" {usage.tokens / usage.slot_steps:.3f}",
      flush=True,
    )
  return figures


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--srl_layers", type=int, default=6)
  arguments = parser.parse_args()

  mesh = make_mesh(-1, 1)
  with jax.set_mesh(mesh):
    floor, workloads = plain(mesh, arguments.repeats)
    workloads |= srl(mesh, arguments.repeats, arguments.srl_layers)
  summary = {
    "command": "python -m benchmarks.rollout " + " ".join(sys.argv[1:]),
    "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
    "versions": {"python": platform.python_version(), "jax": jax.__version__},
    "floor_seconds_a_token": floor,
    "workloads": workloads,
  }
  if arguments.out:
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
  main()
