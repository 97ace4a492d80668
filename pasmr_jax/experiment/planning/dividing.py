"""Rows that microbatches and devices divide. This file does without jax."""

import math

from pasmr_jax import Config
from pasmr_jax.stages import STAGES


def adjust(config: Config, parts: int) -> list[str]:
  """Lowers microbatches and raises padding, in place, until rows divide into so many parts.

  Neither changes what is learned: microbatches add up to the batch, and padding weighs nothing.
  More rows of rehearsal do change it: each holds examples. A stage that is not run gets a batch
  that divides, because train.py checks all of them.

  Returns:
    The keys it changed, as flags.
  """
  changed = []

  def put(stage: str, key: str, value: int) -> None:
    if config[stage][key] != value:
      config[stage][key] = value
      changed.append(f"--config.{stage}.{key}={value}")

  for stage in ("base", "pam"):
    if stage not in config.stages:
      put(stage, "batch_size", _rounded_up(config[stage].batch_size, parts))
  put("srl", "row_bucket", _rounded_up(config.srl.row_bucket, parts))
  if config.srl.rehearsal_weight > 0:
    put("srl", "rehearsal_rows", _rounded_up(config.srl.rehearsal_rows, parts))
  for stage in STAGES:
    rows, most = _rows(config, stage, parts), config[stage].microbatches
    fewer = (n for n in range(most, 0, -1) if rows % (n * parts) == 0)
    put(stage, "microbatches", next(fewer, most))
  return changed


def more_microbatches(config: Config, stage: str, parts: int) -> int:
  """The next number of microbatches that leaves each part a row at least; 0 if none does."""
  rows = _rows(config, stage, parts)
  more = range(config[stage].microbatches + 1, rows // parts + 1)
  return next((number for number in more if rows % (number * parts) == 0), 0)


def _rows(config: Config, stage: str, parts: int) -> int:
  """Rows that a stage's microbatches divide, raised as `adjust` raises them."""
  settings = config[stage]
  if stage != "srl":
    return settings.batch_size
  rows = _rounded_up(settings.row_bucket, parts)
  if settings.rehearsal_weight > 0:
    rows = math.gcd(rows, _rounded_up(settings.rehearsal_rows, parts))
  return rows


def _rounded_up(rows: int, parts: int) -> int:
  return -(-rows // parts) * parts
