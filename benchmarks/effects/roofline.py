"""What devices could do at best, beside what was measured.

Only work that cannot be avoided counts, so that no program beats these bounds and most stay well
below them. A decoded token of every slot reads all weights and the keys and values of the row so
far, and multiplies by each weight; a learned token is multiplied by each weight three times (once
forward, twice backward; once where adapters learn and the weight has no gradient), the output
table's included. Adapters, prompts, padding, scoring by the reference and what devices send each
other are left out, which makes the bounds higher.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pasmr_jax.experiment.planning.cost import CHIPS, Chip
from pasmr_jax.experiment.planning.gpus import GPUS
from pasmr_jax.experiment.planning.workload import workload
from pasmr_jax.models.config import TransformerConfig

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}

# By JAX's device_kind.
KNOWN: Mapping[str, Chip] = {
  chip.kind: chip for chip in (*CHIPS.values(), *(gpu.chip for gpu in GPUS.values()))
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
  chip: Chip,
  model: TransformerConfig,
  slots: int,
  context: float,
  cache: str = "",
  count: int = 1,
  tensor: int = 1,
  adapters: bool = False,
) -> Bounds:
  """What equal devices could do at best together.

  Args:
    chip: each of them.
    model: whose `dtype` weights have when they are used.
    slots: rows that are decoded together, on all devices.
    context: tokens that a row holds on average while it is decoded.
    cache: type of keys and values; "" is the model's.
    count: devices.
    tensor: devices over which a layer's weights are split; each group of as many has all of them.
    adapters: whether they learn, and not the weights.
  """
  layers, table = parameters(model)
  weights = (layers + table) * BYTES[model.dtype]
  columns = sum(
    min(context, model.sliding_window) if kind == "local" else context for kind in model.layer_kinds
  )
  row = 2 * columns * model.num_kv_heads * model.head_dim * BYTES[cache or model.dtype]
  reading = (weights / tensor + slots * row / count) / chip.hbm_bandwidth
  multiplying = 2 * slots * (layers + table) / (count * chip.flops)
  return Bounds(
    sampled=slots / max(reading, multiplying),
    learned=count * chip.flops / ((4 if adapters else 6) * (layers + table)),
  )


def beside(
  rows: list[dict[str, Any]], device_kinds: Sequence[str], model: TransformerConfig, config: Any
) -> list[dict[str, Any]]:
  """Rows of `results.throughput` with `roofline/sampled` and `roofline/learned`, shares of it.

  Devices that are not in `KNOWN`, or not all the same, have no bounds, and the rows stay as they
  are. A row's context is taken as half of the measured mean response: prompts are left out. All
  arms are held to the slots of `config`: those that solve no translation may fill fewer.
  """
  chip = KNOWN.get(device_kinds[0])
  if chip is None or len(set(device_kinds)) != 1:
    return rows
  count, tensor = len(device_kinds), config.mesh.tensor
  slots = workload(config, parts=count // tensor, fill=1.0).slots
  found = []
  for row in rows:
    best = bounds(
      chip,
      model,
      slots=slots,
      context=row.get("response_length", 0.0) / 2,
      cache=config.rollout.cache_dtype,
      count=count,
      tensor=tensor,
      adapters=config.lora.rank > 0,
    )
    shares = {"roofline/learned": row["throughput/update_tokens_per_second"] / best.learned}
    if "throughput/rollout_tokens_per_second" in row:
      shares["roofline/sampled"] = row["throughput/rollout_tokens_per_second"] / best.sampled
    found.append(row | shares)
  return found
