"""Reads a folder as training does, in a process of its own: `reading.py FOLDER FSDP TENSOR`.

Alone, it reads the folder twice and says on its standard output when the second time begins and
ends, so that whoever started it may watch its memory. With `JAX_NUM_PROCESSES` set it is one of
several processes, and says how many numbers it read of each tensor.
"""

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import sys
from collections import Counter

import jax

from pasmr_jax.models import pretrained
from pasmr_jax.parallel.mesh import initialize_distributed, make_mesh, param_shardings
from pasmr_jax.parallel.rules import TRAINING


def counted(opened, counts: Counter):
  """The function that opens a folder, its reads counted in numbers by tensor."""

  @contextlib.contextmanager
  def open_counted(path, config):
    with opened(path, config) as source:

      def read(name, cut):
        part = source.read(name, cut)
        counts[name] += part.size
        return part

      yield dataclasses.replace(source, read=read)

  return open_counted


def parts(leaf: jax.Array) -> dict[str, int]:
  """The sizes of the parts that this process's devices hold, each once."""
  return {str(shard.index): shard.data.size for shard in leaf.addressable_shards}


def main(folder: str, fsdp: int, tensor: int) -> None:
  initialize_distributed()
  config = pretrained.load_config(folder)
  shardings = param_shardings(config, make_mesh(fsdp, tensor), TRAINING)
  if jax.process_count() > 1:
    counts = Counter()
    pretrained.open_folder = counted(pretrained.open_folder, counts)
    params = pretrained.load_params(folder, config, shardings)
    held = {
      jax.tree_util.keystr(path): sum(
        {str(s.index): s.data.size for s in x.addressable_shards}.values()
      )
      for path, x in jax.tree_util.tree_leaves_with_path(params)
    }
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(json.dumps({"read": sum(counts.values()), "held": sum(held.values()), "total": total}))
    return
  # What is imported and compiled once is not what reading takes.
  params = pretrained.load_params(folder, config, shardings)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  del params
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)
  print(json.dumps({"process": os.getpid(), "size": size}), flush=True)
  sys.stdin.readline()
  params = pretrained.load_params(folder, config, shardings)
  print(f"read {len(jax.tree.leaves(params))} leaves", flush=True)
  sys.stdin.readline()


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
