"""From what a crash or a bad disk left of a stage's checkpoints to the newest that can be used.

`recover` reads the newest checkpoint and compares it with its seal. A damaged one is moved to
`WORKDIR/damaged/STAGE/STEP`, with a warning that says what is wrong with it, and the one before it
is looked at. If none can be used nothing is moved: that takes a person.
"""

import json
import math
import pathlib
from typing import Any

from pasmr_jax.experiment.reliability.checksums import SEAL, find_damage
from pasmr_jax.parallel import processes
from pasmr_jax.stages import STAGES

ITEMS = ("params", "rest", "record")  # of a checkpoint, without its seal and its metric
RECORD_FILE = "metadata"  # in the item `record`
_METRIC = ("metrics", "metrics")  # where Orbax keeps what a checkpoint was measured at


class DamagedCheckpointError(ValueError):
  """No checkpoint can be used, or the one that was asked for cannot."""


def steps_in(directory: pathlib.Path) -> list[int]:
  """The steps of a stage's checkpoints, damaged ones too, in order."""
  if not directory.is_dir():
    return []
  return sorted(int(child.name) for child in directory.iterdir() if child.name.isdecimal())


def stages_with_checkpoints(workdir: pathlib.Path) -> list[str]:
  return [stage for stage in STAGES if steps_in(workdir / "checkpoints" / stage)]


def last_stage(workdir: pathlib.Path) -> str:
  """The last stage of which a run has a checkpoint.

  Raises:
    ValueError: there is none.
  """
  found = stages_with_checkpoints(workdir)
  if not found:
    raise ValueError(f"{workdir}: expected a run with checkpoints/STAGE/STEP, found none")
  return found[-1]


def named_stage(workdir: pathlib.Path, name: str) -> str:
  """The stage that a command line names, or for 'last' the last one that has a checkpoint.

  To be asked before `make_run`, which would make a folder that is misspelt.

  Raises:
    ValueError: the folder has no checkpoint of that stage, or of any.
  """
  last, found = last_stage(workdir), stages_with_checkpoints(workdir)
  if name not in ("last", *found):
    raise ValueError(
      f"--stage={name}: no checkpoint of stage {name} in {workdir}; there are {', '.join(found)}"
    )
  return last if name == "last" else name


def read_record(folder: pathlib.Path) -> dict[str, Any]:
  """What a checkpoint says of itself.

  Raises:
    OSError: it has no record.
    ValueError: the record is no JSON object.
  """
  record = json.loads((folder / "record" / RECORD_FILE).read_text("utf-8"))
  if not isinstance(record, dict):
    raise ValueError(f"{folder}: its record is no JSON object")
  return record


def damage(folder: pathlib.Path, items: tuple[str, ...] = ITEMS) -> list[str]:
  """Why these items of a checkpoint cannot be used, a sentence each; all processes must ask.

  A folder that only has a record is one that was being deleted, or never was complete.
  """
  problems = find_damage(folder, items)
  if problems:
    return problems
  try:
    record = read_record(folder)
  except (OSError, ValueError) as error:
    return [f"record/{RECORD_FILE} cannot be read ({type(error).__name__})"]
  if record.get("sealed") and not (folder / SEAL).is_dir():
    return [f"{SEAL}/ is missing"]
  problem = _metric_problem(folder)
  return [problem] if problem else []


def _metric_problem(folder: pathlib.Path) -> str:
  """Why what a checkpoint was measured at cannot be used; '' if it can."""
  name = "/".join(_METRIC)
  try:
    found = read_metric(folder)
  except DamagedCheckpointError:
    return f"{name} cannot be read"
  try:
    record = read_record(folder)
  except (OSError, ValueError):
    return ""  # said of the record
  written = record.get("metric", found)  # a checkpoint without one is older than this comparison
  return "" if found == written else f"{name} has {found}, not the {written} that was written"


def read_metric(folder: pathlib.Path) -> float | None:
  """What a checkpoint was measured at; None if it was not.

  Raises:
    DamagedCheckpointError: the file that says so is broken. Orbax, which reads it of every
      checkpoint before anything else, would stop there.
  """
  path = folder.joinpath(*_METRIC)
  if not path.parent.exists():
    return None
  try:
    value = json.loads(path.read_text("utf-8"))["metric"]
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise DamagedCheckpointError(f"{path} cannot be read ({type(error).__name__})") from error
  if not isinstance(value, int | float) or not math.isfinite(value):
    raise DamagedCheckpointError(f"{path}: found {value!r}, expected a number")
  return float(value)


def recover(directory: pathlib.Path) -> list[str]:
  """Puts the damaged checkpoints that stand before the newest usable one aside.

  Args:
    directory: `WORKDIR/checkpoints/STAGE`; nobody else may be writing there.

  Returns:
    A warning for each.

  Raises:
    DamagedCheckpointError: there are checkpoints, and none can be used. Nothing was changed.
  """
  steps = steps_in(directory)
  damaged: dict[int, list[str]] = {}
  for step in reversed(steps):
    problems = damage(directory / str(step))
    if not problems:
      break
    damaged[step] = problems
  if damaged and len(damaged) == len(steps):
    told = "\n  ".join(f"{step}: {'; '.join(damaged[step])}" for step in damaged)
    raise DamagedCheckpointError(
      f"{directory}: no checkpoint can be used, and nothing was deleted or moved:\n  {told}\n"
      "Put a copy of one back, or move the folder away to begin the stage anew."
    )
  for step in steps:
    if step not in damaged and (problem := _metric_problem(directory / str(step))):
      damaged[step] = [problem]
  used = max((step for step in steps if step not in damaged), default=None)
  aside = directory.parent.parent / "damaged" / directory.name
  warnings = []
  for step, problems in damaged.items():
    target = _free_name(aside / str(step))
    warnings.append(
      f"checkpoint {directory / str(step)} is damaged ({'; '.join(problems)}): moved to {target};"
      f" going on from step {used}"
    )
    if processes.process_index() == 0:
      aside.mkdir(parents=True, exist_ok=True)
      (directory / str(step)).rename(target)
  processes.gather_text("")  # until the first process has moved them
  return warnings


def _free_name(path: pathlib.Path) -> pathlib.Path:
  number, free = 1, path
  while free.exists():
    number += 1
    free = path.with_name(f"{path.name}-{number}")
  return free
