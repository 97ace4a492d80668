"""How fast does the engine sample? Tokens a second beside the floor that reading the weights sets.

    python -m benchmarks.rollout --out=runs/rollout.json

A randomly initialised decoder of Gemma 3 270M's shape in float32 continues prompts of 64 tokens by
64 tokens. Every workload runs `--repeats` times after a warm-up, all in one process, and the best
is reported with its CPU-seconds. `floor` is the time to read every weight once a token, measured in
the same process by summing them: no decoder of these weights can be faster for few rows.

`srl` is a step's sampling on a smaller decoder (`--srl_layers` of those layers and a vocabulary of
32,768, so that it takes minutes): 16 questions, 8 responses each, and 4 solutions of every
response's translation, asked for once the response has 16 tokens. Eight of 512 ids that can be
drawn end a row, so that lengths are spread about a mean of 64, at most 256. The engine serves all
of it in 64 slots; `fixed` samples the same rows 64 at a time, each batch until its longest has
ended, and the solutions after all responses.
"""

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from benchmarks import record
from pasmr_jax.experiment.planning.sizes import PUBLISHED
from pasmr_jax.models.config import TransformerConfig
from pasmr_jax.models.transformer import init_params
from pasmr_jax.parallel import rules
from pasmr_jax.parallel.mesh import check_platform, make_mesh, param_shardings
from pasmr_jax.rollout.engine import Engine, Served
from pasmr_jax.rollout.requests import Request, Usage, Watch
from pasmr_jax.rollout.sampling import make_sampling

GEMMA_3_270M = PUBLISHED["google/gemma-3-270m"]
PROMPT = NEW = 64
LONGEST = 256
DRAWABLE = 512  # ids that the srl workload draws from
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
  """Seconds and CPU-seconds of the quickest of `repeats` runs; what they need is compiled."""
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
  read(params).block_until_ready()
  floor, _ = best_of(repeats, lambda: read(params).block_until_ready())
  print(f"reading the weights once: {1000 * floor:.3g} ms, {8 / floor:.0f} tokens/s of 8 rows")
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
  """The sampling of one step: responses, and the solutions of their translations."""

  def __init__(self):
    self.prompts = prompts(16 + 128, DRAWABLE)
    self.key_data = np.asarray(jax.random.key_data(jax.random.key(1)))
    self.sampling = make_sampling(4.0, tuple(range(8)))  # flat: every 64th draw ends a row

  def request(self, number: int, samples: int, watched: bool = False) -> Request:
    return Request(
      prompt=self.prompts[number],
      name=str(number),
      key_data=self.key_data,
      samples=samples,
      max_new_tokens=LONGEST,
      sampling=self.sampling,
      watched=watched,
    )

  def responses(self, watched: bool) -> list[Request]:
    return [self.request(question, 8, watched) for question in range(16)]

  def solutions(self, question: int, sample: int) -> Request:
    return self.request(16 + question * 8 + sample, 4)

  def engine(self, engine: Engine, params) -> Served:
    asked: set[tuple[int, int]] = set()

    def watch(question: int, sample: int, tokens: np.ndarray, ended: bool) -> Sequence[Request]:
      due = (ended or len(tokens) >= 16) and (question, sample) not in asked
      asked.update({(question, sample)} if due else ())
      return [self.solutions(question, sample)] if due else ()

    return self._serve(engine, params, self.responses(watched=True), watch)

  def fixed(self, engine: Engine, params) -> Served:
    """Batches of as many rows as there are slots, one after the other."""
    first = self.responses(watched=False)
    second = [self.solutions(question, sample) for question in range(16) for sample in range(8)]
    usage, rollouts = Usage(0, 0), []
    for requests in (first, second):
      together = SLOTS // requests[0].samples
      for begin in range(0, len(requests), together):
        served = self._serve(engine, params, requests[begin : begin + together])
        usage += served.usage
        rollouts += served.rollouts
    return Served(rollouts, usage)

  def _serve(self, engine: Engine, params, requests, watch: Watch | None = None) -> Served:
    return engine.serve(
      params, requests, max_prompt_length=PROMPT, max_new_tokens=LONGEST, watch=watch
    )


def srl(mesh: jax.sharding.Mesh, repeats: int, layers: int) -> dict[str, dict[str, float]]:
  """Both ways of serving a step's rows."""
  config = dataclasses.replace(GEMMA_3_270M, num_layers=layers, vocab_size=32_768)
  engine = dataclasses.replace(make_engine(config, mesh), valid_vocab=DRAWABLE)
  whole = dataclasses.replace(engine, refill_steps=LONGEST)  # one loop until all rows have ended
  workload = Workload()
  params = engine.lay_out(random_params(config, mesh))
  figures, drawn = {}, {}
  for name, serve, used in (
    ("fixed", workload.fixed, whole),
    ("engine", workload.engine, engine),
  ):
    served = serve(used, params)
    drawn[name] = sorted(row.tolist() for rows in served.rollouts for row in rows.tokens)
    wall, cpu = best_of(repeats, lambda serve=serve, used=used: serve(used, params))
    usage = served.usage
    figures[name] = {
      "tokens_per_second": usage.tokens / wall,
      "seconds": wall,
      "cpu_seconds": cpu,
      "tokens": usage.tokens,
      "rows": len(drawn[name]),
      "slot_use": usage.tokens / usage.slot_steps,
    }
    print(
      f"srl, {name}: {usage.tokens / wall:.1f} useful tokens/s, {cpu:.1f} CPU-seconds, slots in use"
      f" {usage.tokens / usage.slot_steps:.3f}",
      flush=True,
    )
  same = sum(map(list.__eq__, drawn["fixed"], drawn["engine"]))
  print(f"srl: {same} of {len(drawn['engine'])} rows are the same both ways")
  return figures


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--parts", nargs="*", choices=("plain", "srl"), default=["plain", "srl"])
  parser.add_argument("--srl_layers", type=int, default=2)
  arguments = parser.parse_args()

  check_platform()
  mesh = make_mesh(-1, 1)
  figures: dict[str, object] = {}
  with jax.set_mesh(mesh):
    if "plain" in arguments.parts:
      figures["floor_seconds_a_token"], figures["plain"] = plain(mesh, arguments.repeats)
    if "srl" in arguments.parts:
      figures["srl"] = srl(mesh, arguments.repeats, arguments.srl_layers)
  device = jax.devices()[0].device_kind
  record.write(arguments.out, "benchmarks.rollout", device, figures)


if __name__ == "__main__":
  main()
