"""Answers as `planning/worker.py` gives them, without compiling."""

from pasmr_jax.experiment.planning.cost import GIB


def part(name, calls, floor):
  return {
    "part": name, "calls": calls, "flops": 1e12, "hbm_bytes": 1e9, "collective_bytes": {},
    "seconds": {}, "floor_seconds": floor, "bound": "memory", "tokens": 100,
    "tokens_per_second": 100 / floor,
  }  # fmt: skip


def made_up(fits: bool, mesh=(1, 4, 1)):
  """The report of a rollout that fits and an update that may not."""
  over = 0 if fits else GIB // 2
  update = {
    "program": "srl update", "calls": 1, "fits": fits, "compiled": True,
    "peak_bytes": 15.75 * GIB + (over or -GIB), "over_bytes": over,
    "parts": [part("srl update", 1, 3.0)],
    "filled_by": {"moments": 9 * GIB, "parameters": 4 * GIB, "logits": 2 * GIB},
  }  # fmt: skip
  rollout = update | {
    "program": "decode", "fits": True, "over_bytes": 0,
    "parts": [part("prefill", 2, 0.25), part("decode", 2, 0.25)],
  }  # fmt: skip
  return {
    "parameters": 1000, "sizes_from": "published sizes of x", "limit_bytes": 15.75 * GIB,
    "mesh": dict(zip(("replica", "fsdp", "tensor"), mesh, strict=True)), "num_slices": mesh[0],
    "fill": 1.0, "fits": fits,
    "workload": {"slots": 4, "prefill_prompts": 2, "prefills": 3, "decodes": 1, "row_length": 64,
                 "update_rows": 8, "update_length": 64, "prompt_length": 32},
    "adjusted": ["--config.srl.microbatches=1"], "programs": [rollout, update],
  }  # fmt: skip
