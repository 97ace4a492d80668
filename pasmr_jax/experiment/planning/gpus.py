"""NVIDIA GPUs that programs can be compiled for without having one.

What the compiler asks a GPU where there is one is written down here for SXM modules: NVIDIA's data
sheets, and for the rest XLA's own list (openxla/xla, xla/backends/gpu/target_config/specs). This
file does without jax.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pasmr_jax.experiment.planning.cost import CHIPS, Chip

_USED = 0.75  # of a GPU's memory, which JAX takes unless XLA_CLIENT_MEM_FRACTION says otherwise
_COUNTS = ("1", "2", "4", "8")  # joined by NVLink in one host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
  """What a GPU can do at best, and what XLA's compiler asks of it."""

  kind: str  # JAX's device_kind
  flops: float  # dense bfloat16, by the data sheet
  bandwidth: float  # bytes a second of its memory, by the data sheet
  nvlink: float  # bytes a second that reach it over all links, by the data sheet
  memory: int  # bytes
  major: int  # of its compute capability
  cores: int  # streaming multiprocessors
  fpus: int  # units for float32 of one of them
  shared_memory: int  # bytes of one of them
  shared_memory_optin: int  # bytes that a block may ask for
  l2: int  # bytes
  clock_ghz: float

  @property
  def chip(self) -> Chip:
    """What the planner knows of a device; several hosts, with a network, are not planned."""
    limit = _USED * self.memory
    return Chip(
      self.kind, self.flops, self.bandwidth, self.nvlink, math.inf, limit, _COUNTS, "cuda"
    )

  def target(self) -> str:
    """A `GpuTargetConfigProto` in text form."""
    return f"""
      platform_name: "CUDA"
      device_description_str: "{self.kind}"
      dnn_version_info {{ major: 9 minor: 10 }}
      gpu_device_info {{
        name: "{self.kind}"
        cuda_compute_capability {{ major: {self.major} }}
        runtime_version: "12.8.0"
        core_count: {self.cores}
        fpus_per_core: {self.fpus}
        clock_rate_ghz: {self.clock_ghz}
        device_memory_size: {self.memory}
        memory_bandwidth: {self.bandwidth:.0f}
        l2_cache_size: {self.l2}
        shared_memory_per_core: {self.shared_memory}
        shared_memory_per_block: 49152
        shared_memory_per_block_optin: {self.shared_memory_optin}
        registers_per_core_limit: 65536
        registers_per_block_limit: 65536
        threads_per_core_limit: 2048
        threads_per_block_limit: 1024
        threads_per_warp: 32
        block_dim_limit_x: 2147483647
        block_dim_limit_y: 65535
        block_dim_limit_z: 65535
      }}
    """


def _hopper(**own: Any) -> Gpu:
  shared: dict[str, Any] = {
    "flops": 989e12,
    "nvlink": 450e9,
    "major": 9,
    "cores": 132,
    "fpus": 128,
    "shared_memory": 233_472,
    "shared_memory_optin": 232_448,
    "l2": 52_428_800,
    "clock_ghz": 1.98,
  }
  return Gpu(**shared | own)


GPUS: Mapping[str, Gpu] = {
  "a100": Gpu(
    kind="NVIDIA A100-SXM4-80GB",
    flops=312e12,
    bandwidth=2.039e12,
    nvlink=300e9,
    memory=85_100_068_864,
    major=8,
    cores=108,
    fpus=64,
    shared_memory=167_936,
    shared_memory_optin=166_912,
    l2=41_943_040,
    clock_ghz=1.41,
  ),
  "h100": _hopper(kind="NVIDIA H100 80GB HBM3", bandwidth=3.35e12, memory=84_942_979_072),
  "h200": _hopper(kind="NVIDIA H200", bandwidth=4.8e12, memory=151_397_597_184),
}


def chip(topology: str) -> Chip:
  """One device of `v5e:4x8` or `h100:8`."""
  generation = topology.partition(":")[0]
  return GPUS[generation].chip if generation in GPUS else CHIPS[generation]
