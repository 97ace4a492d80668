"""What a device could do at best, beside what was measured.

Only work that cannot be avoided counts, so that no program beats these bounds and most stay well
below them. A decoded token of every slot reads all weights and the keys and values of the row so
far, and multiplies by each weight; a learned token is multiplied by each weight three times (once
forward, twice backward), the output table's included. Prompts, padding and scoring by the
reference are left out, which makes the bounds higher.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pasmr_jax.experiment.planning.gpus import GPUS
from pasmr_jax.models.config import TransformerConfig

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclasses.dataclass(frozen=True)
class Device:
  """One accelerator: dense bfloat16 compute and memory bandwidth of its maker's data sheet."""

  flops: float  # a second
  bandwidth: float  # bytes a second


# By JAX's device_kind.
DEVICES: Mapping[str, Device] = {
  gpu.kind: Device(gpu.flops, gpu.bandwidth) for gpu in GPUS.values()
}


@dataclasses.dataclass(frozen=True)
class Bounds:
  """Tokens a second at best."""

  sampled: float
  learned: float


def parameters(model: TransformerConfig) -> tuple[int, int]:
  """Weights of the layers' products, and of the output table."""
  attention = model.embed_dim * model.head_dim * 2 * (model.num_heads + model.num_kv_heads)
  mlp = 3 * model.embed_dim * model.mlp_dim
  return model.num_layers * (attention + mlp), model.vocab_size * model.embed_dim


def bounds(
  device: Device, model: TransformerConfig, slots: int, context: float, cache: str = ""
) -> Bounds:
  """What one device could do at best.

  Args:
    device: which.
    model: whose `dtype` weights have when they are used.
    slots: rows that are decoded together.
    context: tokens that a row holds on average while it is decoded.
    cache: type of keys and values; "" is the model's.
  """
  layers, table = parameters(model)
  weights = (layers + table) * BYTES[model.dtype]
  columns = sum(
    min(context, model.sliding_window) if kind == "local" else context for kind in model.layer_kinds
  )
  row = 2 * columns * model.num_kv_heads * model.head_dim * BYTES[cache or model.dtype]
  reading = (weights + slots * row) / device.bandwidth
  multiplying = 2 * slots * (layers + table) / device.flops
  return Bounds(
    sampled=slots / max(reading, multiplying),
    learned=device.flops / (6 * (layers + table)),
  )


def beside(
  rows: list[dict[str, Any]], device_kind: str, model: TransformerConfig, config: Any
) -> list[dict[str, Any]]:
  """Rows of `results.throughput` with `roofline/sampled` and `roofline/learned`, shares of it.

  A device that is not in `DEVICES` has no bounds, and its rows stay as they are. A row's context is
  taken as half of the measured mean response: prompts are left out.
  """
  device = DEVICES.get(device_kind)
  if device is None:
    return rows
  found = []
  for row in rows:
    response = row.get("response_length", 0.0)
    best = bounds(device, model, config.rollout.slots, response / 2, config.rollout.cache_dtype)
    shares = {"roofline/learned": row["throughput/update_tokens_per_second"] / best.learned}
    if "throughput/rollout_tokens_per_second" in row:
      shares["roofline/sampled"] = row["throughput/rollout_tokens_per_second"] / best.sampled
    found.append(row | shares)
  return found
