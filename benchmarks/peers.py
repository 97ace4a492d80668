"""How fast do others sample on the same machine? The workloads of benchmarks/rollout.py.

    pip install -r requirements-parity.txt && python -m benchmarks.peers transformers
    pip install google-tunix==0.1.7 && python -m benchmarks.peers tunix   # best in a new one

A randomly initialised decoder of Gemma 3 270M's shape in float32 continues prompts of 64 tokens by
64 tokens: `transformers` with `generate` on torch, Tunix with its own sampler on JAX. The best of
`--repeats` runs after a warm-up, with its CPU-seconds. Nothing of either is needed by the project.
"""

import argparse
import pathlib
from collections.abc import Callable

from benchmarks import record
from benchmarks.rollout import GEMMA_3_270M, NEW, PROMPT, WORKLOADS, best_of, prompts

Generate = Callable[[int, float, float], Callable[[], object]]  # rows, temperature, top-p -> a run


def transformers() -> Generate:
  import torch
  from transformers import Gemma3ForCausalLM, Gemma3TextConfig

  shape = GEMMA_3_270M
  config = Gemma3TextConfig(
    vocab_size=shape.vocab_size,
    hidden_size=shape.embed_dim,
    intermediate_size=shape.mlp_dim,
    num_hidden_layers=shape.num_layers,
    num_attention_heads=shape.num_heads,
    num_key_value_heads=shape.num_kv_heads,
    head_dim=shape.head_dim,
    query_pre_attn_scalar=shape.head_dim,
    sliding_window=shape.sliding_window,
  )
  model = Gemma3ForCausalLM(config).eval()

  def generate(rows: int, temperature: float, top_p: float) -> Callable[[], object]:
    tokens = torch.tensor(prompts(rows, shape.vocab_size))
    drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}

    @torch.inference_mode()
    def run() -> object:
      return model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        **(drawn if temperature else {"do_sample": False}),
      )

    return run

  return generate


class _Numbers:
  """What Tunix takes for a tokenizer: its texts are ids."""

  def encode(self, text: str, **_) -> list[int]:
    return [int(number) for number in text.split()]

  def decode(self, ids, **_) -> str:
    return " ".join(map(str, ids))

  def bos_id(self) -> int:
    return 2

  def eos_id(self) -> int:
    return GEMMA_3_270M.vocab_size - 1

  def pad_id(self) -> int:
    return 0


def tunix() -> Generate:
  from flax import nnx
  from tunix.generate import sampler as tunix_sampler
  from tunix.models.gemma3 import model as gemma3

  shape = GEMMA_3_270M
  model = gemma3.Gemma3(gemma3.ModelConfig.gemma3_270m(), rngs=nnx.Rngs(0))
  cache = tunix_sampler.CacheConfig(
    cache_size=2
    * (PROMPT + NEW),  # its prompts are padded to a power of two, and begin with one more
    num_layers=shape.num_layers,
    num_kv_heads=shape.num_kv_heads,
    head_dim=shape.head_dim,
  )
  sampler = tunix_sampler.Sampler(model, _Numbers(), cache)

  def generate(rows: int, temperature: float, top_p: float) -> Callable[[], object]:
    texts = [" ".join(map(str, row[1:])) for row in prompts(rows, shape.vocab_size)]
    drawn = {"temperature": temperature, "top_p": top_p, "return_logprobs": True, "seed": 0}
    return lambda: sampler(texts, NEW, max_prompt_length=PROMPT, **(drawn if temperature else {}))

  return generate


PEERS = {"transformers": transformers, "tunix": tunix}


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("peer", choices=PEERS)
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--repeats", type=int, default=2)
  parser.add_argument("--workloads", nargs="*", choices=WORKLOADS, default=list(WORKLOADS))
  arguments = parser.parse_args()
  generate, figures = PEERS[arguments.peer](), {}
  for name in arguments.workloads:
    rows = WORKLOADS[name][0]
    run = generate(*WORKLOADS[name])
    run()
    wall, cpu = best_of(arguments.repeats, run)
    figures[name] = {"tokens_per_second": rows * NEW / wall, "seconds": wall, "cpu_seconds": cpu}
    print(f"{name}: {rows * NEW / wall:.1f} tokens/s, {cpu:.1f} CPU-seconds", flush=True)
  record.write(arguments.out, f"benchmarks.peers {arguments.peer}", "cpu", {"workloads": figures})


if __name__ == "__main__":
  main()
