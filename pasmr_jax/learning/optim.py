"""The optimizer of a stage, from its configuration; all of it is Optax."""

import jax
import optax

from pasmr_jax import Config

NAMES = ("adamw", "adafactor", "lion")
SCHEDULES = ("cosine", "linear", "constant")


def make_schedule(config: Config, steps: int) -> optax.Schedule:
  """Learning rate by step: linear warm-up from 0, then `config.schedule` down to `final_fraction`.

  Raises:
    ValueError: on an unknown schedule.
  """
  peak, final = config.learning_rate, config.learning_rate * config.final_fraction
  decay_steps = max(steps - config.warmup_steps, 1)
  if config.schedule == "cosine":
    decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_fraction)
  elif config.schedule == "linear":
    decay = optax.linear_schedule(peak, final, decay_steps)
  elif config.schedule == "constant":
    decay = optax.constant_schedule(peak)
  else:
    raise ValueError(f"optimizer.schedule is {config.schedule!r}; expected one of {SCHEDULES}")
  # The first update has count 0: start the warm-up at its first step, not at a rate of zero.
  warmup = lambda count: peak * (count + 1) / (config.warmup_steps + 1)  # noqa: E731
  return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
  """Clipping by global norm, then the optimizer; weight decay leaves norms' scales alone.

  Args:
    config: one stage's `optimizer` keys (configs/base.py).
    steps: length of the stage, for the schedule.

  Raises:
    ValueError: on an unknown optimizer or schedule.
  """
  schedule = make_schedule(config, steps)
  if config.name == "adamw":
    optimizer = optax.adamw(
      schedule,
      config.b1,
      config.b2,
      config.epsilon,
      weight_decay=config.weight_decay,
      mask=_decayed,
    )
  elif config.name == "adafactor":
    optimizer = optax.adafactor(
      schedule, weight_decay_rate=config.weight_decay or None, weight_decay_mask=_decayed
    )
  elif config.name == "lion":
    optimizer = optax.lion(
      schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=_decayed
    )
  else:
    raise ValueError(f"optimizer.name is {config.name!r}; expected one of {NAMES}")
  if config.clip_norm > 0:
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
  return optimizer


def _decayed(params):
  """True for matrices and tables, False for norm scales and biases."""

  def is_matrix(path, _):
    names = [entry.key for entry in path]
    return not any("norm" in name or name == "bias" for name in names)

  return jax.tree_util.tree_map_with_path(is_matrix, params)
