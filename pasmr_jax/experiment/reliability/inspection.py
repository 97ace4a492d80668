"""What an update looked like that could not be made: its batch and the state before it, on disk.

`WORKDIR/inspection/STAGE-STEP/` holds `batch.N.npz` (the rows of process N, arrays by their path),
`state/` (an Orbax checkpoint of parameters and optimizer, which a skipped update leaves as they
were), `metrics.json` and the stage's samples in `rollouts.jsonl`.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pasmr_jax.experiment.reliability.storage import json_line, write_whole, writing
from pasmr_jax.parallel import processes
from pasmr_jax.parallel.mesh import local_rows


def save_for_inspection(
  workdir: pathlib.Path,
  stage: str,
  step: int,
  *,
  batch: Any,
  state: Any,
  values: Mapping[str, Any],
  rollouts: Sequence[Mapping[str, Any]],
) -> pathlib.Path:
  """Writes the folder, in place of one from an earlier try, and says where it is.

  Args:
    workdir: of the run.
    stage: its name.
    step: of the update, from 1.
    batch: a tree of arrays split by rows.
    state: a tree of arrays.
    values: the step's metrics.
    rollouts: the step's samples; this process's.
  """
  folder = workdir.absolute() / "inspection" / f"{stage}-{step}"
  number = processes.process_index()
  if number == 0:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
  processes.gather_text("")  # until the folder is there
  arrays = {
    jax.tree_util.keystr(path).lstrip("."): local_rows(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
  }
  with writing(folder, sum(array.nbytes for array in arrays.values())):
    np.savez(folder / f"batch.{number}.npz", allow_pickle=False, **arrays)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  with writing(folder, size), ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / "state", state)
  if number == 0:
    numbers = {name: float(np.asarray(value)) for name, value in values.items()}
    write_whole(folder / "metrics.json", json.dumps(numbers, indent=2) + "\n")
    write_whole(folder / "rollouts.jsonl", "".join(json_line(one) + "\n" for one in rollouts))
  return folder
